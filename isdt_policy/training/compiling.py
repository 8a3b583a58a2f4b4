"""torch.compile of a flow map, for training: what of it, and what happens where it fails."""

from __future__ import annotations

import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from isdt_policy.method.flow_map import FlowMap, with_tangent
from isdt_policy.training.phases import Phase, phase_of
from isdt_policy.training.settings import TrainingConfig

# Steps from which compiling saves more time than it takes: rounded, from a step of the demo on two cores.
NETWORK_FROM, DERIVATIVE_FROM = 3000, 1000


def compiled(
    flow_map: FlowMap, device: torch.device, graphs: bool = False, derivative: bool = True
) -> tuple[FlowMap, str]:
    """torch.compile of the network, alone and with a tangent; or the flow map itself and the reason why not.

    Args:
        flow_map: of the policy.
        device: where it is.
        graphs: on a GPU, as CUDA graphs. Every step must then begin with torch.compiler.cudagraph_mark_step_begin().
        derivative: also with a tangent.
    """
    # On a CPU PyTorch writes C++; on a GPU Triton writes C.
    compilers = ("gcc", "clang", "cc") if device.type == "cuda" else ("g++", "clang++")
    if not any(map(shutil.which, compilers)):
        kind = "C" if device.type == "cuda" else "C++"
        note = f"no {kind} compiler ({' or '.join(compilers)}) on the PATH, so training runs uncompiled"
        print(f"isdt train: {note}", file=sys.stderr)
        return flow_map, note
    mode = "reduce-overhead" if graphs and device.type == "cuda" else None
    tangent = partial(with_tangent, flow_map.network)
    fast_tangent = torch.compile(tangent, mode=mode) if derivative else tangent
    return FlowMap(torch.compile(flow_map.network, mode=mode), flow_map.path, fast_tangent), "on"


def forget_unloadable(error: Exception) -> bool:
    """Delete compiled code that PyTorch has kept and cannot load; whether there was any, so that it can be compiled again.

    A training that is killed while it compiles leaves files that are empty or end too soon. PyTorch takes what is there, so
    every later training of that network would run uncompiled, several times as slow and with other last bits.

    Args:
        error: with which a compilation ended.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    inner = getattr(error, "inner_exception", error.__cause__)
    if not isinstance(inner, OSError | ImportError):
        return False
    file = Path(getattr(inner, "path", None) or str(inner).partition(": ")[0])
    if file.suffix != ".so" or not file.is_relative_to(cache_dir()) or not file.exists():
        return False
    file.unlink()
    return True


@dataclass
class Plan:
    """What a run compiles; a function of its settings, so that a run that goes on stays the same run.

    Attributes:
        network: the network.
        derivative: the network with its derivative, of which self-distillation takes one at every step.
        why_not: in words, of what is left out because its steps are too few to pay for it.
        done: what has been compiled by now.
    """

    network: bool
    derivative: bool
    why_not: str = ""
    done: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, config: TrainingConfig) -> Plan:
        """What training.compile asks for."""
        if config.compile != "auto":
            return cls(bool(config.compile), bool(config.compile))
        complete = config.finish_start - config.diagonal_steps
        if config.steps < NETWORK_FROM:
            return cls(False, False, f"fewer than {NETWORK_FROM} steps do not pay for it")
        if complete < DERIVATIVE_FROM:
            return cls(True, False, f"the network; {complete} steps of self-distillation do not pay for the derivative")
        return cls(True, True)

    def next(self, config: TrainingConfig, step: int) -> Phase | None:
        """The part of the run that compiles something in this step, if one does."""
        phase = phase_of(config, step)
        needed = {"network"}
        if phase == "complete" and self.derivative:
            needed.add("derivative")
        if phase == "endpoint":  # jumps ride on the evaluation: another number of rows
            needed.add("jumps")
        new = needed - self.done
        self.done |= needed
        return phase if new else None


def compiling(part: Phase) -> str:
    """What to tell before a step that compiles, because it looks like a standstill."""
    return f"train: the first step of part '{part}' compiles the network: minutes on one core; later steps are faster"


def reason(error: Exception) -> str:
    """Why torch.compile failed, in a line; whatever the failure left open is closed."""
    # A failure inside a derivative leaves its level of forward-mode AD open, and there is room for one.
    with suppress(RuntimeError):  # none is open
        torch._C._exit_dual_level(level=0)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
