"""One row, as a robot asks: one network evaluation of ours and of the usual network, then whole calls of each."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from isdt_policy.deploy.export import FileFormat, export
from isdt_policy.deploy.runner import OnnxPolicy
from isdt_policy.lab.bench.baseline import ConvUNet, baseline_network, sampler
from isdt_policy.lab.bench.measure import bandwidth, interleaved, ratio
from isdt_policy.lab.bench.report import Measured
from isdt_policy.lab.bench.settings import Infer
from isdt_policy.lab.bench.subject import Subject, prepare, say, subject
from isdt_policy.method.replay import Replay

Ways = dict[str, Callable[[], object]]


def measure(what: Infer) -> Measured:
    """Time one row."""
    what = replace(what, device=prepare(what.threads, what.device))
    ours = subject(what.size)
    ours = replace(ours, policy=ours.policy.eval().to(what.device).freeze(1))
    network = baseline_network(ours, what.device)
    compile = what.compile and (what.device != "cpu" or bool(shutil.which("g++") or shutil.which("clang++")))
    usual = torch.compile(network) if compile else network
    turns = partial(interleaved, rounds=what.rounds)
    often = partial(turns, calls=10 * what.calls, warmup=10)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        if compile:
            say("compiling both networks")
        timings = often(_evaluations(ours, network, what.device, compile), device=what.device)
        whole = _calls(ours, Path(folder)) if what.device == "cpu" else {}
        whole["ours, 1 step, PyTorch"] = partial(ours.policy.predict_action, ours.first_obs())
        timings |= often(whole)
        floor = 1e3 * bandwidth(4 * ours.parameters, what.device)
        multi: Ways = {
            "Conv1d, DDIM-10": sampler(usual, ours, "ddim", 10, what.device),
            "Conv1d, DDPM-100": sampler(usual, ours, "ddpm", 100, what.device),
        }
        timings |= turns(multi, calls=what.calls, warmup=1)
    fastest = "network, Conv1d, compiled" if compile else "network, Conv1d"
    best = "ours, 1 step, ONNX Runtime" if what.device == "cpu" else "ours, 1 step, PyTorch"
    facts = {
        "parameters": {"ours": ours.parameters, "Conv1d": sum(p.numel() for p in network.parameters())},
        "rows": 1, "device": what.device, "baseline": f"float32, {'compiled' if compile else 'eager'}",
        "floor_ms": floor, "floor": "reading the weights once, measured in this process",
        "p99 / p50": {name: t.p99 / t.median for name, t in timings.items()},
        "ours / floor": {name: timings[name].median / floor for name in whole},
    }  # fmt: skip
    ratios = {
        "network, Conv1d / ours": ratio(timings["network, Conv1d"], timings["network, ours"]),
        f"{fastest} / {best}": ratio(timings[fastest], timings[best]),
        f"DDIM-10 / {best}": ratio(timings["Conv1d, DDIM-10"], timings[best]),
        f"DDPM-100 / {best}": ratio(timings["Conv1d, DDPM-100"], timings[best]),
    }
    return Measured(f"infer size={what.size}", timings, ratios, facts)


def _evaluations(ours: Subject, network: ConvUNet, device: str, compile: bool) -> Ways:
    """One evaluation of each network, as it stands and as fast as PyTorch makes it."""
    policy = ours.policy
    x = torch.randn(1, policy.horizon, policy.config.action_dim, device=device)
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    cond = policy.encode({key: torch.as_tensor(value).to(device) for key, value in ours.first_obs().items()})
    flat = torch.randn(1, ours.obs_width, device=device)
    ways: Ways = {
        "network, ours": lambda: policy.network(x, one, zero, cond),
        "network, Conv1d": lambda: network(x, one, flat),
    }
    if compile:
        mode = None if device == "cpu" else "reduce-overhead"  # on CUDA: graphed too
        fast, usual = (torch.compile(module, mode=mode, fullgraph=True) for module in (policy.network, network))
        ways["network, ours, compiled"] = lambda: fast(x, one, zero, cond)
        ways["network, Conv1d, compiled"] = lambda: usual(x, one, flat)
    if device != "cpu":
        ways["network, ours, CUDA graph"] = _graph(lambda: policy.network(x, one, zero, cond))
        ways["network, Conv1d, CUDA graph"] = _graph(lambda: network(x, one, flat))
    return ways


def _calls(ours: Subject, folder: Path) -> Ways:
    """predict_action of ours, exported: one evaluation and all around it in one graph."""
    say("exporting ours to ONNX")
    ways: Ways = {}
    for stored, name in (("float32", ""), ("int8", ", int8")):
        with torch.inference_mode(False):
            path = export(ours.policy, folder / f"{stored}.onnx", FileFormat(weights=stored))
        fast = OnnxPolicy(path, threads=torch.get_num_threads())
        ways[f"ours, 1 step, ONNX Runtime{name}"] = partial(fast.predict_action, ours.first_obs())
    return ways


def _graph(function: Callable[[], Tensor]) -> Callable[[], object]:
    """The same kernels as one CUDA graph, replayed on the same tensors."""
    return partial(Replay(lambda given: function(), []), [])
