"""One training run: from settings to a directory that holds the policy and all that is needed to go on."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import torch

from isdt_policy import __version__
from isdt_policy.method.device import describe_gpu, find_device, set_arithmetic
from isdt_policy.method.networks import network_name
from isdt_policy.method.objectives import completed
from isdt_policy.method.policy import Policy, weights_sha256
from isdt_policy.shared import files, terminal
from isdt_policy.shared.cores import free_cores
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.progress import duration
from isdt_policy.shared.provenance import commit, decides_bits, differences
from isdt_policy.shared.values import parse_json
from isdt_policy.training.config import RunConfig, Section, load_config
from isdt_policy.training.data import data_sha256, fitted_policy, read_demonstrations
from isdt_policy.training.distributed import ALONE, World, digest, joined
from isdt_policy.training.init import begun_from
from isdt_policy.training.interrupt import Interrupted
from isdt_policy.training.memory import check_room, free_bytes, need_of
from isdt_policy.training.rollouts import check_task
from isdt_policy.training.settings import TrainingConfig
from isdt_policy.training.trainer import Trainer

# Settings in which a run may go on that was started with others: training does not read how a policy draws when it acts, and
# where the run and its numbers are computed is not what is computed.
_MAY_DIFFER = {"if_exists", "resume", "run_dir", "policy.noise_scale", "training.device", "training.loggers",
             "training.max_minutes", "training.eval_every", "training.eval_episodes"}  # fmt: skip

# Settings that came later, at the value that changes nothing: a run from before one existed was made with that.
LATER = {
    "data.action_key": "", "data.actions": "", "data.rate_hz": 0.0, "data.nudges": "off", "training.init": "",
    "training.draws_per_obs": 1, "training.finish_steps": 0, "training.endpoint_steps": 0,
    "training.eval_every": 0, "training.eval_episodes": TrainingConfig.eval_episodes,
    "training.tf32": False, "training.deterministic": False, "training.graphs": False,
    "training.trunk_lr": TrainingConfig.trunk_lr,
    "training.finish_lr": TrainingConfig.finish_lr, "training.endpoint_lr": TrainingConfig.endpoint_lr,
}  # fmt: skip


def train(config: Mapping[str, object], command: str = "") -> Path:
    """Train a policy, or go on with a run that was interrupted.

    What is done is told on stderr. Ctrl-C and SIGTERM end the run after the step in progress, with a checkpoint.

    Args:
        config: settings, from `compose_config` or `load_config`.
        command: the line that asked for it, for the record.

    Returns:
        The run directory: log.jsonl and checkpoints/last/policy, which `Policy.from_pretrained` takes.

    Raises:
        InputError: settings, data or a directory that cannot be used; nothing is written then.
        Interrupted: a signal ended the run early.
        NonFiniteLoss: the loss became NaN or infinite.
        Told: an error of a training in several processes, raised in another process than the first, which raises it as it is.
    """
    with joined(RunConfig.read(config).training.device) as world, ExitStack() as held:
        return _train(config, command, world, held)


def _train(config: Mapping[str, object], command: str, world: World, held: ExitStack) -> Path:
    """`train` in one of the processes that train together; `held` is let go of at the end."""
    settings = RunConfig.read(config)
    run, goal = settings.run, settings.training.steps
    say = _say if world.rank == 0 else _say_nothing
    world.first(lambda: _check_free(settings))
    # Everything is checked before anything is written.
    trainer, report = world.together(lambda: build_trainer(config, world))
    world.agree(_facts(config, trainer))
    report += world.together(lambda: _room(trainer))

    def begin() -> None:
        held.enter_context(_claimed(run))
        if settings.if_exists == "overwrite" and (run / "config.json").exists():
            files.remove(run)
        write_run(config, trainer, command)

    world.first(begin)
    if world.rank and (run / "checkpoints" / "last").exists():
        trainer.resume()
    world.agree({"the step of the last checkpoint": trainer.step})
    if trainer.step >= goal:
        say(f"{run}: complete, {trainer.step} of {goal} steps")
        return run
    for line in report:
        say(line)
    if trainer.step:
        say(f"resuming at step {trainer.step}, with {torch.get_num_threads()} threads and amp {trainer.amp}")
    start = time.monotonic()
    try:
        trainer.fit()
    except Interrupted as stop:
        say(f"stopped at step {stop.step} of {goal}; it is saved. Go on with: isdt train resume={run}")
        raise
    say(f"{run}: {trainer.step} steps, {duration(time.monotonic() - start)}")
    if trainer.step < goal:
        say(f"training.max_minutes={settings.training.max_minutes:g} is over before step {goal}; it is saved.")
        say(f"go on with: isdt train resume={run}")
    return run


def _room(trainer: Trainer) -> list[str]:
    """Whether a GPU has room for the first step, before anything is written: a line of the report, or an InputError."""
    free = free_bytes(trainer.device)
    if free is None:
        return []
    need, rows = need_of(trainer, trainer.parameters), trainer.config.batch_size // trainer.world.size
    return [f"memory    {check_room(need, rows, free, str(trainer.device), trainer.compile_note == 'on')}"]


def build_trainer(config: Mapping[str, object], world: World = ALONE) -> tuple[Trainer, list[str]]:
    """Open the data, build policy and objective, and write nothing.

    Args:
        config: settings, from `compose_config` or `load_config`.
        world: the processes that train together.

    Returns:
        The trainer at step 0, and lines that say what it will train.

    Raises:
        InputError: settings or data that cannot be used.
    """
    settings = RunConfig.read(config)
    if settings.training.eval_every and world.rank == 0:
        check_task(settings.task)
    device = find_device(world.device(settings.training.device), "training.device")
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    set_arithmetic(device, settings.training.tf32, settings.training.deterministic)
    most = torch.get_num_threads()
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", world.size)) if world.size > 1 else 1
    torch.set_num_threads(settings.training.threads or max(1, free_cores(most) // on_this_machine))
    data = read_demonstrations(settings.data, settings.task, settings.policy)
    policy = fitted_policy(settings.policy, settings.sigma_data, data, settings.training.seed)
    if settings.training.init:
        last = settings.run / "checkpoints" / "last"  # a run that goes on needs the other policy no more
        goes_on = settings.if_exists == "resume" and last.exists()
        policy = begun_from(policy, str(last) if goes_on else settings.training.init)
    trainer = Trainer(
        policy, settings.objective, data.train, data.validation, settings.training, settings.run, data.finish, world
    )
    chosen = not settings.training.threads and world.size == 1 and torch.get_num_threads() < most
    left = f" (of {most} cores; others are busy)" if chosen else ""
    return trainer, [*data.notes, *_describe(trainer, policy, settings, left)]


def write_run(config: Mapping[str, object], trainer: Trainer, command: str) -> None:
    """Begin the run directory of a trainer, or resume from the one that is there with the same settings.

    Raises:
        InputError: the directory holds a run with other settings, or the demonstrations are not those it was started with.
    """
    run, settings = trainer.run, RunConfig.read(config)
    data = data_sha256(settings.data, trainer.policy.obs_keys, settings.task)
    if (run / "config.json").exists():
        _check_same(load_config(run), config, run)
        _check_began_alike(run, data)
        if (run / "checkpoints" / "last").exists():
            trainer.resume()
        return
    run.mkdir(parents=True, exist_ok=True)
    made = {**_provenance(command, trainer), "data_sha256": data}
    for name, value in {"provenance.json": made, "config.json": config}.items():
        files.write_text(run / name, json.dumps(value, indent=2) + "\n", durable=True)
    files.sync(run.parent)


def _check_began_alike(run: Path, data: str) -> None:
    """Refuse other demonstrations than a run was started with; say so where the machine decides other bits."""
    path = run / "provenance.json"
    try:
        began = parse_json(path.read_bytes()) if path.exists() else {}
        before, then = began.get("data_sha256", data), dict(began.get("decides_bits", {}))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"'{path}' cannot be read ({error}); the run cannot go on without it.") from error
    if before != data:
        raise InputError(
            f"the demonstrations have changed since '{run}' was started, and it would go on with another split. Bring the old ones "
            "back, or start another run: name=..."
        )
    for told in differences(then):
        _say(f"note: {told}; the run goes on, but its last bits are not those of one that stays on a machine")


def _check_free(settings: RunConfig) -> None:
    """Refuse what can be refused before the data are read."""
    run = settings.run
    if (run / "config.json").exists() and settings.if_exists == "error":
        raise InputError(
            f"'{run}' already holds a run. Go on with it: isdt train resume={run}; start another: name=...; "
            "replace it: if_exists=overwrite."
        )
    if not (run / "config.json").exists() or settings.if_exists == "overwrite":
        files.check_replaceable(run)


@contextmanager
def _claimed(run: Path) -> Iterator[None]:
    """Hold a run directory for this process. The lock lies beside it, because overwrite deletes the directory."""
    lock = run.parent / f".{run.name}.lock"
    files.check_writable(run, folder=True)
    with files.claim(lock) as mine:
        if not mine:
            raise InputError(
                f"another process is training '{run}'. Wait for it to end, or start another run with name=...."
            )
        yield


def _describe(trainer: Trainer, policy: Policy, settings: RunConfig, left: str) -> list[str]:
    millions = sum(parameter.numel() for parameter in policy.parameters()) / 1e6
    c = settings.training
    why = "" if c.device != "auto" or trainer.device.type == "cuda" else " (PyTorch finds no CUDA GPU)"
    told = []
    if c.diagonal_steps:
        told += [
            f"          {c.diagonal_steps} of them the warm start, without self-distillation"
            if c.diagonal_steps < c.steps
            else "          every step is of the warm start: nothing is self-distilled"
        ]
    told += [f"          {trainer.world.size} processes share every batch"] if trainer.world.size > 1 else []
    return [
        f"policy    {network_name(policy.config.network)}, {millions:.2f} M parameters, reads {', '.join(policy.obs_keys)}",
        *_cameras(policy),
        f"training  {c.steps} steps of {c.batch_size} on {trainer.device}{why}, {torch.get_num_threads()} threads{left}, "
        f"amp {trainer.amp}, compile {trainer.compile_note}{_left_out(trainer)}",
        *([f"begins    with the weights of {c.init}"] if c.init else []),
        *told,
        f"run       {settings.run}",
    ]


def _left_out(trainer: Trainer) -> str:
    """What training.compile=auto leaves uncompiled, and why."""
    return f" ({trainer.plan.why_not})" if trainer.plan.why_not and trainer.compile_note in ("on", "off") else ""


def _cameras(policy: Policy) -> list[str]:
    """What is seen of each picture, and whether that is too little."""
    lines = []
    for key, spec in policy.config.images.items():
        part, whole = ("x".join(map(str, size)) for size in (spec.crop or spec.shape[:2], spec.shape[:2]))
        lines.append(f"          {key}: {part} of {whole} px, {policy.config.image_encoder.trunk}")
        if policy.config.image_encoder.crop < 0.5:
            lines[-1] += "; images.crop leaves out more than half of each side, so much of the scene may never be seen"
    return lines


def _check_same(old: Mapping[str, object], new: Mapping[str, object], run: Path) -> None:
    """Refuse to go on with a run under other settings."""
    objective = completed(cast(Section, old["objective"]), cast(Section, new["objective"]))
    a, b = ({**LATER, **_flat(c)} for c in ({**old, "objective": objective}, new))
    for key in sorted({*a, *b} - _MAY_DIFFER):
        if a.get(key) != b.get(key):
            raise InputError(
                f"'{run}' was started with {key}={a.get(key)}, now {key}={b.get(key)}; resume with the same settings, or "
                "choose another name=."
            )


def _flat(node: object, prefix: str = "") -> Section:
    if not isinstance(node, Mapping):
        return {prefix: list(node) if isinstance(node, tuple) else node}
    return {k: v for name, child in node.items() for k, v in _flat(child, f"{prefix}.{name}".strip(".")).items()}


def _provenance(command: str, trainer: Trainer) -> Section:
    device = trainer.device
    return {
        "command": command, "isdt_policy": __version__, "commit": commit(), "python": platform.python_version(),
        "torch": torch.__version__, "numpy": np.__version__, "cpu_count": os.cpu_count(), "machine": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device), **describe_gpu(device),
        "threads": torch.get_num_threads(), "processes": trainer.world.size,
        **({"init_sha256": weights_sha256(trainer.config.init)} if trainer.config.init else {}),
        "decides_bits": decides_bits(),
    }  # fmt: skip


def _facts(config: Mapping[str, object], trainer: Trainer) -> Section:
    """What processes that train together must have in common: settings, data and the weights that they begin with."""
    return {
        **{key: value for key, value in _flat(config).items() if key not in ("training.threads",)},
        "the number of windows": trainer.train.n_windows, "weights and statistics": digest(trainer.policy.state_dict()),
    }  # fmt: skip


def _say(text: str) -> None:
    print(terminal.fitted(text, sys.stderr, indent=10), file=sys.stderr, flush=True)


def _say_nothing(text: str) -> None:
    """What process 0 says is said once."""
