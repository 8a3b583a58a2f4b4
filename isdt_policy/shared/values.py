"""Types of values about which only the data decide: objects of JSON files, arrays of any numbers."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from numpy.typing import NDArray

Json = Mapping[str, Any]  # an object of a JSON file; whoever reads a value checks it
JsonObject = dict[str, Any]  # the same, to be filled in
Array = NDArray[Any]  # numbers of any type


def parse_json(text: str | bytes) -> Any:
    """What JSON says.

    Raises:
        ValueError: no JSON, bytes that are no text, or lists in lists without end.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def fitting(cls: type, data: Json) -> JsonObject:
    """The fields of a dataclass that a JSON object has, each checked against its annotation.

    Numbers, truth values, texts, objects, lists of them and unions are checked; what else a field may be, its class checks.

    Raises:
        TypeError: `data` is no object, or a value is of another type; the field is named.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{data!r} is not an object")
    hints = _hints(cls)
    for name in hints.keys() & data.keys():
        if not _fits(data[name], hints[name]):
            raise TypeError(f"{name} is {data[name]!r}"[:200])
    return {name: data[name] for name in hints if name in data}


_hints = cache(get_type_hints)


def _fits(value: object, hint: object) -> bool:
    origin, args = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in args)
    if origin is Any:
        return True
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(one, args[1]) for one in value.values())
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(one, args[0]) for one in value)
    if isinstance(value, bool) or value is None:
        return origin in (type(value), object)
    if origin is float:
        return isinstance(value, int | float)
    return isinstance(value, origin) if isinstance(origin, type) else True
