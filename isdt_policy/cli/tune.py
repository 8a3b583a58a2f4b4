"""`isdt tune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from isdt_policy.lab.tune.settings import Tuning
from isdt_policy.shared import terminal


@dataclass(frozen=True)
class Tune(Tuning):
    """Search settings of isdt train for the best score in rollouts.

    Every trial is an ordinary run. While it trains it is rolled out on a few selection seeds, and stopped if it scores below
    the median of earlier trials. The same command continues a killed search, in the middle of a trial too. The folder out= gets
    the runs (trials/), tune.json, tune.md and the page tune.html.

    Examples:
        isdt tune experiment=pusht_demo training.steps=4000 'objective.bound=choice(0,0.3,1)'
        isdt tune experiment=can 'training.lr=tag(log,interval(5e-4,5e-3))' 'policy.encoder_octaves=range(0,7)' trials=20
        isdt tune experiment=pusht_demo 'objective.weight_power=choice(0,1)' prune=false   do early rollouts rank the runs?

    What is searched:
        overrides: settings of isdt train. At least one is searched: KEY=choice(a,b,c) tries these values; KEY=range(0,7) whole
            numbers from 0 to 6; KEY=interval(0.1,1) numbers between, int(interval(1,8)) whole numbers between;
            KEY=tag(log,interval(1e-4,1)) numbers on a logarithmic scale. All trials share the other settings.
    """

    overrides: tuple[str, ...] = ()

    rest: ClassVar = "overrides"

    def run(self, command: str) -> int:
        from isdt_policy.lab.tune import search

        fixed, space = search.read_space(self.overrides)
        found = search.tune(self, fixed, space)
        terminal.show(found.markdown())
        print(f"written: {self.out / 'tune.html'}")
        return 0
