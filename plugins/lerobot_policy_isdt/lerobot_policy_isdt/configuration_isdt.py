"""What LeRobot knows of a policy: its window, how it is trained, and the configuration of isdt-policy inside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig

from isdt_policy.training.config import RunConfig, compose_config
from isdt_policy.training.settings import TrainingConfig


@PreTrainedConfig.register_subclass("isdt")
@dataclass
class IsdtConfig(PreTrainedConfig):
    """--policy.type=isdt.

    Attributes:
        n_obs_steps, horizon, n_action_steps: window of a policy, in control steps.
        nfe: network evaluations per chunk, 1, 2, ..., or a sampler such as euler10.
        settings: settings of `isdt train` for network, policy and objective, such as ["network.down_dims=[32,64,128]"].
        diagonal_steps: steps of the warm start, which cost less than half.
        ema_decay: of the averaged weights, which act.
        lr, weight_decay, grad_clip, warmup_steps, decay_steps: of AdamW, and of the cosine of its rate.
        seed: of the first weights.
        names: {feature of LeRobot: key of the policy}; filled in.
        isdt: isdt-policy's own configuration; filled in.
    """

    n_obs_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    nfe: str = "1"
    settings: list[str] = field(default_factory=list)
    diagonal_steps: int = 2000
    ema_decay: float = TrainingConfig.ema_decay
    lr: float = TrainingConfig.lr
    weight_decay: float = TrainingConfig.weight_decay
    grad_clip: float = TrainingConfig.grad_clip
    warmup_steps: int = TrainingConfig.warmup_steps
    decay_steps: int = 20000
    seed: int = 42
    names: dict[str, str] = field(default_factory=dict)
    isdt: dict[str, Any] = field(default_factory=dict)
    # isdt-policy normalises inside, with statistics that are saved with the weights.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ENV", "ACTION"), NormalizationMode.IDENTITY)
    )

    def run_config(self) -> RunConfig:
        """The settings as isdt-policy checks them; InputError where they are wrong."""
        window = [f"policy.{name}={getattr(self, name)}" for name in ("n_obs_steps", "horizon", "n_action_steps")]
        return RunConfig.read(compose_config(["experiment=own_robot", *window, *self.settings]))

    @property
    def observation_delta_indices(self) -> list[int]:
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(1 - self.n_obs_steps, 1 - self.n_obs_steps + self.horizon))

    @property
    def reward_delta_indices(self) -> None:
        return None

    @property
    def drop_n_last_frames(self) -> int:
        """A window may end n_action_steps - 1 steps after its episode, as isdt-policy's own do."""
        return self.horizon - self.n_action_steps - self.n_obs_steps + 1

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(lr=self.lr, betas=(0.9, 0.99), weight_decay=self.weight_decay, grad_clip_norm=self.grad_clip)

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=self.warmup_steps, num_decay_steps=self.decay_steps, peak_lr=self.lr, decay_lr=0.0
        )

    def validate_features(self) -> None:
        if not self.input_features or self.action_feature is None:
            raise ValueError("isdt policies read at least one observation and answer a feature called action.")
