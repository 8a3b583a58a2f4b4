"""Success so far, while an evaluation runs."""

from __future__ import annotations

from isdt_policy.eval.result import EpisodeRecord
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.progress import Progress


class EpisodeProgress:
    """A listener of `evaluate`: a progress line with the successes of every arm so far."""

    def __init__(self) -> None:
        self._counts: dict[Arm, tuple[int, int]] = {}
        self._line: Progress | None = None

    def __call__(self, record: EpisodeRecord, done: int, total: int) -> None:
        """Show one more episode."""
        if self._line is None:
            self._line = Progress(total, "evaluate", "episode", initial=done - 1)
        won, n = self._counts.get(record.arm, (0, 0))
        self._counts[record.arm] = won + bool(record.success), n + 1
        shown: dict[str, float | str] = {f"arm {arm}": f"{k}/{n}" for arm, (k, n) in self._counts.items()}
        self._line.update(1, **(shown if record.success is not None else {}))  # type: ignore[arg-type]
        if done == total:
            self._line.close()
