"""`isdt tune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from isdt_policy.lab.tune.settings import Tuning


@dataclass(frozen=True)
class Tune(Tuning):
    """Search settings of isdt train for the best score, judged by rollouts.

    Every trial is an ordinary run. On its way it is rolled out on a few selection seeds, and stopped there if it is below the
    median of the earlier ones. A killed search goes on where it stopped, in mid-trial too, with the same command. What is
    written to out=: trials/ (runs), journal.log (Optuna's record), tune.json, tune.md, and the page tune.html.

    Examples:
        isdt tune experiment=pusht_demo training.steps=4000 'objective.bound=choice(0,0.3,1)'
        isdt tune experiment=can 'training.lr=tag(log,interval(5e-4,5e-3))' 'policy.encoder_octaves=range(0,7)' trials=20
        isdt tune experiment=pusht_demo 'objective.weight_power=choice(0,1)' prune=false   how well the early looks rank

    What is searched:
        overrides: settings of isdt train, of which at least one is a search: KEY=choice(a,b,c) is one of these; KEY=range(0,7)
            whole numbers without 7; KEY=interval(0.1,1) any number between, whole ones for int(interval(1,8));
            KEY=tag(log,interval(1e-4,1)) the same on a logarithmic scale. All trials share the other settings.
    """

    overrides: tuple[str, ...] = ()

    rest: ClassVar = "overrides"

    def run(self, command: str) -> int:
        from isdt_policy.lab.tune import search

        fixed, space = search.read_space(self.overrides)
        found = search.tune(self, fixed, space)
        print(found.markdown())
        print(f"written: {self.out / 'tune.html'}")
        return 0
