"""torch.compile of a flow map, for training."""

from __future__ import annotations

import shutil
import sys
from functools import partial

import torch

from isdt_policy.method.flow_map import FlowMap, with_tangent


def compiled(flow_map: FlowMap, device: torch.device) -> tuple[FlowMap, str]:
    """torch.compile of the network, alone and with a tangent; or the flow map itself and the reason why not."""
    # On a CPU PyTorch writes C++; on a GPU Triton writes C.
    compilers = ("gcc", "clang", "cc") if device.type == "cuda" else ("g++", "clang++")
    if not any(map(shutil.which, compilers)):
        kind = "C" if device.type == "cuda" else "C++"
        note = f"no {kind} compiler ({' or '.join(compilers)}) on the PATH, so training runs uncompiled"
        print(f"isdt train: {note}", file=sys.stderr)
        return flow_map, note
    tangent = torch.compile(partial(with_tangent, flow_map.network))
    return FlowMap(torch.compile(flow_map.network), flow_map.path, tangent), "on"
