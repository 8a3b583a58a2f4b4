"""What a checkpoint had cost to train."""

from __future__ import annotations

import json
from pathlib import Path


def training_of(checkpoint: str | Path) -> dict[str, float] | None:
    """What a checkpoint had cost: {"step", "windows": drawn so far, "seconds": of training, pauses left out}.

    None where the checkpoint does not lie in the run that made it (RUN, RUN/checkpoints/STEP or .../last).
    """
    path = Path(checkpoint)
    path = path / "checkpoints" / "last" if (path / "checkpoints" / "last").exists() else path
    run = path.parent.parent
    try:
        step = int(json.loads((path / "state" / "trainer.json").read_text())["step"])
        batch = int(json.loads((run / "config.json").read_text())["training"]["batch_size"])
        text = (run / "log.jsonl").read_text()
        # A run that is still writing may show half of its last line.
        records = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except (OSError, KeyError, ValueError):
        return None
    clocks = [r["elapsed_s"] for r in records if r["step"] <= step and "elapsed_s" in r]
    # The clock starts again with every sitting: the last reading before it falls back belongs to a sitting that ended.
    ended = [a for a, b in zip(clocks, clocks[1:]) if b < a]
    return {"step": step, "windows": step * batch, "seconds": sum(ended) + (clocks[-1] if clocks else 0.0)}
