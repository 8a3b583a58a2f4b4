"""How the pictures of a camera usually look, so that a policy notices others: colours swapped, upside down, another camera.

Nothing of a single picture is kept: means and spreads of 8 x 8 areas over the recordings, and of the colours as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isdt_policy.shared.pixels import resized

GRID = 8
_CELLS = GRID * GRID * 3
# Spreads below these are the noise of a camera, in grey levels: of an area, of the colour of the whole picture.
_CELL_NOISE, _COLOUR_NOISE = 4.0, 0.2
# Squares of deviations count at most so much: things that move are far from their mean wherever they are.
_FARTHEST, _FARTHEST_COLOUR = 9.0, 25.0
_BEYOND = 1.5  # times what is usual is not usual

Pictures = NDArray[np.uint8]

# What may have been done to a picture, and how it is undone.
CHANGES = {
    "red and blue are swapped (BGR): x[..., ::-1]": lambda x: x[..., ::-1],
    "it is upside down: x[..., ::-1, :, :]": lambda x: x[..., ::-1, :, :],
    "it is turned by half a turn: x[..., ::-1, ::-1, :]": lambda x: x[..., ::-1, ::-1, :],
    "left and right are swapped: x[..., ::-1, :]": lambda x: x[..., ::-1, :],
}


@dataclass(frozen=True)
class Looks:
    """How the pictures of one camera look, all together.

    Attributes:
        mean, spread: bytes of 8 x 8 areas (red, green, blue) as hexadecimal text.
        colour: by how much red and blue are above green in whole pictures, and how much either varies.
        usual: deviation that hardly any recorded picture exceeds.
    """

    mean: str
    spread: str
    colour: tuple[float, ...]
    usual: float

    def __post_init__(self) -> None:
        for text in (self.mean, self.spread):
            if len(bytes.fromhex(text)) != _CELLS:
                raise ValueError(f"looks hold {len(text) // 2} areas, expected {_CELLS}")
        if len(self.colour) != 4 or not all(np.isfinite([*self.colour, self.usual])):
            raise ValueError("looks hold no four finite numbers of colours")

    @classmethod
    def of(cls, pictures: Pictures) -> Looks:
        """Look at recorded pictures (n, height, width, 3)."""
        cells, colours = _areas(pictures), _colours(pictures)
        rounded = [np.rint(values).astype(np.uint8).tobytes().hex() for values in (cells.mean(0), cells.std(0))]
        colour = tuple(round(float(x), 3) for x in (*colours.mean(0), *colours.std(0)))
        first = cls(rounded[0], rounded[1], colour, 0.0)
        return cls(rounded[0], rounded[1], colour, round(float(np.quantile(first.deviation(pictures), 0.99)), 4))

    @classmethod
    def read(cls, values: object) -> Looks | None:
        """From JSON; None where nothing was written.

        Raises:
            TypeError, ValueError: it is damaged.
        """
        if values is None:
            return None
        if not isinstance(values, Mapping):
            raise ValueError("looks is no object")
        return cls(
            str(values["mean"]),
            str(values["spread"]),
            tuple(float(x) for x in values["colour"]),
            float(values["usual"]),
        )

    def deviation(self, pictures: Pictures) -> NDArray[np.float64]:
        """(n,): how far pictures (n, height, width, 3) are from those that were recorded."""
        mean, spread = (np.frombuffer(bytes.fromhex(text), np.uint8) for text in (self.mean, self.spread))
        middle, vary = np.array(self.colour[:2]), np.array(self.colour[2:])
        cells = (_areas(pictures) - mean) / (spread + _CELL_NOISE)
        colours = (_colours(pictures) - middle) / (vary + _COLOUR_NOISE)
        far = np.minimum(cells**2, _FARTHEST).mean(axis=1) + np.minimum(colours**2, _FARTHEST_COLOUR).mean(axis=1)
        return np.asarray(far, np.float64)


def _areas(pictures: Pictures) -> NDArray[np.float64]:
    return resized(pictures, (GRID, GRID)).reshape(len(pictures), -1).astype(np.float64)


def _colours(pictures: Pictures) -> NDArray[np.float64]:
    means = pictures.mean(axis=(1, 2))
    return np.asarray(means[:, [0, 2]] - means[:, [1]])  # brightness changes with the light


def doubts(looks: Mapping[str, Looks], pictures: Mapping[str, Pictures]) -> list[str]:
    """What seems to be wrong with pictures {key: (n, height, width, 3)}, a sentence each.

    Something is said only where pictures look like none that was recorded as they are, and usual after a change.
    """
    found = []
    for key, known in looks.items():
        if key not in pictures or not _strange(known, pictures[key]):
            continue
        for what, undo in CHANGES.items():
            if _usual(known, undo(pictures[key])):
                found.append(f"the pictures '{key}' look unlike those that were recorded: it seems that {what}")
                break
        else:
            others = [other for other in looks if other != key and other in pictures and _usual(known, pictures[other])]
            found += [
                f"the pictures '{key}' look unlike those that were recorded, and those of '{other}' look like them: are the two "
                "cameras swapped?" for other in others[:1]
            ]  # fmt: skip
    return found


def _strange(known: Looks, pictures: Pictures) -> bool:
    return float(np.median(known.deviation(pictures))) > _BEYOND * known.usual


def _usual(known: Looks, pictures: Pictures) -> bool:
    return float(np.median(known.deviation(pictures))) <= known.usual


def image_looks(policy: object) -> dict[str, Looks]:
    """How the pictures looked that a policy was trained on, as far as it says so."""
    own: Mapping[str, Looks] | None = getattr(policy, "image_looks", None)
    if own is None:
        specs: Mapping[str, object] = getattr(getattr(policy, "config", None), "images", None) or {}
        own = {key: known for key, spec in specs.items() if (known := getattr(spec, "looks", None))}
    return dict(own)
