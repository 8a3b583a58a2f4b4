"""What a checkpoint had cost to train."""

from __future__ import annotations

import json
from pathlib import Path

from isdt_policy.shared.values import parse_json


def training_of(checkpoint: str | Path) -> dict[str, float] | None:
    """What a checkpoint had cost: {"step", "windows": drawn so far, "seconds": of training, pauses left out}.

    None where the checkpoint does not lie in the run that made it (RUN, RUN/checkpoints/STEP or .../last).
    """
    path = Path(checkpoint)
    path = path / "checkpoints" / "last" if (path / "checkpoints" / "last").exists() else path
    run = path.parent.parent
    try:
        step = int(parse_json((path / "state" / "trainer.json").read_bytes())["step"])
        batch = int(parse_json((run / "config.json").read_bytes())["training"]["batch_size"])
        text = (run / "log.jsonl").read_text()
        # A run that is still writing may show half of its last line.
        records = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except (OSError, KeyError, TypeError, ValueError):  # damaged: what it cost is not known
        return None
    clocks = [r["elapsed_s"] for r in records if r["step"] <= step and "elapsed_s" in r]
    # The clock starts again with every sitting: the last reading before it falls back belongs to a sitting that ended.
    ended = [a for a, b in zip(clocks, clocks[1:]) if b < a]
    return {"step": step, "windows": step * batch, "seconds": sum(ended) + (clocks[-1] if clocks else 0.0)}
