"""What can be set about data and training; the docstrings are the help of `isdt train --keys`."""

from __future__ import annotations

from dataclasses import dataclass, field

from isdt_policy.datasets.own_task import ACTIONS
from isdt_policy.shared.errors import InputError, nearest

MOST_THREADS = 4096  # more are a slip of the keyboard


@dataclass(frozen=True)
class DataConfig:
    """Which demonstrations and which of their keys.

    Attributes:
        path: a store (directory or .zip), or "bundled:pusht_expert".
        obs_keys: observations the policy reads; empty takes the task's default, or what a robot's own recordings show.
        action_key: key that holds the commanded action, if it is not called action.
        actions: what the actions of a robot's own recordings are, if they do not say it: "absolute" for positions to go to,
            "delta" for displacements and velocities. It decides which command means that the robot stands still.
        rate_hz: steps per second of a robot's own recordings, if they do not say it; 0: as they say.
        max_train_episodes: use at most this many training episodes; 0 uses all.
        mask: train on the episodes of this named mask only, such as robomimic's "train"; empty takes all.
        val_mask: hold out the episodes of this mask, such as "valid", instead of a share drawn by val_ratio.
        val_ratio: share of the episodes held out for the validation error.
        split_seed: seed of the draw of those episodes.
        mirror: also train on the mirror image of every episode, for tasks that have that symmetry.
        hindsight: name goals in hindsight, for tasks where that can be done. Every episode, and every push in it, is moved
            to a scene in which the place where it ended is the goal. An episode that stopped near the goal then shows how to
            reach it.
        nudges: "off", "finish" or "always": also learn from the beginnings of pushes, with the goal named a few pixels from
            where the block rested; in the finish alone, or in the whole run. Needs hindsight.
    """

    path: str = "bundled:pusht_expert"
    obs_keys: tuple[str, ...] = ()
    action_key: str = ""
    actions: str = ""
    rate_hz: float = 0.0
    max_train_episodes: int = 0
    mask: str = ""
    val_mask: str = ""
    val_ratio: float = 0.02
    split_seed: int = 42
    mirror: bool = False
    hindsight: bool = False
    nudges: str = "off"

    def __post_init__(self) -> None:
        allowed = ("off", "finish", "always")
        if self.nudges not in allowed:
            raise InputError(
                f"data.nudges='{self.nudges}' is not one of {', '.join(allowed)}.{nearest(self.nudges, allowed)}"
            )
        if self.actions not in ("", *ACTIONS):
            raise InputError(
                f"data.actions='{self.actions}' is not one of {', '.join(ACTIONS)}.{nearest(self.actions, ACTIONS)}"
            )
        if not 0 <= self.split_seed < 2**63:
            raise InputError(f"data.split_seed must be from 0 to 2**63 - 1, got {self.split_seed}.")
        if self.max_train_episodes < 0:
            raise InputError(
                f"data.max_train_episodes must be at least 0, which uses all; got {self.max_train_episodes}."
            )
        if not 0 <= self.rate_hz < float("inf"):
            raise InputError(f"data.rate_hz={self.rate_hz} must be above 0, or 0 to believe the recordings.")
        if self.nudges != "off" and not self.hindsight:
            raise InputError("data.nudges are goals named in hindsight; add data.hindsight=true.")


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how to train.

    Attributes:
        seed: seed of the initial weights, the data order and every draw.
        steps: optimiser steps. Where they are given and the parts below are not, the parts of an experiment keep their shares.
        max_minutes: end after so many minutes, compiling included, with a checkpoint from which `isdt train resume=RUN` goes on
            for as many again; 0 has no end but `steps`, to which the learning rate is planned in any case.
        init: fine-tune: begin with the weights and the normaliser of this policy, a run, a checkpoint or zoo:NAME. Observations,
            network and normalisation must be the same. A low rate (training.lr=2e-4) and no warm start
            (training.diagonal_steps=0) keep most of what it knows.
        batch_size: windows in a step.
        draws_per_obs: how often each window of a batch is used, each time with noise and times of its own. Observations are encoded
            once for all of them, which is what costs most where a policy reads pictures.
        lr: largest learning rate of AdamW.
        trunk_lr: factor of the learning rates for a pretrained trunk (images.trunk=timm:...), which needs less.
        betas: decay rates of AdamW's two averages.
        weight_decay: of AdamW.
        warmup_steps: steps of the linear warm-up. A cosine to zero follows, which ends where the finish begins.
        diagonal_steps: the warm start. The first steps train the diagonal only, at less than half the cost of a full step.
            Self-distillation then goes on from there in the same run.
        finish_steps: the finish, near the end. It goes on from the averaged weights, at a low learning rate of its own, and
            learns from what `data.nudges=finish` adds. iSD-T trains the diagonal only there, to take the flow to its end.
        endpoint_steps: the last steps. They teach the endpoint (`objective.endpoint_weight`) beside the diagonal, from the
            averaged weights of the finish on. It is not taught before, because a map is no better than the flow that teaches it.
        finish_lr: largest learning rate of the finish.
        endpoint_lr: largest learning rate of the steps that teach the endpoint.
        grad_clip: largest norm of the gradient; 0 does not clip.
        ema_decay: decay of the averaged weights, which are the ones that are evaluated.
        amp: "bf16" runs the network's training evaluations under autocast (the finite difference stays in float32); "off"
            runs everything in float32; "auto" takes bf16 where the device multiplies it in hardware. The checkpoint keeps the
            choice, so that a run that goes on elsewhere stays the same run.
        compile: compile the network with torch.compile: true, false, or "auto" for what saves more time than compiling it takes.
            That depends on the number of steps alone: the network from 3000 on, its derivative from 1000 of self-distillation on.
            An experiment whose training.steps are changed takes auto. Where compiling fails, training says why and goes on.
        graphs: on a GPU, start what was compiled as CUDA graphs, one launch each (torch.compile's mode reduce-overhead). Off by
            default, because no card has shown yet what it brings.
        threads: CPU threads; 0 takes as many as there are free cores when the run begins, and keeps that number when it goes on.
        device: "auto" takes a CUDA GPU if there is one; or "cpu", "cuda", "cuda:1", "mps".
        tf32: on a GPU, round the factors of float32 products to 10 bits: faster, and less exact. Products in bf16 stay.
        deterministic: on a GPU, only algorithms that give the same bits every time on the same kind of GPU; slower. A CPU always
            does.
        log_every: steps between lines of the log.
        validate_every: steps between measurements of the validation error.
        checkpoint_every: steps between checkpoints.
        eval_every: steps between measurements of success, by episodes in the task's simulator, in a process of their own; 0 runs
            none. checkpoints/best_success keeps the weights that did best.
        eval_episodes: episodes of each, on selection seeds.
        keep_checkpoints: number of newest checkpoints that are kept; the last one always is, and the one with the lowest validation
            error.
        mask_padding: leave the copies that fill a window beyond the end of its episode out of the loss. They teach the policy
            to stand still where a demonstration stopped; without them it carries on.
        loggers: where numbers go besides log.jsonl: tensorboard, wandb, trackio; "auto" takes TensorBoard if it is installed.
    """

    seed: int = 42
    steps: int = 20000
    max_minutes: float = 0.0
    init: str = ""
    batch_size: int = 256
    draws_per_obs: int = 1
    lr: float = 1e-3
    trunk_lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-6
    warmup_steps: int = 200
    diagonal_steps: int = 0
    finish_steps: int = 0
    endpoint_steps: int = 0
    finish_lr: float = 5e-4
    endpoint_lr: float = 3e-4
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    amp: str = "auto"
    compile: bool | str = field(default=False, metadata={"or": ("auto",)})
    graphs: bool = False
    threads: int = 0
    device: str = "auto"
    tf32: bool = False
    deterministic: bool = False
    log_every: int = 50
    validate_every: int = 500
    checkpoint_every: int = 500
    eval_every: int = 0
    eval_episodes: int = 20
    keep_checkpoints: int = 1
    mask_padding: bool = False
    loggers: tuple[str, ...] = ("auto",)

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "draws_per_obs",
            "log_every",
            "validate_every",
            "checkpoint_every",
            "eval_episodes",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"training.{name} must be at least 1, got {getattr(self, name)}.")
        for name in (
            "max_minutes",
            "lr",
            "trunk_lr",
            "warmup_steps",
            "diagonal_steps",
            "finish_steps",
            "endpoint_steps",
            "finish_lr",
            "endpoint_lr",
            "grad_clip",
            "weight_decay",
            "threads",
            "eval_every",
            "keep_checkpoints",
        ):
            if getattr(self, name) < 0:
                raise InputError(f"training.{name} must be at least 0, got {getattr(self, name)}.")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"training.seed must be from 0 to 2**63 - 1, got {self.seed}.")
        if self.threads > MOST_THREADS:
            raise InputError(
                f"training.threads must be at most {MOST_THREADS}, got {self.threads}; 0 takes as many as are free."
            )
        if self.amp not in ("auto", "bf16", "off"):
            raise InputError(
                f"training.amp='{self.amp}' is not one of auto, bf16, off.{nearest(self.amp, ('auto', 'bf16', 'off'))}"
            )
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"training.ema_decay must be in [0, 1), got {self.ema_decay}.")
        if self.graphs and not self.compile:
            raise InputError("training.graphs starts what was compiled; add training.compile=true.")
        if len(self.betas) != 2 or not all(isinstance(b, (int, float)) and 0 <= b < 1 for b in self.betas):
            raise InputError(f"training.betas must be two numbers in [0, 1), got {list(self.betas)}.")

    @property
    def finish_start(self) -> int:
        """The first step of the finish, or of what follows it."""
        return self.endpoint_start - self.finish_steps

    @property
    def endpoint_start(self) -> int:
        """The first step that teaches the endpoint after the finish; `steps` if none does."""
        return self.steps - self.endpoint_steps

    def check_parts(self, warm_start_given: bool) -> None:
        """Refuse a warm start, a finish or an endpoint that leaves no step for the objective itself.

        Args:
            warm_start_given: the user asked for this warm start, which may then fill the whole run. That of an experiment may
                not: a run shortened by training.steps would be nothing else without a word.

        Raises:
            InputError: the parts do not fit into the run.
        """
        if self.finish_start < self.steps and self.diagonal_steps >= self.finish_start:
            raise InputError(
                f"training.diagonal_steps={self.diagonal_steps}, finish_steps={self.finish_steps} and "
                f"endpoint_steps={self.endpoint_steps} leave none of training.steps={self.steps}, which counts them all. "
                "Give more steps, or shorten them."
            )
        if self.diagonal_steps >= self.steps and not warm_start_given:
            raise InputError(
                f"the warm start of the experiment, training.diagonal_steps={self.diagonal_steps}, leaves none of "
                f"training.steps={self.steps} for self-distillation. Give training.diagonal_steps={self.steps // 2}, or more steps."
            )
