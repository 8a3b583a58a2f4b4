"""Single compressed images, as formats embed them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.shared.errors import InputError


def decode(data: bytes) -> NDArray[np.uint8]:
    """One PNG or JPEG file as (height, width, 3) RGB.

    Raises:
        InputError: it cannot be decoded, or PyAV is missing.
    """
    av = pyav()
    try:
        with av.open(io.BytesIO(data)) as container:
            image: NDArray[np.uint8] = next(container.decode(video=0)).to_ndarray(format="rgb24")
            return image
    except (av.error.FFmpegError, StopIteration) as error:
        raise InputError(f"an image of the dataset cannot be decoded ({error}); it is damaged.") from error


def pyav() -> Any:
    """The module `av`, or what to install."""
    try:
        import av
    except ImportError:
        raise InputError("images and videos need PyAV. Install it with: pip install 'isdt-policy[formats]'") from None
    return av
