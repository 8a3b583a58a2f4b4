"""Single compressed images, as formats embed them."""

from __future__ import annotations

import io
import struct
import zlib
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import require
from isdt_policy.shared.values import Array

# A picture of a robot's camera; an image that claims more is not decoded.
LARGEST_PIXELS = 2**25


def decode(data: bytes) -> NDArray[np.uint8]:
    """One PNG or JPEG file as (height, width, 3) RGB.

    Raises:
        InputError: it is neither, is damaged or too large, or PyAV is missing.
    """
    height, width = size(data)
    check_size(height, width)
    av = pyav()
    try:
        with av.open(io.BytesIO(data)) as container:
            image: NDArray[np.uint8] = next(container.decode(video=0)).to_ndarray(format="rgb24")
            return image
    except (av.error.FFmpegError, StopIteration) as error:
        raise InputError(f"an image of the dataset cannot be decoded ({error}); it is damaged.") from error


def encode(image: Array) -> bytes:
    """Encode (height, width, 1 or 3) numbers in 0..255 as a PNG file."""
    pixels = np.ascontiguousarray(np.clip(np.nan_to_num(image.astype(np.float64)), 0, 255), np.uint8)
    height, width, channels = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # filter 0 before each

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes()))
        + chunk(b"IEND", b"")
    )


def check_size(height: int, width: int) -> None:
    """Refuse a picture or a video of too many pixels."""
    if height * width > LARGEST_PIXELS:
        raise InputError(
            f"an image of the dataset claims {width} x {height} pixels; at most {LARGEST_PIXELS} are decoded."
        )


def size(data: bytes) -> tuple[int, int]:
    """(height, width) of a PNG or JPEG file, read from its header.

    Raises:
        InputError: it is neither.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    place = 2
    while data[:2] == b"\xff\xd8" and place + 9 <= len(data):
        kind, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # start of a frame
            height, width = struct.unpack(">HH", data[place + 5 : place + 9])
            return height, width
        place += 2 + length
    raise InputError("an image of the dataset is neither PNG nor JPEG, or it is damaged.")


def pyav() -> ModuleType:
    """The package PyAV."""
    return require("av", "formats", "Images and videos")
