"""From cells to Markdown tables. A cell is {"settings": {"row", "seed", ...}, "result": {...}}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from isdt_policy.lab.study.rows import NFE
from isdt_policy.shared import tables
from isdt_policy.shared.values import Json

Run = Json  # a cell's content, or a result in it
Cells = Sequence[Run]
GRADIENTS = ("gradient median", "99 % / median", "max / median", "diverged")


def by_row(cells: Cells) -> dict[str, list[Run]]:
    """{row: its cells, by seed}, in the order of first appearance."""
    rows: dict[str, list[Run]] = {}
    for cell in cells:
        rows.setdefault(cell["settings"]["row"], []).append(cell)
    return {name: sorted(group, key=lambda cell: cell["settings"]["seed"]) for name, group in rows.items()}


def single_runs(cells: Cells) -> list[Run]:
    """Toy cells, each of which holds every density and seed of a row, as one cell per training run; densities outermost."""
    runs = [
        {"settings": {**cell["settings"], "density": run["density"], "seed": run["seed"]}, "result": run}
        for cell in cells
        for run in cell["result"]
    ]
    densities = list(dict.fromkeys(run["result"]["density"] for run in runs))
    return sorted(runs, key=lambda run: densities.index(run["result"]["density"]))


def toy_tables(cells: Cells, strays: Mapping[tuple[str, str], float] | None = None) -> str:
    """One table per density: sliced Wasserstein over its sampling floor, gradient norms, diverged runs.

    Args:
        strays: (density, row) -> share of points of one evaluation where there is no data; see `stray_share`.
    """
    parts = []
    for density in dict.fromkeys(cell["settings"]["density"] for cell in cells):
        group = [cell for cell in cells if cell["settings"]["density"] == density]
        floor = sum(cell["result"]["floor"] for cell in group) / len(group)
        noise = sum(cell["result"]["noise"] for cell in group) / len(group)
        parts += [
            f"### {density.replace('_', ' ')}",
            "",
            f"Sampling floor {floor:.4f}, plain noise {noise / floor:.1f} floors.",
            "",
        ]
        header = ("row", *map(str, NFE), "no data there", *GRADIENTS)
        lines = []
        for row, runs in by_row(group).items():
            results = [cell["result"] for cell in runs]
            quality = [spread([r["ratio"][i] for r in results]) for i in range(len(NFE))]
            stray = (strays or {}).get((density, row))
            quality.append("no value" if stray is None else f"{100 * stray:.0f} %")
            lines.append([runs[0]["settings"]["title"], *quality, *_gradients(results), _diverged(results)])
        parts += [tables.markdown(header, lines), ""]
    return "\n".join(parts)


def pusht_table(cells: Cells) -> str:
    """Score and success over training seeds at each number of evaluations, gradient norms, diverged runs."""
    header = ("row", *(f"score {n}" for n in NFE), *(f"success {n}" for n in NFE), *GRADIENTS)
    lines = []
    for runs in by_row(cells).values():
        results = [cell["result"] for cell in runs]
        done = [r for r in results if r["score"] is not None]
        score = [spread([r["score"][i]["value"] for r in done]) for i in range(len(NFE))]
        success = [spread([100 * r["success"][i]["value"] for r in done], "{:.0f}", " %") for i in range(len(NFE))]
        lines.append([runs[0]["settings"]["title"], *score, *success, *_gradients(results), _diverged(results)])
    return tables.markdown(header, lines) + "\n"


def spread(values: Sequence[float | None], form: str = "{:.2f}", unit: str = "") -> str:
    """Mean over seeds, and lowest to highest if there are several.

    >>> spread([1.0, 2.0, 1.5])
    '1.50 [1.00 to 2.00]'
    >>> spread([2e7, 3e7])
    '2.5e+07 [2.0e+07 to 3.0e+07]'
    >>> spread([None, None])
    'no value'
    """
    known = [value for value in values if value is not None]
    if not known:
        return "no value"

    def written(value: float) -> str:
        return form.format(value) if value < 1e4 else f"{value:.1e}"

    mean = written(sum(known) / len(known)) + unit
    return f"{mean} [{written(min(known))} to {written(max(known))}]" if len(known) > 1 else mean


def _gradients(results: Sequence[Run]) -> list[str]:
    """Median, and the worst seed's 99 % and maximum over it."""
    known = [r["gradient"] for r in results if r["gradient"]]
    if not known:
        return ["no value"] * 3
    middle = sum(g["median"] for g in known) / len(known)
    high = max(g["p99_over_median"] for g in known)
    top = max(g["max"] / max(g["median"], 1e-12) for g in known)
    return [spread([middle]), spread([high], "{:.1f}"), short(top)]


def short(value: float) -> str:
    """Three digits, powers of ten beyond ten thousand.

    >>> short(12.34), short(1.5e9)
    ('12', '1.5e+09')
    """
    return f"{value:.1e}" if value >= 1e4 else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _diverged(results: Sequence[Run]) -> str:
    return f"{sum(r['diverged'] for r in results)} of {len(results)}"
