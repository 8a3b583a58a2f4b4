"""Arguments of `isdt data <verb>`: the parameters of a Python function, given as `key=value` or in order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from isdt_policy.shared.errors import InputError, nearest


def bind(function: Callable[..., Any], args: Sequence[str]) -> dict[str, Any]:
    """Turn command-line arguments into keyword arguments of `function`.

    Parameters without a default may be given in order without their name; the others as key=value. Annotations say how a
    value is read: `int`, `float`, `bool`, `str`, or `tuple[str, ...]` for all that come without a name; `| None` allows none.

    >>> def split(path: str, val_ratio: float = 0.1, seed: int = 0): ...
    >>> bind(split, ["demos.zarr", "val_ratio=0.2"])
    {'path': 'demos.zarr', 'val_ratio': 0.2}

    Raises:
        InputError: an unknown key (with the nearest one), a value of another kind, or a missing one.
    """
    parameters = inspect.signature(function).parameters
    required = [name for name, p in parameters.items() if p.default is inspect.Parameter.empty]
    several = next((name for name in required if str(parameters[name].annotation).startswith("tuple")), None)
    values: dict[str, Any] = {}
    for arg in args:
        key, separator, text = arg.partition("=")
        if separator and key.isidentifier():
            if key not in parameters:
                raise InputError(f"unknown key '{key}'.{nearest(key, parameters)} Allowed: {', '.join(parameters)}.")
        else:
            free = [several] if several else [name for name in required if name not in values]
            key, text = (free[0] if free else ""), arg
            if not key:
                raise InputError(f"'{arg}' is not key=value. Allowed keys: {', '.join(parameters)}.")
        value = _read(key, text, str(parameters[key].annotation))
        values[key] = (*values.get(key, ()), *value) if isinstance(value, tuple) else value
    missing = [name for name in required if name not in values]
    if missing:
        raise InputError(f"{', '.join(missing)} missing; see --help for examples.")
    return values


def _read(key: str, text: str, annotation: str) -> Any:
    kind = annotation.removesuffix(" | None")
    if kind.startswith("tuple"):
        return tuple(part.strip() for part in text.strip("[]").split(",") if part.strip())
    if annotation != kind and text.lower() in ("none", "null"):
        return None
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        return {"int": int, "float": float}.get(kind, str)(text)
    except (KeyError, ValueError):
        meant = {"int": "a whole number", "float": "a number", "bool": "true or false"}[kind]
        raise InputError(f"{key}='{text}' is not {meant}.") from None
