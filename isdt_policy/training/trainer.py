"""The training loop.

Every random number of step n is a function of (seed, n): the windows by the shuffled order of their epoch, the noise,
times and dropped conditions by a generator seeded afresh each step. So a resumed run needs no generator state and replays
nothing: 200 steps and 100 + kill + 100 steps give the same bits on a CPU.
"""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isdt_policy.datasets.windows import batch_indices
from isdt_policy.method.flow_map import FlowMap, with_tangent
from isdt_policy.method.objectives.base import Loss, Objective
from isdt_policy.method.policy import Policy
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.progress import Progress
from isdt_policy.training import checkpoint
from isdt_policy.training.ema import EMA
from isdt_policy.training.loggers import Log


class Windows(Protocol):
    """A set of training windows that can be read by number."""

    @property
    def n_windows(self) -> int: ...

    def batch(self, indices: NDArray[np.int64]) -> Mapping[str, Any]:
        """{"obs": {key: (B, n_obs_steps, d)}, "action": (B, horizon, action_dim), "is_pad": (B, horizon)}."""
        ...


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long and how to train.

    Attributes:
        seed: of the initial weights, the data order and every draw.
        steps: optimiser steps.
        batch_size: windows per step.
        lr, betas, weight_decay: AdamW.
        warmup_steps: linear warm-up, followed by a cosine to zero at `steps`.
        diagonal_steps: first steps that train the diagonal alone, at less than half the cost of a full step; the warm start
            from which self-distillation then goes on in the same run.
        grad_clip: largest norm of the gradient; 0 does not clip.
        ema_decay: of the averaged weights that are evaluated.
        amp: "bf16" runs the network's training evaluations under autocast (the finite difference stays in float32), "off"
            runs everything in float32, "auto" chooses bf16 where the device multiplies it in hardware. The choice is kept in
            the checkpoint, so that a run resumed on another machine stays the same run.
        compile: torch.compile the network; falls back to eager with the reason.
        threads: CPU threads; 0 leaves PyTorch's choice.
        device: "cpu", "cuda", ...
        log_every, validate_every, checkpoint_every: in steps.
        keep_checkpoints: newest checkpoints kept besides last and best.
        mask_padding: leave the copies that fill up a window past its episode's end out of the loss. They teach the policy
            to stand still where a demonstration stopped; without them it carries on.
        tensorboard: mirror the log to TensorBoard if it is installed.
    """

    seed: int = 42
    steps: int = 20000
    batch_size: int = 256
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-6
    warmup_steps: int = 200
    diagonal_steps: int = 0
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    amp: str = "auto"
    compile: bool = False
    threads: int = 0
    device: str = "cpu"
    log_every: int = 50
    validate_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 1
    mask_padding: bool = False
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"training.{name} must be at least 1, got {getattr(self, name)}.")
        if self.amp not in ("auto", "bf16", "off"):
            raise InputError(f"training.amp='{self.amp}' is not one of auto, bf16, off.")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"training.ema_decay must be in [0, 1), got {self.ema_decay}.")


class NonFiniteLoss(InputError):
    """A loss term became NaN or infinite; names the step and the term."""


class Trainer:
    """Trains one policy on one set of windows in one run directory.

    Args:
        policy: built and with its normaliser fitted; holds the online weights.
        objective: the loss.
        train, validation: windows to learn from and to measure the action error on (None: no validation).
        config: see `TrainingConfig`.
        run: directory for log and checkpoints.
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        train: Windows,
        validation: Windows | None,
        config: TrainingConfig,
        run: Path,
    ) -> None:
        if not train.n_windows:
            raise InputError("the training set holds no windows; lower the horizon, or check the episodes.")
        policy.normalizer.check()
        self.config, self.run, self.objective = config, Path(run), objective
        self.train, self.validation = train, validation
        self.device = torch.device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.amp = config.amp if config.amp != "auto" else "bf16" if multiplies_bf16(self.device) else "off"
        self.policy = policy.to(self.device).train()
        self.ema = EMA(self.policy, Policy(policy.config).to(self.device), config.ema_decay)
        self.parameters = list(self.policy.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self.warm_start = objective
        if config.diagonal_steps:
            if not hasattr(objective, "off_diagonal_weight"):
                raise InputError("training.diagonal_steps needs an objective with a self-distillation term.")
            self.warm_start = dataclasses.replace(objective, off_diagonal_weight=0.0)  # type: ignore[type-var]
        self.flow_map, self.compile_note = _compiled(policy.flow_map) if config.compile else (policy.flow_map, "off")
        self.step = 0
        self.best = math.inf

    # One step, from its number.

    def learning_rate(self, step: int) -> float:
        """See the function of this name."""
        return learning_rate(self.config, step)

    def indices(self, step: int) -> NDArray[np.int64]:
        """Windows of a step; see `batch_indices`."""
        return batch_indices(self.train.n_windows, self.config.batch_size, self.config.seed, step)

    def _to_device(self, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        obs = {key: torch.as_tensor(batch["obs"][key]).to(self.device) for key in self.policy.obs_keys}
        return obs, torch.as_tensor(batch["action"]).to(self.device)

    def train_step(self) -> dict[str, float]:
        """Do step `self.step` and return its numbers.

        A step in which torch.compile fails (the first one, or the first of the second phase) is done again without it.
        """
        if self.compile_note != "on":
            return self._train_step()
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._train_step()
        except TorchDynamoException as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.compile_note = f"failed: {reason}"
            print(f"isdt train: torch.compile failed ({reason}), so training runs uncompiled", file=sys.stderr)
            self.flow_map = self.policy.flow_map
            # A failure inside a derivative leaves its level of forward-mode AD open, and there is room for one.
            with suppress(RuntimeError):  # none is open
                torch._C._exit_dual_level(level=0)
            return self._train_step()

    def _train_step(self) -> dict[str, float]:
        c = self.config
        batch = self.train.batch(self.indices(self.step))
        obs, action = self._to_device(batch)
        keep = ~torch.as_tensor(batch["is_pad"]).to(self.device) if c.mask_padding else None
        generator = torch.Generator().manual_seed((c.seed * 1_000_003 + self.step) % 2**63)
        rate = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # The encoder stays in float32: bfloat16 would round a position in a 500 px world to 1 px.
        cond = self.policy.encode(obs)
        x = self.policy.normalizer.normalize_action(action, obs)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp == "bf16"):
            objective = self.warm_start if self.step < c.diagonal_steps else self.objective
            loss: Loss = objective(self.flow_map, x, cond, self.policy.null, generator, keep=keep)
        values = {"loss": loss.total.item(), **{name: term.item() for name, term in loss.terms.items()}}
        for name, value in values.items():
            if name != "loss" and not math.isfinite(value):
                raise NonFiniteLoss(f"step {self.step}: loss term '{name}' is {value}. {_NON_FINITE_ADVICE}")
        if not math.isfinite(values["loss"]):
            raise NonFiniteLoss(f"step {self.step}: the loss is {values['loss']}. {_NON_FINITE_ADVICE}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        norm = torch.nn.utils.get_total_norm(p.grad for p in self.parameters if p.grad is not None)
        if not torch.isfinite(norm):
            raise NonFiniteLoss(f"step {self.step}: the gradient norm is {norm.item()}. {_NON_FINITE_ADVICE}")
        if c.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, c.grad_clip, norm)
        self.optimizer.step()
        self.ema.update(self.step)
        self.step += 1
        return {**values, "grad_norm": norm.item(), "lr": rate}

    @torch.no_grad()
    def validate(self, limit: int = 1024) -> float:
        """Mean squared error of the averaged weights' actions, in normalised units: at one step, or at what the objective's
        policies are usually sampled with.

        It tells a broken run from a healthy one, and does not rank healthy ones: success rates do that.
        """
        assert self.validation is not None
        policy = self.ema.module
        n = min(limit, self.validation.n_windows)
        chosen = np.linspace(0, self.validation.n_windows - 1, n).astype(np.int64)
        generator = torch.Generator().manual_seed(0)
        total = 0.0
        for start in range(0, n, 256):
            obs, action = self._to_device(self.validation.batch(chosen[start : start + 256]))
            x = policy.normalizer.normalize_action(action, obs)
            z = torch.randn(x.shape, generator=generator).to(x)
            predicted = policy.sample(z, policy.encode(obs), policy.sampling.usual_nfe)
            total += (predicted - x).square().mean(dim=(1, 2)).sum().item()
        return total / n

    # The run.

    def resume(self) -> None:
        """Continue from the last checkpoint of the run directory."""
        state = checkpoint.load(self.run, self.policy, self.ema.module, self.optimizer)
        self.step, self.best = int(state["step"]), float(state["best"] if state["best"] is not None else math.inf)
        if self.config.amp == "auto":
            self.amp = state.get("amp", self.amp)

    def save(self, metric: float | None) -> Path:
        best = metric is not None and metric <= self.best
        if best and metric is not None:
            self.best = metric
        state = {"best": self.best if math.isfinite(self.best) else None, "seed": self.config.seed, "amp": self.amp}
        return checkpoint.save(
            self.run, self.step, self.policy, self.ema.module, self.optimizer, state,
            best=best, keep=self.config.keep_checkpoints,
        )  # fmt: skip

    def fit(self, until: int | None = None) -> None:
        """Train to `config.steps`, or to step `until` on the way there, logging and writing checkpoints, one at the end."""
        c = self.config
        goal = c.steps if until is None else min(until, c.steps)
        log = Log(self.run, self.step, c.tensorboard)
        bar = Progress(c.steps, "train", initial=self.step)
        window: list[dict[str, float]] = []
        started, started_step = time.monotonic(), self.step
        try:
            while self.step < goal:
                values = self.train_step()
                window.append(values)
                # The terms, not their adaptively weighted sum: that one stays near 1 however well a run goes.
                terms = {k: v for k, v in values.items() if k not in ("loss", "grad_norm", "lr")}
                bar.update(1, **(terms or {"loss": values["loss"]}), grad=values["grad_norm"], lr=values["lr"])
                if self.step % c.log_every == 0 or self.step == goal:
                    mean = {key: float(np.mean([v[key] for v in window if key in v])) for key in values}
                    mean["grad_norm_max"] = max(v["grad_norm"] for v in window)
                    elapsed = time.monotonic() - started
                    log.write(self.step, {
                        **mean, "steps_per_s": (self.step - started_step) / elapsed, "elapsed_s": elapsed,
                        "epoch": self.step * c.batch_size / self.train.n_windows, "peak_rss_mb": _peak_rss_mb(),
                    })  # fmt: skip
                    window = []
                metric = None
                if self.validation is not None and (self.step % c.validate_every == 0 or self.step == goal):
                    metric = self.validate()
                    log.write(self.step, {"val_action_mse": metric})
                if self.step % c.checkpoint_every == 0 or self.step == goal:
                    self.save(metric)
        finally:
            bar.close()
            log.close()


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then cosine to zero at the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def multiplies_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware; elsewhere they are emulated, forty times as slow as float32 on AVX2."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in checks)


_NON_FINITE_ADVICE = (
    "Lower training.lr, keep training.grad_clip=1, or set training.amp=off; the last checkpoint is intact."
)


def _compiled(flow_map: FlowMap) -> tuple[FlowMap, str]:
    """torch.compile of the network, alone and with a tangent; or the flow map itself and the reason why not."""
    import shutil

    if not (shutil.which("g++") or shutil.which("clang++")):
        note = "no C++ compiler (g++ or clang++) on the PATH, so training runs uncompiled"
        print(f"isdt train: {note}", file=sys.stderr)
        return flow_map, note
    tangent = torch.compile(partial(with_tangent, flow_map.network))
    return FlowMap(torch.compile(flow_map.network), flow_map.path, tangent), "on"


def _peak_rss_mb() -> float:
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
