"""A training step of iSD-T against one of the usual diffusion policy, both with everything that makes a step fast."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from isdt_policy.lab.bench.baseline import How, baseline_network, ddpm_step
from isdt_policy.lab.bench.measure import interleaved, ratio
from isdt_policy.lab.bench.report import Measured
from isdt_policy.lab.bench.settings import Train
from isdt_policy.lab.bench.subject import prepare, say, subject
from isdt_policy.method.objectives import ISD
from isdt_policy.training.trainer import Trainer, TrainingConfig


def measure(what: Train) -> Measured:
    """Time whole steps: reading a batch, forward, backward, optimiser, average of the weights."""
    what = replace(what, device=prepare(what.threads, what.device))
    ours = subject(what.size, what.data)
    say(
        f"{ours.parameters / 1e6:.2f} M parameters"
        + ("; compiling both networks takes a minute or two" if what.compile else "")
    )
    settings = TrainingConfig(
        batch_size=what.batch, device=what.device, compile=what.compile, graphs=what.graphs, threads=what.threads
    )
    with tempfile.TemporaryDirectory() as folder:
        objective = ISD(guidance_scale=what.guidance_scale)
        trainer = Trainer(ours.policy, objective, ours.windows, None, settings, Path(folder))
        trainer.train_step()  # compiles, and says so if it cannot
        how = How(what.device, trainer.amp == "bf16", trainer.compile_note == "on", what.graphs)
        network = baseline_network(ours, what.device).train()
        plain = ddpm_step(network, ours.policy, ours.windows, what.batch, how)
        ways: dict[str, Callable[[], object]] = {"iSD-T step": trainer.advance, "DDPM step": plain}
        timings = interleaved(ways, rounds=what.rounds, calls=what.calls, device=what.device)
        batches = iter([trainer.indices(i) for i in range(200)])
        fetch = interleaved({"data": lambda: ours.windows.batch(next(batches))}, rounds=1, calls=100)["data"]
    facts = {
        "parameters": {"iSD-T": ours.parameters, "DDPM": sum(p.numel() for p in network.parameters())},
        "batch": what.batch, "guidance_scale": what.guidance_scale, "compile": trainer.compile_note,
        "both networks": str(how), "device": what.device,
        "data_share_of_step": fetch.median / timings["iSD-T step"].median,
    }  # fmt: skip
    ratios = {"iSD-T step / DDPM step": ratio(timings["iSD-T step"], timings["DDPM step"])}
    return Measured(f"train size={what.size}", timings, ratios, facts)
