"""Every benchmark by the type of its settings."""

from __future__ import annotations

from pathlib import Path

from isdt_policy.lab.bench import data, env, evaluate, images, infer, ranks, report, serve, settings, train
from isdt_policy.lab.bench.report import Measured


def run(what: settings.Benchmark, out: Path | None) -> str:
    """Run one benchmark and return its table; see `report.write`."""
    return report.write(measure(what), out)


def measure(what: settings.Benchmark) -> Measured:
    """Run one benchmark."""
    match what:
        case settings.Train():
            return train.measure(what)
        case settings.Ranks():
            return ranks.measure(what)
        case settings.Images():
            return images.measure(what)
        case settings.Infer():
            return infer.measure(what)
        case settings.Eval():
            return evaluate.measure(what)
        case settings.Data():
            return data.measure(what)
        case settings.Serve():
            return serve.measure(what)
        case settings.Env():
            return env.measure(what)
        case _:
            raise TypeError(f"{type(what).__name__} is no benchmark")
