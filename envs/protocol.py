"""What evaluation and deployment need of a policy: a small protocol, defined low in the house.

Anything with these members can be rolled out: a trained policy, a remote server, a scripted expert, a plain function in
an adapter. `eval` and `deploy` import this file and never a policy class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from isdt_policy.shared.looks import Looks

Arrays: TypeAlias = Mapping[str, NDArray[Any]]  # per key, of any number type
Observation: TypeAlias = dict[str, NDArray[Any]]
Info: TypeAlias = dict[str, Any]  # as Gymnasium has it: values of any type


@dataclass(frozen=True)
class ObsSpec:
    """One observation that a policy reads.

    Attributes:
        shape: of one step, without batch or time axes.
        kind: "state" (numbers, normalised by their statistics) or "image" (height, width, channel; scaled by a constant).
        dtype: NumPy name.
        unit: physical unit of the entries, if it is known.
        crop: (height, width) of the part of a picture that the policy reads; None reads all of it.
        source: shape of the pictures that the camera gives, where they were resized to `shape` before training; the policy then
            takes either.
        looks: how the recorded pictures look; None where nobody has looked.
    """

    shape: tuple[int, ...]
    kind: Literal["state", "image"] = "state"
    dtype: str = "float32"
    unit: str = ""
    crop: tuple[int, int] | None = None
    source: tuple[int, ...] | None = None
    looks: Looks | None = None

    @property
    def size(self) -> int:
        """Number of entries.

        >>> ObsSpec((9, 2)).size
        18
        """
        return math.prod(self.shape)


@runtime_checkable
class Policy(Protocol):
    """A policy that answers a batch of observation histories with a batch of action chunks."""

    # Read-only here, so that plain attributes and properties both satisfy the protocol.

    @property
    def n_obs_steps(self) -> int:
        """Number of observations in a history, newest last."""
        ...

    @property
    def n_action_steps(self) -> int:
        """Number of actions to execute from each answer."""
        ...

    @property
    def obs_keys(self) -> tuple[str, ...]:
        """Observation keys the policy reads."""
        ...

    def reset(self) -> None:
        """Forget everything about earlier episodes."""

    def predict_action(
        self,
        obs: Mapping[str, NDArray[np.generic]],
        *,
        nfe: int | str = 1,
        noise_seeds: NDArray[np.int64] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Return action chunks for a batch of observation histories.

        Args:
            obs: per key an array (batch, n_obs_steps, *feature), in the environment's own units.
            nfe: network evaluations per chunk, or a named baseline sampler such as "euler10".
            noise_seeds: (batch, 2) integers (episode seed, decision index). Row i's noise is a function of row i alone,
                so that an episode's actions do not depend on its neighbours in the batch. None draws fresh noise.

        Returns:
            "action": (batch, n_action_steps, action_dim) to execute now;
            "action_pred": (batch, horizon, action_dim), the whole predicted window, whose first entry belongs to the
            oldest observation. Both in the environment's own units.
        """
        ...


def frozen(policy: Policy, nfe: int | str, *, one_row: bool) -> Policy:
    """The same policy, ready to be asked so, if it can be made ready; see `isdt_policy.method.policy.Policy.freeze`.

    Args:
        policy: what will be asked.
        nfe: how.
        one_row: for one robot, whose answers need not be those that it would get among others. Otherwise the rows of a call, and
            with them the last bits, stay.
    """
    freeze = getattr(policy, "freeze", None)
    if freeze is None:
        return policy
    ready: Policy = freeze(nfe, rows=1 if one_row else getattr(policy, "inference_rows", 1))
    return ready
