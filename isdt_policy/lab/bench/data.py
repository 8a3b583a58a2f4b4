"""Windows, images, memory and import: what `isdt data bench` measures, told as the other benchmarks are."""

from __future__ import annotations

from isdt_policy.datasets import bench
from isdt_policy.lab.bench.measure import summary
from isdt_policy.lab.bench.report import Measured
from isdt_policy.lab.bench.settings import Data


def measure(what: Data) -> Measured:
    """Run the parts. A turn has one time: the mean of its calls."""
    facts = bench.measure(what.data, what.keys, what.batch, what.rounds, what.seconds, what.parts, what.frames)
    timings = {name: summary([[ms] for ms in times]) for name, times in facts.pop("ms").items()}
    return Measured("data", timings, facts.pop("ratios"), facts)
