"""Messages of the policy server: msgpack with arrays, as openpi's clients write them.

An array is the map {b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [...]}, a NumPy scalar
{b"__npgeneric__": True, b"data": value, b"dtype": ...}. Nothing is ever unpickled: only booleans, integers and floats are
read, and a message that says anything else is refused before an array is made of it.
"""

from __future__ import annotations

import math

import numpy as np

from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import require

KINDS = "biuf"
MAX_DIMS = 8
MAX_MAPS = 1000  # maps of a message, and keys of a map: reading more would keep others waiting
MAX_ARRAY = 1 << 16  # entries of a list


def pack(value: object) -> bytes:
    """Write maps, lists, strings, numbers and arrays.

    Raises:
        InputError: an array of objects, strings or complex numbers, or something msgpack cannot write.
    """
    msgpack = require("msgpack", "serve", "Messages")
    try:
        return bytes(msgpack.packb(value, default=_to_wire))
    except (TypeError, OverflowError) as error:
        raise InputError(f"the message cannot be written: {error}") from error


def unpack(data: bytes) -> object:
    """Read what `pack` or openpi's packer wrote. Arrays are read-only views of `data`.

    Raises:
        InputError: not msgpack, trailing or missing bytes, or an array whose description is wrong.
    """
    msgpack = require("msgpack", "serve", "Messages")
    maps = 0

    def read(obj: dict[object, object]) -> object:
        nonlocal maps
        maps += 1
        if maps > MAX_MAPS:
            raise InputError(f"the message holds more than {MAX_MAPS} maps.")
        return _from_wire(obj)

    try:
        return msgpack.unpackb(data, object_hook=read, max_map_len=MAX_MAPS, max_array_len=MAX_ARRAY)
    except InputError:
        raise
    except Exception as error:  # msgpack raises ValueError and its subclasses, UnicodeDecodeError, RecursionError, ...
        raise InputError(f"the message is not valid msgpack: {type(error).__name__}: {str(error)[:100]}") from error


def _to_wire(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in KINDS:
            raise InputError(f"arrays of dtype {value.dtype} are not sent; allowed are booleans, integers and floats.")
        if isinstance(value, np.ndarray):
            return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} is not a map, list, string, number or array")


def _from_wire(obj: dict[object, object]) -> object:
    if b"__ndarray__" in obj:
        dtype, data, shape = _dtype(obj), obj.get(b"data"), obj.get(b"shape")
        if not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > MAX_DIMS:
            raise InputError("an array of the message lacks its data or shape.")
        if not all(type(size) is int and 0 <= size < 2**31 for size in shape):
            raise InputError(f"an array of the message has the shape {str(shape)[:100]}.")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise InputError(f"an array of shape {shape} and dtype {dtype} does not have {len(data)} bytes.")
        return np.frombuffer(data, dtype).reshape(shape)
    if b"nd" in obj and b"kind" in obj:
        raise InputError(
            "an array packed by msgpack-numpy; pack with openpi_client's msgpack_numpy, or send lists of numbers."
        )
    if b"__npgeneric__" in obj:
        value = obj.get(b"data")
        if not isinstance(value, bool | int | float):
            raise InputError("a NumPy scalar of the message is not a number.")
        try:
            return _dtype(obj).type(value)
        except (OverflowError, ValueError) as error:
            raise InputError(f"a NumPy scalar of the message does not fit its dtype: {error}") from error
    return obj


def _dtype(obj: dict[object, object]) -> np.dtype[np.generic]:
    name = obj.get(b"dtype")
    try:
        dtype = np.dtype(name) if isinstance(name, str) and len(name) <= 8 else None
    except (TypeError, ValueError, SyntaxError):  # np.dtype parses "f4,f4"
        dtype = None
    if dtype is None or dtype.kind not in KINDS or dtype.fields is not None or dtype.subdtype is not None:
        raise InputError(f"dtype {str(name)[:40]!r} is not accepted; allowed are booleans, integers and floats.")
    return dtype
