"""torch.compile of a flow map, for training."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

import torch

from isdt_policy.method.flow_map import FlowMap, with_tangent


def compiled(flow_map: FlowMap, device: torch.device, graphs: bool = False) -> tuple[FlowMap, str]:
    """torch.compile of the network, alone and with a tangent; or the flow map itself and the reason why not.

    Args:
        flow_map: of the policy.
        device: where it is.
        graphs: on a GPU, as CUDA graphs. Every step must then begin with torch.compiler.cudagraph_mark_step_begin().
    """
    # On a CPU PyTorch writes C++; on a GPU Triton writes C.
    compilers = ("gcc", "clang", "cc") if device.type == "cuda" else ("g++", "clang++")
    if not any(map(shutil.which, compilers)):
        kind = "C" if device.type == "cuda" else "C++"
        note = f"no {kind} compiler ({' or '.join(compilers)}) on the PATH, so training runs uncompiled"
        print(f"isdt train: {note}", file=sys.stderr)
        return flow_map, note
    mode = "reduce-overhead" if graphs and device.type == "cuda" else None
    tangent = torch.compile(partial(with_tangent, flow_map.network), mode=mode)
    return FlowMap(torch.compile(flow_map.network, mode=mode), flow_map.path, tangent), "on"


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
