"""Pictures at the doors: bytes of (height, width, 3), red, green, blue. Whatever else is given is refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from isdt_policy.shared.errors import InputError

_BYTES = "pictures are bytes, 0 to 255"


def check_layout(shape: Sequence[int], name: str, expected: Sequence[int] | None = None) -> None:
    """Refuse what is no picture of (height, width, 3), or not of the size that is expected.

    Args:
        shape: of one picture, without batch and time.
        name: of the camera, for the message.
        expected: (height, width, 3); None takes any size.

    Raises:
        InputError: grey, with alpha, channels first, or another size; the message says what to do.
    """
    shape = tuple(int(n) for n in shape)
    if expected is not None and shape == tuple(expected):
        return
    size = "(height, width, 3)" if expected is None else str(tuple(expected))
    start = f"'{name}' has pictures of shape {shape}, expected {size}"
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 1):
        raise InputError(f"{start}: it is grey. Give red, green and blue, three times the same if need be.")
    if len(shape) != 3:
        raise InputError(f"{start}.")
    if shape[2] == 4:
        raise InputError(f"{start}: it has an alpha channel. Leave it out: x[..., :3].")
    if shape[2] != 3 and shape[0] in (1, 3, 4):
        raise InputError(f"{start}: the channels come first. Move them to the end: np.moveaxis(x, -3, -1).")
    if shape[2] != 3:
        raise InputError(f"{start}: {shape[2]} channels are not red, green and blue.")
    if expected is not None:
        raise InputError(f"{start}: it is of another size. Give it the size that the policy was trained on.")


def check_bytes(dtype: np.dtype[np.generic], name: str) -> None:
    """Refuse what is not uint8.

    Raises:
        InputError: another type; the message says what to do.
    """
    if dtype == np.uint8:
        return
    remedy = "(255 * x).round().astype(np.uint8)" if dtype.kind == "f" else "x.astype(np.uint8)"
    between = " If they are between 0 and 1" if dtype.kind == "f" else ""
    raise InputError(f"'{name}' is {dtype}, and {_BYTES} (uint8).{between or ' Convert it'}: {remedy}.")


def as_bytes(pictures: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    """Recorded pictures as bytes, if that loses nothing.

    >>> as_bytes(np.array([0.0, 255.0]), "front").dtype
    dtype('uint8')

    Raises:
        InputError: values that are not whole numbers from 0 to 255; the message says what to do.
    """
    if pictures.dtype == np.uint8:
        return pictures.view(np.uint8)
    if pictures.dtype.kind not in "uif":
        raise InputError(f"'{name}' is {pictures.dtype}, and {_BYTES}.")
    values = np.asarray(pictures)
    if not pictures.size:
        return values.astype(np.uint8)
    low, high = float(values.min()), float(values.max())  # type: ignore[type-var]
    if pictures.dtype.kind == "f" and low >= 0 and 0 < high <= 1:
        raise InputError(
            f"'{name}' holds floats between 0 and 1, and {_BYTES}. Record (255 * x).round().astype(np.uint8)."
        )
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.uint8)
    if not (low >= 0 and high <= 255 and np.array_equal(whole, values)):
        raise InputError(
            f"'{name}' holds {pictures.dtype} from {low:g} to {high:g} that are not all whole numbers from 0 to 255, and "
            f"{_BYTES}. Undo what was done to them (a mean that was taken off, a scale), and record uint8."
        )
    return whole


def resized(pictures: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Pictures of another size: each new pixel is the mean of the area that it covers.

    This is the one way in which pictures change their size, in conversion, evaluation and deployment: two functions that resize
    are two policies. Sums are whole numbers, so that every machine gives the same bytes.

    >>> resized(np.array([[[0, 0, 0], [3, 30, 255]]], np.uint8), (1, 1)).tolist()
    [[[2, 15, 128]]]

    Args:
        pictures: (..., height, width, 3).
        size: height and width of the result.
    """
    height, width, channels = pictures.shape[-3:]
    rows, columns = _overlaps(height, size[0]), _overlaps(width, size[1])
    out = np.empty((*pictures.shape[:-3], *size, channels), np.uint8)
    whole = height * width
    for frame, target in zip(pictures.reshape(-1, height, width, channels), out.reshape(-1, *size, channels)):
        # Below 2^24 float32 holds every whole number; 255 * 65536 is the largest sum of one side.
        sums = (rows @ frame.reshape(height, -1).astype(np.float32)).reshape(size[0], width, channels)
        areas = (columns.astype(np.float64) @ sums.astype(np.float64)).astype(np.int64)
        target[...] = (2 * areas + whole) // (2 * whole)  # half a grey level is rounded up
    return out


@cache
def _overlaps(before: int, after: int) -> NDArray[np.float32]:
    """(after, before): how much of each old pixel a new one covers, in whole parts of which a new one has `before`."""
    new, old = np.arange(after)[:, None] * before, np.arange(before)[None] * after
    return np.clip(np.minimum(new + before, old + after) - np.maximum(new, old), 0, None).astype(np.float32)


def fitted(pictures: NDArray[np.generic], shape: Sequence[int], source: Sequence[int] | None) -> NDArray[np.generic]:
    """Pictures (..., height, width, 3) as a policy reads them: those of the camera's own size are made smaller.

    Args:
        pictures: as they were given; what is no picture of the camera is left as it is, for the checks that follow.
        shape: what the policy reads.
        source: what the camera gives, if its pictures were resized before training; None if they were not.
    """
    if source is None or pictures.dtype != np.uint8 or pictures.shape[-3:] != tuple(source):
        return pictures
    return resized(pictures.view(np.uint8), (shape[0], shape[1]))


def image_sources(policy: object) -> dict[str, tuple[int, ...]]:
    """Shapes of the pictures that cameras give, where the policy reads smaller ones; see `fitted`."""
    own: Mapping[str, Sequence[int]] | None = getattr(policy, "image_sources", None)
    if own is None:
        specs: Mapping[str, object] = getattr(getattr(policy, "config", None), "images", None) or {}
        own = {key: source for key, spec in specs.items() if (source := getattr(spec, "source", None))}
    return {key: tuple(int(n) for n in shape) for key, shape in own.items()}


def image_shapes(policy: object) -> dict[str, tuple[int, ...]]:
    """(height, width, 3) of every picture that a policy reads, by the name of its observation; empty if it says nothing of any.

    A policy says so in `image_shapes`, or has a `config` whose `images` have shapes.
    """
    own: Mapping[str, Sequence[int]] | None = getattr(policy, "image_shapes", None)
    if own is None:
        specs: Mapping[str, object] = getattr(getattr(policy, "config", None), "images", None) or {}
        own = {key: getattr(spec, "shape", ()) for key, spec in specs.items()}
    return {key: tuple(int(n) for n in shape) for key, shape in own.items()}
