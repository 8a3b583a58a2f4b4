"""Continuing a started chunk: choosing and inpainting with a flow map.

Real-time chunking (2506.07339) guides each small step of a flow towards the actions that are already due. A flow map jumps
from noise to data in one evaluation, so there is no path to guide. What it can do instead:

    z_1 ... z_K                                     noise of K candidates, one row each of the same evaluation
    data_k = X(z_k, 1 -> 0)
    data   = data_1 if it is in the mode of the frozen actions, else the data_k nearest to them
    for times 1 > t_1 > ... > t_n = 0:
        data <- known where weight is 1, data elsewhere
        x_t   = alpha(t) data + beta(t) z'          back to the path, with noise of its own for every jump
        data  = X(x_t, t -> 0)                      one evaluation
    data <- known where weight is 1

The choice of a candidate finds the mode that the frozen actions belong to. Jumps alone cannot find it: once the first jump has
landed in another mode, the free actions outvote the frozen ones (tests/deploy/test_freezing.py has an example). Among the
candidates in the right mode the first is taken, not the nearest: the nearest reproduces the errors of the old plan (PushT,
200 ms: 74 % success; with the first, 85 %). The later jumps start from points whose known part lies on its true path, so the
network fits the rest to it (RePaint, 2201.09865, does this along a diffusion). Each needs new noise: data and the noise that it
came from are not independent, and a mixture of the two is wider than anything the network has seen (72 % success against 85 %,
both without latency). This takes two evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import interpolate
from isdt_policy.method.observed import observed
from isdt_policy.method.policy import Policy
from isdt_policy.method.replay import Replay
from isdt_policy.method.samplers import uniform_grid
from isdt_policy.shared.errors import InputError

CANDIDATES = 16
SAME_MODE = 1.0  # root mean square distance over the frozen actions, in normalised units (data has about unit variance)


def inpaint(
    flow_map: FlowMap, noise: Tensor, cond: Tensor, times: Sequence[float], known: Tensor, weight: Tensor
) -> Tensor:
    """Sample a chunk (batch, horizon, action_dim) that agrees with `known` where `weight` is 1.

    Args:
        noise: (batch, candidates + n - 1, horizon, action_dim): of the candidates, then one for each later jump.
        cond: (batch, cond_dim).
        times: 1 = t_0 > ... > t_n = 0, n evaluations.
        known: (batch, horizon, action_dim), in normalised units.
        weight: (batch, horizon), 1 frozen, 0 free.
    """
    frozen = (weight == 1)[..., None].to(known)
    later = len(times) - 2
    z, fresh = noise[:, : noise.shape[1] - later], noise[:, noise.shape[1] - later :]
    candidates = z.shape[1]

    def jump(x: Tensor, time: float, cond: Tensor) -> Tensor:
        start = torch.full_like(x[:, 0, 0], time)
        return flow_map.step(x, start, torch.zeros_like(start), cond)

    data = jump(z.flatten(0, 1), 1.0, cond.repeat_interleave(candidates, dim=0)).reshape(z.shape)
    entries = (frozen.sum(dim=(1, 2)) * known.shape[2]).clamp_min(1)[:, None]
    distance = (frozen[:, None] * (data - known[:, None]).square()).sum(dim=(2, 3)) / entries  # (batch, candidates)
    # Among those close enough the first, whichever way ties are broken.
    order = distance.clamp_min(SAME_MODE**2) + 1e-6 * torch.arange(
        candidates, dtype=distance.dtype, device=distance.device
    )
    chosen = order.argmin(dim=1)[:, None, None, None].expand(-1, 1, *z.shape[2:])
    data = data.gather(1, chosen)[:, 0]
    for i in range(later):
        time = times[1 + i]
        there = torch.where(frozen == 1, known, data)
        data = jump(interpolate(flow_map.path, there, fresh[:, i], torch.full_like(there[:, 0, 0], time)), time, cond)
    return torch.where(frozen == 1, known, data)


def inpainting_grid(nfe: int | str) -> tuple[float, ...]:
    """Time grid of `inpaint` for a number of evaluations: at least two, because the first jump does not know the frozen actions."""
    try:
        n = int(nfe)
    except ValueError:
        raise InputError(f"nfe='{nfe}': continuing a chunk takes a number of evaluations, such as 2.") from None
    return uniform_grid(max(2, n))


def candidate_noise(
    shape: tuple[int, int, int], draws: int, noise_seeds: NDArray[np.int64] | None
) -> NDArray[np.float32]:
    """Noise (batch, draws, horizon, action_dim); the first draw of a row is the noise of `predict_action`."""
    batch, *rest = shape
    seeds = [None] * batch if noise_seeds is None else [[abs(int(n)) for n in row] for row in np.asarray(noise_seeds)]
    if len(seeds) != batch:
        raise InputError(f"noise_seeds has {len(seeds)} rows, the batch {batch}.")
    return np.stack([np.random.default_rng(s).standard_normal((draws, *rest), dtype=np.float32) for s in seeds])


def require_flow_map(policy: Policy) -> None:
    """Refuse networks that were not trained to jump from any time to the data."""
    if policy.sampling.kind != "flow_map":
        raise InputError(
            f"continuing chunks needs a flow map; this policy is of kind '{policy.sampling.kind}'. Use mode=async."
        )


class PrefixPolicy:
    """A trained policy that can continue a started chunk, for `Runtime(mode="rtc")`.

    Satisfies the policy protocol; `predict_action` is the policy's own.

    Args:
        policy: trained, with its statistics.
        candidates: K of the module docstring.
    """

    def __init__(self, policy: Policy, candidates: int = CANDIDATES) -> None:
        if candidates < 1:
            raise InputError(f"candidates={candidates} must be at least 1.")
        require_flow_map(policy)
        self.policy, self.candidates = policy, candidates
        self._replays: dict[tuple[float, ...], Replay] = {}
        self.n_obs_steps, self.n_action_steps, self.horizon = policy.n_obs_steps, policy.n_action_steps, policy.horizon
        self.obs_keys, self.task, self.config = policy.obs_keys, policy.task, policy.config

    @property
    def inference_rows(self) -> int:
        """Rows per network call of `predict_action`; see the policy's."""
        return self.policy.inference_rows

    @property
    def computes_on(self) -> str:
        """Where it computes; see the policy's."""
        return self.policy.computes_on

    def alone(self) -> PrefixPolicy:
        """The same for one robot: one row a network call; see the policy's."""
        return self.freeze()

    @torch.inference_mode()
    def freeze(self, *nfe: int | str, rows: int = 1) -> PrefixPolicy:
        """The same, ready for calls of so many rows; see `isdt_policy.method.policy.Policy.freeze`."""
        frozen = PrefixPolicy(self.policy.freeze(*nfe, rows=rows), self.candidates)
        policy = self.policy
        for times in {inpainting_grid(asked) for asked in nfe}:
            *seen, noise = policy.blank(rows)
            more = noise[:, None].expand(-1, self.candidates + len(times) - 2, -1, -1)
            given = [*seen, more, noise, noise[..., 0]]
            frozen._replays[times] = Replay(partial(frozen._continued, times), given)
        return frozen

    def _continued(self, times: Sequence[float], given: Sequence[Tensor]) -> Tensor:
        """Actions in the environment's units, from what is on the device: observations, noise, known actions and weights."""
        *seen, z, known, weight = given
        policy = self.policy
        obs = dict(zip(policy.config.observations, seen))
        y = policy.normalizer.normalize_action(known, obs)
        x = inpaint(policy.flow_map, z, policy.encode(obs), times, y, weight)
        answer = policy.normalizer.unnormalize_action(x, obs)
        return torch.where((weight == 1)[..., None], known, answer)  # to the last bit

    def reset(self) -> None:
        """Nothing to forget."""
        self.policy.reset()

    def predict_action(
        self,
        obs: Mapping[str, NDArray[np.generic]],
        *,
        nfe: int | str = 1,
        noise_seeds: NDArray[np.int64] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """See `isdt_policy.method.policy.Policy.predict_action`."""
        return self.policy.predict_action(obs, nfe=nfe, noise_seeds=noise_seeds)

    @torch.inference_mode()
    def continue_action(
        self,
        obs: Mapping[str, NDArray[np.generic]],
        known: NDArray[np.floating],
        weight: NDArray[np.floating],
        *,
        nfe: int | str = 2,
        noise_seeds: NDArray[np.int64] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Like `predict_action`, in agreement with known actions.

        Args:
            obs: {key: (batch, n_obs_steps, d)}, the environment's units.
            known: (batch, horizon, action_dim), the environment's units; the first entry belongs to the oldest observation.
            weight: (batch, horizon), 1 where an action is frozen, 0 where it is free.
            nfe: network evaluations; 1 is taken as 2.
            noise_seeds: as in `predict_action`.
        """
        policy = self.policy
        given, batch = observed(policy.config, obs)
        shape = (batch, self.horizon, policy.config.action_dim)
        if np.shape(known) != shape or np.shape(weight) != shape[:2]:
            raise InputError(
                f"known {np.shape(known)} and weight {np.shape(weight)} must have shapes {shape} and {shape[:2]}."
            )
        if not np.isin(weight, (0, 1)).all():
            raise InputError("weight must be 1 (frozen) or 0 (free) for every action.")
        times = inpainting_grid(nfe)
        noise = candidate_noise(shape, self.candidates + len(times) - 2, noise_seeds)
        seen = [np.asarray(given[key], spec.dtype) for key, spec in policy.config.observations.items()]
        arrays = [*seen, noise, np.asarray(known, np.float32), np.asarray(weight, np.float32)]
        replay = self._replays.get(times) if batch == policy.inference_rows else None
        if replay is not None:
            answer = replay([torch.as_tensor(array) for array in arrays])
        else:
            answer = self._continued(times, [torch.as_tensor(array, device=policy.null.device) for array in arrays])
        pred = answer.cpu().numpy()
        first = self.n_obs_steps - 1
        return {"action": pred[:, first : first + self.n_action_steps], "action_pred": pred}
