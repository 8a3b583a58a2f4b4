"""Statistics of LeRobot's features, of every episode and of all together.

Its tools (delete, split, merge episodes) make a dataset's statistics from those of its episodes, and its policies normalise by
them; without them it trains unnormalised and does not say so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from isdt_policy.shared.values import Array, JsonObject

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
Numbers = dict[str, NDArray[np.float64]]  # {"min", "max", "mean", "std", "q01", ...: (d,), "count": (1,)}


def of_numbers(values: Array) -> Numbers:
    """Statistics of a feature in one episode, (T, d)."""
    x = values.astype(np.float64)
    found = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    levels = np.quantile(x, QUANTILES, axis=0)
    return found | dict(zip(_names(), levels)) | {"count": np.array([len(x)], np.float64)}


def of_pictures(values: Array) -> Numbers:
    """The same for pictures (T, height, width, channels), of bytes divided by 255: (channels,), from counts of the 256 values."""
    level = np.arange(256) / 255
    columns = []
    for channel in range(values.shape[-1]):
        counts = np.bincount(values[..., channel].ravel(), minlength=256)
        there, total = np.flatnonzero(counts), counts.sum()
        mean = counts @ level / total
        variance = counts @ (level - mean) ** 2 / total
        reached = np.searchsorted(np.cumsum(counts), np.array(QUANTILES) * total)
        columns.append([level[there[0]], level[there[-1]], mean, variance**0.5, *level[reached.clip(max=255)]])
    names = ("min", "max", "mean", "std", *_names())
    return dict(zip(names, np.array(columns).T)) | {"count": np.array([len(values)], np.float64)}


def together(parts: Sequence[Numbers]) -> Numbers:
    """Statistics of all episodes from those of each, as LeRobot joins them: exact but for the quantiles, which are the means of
    the episodes' quantiles, weighted by their lengths."""
    stacked = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    count = stacked["count"]
    weight = count / count.sum()
    mean = (weight * stacked["mean"]).sum(0)
    variance = (weight * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(0)
    quantiles = {name: (weight * stacked[name]).sum(0) for name in _names()}
    found = {"min": stacked["min"].min(0), "max": stacked["max"].max(0), "mean": mean, "std": np.sqrt(variance)}
    return found | quantiles | {"count": count.sum(0)}


def as_json(numbers: Numbers, picture: bool) -> JsonObject:
    """In the shapes that LeRobot gives them: of pictures (channels, 1, 1)."""
    shape = (-1, 1, 1) if picture else (-1,)
    shown = {name: value.reshape(shape).tolist() for name, value in numbers.items() if name != "count"}
    return shown | {"count": [int(numbers["count"][0])]}


def schema(features: Mapping[str, JsonObject]) -> str:
    """What Hugging Face's `datasets` reads of a table's columns: without it a picture stays a struct of bytes and path."""

    def column(feature: JsonObject) -> JsonObject:
        if feature["dtype"] == "image":
            return {"_type": "Image"}
        value = {"dtype": feature["dtype"], "_type": "Value"}
        size = feature["shape"][0]
        return value if size == 1 else {"feature": value, "length": size, "_type": "List"}

    return json.dumps({"info": {"features": {name: column(feature) for name, feature in features.items()}}})


def _names() -> list[str]:
    return [f"q{round(100 * level):02d}" for level in QUANTILES]
