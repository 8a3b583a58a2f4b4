"""The training loop.

Every random number of step n is a function of (seed, n): the windows by the shuffled order of their epoch, the noise,
times and dropped conditions by a generator that is seeded afresh for each step. So a run that goes on needs no generator
state and repeats nothing: 200 steps and 100 + kill + 100 steps give the same bits on a CPU.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isdt_policy.datasets.windows import Batch, batch_indices
from isdt_policy.method.device import find_device, multiplies_bf16
from isdt_policy.method.networks.image_encoder import PLAIN, Look
from isdt_policy.method.objectives.base import Loss, Objective
from isdt_policy.method.objectives.endpoint import Averaged
from isdt_policy.method.objectives.isd import ISD
from isdt_policy.method.policy import Policy
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.progress import Progress
from isdt_policy.training import checkpoint
from isdt_policy.training.compiling import Plan, compiled, compiling, forget_unloadable, reason
from isdt_policy.training.distributed import ALONE, World, check_divides
from isdt_policy.training.ema import EMA
from isdt_policy.training.interrupt import Interrupted, StopRequest, stop_requests
from isdt_policy.training.loggers import Log, Silence
from isdt_policy.training.memory import peak_memory
from isdt_policy.training.optimizer import optimizer_of
from isdt_policy.training.phases import begins_from_average, learning_rate, objectives_of, phase_of, rows_of
from isdt_policy.training.prefetch import Prefetch
from isdt_policy.training.readings import BEHIND, NonFiniteLoss, Readings, means, shown
from isdt_policy.training.rollouts import Rollouts
from isdt_policy.training.settings import TrainingConfig

__all__ = ["NonFiniteLoss", "Trainer", "TrainingConfig", "Windows"]

_VALIDATION_WINDOWS, _VALIDATION_BATCH = 1024, 256


class Windows(Protocol):
    """A set of training windows that can be read by number."""

    @property
    def n_windows(self) -> int: ...

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The windows of these numbers."""
        ...


class Trainer:
    """Trains one policy on one set of windows in one run directory.

    Args:
        policy: built and with its normaliser fitted; holds the online weights.
        objective: the loss.
        train: windows to learn from.
        validation: windows on which the action error is measured; None, or a set without windows, for no validation.
        config: see `TrainingConfig`.
        run: directory for log and checkpoints.
        finish: windows that the finish learns from, if not from `train`.
        world: the processes that train together.

    Raises:
        InputError: nothing to train on, a policy without statistics, a device that is not there, a warm start for an
            objective that has none, or a batch that the processes cannot share equally.
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        train: Windows,
        validation: Windows | None,
        config: TrainingConfig,
        run: Path,
        finish: Windows | None = None,
        world: World = ALONE,
    ) -> None:
        if not train.n_windows:
            raise InputError("the training set holds no windows; lower the horizon, or check the episodes.")
        policy.normalizer.check()
        self.config, self.run, self.objective = config, Path(run), objective
        self.train, self.validation = train, validation if validation and validation.n_windows else None
        self.finish = finish or train
        self.world = world
        self.device = find_device(world.device(config.device), "training.device")
        self.amp = config.amp if config.amp != "auto" else "bf16" if multiplies_bf16(self.device) else "off"
        self.policy = policy.to(self.device).train()
        self.ema = EMA(self.policy, Policy(policy.config).to(self.device), config.ema_decay)
        self.optimizer = optimizer_of(self.policy, config)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.objectives = objectives_of(objective, config)
        check_divides(world.size, rows_of(self.objectives.values(), config))
        on_gpu = self.device.type == "cuda"
        self.readings = Readings(BEHIND if on_gpu else 0)
        self.batches = Prefetch(lambda step: self._windows(step).batch(self.indices(step)), ahead=on_gpu, pin=on_gpu)
        self.plan = Plan.of(config)
        self.flow_map, self.compile_note = policy.flow_map, "off"
        if self.plan.network:
            self.flow_map, self.compile_note = compiled(
                policy.flow_map, self.device, config.graphs, self.plan.derivative
            )
        self.averaged_flow_map = self.ema.module.flow_map
        if self.compile_note == "on" and config.endpoint_steps:
            network = torch.compile(self.averaged_flow_map.network)
            self.averaged_flow_map = dataclasses.replace(self.averaged_flow_map, network=network)
        self._stop: StopRequest | None = None
        self.step = 0
        self.best = math.inf

    # One step, from its number.

    def learning_rate(self, step: int) -> float:
        """See `phases.learning_rate`."""
        return learning_rate(self.config, step)

    def indices(self, step: int) -> NDArray[np.int64]:
        """Windows of a step that this process learns from; see `batch_indices`."""
        whole = batch_indices(self._windows(step).n_windows, self.config.batch_size, self.config.seed, step)
        return whole[self.world.rank :: self.world.size]

    def train_step(self) -> dict[str, float]:
        """Do step `self.step`, wait for its numbers and return them; see `advance`."""
        return [*self.advance(), *self.readings.rest()][-1]

    def advance(self) -> list[dict[str, float]]:
        """Do step `self.step`, and return the numbers of the steps that are known by now: on a CPU those of this one.

        A GPU is not waited for. It leaves the weights as they are in a step whose numbers are not finite, and the error comes
        when they are read.

        A step in which torch.compile fails (the first one, or the first of the second phase) is done again without it.

        Raises:
            NonFiniteLoss: the loss, one of its terms or the gradient is not finite; the weights are as before that step.
            Interrupted: Ctrl-C, which reaches every program of a terminal, ended the compiler too; see `fit`.
            InputError: another process of this training has ended, or the GPU's memory does not hold the step.
        """
        try:
            return self._advance()
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"step {self.step} does not fit into the memory of {self.device}. Take a smaller training.batch_size or network, "
                "or share the batch among GPUs (nproc=N); the last checkpoint is intact."
            ) from error

    def _advance(self) -> list[dict[str, float]]:
        if self.compile_note != "on":
            return self._train_step()
        from torch._dynamo.exc import TorchDynamoException  # takes half a second to import

        try:
            return self._train_step()
        except TorchDynamoException as error:
            why = reason(error)
            if self._stop is not None and self._stop.signal:
                if self.world.rank == 0:
                    self.save()
                raise Interrupted(self.step, self._stop.signal) from None
            if forget_unloadable(error):
                return self._advance()
            self.compile_note = f"failed: {why}"
            print(f"isdt train: torch.compile failed ({why}), so training runs uncompiled", file=sys.stderr)
            self.flow_map, self.averaged_flow_map = self.policy.flow_map, self.ema.module.flow_map
            return self._train_step()

    def _train_step(self) -> list[dict[str, float]]:
        if begins_from_average(self.config, self.step):
            self.policy.load_state_dict(self.ema.module.state_dict())
            self.optimizer.state.clear()
        if self.config.graphs:  # what graphs of the last step answered may be written over from here on
            torch.compiler.cudagraph_mark_step_begin()
        loss = self._loss(self.batches(self.step))
        values = {"loss": loss.total.detach(), **{name: term.detach() for name, term in loss.terms.items()}}

        # Gradient, of the whole batch.
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.world.average([*gradients, *values.values()])
        norm = torch.nn.utils.get_total_norm(gradients)
        rate = self.learning_rate(self.step)
        finite = self.readings.add(self.step, {**values, "grad_norm": norm}, rate)
        known = self.readings.due()
        if self.readings.behind:  # what is not known yet must not reach the weights: a fused step skips itself
            self.optimizer.found_inf, self.optimizer.grad_scale = (~finite).float(), None  # type: ignore[attr-defined]
        if self.config.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.grad_clip, norm)

        # Weights, and their average.
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        self.ema.update(self.step)
        self.step += 1
        return known

    def _loss(self, batch: Batch) -> Loss:
        c = self.config
        obs, action = self._to_device(batch)
        keep = ~torch.as_tensor(batch["is_pad"]).to(self.device, non_blocking=True) if c.mask_padding else None
        generator = self.world.generator((c.seed * 1_000_003 + self.step) % 2**63)
        # The encoder stays in float32: bfloat16 would round a position in a 500 px world to 1 px.
        # Of pictures the convolutions may be rounded; what tells where something is, is not.
        look = self._look(len(action))
        encode = partial(_encoded, look=look, copies=c.draws_per_obs)
        cond = encode(self.policy, obs)
        x = _repeated(self.policy.normalizer.normalize_action(action, obs), c.draws_per_obs)
        keep = keep if keep is None else _repeated(keep, c.draws_per_obs)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp == "bf16"):
            objective = self.objectives[phase_of(c, self.step)]
            if not isinstance(objective, ISD) or objective.endpoint_weight <= 0:
                return objective(self.flow_map, x, cond, self.policy.null, generator, keep=keep)
            with torch.no_grad():
                teacher = Averaged(self.averaged_flow_map, encode(self.ema.module, obs))
            return objective(self.flow_map, x, cond, self.policy.null, generator, keep=keep, averaged=teacher)

    def gradient_of_rows(self, rows: int) -> None:
        """See `memory.Measurable`. Of the phases the one that takes longest is that of the objective itself."""
        step, flow_map = self.step, self.flow_map
        self.step, self.flow_map = min(self.config.diagonal_steps, self.config.steps - 1), self.policy.flow_map
        try:
            indices = np.resize(self.indices(self.step), rows)
            self._loss(self._windows(self.step).batch(indices)).total.backward()
        finally:
            self.step, self.flow_map = step, flow_map
            self.optimizer.zero_grad(set_to_none=True)

    def _look(self, batch: int) -> Look:
        """How this step reads pictures: where each window is cropped, in which light, and whether convolutions run in bfloat16."""
        cameras = self.policy.cameras
        if cameras is None:
            return PLAIN
        # Of its own, so that noise and times are what they are without pictures.
        seed = (self.config.seed * 1_000_003 + self.step) * 2 + 1
        generator = torch.Generator().manual_seed(seed % 2**63)
        share = self.world.share
        whole = share.of(batch)  # of the whole batch, as all draws
        corners = {key: share.take(rows) for key, rows in cameras.draw_corners(whole, generator).items()}
        tints = {key: share.take(rows).to(self.device) for key, rows in cameras.draw_tints(whole, generator).items()}
        return Look(corners, tints, self.amp == "bf16")

    def _windows(self, step: int) -> Windows:
        """What a step learns from."""
        return self.train if step < self.config.finish_start else self.finish

    def _to_device(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        read = {key: batch["obs"][key] for key in self.policy.obs_keys} | {"action": batch["action"]}
        sent = {key: torch.as_tensor(value).to(self.device, non_blocking=True) for key, value in read.items()}
        return sent, sent.pop("action")

    @torch.no_grad()
    def validate(self, limit: int = _VALIDATION_WINDOWS) -> float:
        """Mean squared error of the averaged weights' actions, in normalised units, at one network evaluation, or at the
        number with which policies of this objective are usually sampled.

        It tells a broken run from a healthy one. It does not rank healthy ones: success rates do that.
        """
        assert self.validation is not None
        policy = self.ema.module
        n = min(limit, self.validation.n_windows)
        chosen = np.linspace(0, self.validation.n_windows - 1, n).astype(np.int64)
        generator = torch.Generator().manual_seed(0)
        total = 0.0
        for start in range(0, n, _VALIDATION_BATCH):
            obs, action = self._to_device(self.validation.batch(chosen[start : start + _VALIDATION_BATCH]))
            x = policy.normalizer.normalize_action(action, obs)
            z = torch.randn(x.shape, generator=generator).to(x)
            predicted = policy.sample(z, policy.encode(obs), policy.sampling.usual_nfe)
            total += (predicted - x).square().mean(dim=(1, 2)).sum().item()
        return total / n

    # The run.

    def resume(self) -> None:
        """Continue from the last checkpoint of the run directory."""
        self.readings.forget()
        state = checkpoint.load(self.run, self._trained())
        self.step, self.best = state.step, math.inf if state.best is None else state.best
        if self.config.amp == "auto" and state.amp:
            self.amp = state.amp
        if state.threads and not self.config.threads and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, state.threads // self.world.size))

    def save(self, metric: float | None = None) -> Path:
        """Write a checkpoint; `metric` is the validation error, if it was just measured."""
        best = metric is not None and metric <= self.best
        if best and metric is not None:
            self.best = metric
        lowest = self.best if math.isfinite(self.best) else None
        threads = self.world.size * torch.get_num_threads()
        state = checkpoint.State(self.step, self.config.seed, self.amp, lowest, threads)
        return checkpoint.save(self.run, self._trained(), state, best=best, keep=self.config.keep_checkpoints)

    def _trained(self) -> checkpoint.Trained:
        return checkpoint.Trained(self.policy, self.ema.module, self.optimizer)

    def fit(self, until: int | None = None) -> None:
        """Train to `config.steps`, or to step `until` on the way there, logging and writing checkpoints, one at the end.

        After `config.max_minutes` it ends too, with a checkpoint.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint of the last step is written.
            NonFiniteLoss: see `advance`.
        """
        goal = self.config.steps if until is None else min(until, self.config.steps)
        writes = self.world.rank == 0
        log = Log(self.run, self.step, self.config.loggers) if writes else Silence()
        every = self.config.eval_every
        rollouts = Rollouts(self.run, every, self.config.eval_episodes, log, self.step) if every and writes else None
        stream = None if writes else io.StringIO()
        bar = Progress(self.config.steps, "train", initial=self.step, trend=True, stream=stream)
        try:
            with stop_requests(bar.note) as self._stop:
                self._fit(goal, log, bar, self._stop, rollouts)
                if rollouts:
                    bar.pause()
                    bar.note(f"train: {rollouts.finish()}")
        finally:
            if rollouts:
                rollouts.stop()
            bar.close()
            log.close()

    def _fit(self, goal: int, log: Log | Silence, bar: Progress, stop: StopRequest, rollouts: Rollouts | None) -> None:
        c, first, started = self.config, self.step, time.monotonic()
        window: list[dict[str, float]] = []
        while self.step < goal:
            # One step.
            if self.compile_note == "on" and (part := self.plan.next(c, self.step)):
                bar.pause()
                bar.note(compiling(part))
            window += self.advance()
            late = c.max_minutes > 0 and time.monotonic() - started >= 60 * c.max_minutes
            # The same step is the last one for all processes, whichever of them was asked to stop.
            signal, over = divmod(self.world.largest(2 * stop.signal + late), 2)
            logs = self.step % c.log_every == 0 or self.step == goal
            validates = self.validation is not None and (self.step % c.validate_every == 0 or self.step == goal)
            saves = self.step % c.checkpoint_every == 0 or self.step == goal or bool(signal or over)
            if logs or validates or saves:
                window += self.readings.rest()  # nothing is written of steps that are not known to be good
            success = {"success": rollouts.latest.success} if rollouts and rollouts.latest else {}
            bar.update(1, **(shown(window[-1], success) if window else {}))

            # What it was like.
            if logs:
                elapsed = time.monotonic() - started
                speed = {"steps_per_s": (self.step - first) / elapsed, "elapsed_s": elapsed}
                epoch = {"epoch": self.step * c.batch_size / self.train.n_windows}
                log.write(self.step, {**means(window), **speed, **epoch, **peak_memory(self.device)})
                window = []
            metric = None
            if validates and self.world.rank == 0:
                metric = self.validate()
                log.write(self.step, {"val_action_mse": metric})

            # What is left of it.
            if saves and self.world.rank == 0:
                log.sync()
                self.save(metric)
            if rollouts and (told := rollouts.after(self.step, self.ema.module)):
                bar.note(f"train: {told}")
            if signal and self.step < goal:
                raise Interrupted(self.step, signal)
            if over:
                break
        self.world.largest(0)  # nobody leaves before the last checkpoint is written


def _encoded(policy: Policy, obs: dict[str, Tensor], look: Look, copies: int) -> Tensor:
    """Embeddings of a batch, encoded once."""
    return _repeated(policy.encode(obs, look), copies)


def _repeated(rows: Tensor, copies: int) -> Tensor:
    """All rows, and all of them again: the first rows of a batch stay different windows."""
    return rows if copies == 1 else rows.repeat(copies, *[1] * (rows.ndim - 1))
