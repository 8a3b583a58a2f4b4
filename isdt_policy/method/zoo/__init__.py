"""Trained policies that come with the package: `zoo:pusht_human` may stand wherever a checkpoint may.

A folder per policy: config.json with the SHA-256 of the weights, model.safetensors, and card.json, which says how it was made. The
network's weights are stored in float16, which halves them, and compute in float32; the normaliser is stored in float32.
`python docs/make_zoo.py` adds a policy and makes docs/zoo.md.
"""

from __future__ import annotations

import re
from pathlib import Path

from isdt_policy.method import from_hub
from isdt_policy.shared.errors import InputError, nearest

PREFIX = "zoo:"
HERE = Path(__file__).parent


def names() -> list[str]:
    """What follows `zoo:`."""
    return sorted(card.parent.name for card in HERE.glob("*/card.json"))


def is_name(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is one of the zoo, known or not."""
    return str(checkpoint).startswith(PREFIX)


def folder(checkpoint: str | Path) -> Path:
    """The folder of `zoo:NAME`.

    Raises:
        InputError: an unknown name, with the nearest.
    """
    name = str(checkpoint).removeprefix(PREFIX)
    if name not in names():
        raise InputError(f"'{checkpoint}' is not in the zoo, which has {', '.join(names())}.{nearest(name, names())}")
    return HERE / name


def beside(checkpoint: str | Path) -> Path:
    """Where things made from a checkpoint go by default: beside it, or under outputs/ for one of the zoo or of the hub.

    >>> beside("zoo:pusht_demo").as_posix()
    'outputs/zoo_pusht_demo'
    >>> beside("hub:me/pusht@v1").as_posix()
    'outputs/hub_me_pusht_v1'
    >>> beside("outputs/a").as_posix()
    'outputs/a'
    """
    if is_name(checkpoint):
        return Path("outputs") / f"zoo_{str(checkpoint).removeprefix(PREFIX)}"
    if from_hub.is_name(checkpoint):
        return Path("outputs") / re.sub(r"[^\w.-]", "_", str(checkpoint))
    return Path(checkpoint)
