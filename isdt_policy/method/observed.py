"""Observations at a policy's door: complete, of the right shapes and types, or one line that says what to do."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from isdt_policy.method.policy_config import PolicyConfig
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.pixels import check_bytes, check_layout, fitted

Observed = dict[str, NDArray[np.generic]]


def observed(config: PolicyConfig, obs: Mapping[str, object]) -> tuple[Observed, int]:
    """What a policy reads of observation histories, and how many there are.

    Pictures of the camera's own size are made as small as those that the policy was trained on, if it was told of both.

    Args:
        config: the policy's.
        obs: {key: (batch, n_obs_steps, *shape)}.

    Raises:
        InputError: a missing key, a wrong shape or type, NaN, or an empty batch.
    """
    found: Observed = {}
    batch = None
    for key, spec in config.observations.items():
        if key not in obs:
            raise InputError(f"the policy reads observation '{key}', given: {', '.join(obs)}.{nearest(key, obs)}")
        value, shape = np.asarray(obs[key]), (spec.size,) if spec.kind == "state" else spec.shape
        if spec.kind == "image":
            value = fitted(value, shape, spec.source)
            check_layout(value.shape[2:], key, shape)
            check_bytes(value.dtype, key)
        expected = f"(batch, n_obs_steps={config.n_obs_steps}, {', '.join(map(str, shape))})"
        if value.shape[1:] != (config.n_obs_steps, *shape) or (batch not in (None, value.shape[0])):
            raise InputError(f"observation '{key}' has shape {value.shape}, expected {expected}.")
        if not np.isfinite(value).all():
            raise InputError(f"observation '{key}' holds NaN or infinity; the policy will not act on it.")
        found[key], batch = value, value.shape[0]
    if not batch:
        raise InputError("predict_action was given an empty batch.")
    return found, batch
