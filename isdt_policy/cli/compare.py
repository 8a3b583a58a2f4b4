"""`isdt compare`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from isdt_policy.eval.comparison import Group, compare
from isdt_policy.eval.curves import draw_curves, draw_pairs
from isdt_policy.eval.result import Result
from isdt_policy.eval.statistics import sample_size
from isdt_policy.eval.tables import Format, diffusion_policy_table, render
from isdt_policy.shared import terminal
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.files import check_writable, write_text


@dataclass(frozen=True)
class Compare:
    """Compare evaluations on the seeds they share.

    The table has a row per evaluation and arm. The first row is the reference. Every other row shows how it differs on the
    seeds that both have, with a 95 % interval and p-values: exact McNemar for success, permutation of signs for the score.

    Examples:
        isdt compare outputs/a/eval outputs/b/eval                    every arm of both
        isdt compare outputs/a/eval outputs/b/eval arm=1              one network evaluation only
        isdt compare format=latex out=table.tex outputs/*/eval        a table for a paper
        isdt compare a=run1/eval,run2/eval,run3/eval b=run4/eval,...  groups of training seeds, named a and b
        isdt compare protocol=diffusion_policy a=s1/e50,s1/e100,...   best and last-10 average over checkpoints
        isdt compare curves=learning.svg outputs/a/curve/*/           success against training
        isdt compare pairs=pairs.svg outputs/a/eval                   best rewards seed by seed
        isdt compare power=0.70,0.75                                  how many episodes tell 0.70 from 0.75

    What is compared:
        results: each an eval_info.json or its folder; name=RESULT,RESULT,... is a group of training seeds.
        arm: only this arm: a number of network evaluations, or a sampler such as euler10.
        power: two rates of success, and no results: says how many episodes it takes to tell them apart.

    How:
        confidence: how often an interval holds the true value, between 0 and 1.
        format: how the table is written: markdown, csv or latex.
        protocol: diffusion_policy: best checkpoint and average of the last ten, over training seeds, as in that paper.
        out: write the table into this file and not to the terminal.
        curves: also draw success against training into this file (.svg, .png). The results must be those of `isdt eval curve`.
        pairs: also draw a point per seed into this file: best reward in the first row against best reward in another.
    """

    results: tuple[Annotated[str, "RESULT"], ...] = ()
    arm: Arm | None = None
    power: tuple[float, ...] = ()
    confidence: float = 0.95
    format: Format = "markdown"
    protocol: Literal["diffusion_policy"] | None = None
    out: Annotated[Path, "FILE"] | None = None
    curves: Annotated[Path, "FILE.svg"] | None = None
    pairs: Annotated[Path, "FILE.svg"] | None = None

    positional: ClassVar = ("results",)
    rest: ClassVar = "results"

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise InputError(f"confidence={self.confidence:g} must lie between 0 and 1, for example confidence=0.95.")
        if self.power and len(self.power) != 2:
            raise InputError(f"power={','.join(map(str, self.power))} is not two rates, for example power=0.70,0.75.")
        if not self.results and not self.power:
            raise InputError("nothing to compare: give results, for example isdt compare outputs/a/eval outputs/b/eval")

    def run(self, command: str) -> int:
        if self.power:
            print(_power(*self.power))
            return 0
        groups = self._groups()
        for path in filter(None, (self.out, self.curves, self.pairs)):
            check_writable(path)
        if self.protocol == "diffusion_policy":
            text = diffusion_policy_table(groups, self.arm)
        else:
            text = render(compare(groups, self.arm, self.confidence), self.format)
        if self.out:
            write_text(self.out, text + "\n")
            print(f"table: {self.out}")
        else:
            terminal.show(text)
        if self.curves:
            draw_curves(groups, self.arm, self.curves)
            print(f"curves: {self.curves}")
        if self.pairs:
            draw_pairs(groups, self.arm, self.pairs)
            print(f"pairs: {self.pairs}")
        return 0

    def _groups(self) -> list[Group]:
        """The results, one group for each argument, with short names."""
        arguments = [_named(text) for text in self.results]
        titles = _titles([paths[0] for name, paths in arguments if not name])
        return [Group(name or titles[paths[0]], tuple(map(Result.load, paths))) for name, paths in arguments]


def _named(text: str) -> tuple[str, list[str]]:
    """The name (or "") and the paths of one argument."""
    key, separator, value = text.partition("=")
    if not separator or Path(text).exists():
        return "", [text]
    paths = value.split(",")
    if not all(Path(path).exists() for path in paths):
        keys = [field.name for field in fields(Compare) if field.name != "results"]
        raise InputError(
            f"'{text}' is neither an option ({', '.join(keys)}) nor name=RESULT,RESULT,... with results that exist."
            f"{nearest(key, keys)}"
        )
    return key, paths


def _titles(paths: list[str]) -> dict[str, str]:
    """The part of each path that tells it from the others."""
    parts = {path: [p for p in Path(path).parts if p not in ("eval", "eval_info.json", "/")] for path in paths}
    if len(paths) > 1:
        while all(len(p) > 1 for p in parts.values()) and len({p[0] for p in parts.values()}) == 1:
            parts = {path: p[1:] for path, p in parts.items()}
        while all(len(p) > 1 for p in parts.values()) and len({p[-1] for p in parts.values()}) == 1:
            parts = {path: p[:-1] for path, p in parts.items()}
    return {path: "/".join(p[-3:]) or path for path, p in parts.items()}


def _power(a: float, b: float) -> str:
    lines = [
        f"to tell {a:g} from {b:g} (80 % power, 5 % two-sided) you need, per policy,",
        f"  n = {sample_size(a, b)} episodes on different seeds,",
    ]
    for correlation in (0.3, 0.6):
        try:
            n = sample_size(a, b, correlation=correlation)
        except InputError:  # these rates cannot correlate so much
            continue
        lines.append(f"  n = {n} on common seeds if outcomes correlate by {correlation},")
    return "\n".join(lines)[:-1] + "."
