"""What a search found: tune.json, tune.md and a page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scipy.stats import spearmanr

from isdt_policy.lab.tune.settings import Tuning
from isdt_policy.shared import files, page, tables
from isdt_policy.shared.plotting import BAD, MUTED, SERIES, plots
from isdt_policy.shared.provenance import commit

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

TEMPLATE = Path(__file__).parents[1] / "templates" / "tune.html"


def overrides_of(params: Mapping[str, object]) -> list[str]:
    """A trial's settings as arguments of `isdt train`."""
    return [f"{key}={value}" for key, value in params.items()]


def look(share: float) -> str:
    """Under which name a trial keeps what was seen at a share of its steps."""
    return f"look_{share:g}"


@dataclass(frozen=True)
class Report:
    """A search and its trials.

    Attributes:
        tuning: how it searches.
        fixed: Hydra overrides that all trials share.
        space: key -> what is searched.
        trials: as Optuna keeps them, in the order in which they began.
    """

    tuning: Tuning
    fixed: Sequence[str]
    space: Mapping[str, BaseDistribution]
    trials: Sequence[FrozenTrial]

    @property
    def done(self) -> list[FrozenTrial]:
        """Trials that went to their end, best first."""
        return sorted((t for t in self.trials if t.state.name == "COMPLETE"), key=lambda t: -(t.value or 0.0))

    @property
    def shown(self) -> list[FrozenTrial]:
        """Trials that went to their end, best first, then those that were stopped."""
        return [*self.done, *(t for t in self.trials if t.state.name == "PRUNED")]

    @property
    def best(self) -> str:
        """The command that trains with the best settings."""
        return " ".join(["isdt train", *self.fixed, *(overrides_of(self.done[0].params) if self.done else [])])

    @property
    def marks(self) -> list[float]:
        """Shares of the steps at which trials were looked at, the end included."""
        return [*sorted(self.tuning.looks), 1.0]

    def to_json(self) -> dict[str, object]:
        """What tune.json holds."""
        return {
            "schema": "isdt-tune/1", "settings": self.tuning.to_json(), "fixed": list(self.fixed),
            "space": {key: str(value) for key, value in self.space.items()}, "commit": commit(), "best": self.best,
            "rank_correlation": {f"{share:g}": rank_correlation(self.done, share) for share in self.marks[:-1]},
            "trials": [
                {"trial": t.number, "settings": t.params, "state": t.state.name.lower(), **t.user_attrs} for t in self.shown
            ],
        }  # fmt: skip

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table."""
        heads = [f"score at {share:.0%} (n = {self.tuning.look_episodes})" for share in self.marks[:-1]]
        header = ["trial", *self.space, *heads, f"score (n = {self.tuning.episodes})", "success"]
        return header, [self._row(trial) for trial in self.shown]

    def _row(self, trial: FrozenTrial) -> list[str]:
        seen = [trial.user_attrs.get(look(share)) for share in self.marks]
        cells = [str(trial.number), *(_short(trial.params.get(key, "")) for key in self.space)]
        cells += [f"{found['score']['value']:.2f}" if found else "" for found in seen[:-1]]
        if not seen[-1]:
            return [*cells, f"stopped: {trial.user_attrs.get('stopped', '')}", ""]
        score = seen[-1]["score"]
        shown = f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"
        rate = seen[-1]["success_rate"]
        return [*cells, shown, f"{rate['value']:.0%}" if rate else "not reported"]

    def ranking(self) -> list[str]:
        """One sentence per look whose ranking is known."""
        found = {share: rank_correlation(self.done, share) for share in self.marks[:-1]}
        return [
            f"Rollouts at {share:.0%} of the steps ranked the {r['n']} finished runs with a Spearman correlation of "
            f"{r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}] to their final scores."
            for share, r in found.items()
            if r is not None
        ]

    def markdown(self) -> str:
        """What tune.md holds."""
        lines = [f"Best so far: `{self.best}`", *self.ranking()]
        return tables.markdown(*self.rows()) + "\n\n" + "\n".join(lines) + "\n"

    def write(self) -> None:
        """Write tune.json, tune.md and tune.html into the folder of the search."""
        out = self.tuning.out
        files.write_text(out / "tune.json", json.dumps(self.to_json(), indent=1) + "\n")
        files.write_text(out / "tune.md", self.markdown())
        if not self.done:
            return
        header, rows = self.rows()
        best = self.done[0].user_attrs[look(1.0)]
        html = page.render(
            TEMPLATE, title=f"isdt tune: {out.resolve().name}", best=best, command=self.best, header=header, rows=rows,
            ranking=self.ranking(), figures=[page.svg(figure) for figure in self.figures()],
            finished=len(self.done), stopped=len(rows) - len(self.done), nfe=self.tuning.nfe.title,
        )  # fmt: skip
        files.write_text(out / "tune.html", html)

    def figures(self) -> list[Figure]:
        """Every trial's scores on its way; the first look against the end."""
        with plots("The figures of isdt tune") as plt:
            way, ways = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
            rank, ranks = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
            for trial in self.shown:
                seen = {
                    m: trial.user_attrs[look(m)]["score"]["value"] for m in self.marks if look(m) in trial.user_attrs
                }
                complete = trial.state.name == "COMPLETE"
                if seen:
                    colour = SERIES[0] if complete else BAD
                    ways.plot(list(seen), list(seen.values()), "o-", color=colour, ms=4, lw=1, alpha=0.8)
                if complete and len(seen) > 1:
                    first, *_, last = seen.values()
                    ranks.plot(first, last, "o", color=SERIES[0], ms=5)
                    ranks.annotate(
                        str(trial.number), (first, last), (4, 3), textcoords="offset points", fontsize=7, color=MUTED
                    )
            ways.set(xlabel="share of the steps", ylabel="score", ylim=(0, 1.03), title="Every trial (red: stopped)")
            ranks.set(xlabel=f"score at {self.marks[0]:.0%} of the steps", ylabel="score at the end")
            ranks.set(title="Does the early look rank the runs?")
            plt.close("all")
        return [way, rank]


def rank_correlation(done: Sequence[FrozenTrial], share: float) -> dict[str, float] | None:
    """Spearman's correlation of a look with the end over finished runs, with its 95 % interval; None below four runs."""
    name = look(share)
    pairs = [(t.user_attrs[name]["score"]["value"], t.value) for t in done if name in t.user_attrs]
    if len(pairs) < 4 or any(len(set(side)) == 1 for side in zip(*pairs)):
        return None
    value = float(spearmanr(*zip(*pairs)).statistic)
    # Fisher's transformation with the variance of Bonett and Wright (2000).
    half = 1.96 * math.sqrt((1 + value**2 / 2) / (len(pairs) - 3))
    centre = math.atanh(max(-0.9999, min(0.9999, value)))
    return {"n": len(pairs), "value": value, "low": math.tanh(centre - half), "high": math.tanh(centre + half)}


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value) or "(none)"
