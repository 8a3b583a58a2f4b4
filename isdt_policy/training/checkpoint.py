"""Checkpoints: one directory each, written aside and renamed, so that a reader sees a complete one or none.

    <run>/checkpoints/000500/policy/{config.json, model.safetensors}        averaged weights, all that is needed to act
                             state/{model.safetensors, optimizer.safetensors, trainer.json}     what resuming needs besides
    <run>/checkpoints/last -> 000500      lowest_error -> 000400

`lowest_error` is that of the actions on held-out windows. It does not rank healthy policies, so it is not called the best; the one
that succeeded most often is `best_success` (rollouts.py).
Nothing here unpickles: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from isdt_policy.method.policy import Policy
from isdt_policy.shared import files
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import fitting, parse_json

_POINTERS = ("last", "lowest_error", "best")  # the third is the second's name in runs of version 0.1.0


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, replacing it in one step."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)


@dataclass(frozen=True)
class State:
    """What a trainer knows besides its tensors.

    Attributes:
        step: optimiser steps done.
        seed: of the run.
        amp: precision that was chosen: "bf16" or "off".
        best: smallest validation error so far; None before the first.
        threads: CPU threads that were chosen, of all processes together; 0 if that was not written down. Their number
            decides about last bits.
    """

    step: int
    seed: int
    amp: str
    best: float | None = None
    threads: int = 0

    @classmethod
    def read(cls, path: Path) -> State:
        """From trainer.json.

        Raises:
            InputError: it is damaged.
        """
        try:
            saved = fitting(cls, parse_json(path.read_bytes()))
            # A run of version 0.1.0 has neither seed nor precision there.
            state = cls(**{"seed": 0, "amp": "", **saved})
            if min(state.step, state.threads) < 0:
                raise ValueError("a number below zero")
        except (OSError, TypeError, ValueError) as error:
            raise InputError(f"'{path}' is damaged ({error}); the run cannot go on from this checkpoint.") from error
        return state


@dataclass(frozen=True)
class Trained:
    """What a checkpoint saves and restores.

    Attributes:
        online: policy with the weights that are trained.
        averaged: policy with the weights that act.
        optimizer: of the online weights.
    """

    online: Policy
    averaged: Policy
    optimizer: torch.optim.Optimizer


def save(run: Path, trained: Trained, state: State, *, best: bool, keep: int = 2) -> Path:
    """Write a checkpoint, let `last` (and `lowest_error`) point to it, and delete old ones.

    Args:
        run: the run directory.
        trained: whose tensors are saved.
        state: goes with them.
        best: whether its error is the lowest so far.
        keep: number of newest checkpoints that stay, besides those two.

    Returns:
        Folder of the checkpoint.

    Raises:
        InputError: it cannot be written; earlier checkpoints are as they were.
    """
    folder = run / "checkpoints"
    final, temporary = folder / f"{state.step:07d}", folder / f".{state.step:07d}.tmp"
    try:
        _write(temporary, trained, state)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(
            f"'{final}' cannot be written ({str(error).splitlines()[0]}). Earlier checkpoints are as they were. Make room, then: "
            f"isdt train resume={run}"
        ) from error
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    point(folder / "last", final.name)
    if best:
        point(folder / "lowest_error", final.name)
        (folder / "best").unlink(missing_ok=True)
    files.flush(final, run)
    protected = {(folder / name).resolve().name for name in _POINTERS if (folder / name).exists()}
    steps = sorted(p for p in folder.iterdir() if p.name.isdigit())
    for old in steps[: max(0, len(steps) - keep)]:
        if old.name not in protected:
            shutil.rmtree(old)
    return final


def _write(folder: Path, trained: Trained, state: State) -> None:
    """Write the files of a checkpoint, and wait until they are on the disk."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "state").mkdir(parents=True)
    trained.averaged.save_pretrained(folder / "policy")
    online = {name: value.contiguous() for name, value in trained.online.state_dict().items()}
    save_file(online, folder / "state" / "model.safetensors")
    save_file(_optimizer_tensors(trained.online, trained.optimizer), folder / "state" / "optimizer.safetensors")
    (folder / "state" / "trainer.json").write_text(json.dumps(asdict(state), indent=2) + "\n")
    files.flush(folder, folder)  # after a power cut the rename must not outlive the contents


def load(run: Path, trained: Trained) -> State:
    """Restore the tensors of the last checkpoint of a run, on the devices where they are now.

    Raises:
        InputError: no checkpoint, or one that does not fit or cannot be read.
    """
    folder = run / "checkpoints" / "last"
    if not folder.exists():
        raise InputError(f"'{run}' has no checkpoint to resume from; start it without resume=.")
    try:
        trained.online.load_state_dict(load_file(folder / "state" / "model.safetensors"))
        trained.averaged.load_state_dict(load_file(folder / "policy" / "model.safetensors"))
        moments = load_file(folder / "state" / "optimizer.safetensors")
        _restore_optimizer(trained.online, trained.optimizer, moments)
        return State.read(folder / "state" / "trainer.json")
    except (OSError, SafetensorError, RuntimeError, KeyError, json.JSONDecodeError) as error:
        raise InputError(f"checkpoint '{folder}' cannot be restored: {str(error).splitlines()[0]}") from error


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value.contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def _restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put the saved state of an optimiser on the devices of its parameters.

    AdamW counts its steps in a tensor. It wants that one beside the parameter only if it is fused or capturable.
    """
    parameters = dict(model.named_parameters())
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, value in tensors.items():
        parameter, key = parameters[name.rsplit("/", 1)[0]], name.rsplit("/", 1)[1]
        group = groups[id(parameter)]
        on_host = key == "step" and not (group.get("fused") or group.get("capturable"))
        value = value.to("cpu" if on_host else parameter.device, copy=True)
        if value.shape == parameter.shape:  # in the order of its numbers in memory, which fused steps take for granted
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        optimizer.state[parameter][key] = value
