"""A policy of isdt-policy behind LeRobot's `PreTrainedPolicy`."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from torch import Tensor, nn

from isdt_policy.datasets.formats.lerobot_names import keys_of
from isdt_policy.envs.protocol import ObsSpec
from isdt_policy.method.normalization import Normalizer
from isdt_policy.method.policy import Policy
from isdt_policy.method.policy_config import PolicyConfig
from isdt_policy.training.ema import decay_at
from lerobot_policy_isdt.configuration_isdt import IsdtConfig


class IsdtPolicy(PreTrainedPolicy):
    """Trains on batches of LeRobot and acts in its environments and on its robots.

    Args:
        config: see `IsdtConfig`.
        dataset_stats: statistics of the features; a policy whose weights are loaded takes those that it was trained with.
    """

    config_class = IsdtConfig
    name = "isdt"

    def __init__(self, config: IsdtConfig, dataset_stats: dict[str, Any] | None = None, **_: Any) -> None:
        super().__init__(config)
        config.validate_features()
        self._objective = config.run_config().objective
        self._warm_start = self._objective
        if hasattr(self._objective, "off_diagonal_weight"):
            self._warm_start = dataclasses.replace(self._objective, off_diagonal_weight=0.0)  # type: ignore[type-var]
        if config.isdt:
            built = Policy(PolicyConfig.from_json(config.isdt))
        else:
            built = _fresh(config, dataset_stats)
            config.isdt = plain(built.config)
        for parameter in built.parameters():  # LeRobot saves the optimizer's state, and refuses channels_last
            parameter.data = parameter.data.contiguous()
        self.policy = built
        self.averaged = Policy(built.config)
        self.averaged.requires_grad_(False).load_state_dict(built.state_dict())
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.reset()

    def get_optim_params(self) -> Iterator[nn.Parameter]:  # type: ignore[override]
        return self.policy.parameters()

    def reset(self) -> None:
        self._history: deque[dict[str, np.ndarray]] = deque(maxlen=self.config.n_obs_steps)
        self._actions: deque[Tensor] = deque()

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The objective on a batch with its history and its chunk; steps beyond an episode's end count as they are filled in."""
        if self.training and torch.is_grad_enabled():
            self._follow()
        step = int(self.steps)
        obs = {key: value for key, value in self._read(batch, torch.float32).items()}
        x = self.policy.normalizer.normalize_action(batch[ACTION], obs)
        device = x.device
        generator = torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))
        objective = self._warm_start if step <= self.config.diagonal_steps else self._objective
        policy = self.policy
        loss = objective(policy.flow_map, x, policy.encode(obs), policy.null, generator)
        return loss.total, {name: float(term.detach()) for name, term in loss.terms.items()}

    @torch.no_grad()
    def _follow(self) -> None:
        """The averaged weights follow those that the optimizer has left."""
        online, averaged = list(self.policy.parameters()), list(self.averaged.parameters())
        if int(self.steps):
            torch._foreach_lerp_(averaged, online, 1 - decay_at(self.config.ema_decay, int(self.steps) - 1))
        self.steps += 1

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """(batch, n_action_steps, action_dim) from a batch with its history, or from the observations that came so far."""
        obs = self._numpy(batch)
        n, states = self.config.n_obs_steps, self.averaged.config.observations
        if all(obs[key].ndim == 2 + len(spec.shape) and obs[key].shape[1] == n for key, spec in states.items()):
            return self._predict(obs)
        self._history.extend([obs] * (1 if self._history else n))
        return self._predict({key: np.stack([row[key] for row in self._history], 1) for key in obs})

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """The action (batch, action_dim) of this step; a chunk is computed when the last one is used up."""
        obs = self._numpy(batch)
        self._history.extend([obs] * (1 if self._history else self.config.n_obs_steps))
        if not self._actions:
            chunk = self._predict({key: np.stack([row[key] for row in self._history], 1) for key in obs})
            self._actions.extend(chunk.unbind(1))
        return self._actions.popleft()

    def _predict(self, obs: dict[str, np.ndarray]) -> Tensor:
        rows = len(next(iter(obs.values())))
        seeds = torch.randint(2**62, (rows, 2)).numpy()  # of LeRobot's seed
        nfe: int | str = int(self.config.nfe) if self.config.nfe.isdigit() else self.config.nfe
        action = self.averaged.predict_action(obs, nfe=nfe, noise_seeds=seeds)["action"]
        return torch.from_numpy(action[:, : self.config.n_action_steps]).to(self.averaged.null.device)

    def _read(self, batch: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """What the policy reads, by its own keys: states as they are, pictures as bytes with their channels last."""
        found = {}
        for name, key in self.config.names.items():
            if name not in batch:
                raise KeyError(f"the policy reads '{name}'; the batch has {', '.join(batch)}")
            value, picture = batch[name], self.averaged.config.observations[key].kind == "image"
            found[key] = (value * 255).round().to(torch.uint8).movedim(-3, -1) if picture else value.to(dtype)
        return found

    def _numpy(self, batch: dict[str, Tensor]) -> dict[str, np.ndarray]:
        return {key: value.cpu().numpy() for key, value in self._read(batch, torch.float32).items()}


def plain(config: PolicyConfig) -> dict[str, Any]:
    """A configuration as JSON has it: lists, no tuples."""
    return dict(json.loads(json.dumps(config.to_json())))


def _fresh(config: IsdtConfig, stats: dict[str, Any] | None) -> Policy:
    """A policy with first weights and the statistics of a dataset; with none it refuses to act until weights are loaded."""
    run = config.run_config()
    features = config.input_features or {}
    config.names = keys_of(features)
    observations = {}
    for name, key in config.names.items():
        shape = tuple(features[name].shape)
        if features[name].type is FeatureType.VISUAL:
            observations[key] = run.policy.image_encoder.seen((*shape[1:], shape[0]), key)
        else:
            observations[key] = ObsSpec(shape)
    assert config.action_feature is not None
    size = int(config.action_feature.shape[0])
    sizes = {key: spec.size for key, spec in observations.items() if spec.kind == "state"}
    torch.manual_seed(config.seed)
    normalizer = Normalizer(sizes, config.horizon, size, run.policy.action_reference)
    sigma = 1.0
    if stats is not None:
        known = {key: _numbers(stats, name) for name, key in config.names.items() if key in sizes}
        known["action"] = _numbers(stats, ACTION)
        normalizer.fit(known, run.policy.obs_normalization, run.policy.action_normalization)
        sigma = normalizer.action_spread(known["action"])
    chosen = dataclasses.replace(run.policy, observations=observations, action_dim=size, sigma_data=sigma)
    return Policy(chosen, normalizer=normalizer)


def _numbers(stats: dict[str, Any], name: str) -> dict[str, np.ndarray]:
    if not stats.get(name):
        raise ValueError(
            f"the dataset has no statistics of '{name}' (meta/stats.json); training without them would not normalise."
        )
    return {key: np.asarray(stats[name][key], np.float64) for key in ("min", "max", "mean", "std")}
