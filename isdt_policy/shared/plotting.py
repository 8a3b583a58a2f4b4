"""One look for every figure: colours with their meaning, and a style for Matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from isdt_policy.shared.extras import require

INK, MUTED, LINE, GRID = "#1d2733", "#6b7785", "#c3cad2", "#e8ecf0"
GOOD, BAD, ACCENT, SAND = "#0f8b8d", "#d1495b", "#3d5a80", "#e09f3e"
# For lines that are told apart by a legend; readable beside each other, also for most colour-blind readers.
SERIES = ("#0b5fa5", "#e07b00", "#0f8b8d", "#8a63d2", "#b5179e", "#3f8f3a", "#7a4a21", "#555555")

STYLE: dict[str, object] = {
    "font.family": "sans-serif", "font.size": 9.5, "axes.edgecolor": LINE, "axes.labelcolor": MUTED,
    "axes.titlecolor": INK, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "xtick.color": MUTED, "ytick.color": MUTED, "text.color": INK,
    "grid.color": GRID, "grid.linewidth": 0.8, "legend.frameon": False, "svg.hashsalt": "isdt", "svg.fonttype": "path",
    "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip


@contextmanager
def plots(purpose: str = "Figures") -> Iterator[ModuleType]:
    """Matplotlib's pyplot in this project's style, without a screen.

    Args:
        purpose: what needs it, for the message where Matplotlib is not installed.
    """
    require("matplotlib", "report", purpose).use("agg")
    pyplot = require("matplotlib.pyplot", "report", purpose)
    with pyplot.rc_context(STYLE):
        yield pyplot
