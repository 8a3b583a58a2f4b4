"""Tables: Markdown for pages, aligned columns for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(
    header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = (), padded: bool = False
) -> str:
    """A Markdown table.

    Args:
        header: titles of the columns.
        rows: one sequence of cells a row.
        right: numbers of the columns that are aligned to the right.
        padded: fill up cells with spaces, so that it can be read in a terminal too.

    >>> print(markdown(["task", "success"], [["lift", 98.8]], right=[1]))
    | task | success |
    |---|---:|
    | lift | 98.8 |
    """
    widths = [1] * len(header)
    if padded:
        table = [[str(cell) for cell in cells] for cells in (header, *rows)]
        widths = [max(len(cells[i]) for cells in table) for i in range(len(header))]
        header, *rows = [
            [cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(cells, widths))]
            for cells in table
        ]
    rule = "|".join("-" * (w + 2) + ":" * (i in right) for i, w in enumerate(widths))
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (header, *rows)]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def columns(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Aligned columns, two spaces apart.

    >>> print(columns(["arm", "success"], [["1", "98 %"], ["euler10", "100 %"]], right=[1]))
    arm      success
    1           98 %
    euler10    100 %
    """
    table = [[str(cell) for cell in cells] for cells in (header, *rows)]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(header))]
    lines = (
        "  ".join(cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(cells, widths)))
        for cells in table
    )
    return "\n".join(line.rstrip() for line in lines)
