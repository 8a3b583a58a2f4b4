"""Checkpoints: one directory each, written aside and renamed, so that a reader sees a complete one or none.

    <run>/checkpoints/000500/policy/{config.json, model.safetensors}        averaged weights, all that is needed to act
                             state/{model.safetensors, optimizer.safetensors, trainer.json}     what resuming needs besides
    <run>/checkpoints/last -> 000500      best -> 000400

Nothing here unpickles: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from isdt_policy.method.policy import Policy
from isdt_policy.shared.errors import InputError


def _flush(path: Path) -> None:
    """fsync every file below path, and its directories: after a power cut the rename must not outlive the contents."""
    for entry in [path, *path.rglob("*")]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, replacing it in one step."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)


def save(
    run: Path,
    step: int,
    online: Policy,
    averaged: Policy,
    optimizer: torch.optim.Optimizer,
    trainer_state: dict[str, Any],
    *,
    best: bool,
    keep: int = 2,
) -> Path:
    """Write checkpoint `step`, move `last` (and `best`) to it, and delete those neither points to but the newest `keep`."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final, temporary = folder / f"{step:07d}", folder / f".{step:07d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "state").mkdir(parents=True)
    averaged.save_pretrained(temporary / "policy")
    save_file({k: v.contiguous() for k, v in online.state_dict().items()}, temporary / "state" / "model.safetensors")
    save_file(_optimizer_tensors(online, optimizer), temporary / "state" / "optimizer.safetensors")
    (temporary / "state" / "trainer.json").write_text(json.dumps({"step": step, **trainer_state}, indent=2) + "\n")
    _flush(temporary)
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    _point(folder / "last", final.name)
    if best:
        _point(folder / "best", final.name)
    protected = {(folder / name).resolve().name for name in ("last", "best") if (folder / name).exists()}
    steps = sorted(p for p in folder.iterdir() if p.name.isdigit())
    for old in steps[:-keep]:
        if old.name not in protected:
            shutil.rmtree(old)
    return final


def load(run: Path, online: Policy, averaged: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore everything from the last checkpoint and return the trainer's state (with its "step")."""
    folder = run / "checkpoints" / "last"
    if not folder.exists():
        raise InputError(f"'{run}' has no checkpoint to resume from; start it without resume=.")
    try:
        online.load_state_dict(load_file(folder / "state" / "model.safetensors"))
        averaged.load_state_dict(load_file(folder / "policy" / "model.safetensors"))
        _restore_optimizer(online, optimizer, load_file(folder / "state" / "optimizer.safetensors"))
        return json.loads((folder / "state" / "trainer.json").read_text())
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
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        parameter, key = name.rsplit("/", 1)
        optimizer.state[parameters[parameter]][key] = value.clone()
