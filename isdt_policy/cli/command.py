"""One verb is one dataclass: its fields are the options, its docstring is the help, its `run` does the work.

    @dataclass(frozen=True)
    class Count:
        '''Count the episodes of a store.

        Examples:
            isdt data count demos.zarr       all of them
            isdt data count demos.zarr mask=train

        What is counted:
            path: a store.
            mask: only the episodes of this mask; default: all.
        '''

        path: PathText
        mask: str | None = None

        positional: ClassVar = ("path",)

        def run(self, command: str) -> int: ...

Every section of the docstring but "Examples" lists options under its own heading. A verb may inherit fields: sections of base
classes come first, and what they explain under "Attributes" comes last. Types say how a value is read: str, int,
float, bool, Path, Literal, Arm, X | None, tuple[X, ...]. Class variables say the rest: `positional`, names that may be given
without their key; `rest`, the field that takes what no other field knows (Hydra's overrides); `renamed`, words of earlier
versions and what they are called now.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError, nearest

PathText = Annotated[str, "PATH"]

Verb = TypeVar("Verb")


class HelpWanted(Exception):
    """--help stood among the arguments."""


def parse(verb: type[Verb], args: Sequence[str]) -> Verb:
    """Make the dataclass of a verb from its arguments.

    Raises:
        HelpWanted: --help or -h is among them.
        InputError: an unknown key (with the nearest), a value of another kind, one too many, or one that is missing.
    """
    if any(arg in ("-h", "--help") for arg in args):
        raise HelpWanted
    kinds = _kinds(verb)
    values: dict[str, Any] = {}
    for arg in args:
        key, text = _key_and_text(verb, arg, kinds, values)
        # What no field knows is taken as it stands: whoever reads it has a grammar of its own.
        value = (text,) if key == getattr(verb, "rest", "") else _read(key, text, kinds[key])
        values[key] = (*values[key], *value) if isinstance(value, tuple) and key in values else value
    absent = [f.name for f in dataclasses.fields(verb) if f.name not in values and _required(f)]  # type: ignore[arg-type]
    if absent:
        raise InputError(f"{', '.join(f'{name}=' for name in absent)} missing. For example: {_first_example(verb)}")
    return verb(**values)


def given(verb: type, args: Sequence[str]) -> set[str]:
    """Names of the fields that arguments set."""
    kinds, found = _kinds(verb), dict[str, Any]()
    for arg in args:
        found[_key_and_text(verb, arg, kinds, found, quiet=True)[0]] = True
    return set(found)


def help_text(name: str, verb: type, width: int | None = None) -> str:
    """The help of a verb, from its docstring and fields.

    Args:
        name: as it is typed, such as "data convert".
        width: columns; None takes the terminal's, 80 at least and 110 at most.
    """
    width = width or min(110, max(80, shutil.get_terminal_size((100, 24)).columns))
    summary, sections = _docstring(verb)
    examples = sections.pop("Examples", "")
    usage = " ".join([f"isdt {name}", *(_usage(verb, f) for f in dataclasses.fields(verb) if _shown_in_usage(verb, f))])
    lines = textwrap.wrap(f"usage: {usage} [key=value ...]", width, subsequent_indent=" " * 7, break_on_hyphens=False)
    for paragraph in summary:
        lines += ["", *textwrap.wrap(paragraph, width)]
    if examples:
        lines += ["", "examples", *(f"  {line}" for line in examples.splitlines())]
    fields = {f.name: f for f in dataclasses.fields(verb)}
    kinds = _kinds(verb)
    for title, body in sections.items():
        lines += ["", title[0].lower() + title[1:]]
        for option, text in _entries(body):
            settings = option == getattr(verb, "rest", "") and option not in getattr(verb, "positional", ())
            shown = "KEY=VALUE" if settings else _shown(fields[option], kinds[option])
            rest = textwrap.wrap(text + _choices(kinds[option]), width - 26, break_on_hyphens=False) or [""]
            if len(shown) > 22:
                lines.append(f"  {shown}")
            else:
                lines.append(f"  {shown:<24}{rest.pop(0)}".rstrip())
            lines += [" " * 26 + line for line in rest]
    return "\n".join(lines)


def summary_of(docstring: str) -> str:
    """First sentence of a verb's docstring, without its full stop."""
    return " ".join(docstring.split("\n\n")[0].split()).rstrip(".")


def options_of(verb: type) -> dict[str, str]:
    """Every option of a verb with its explanation."""
    _, sections = _docstring(verb)
    sections.pop("Examples", None)
    return {option: text for body in sections.values() for option, text in _entries(body)}


def choices_of(verb: type, option: str) -> tuple[str, ...]:
    """What an option may be, if that is a short list."""
    return _literals(_kinds(verb)[option])


def values_of(verb: type, option: str) -> tuple[str, ...] | None:
    """What completion offers for an option: a short list of values, () for anything, None for a path."""
    kind = _kinds(verb)[option]
    if _metavar(kind).strip("[],.") == "PATH":
        return None
    if _inner(kind)[0] is bool:
        return ("true", "false")
    allowed = _literals(kind)
    return tuple(f"[{value}]" for value in allowed) if _is_tuple(kind) else allowed


# Arguments.


def _key_and_text(
    verb: type, arg: str, kinds: Mapping[str, Any], values: Mapping[str, Any], quiet: bool = False
) -> tuple[str, str]:
    """The field that an argument sets, and the text of its value."""
    key, separator, text = arg.partition("=")
    if arg.startswith("--"):  # --episodes=10 and --overwrite are understood too
        key, text = key[2:].replace("-", "_"), text if separator else "true"
        separator = "="
    renamed: Mapping[str, str] = getattr(verb, "renamed", {})
    if separator and key in renamed and key not in kinds:
        if not quiet:
            print(f"note: {key}= is now called {renamed[key]}=", file=sys.stderr)
        key = renamed[key]
    if separator and key in kinds:
        return key, text
    rest: str | None = getattr(verb, "rest", None)
    named = separator and re.fullmatch(r"[+~]*[\w./@]+", key)
    if rest and (named or not _free(verb, kinds, values)):
        return rest, arg
    if named and re.fullmatch(r"[a-z_]+", key):
        raise InputError(f"unknown key '{key}'.{nearest(key, kinds)} Allowed: {', '.join(kinds)}.")
    free = _free(verb, kinds, values)
    if not free:
        raise InputError(
            f"'{arg}' is not key=value. Allowed keys: {', '.join(kinds)}. For example: {_first_example(verb)}"
        )
    return free[0], arg


def _free(verb: type, kinds: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    return [name for name in getattr(verb, "positional", ()) if name not in values or _is_tuple(kinds[name])]


def _read(key: str, text: str, kind: Any) -> Any:
    kind, optional = _inner(kind)
    if optional and text.lower() in ("none", "null"):
        return None
    if _is_tuple(kind):
        item = get_args(kind)[0]
        if item is int and not text.startswith(("[", "(")):  # a bare number would read as a count
            raise InputError(f"{key} is a list: {key}=[{text}].")
        parts = [part.strip().strip("'\"") for part in text.strip("[]()").split(",")]
        return tuple(_read(key, part, item) for part in parts if part)
    allowed = _literals(kind)
    if allowed:
        if text not in allowed:
            raise InputError(f"{key}='{text}' is not one of {', '.join(allowed)}.{nearest(text, allowed)}")
        return text
    if kind is Arm:
        return Arm.parse(text)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"{key} must be true or false, got '{text}'.")
        return text.lower() == "true"
    try:
        return int(text) if kind is int else float(text) if kind is float else kind(text)
    except ValueError:
        raise InputError(f"{key} must be {'a whole number' if kind is int else 'a number'}, got '{text}'.") from None


# Types.


def _kinds(verb: type) -> dict[str, Any]:
    hints = get_type_hints(verb, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(verb)}


def _inner(kind: Any) -> tuple[Any, bool]:
    """The type without Annotated and `| None`, and whether None is allowed."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, types.UnionType):
        parts = [part for part in get_args(kind) if part is not type(None)]
        return _inner(parts[0])[0], len(parts) < len(get_args(kind))
    return kind, False


def _is_tuple(kind: Any) -> bool:
    return get_origin(_inner(kind)[0]) is tuple


def _literals(kind: Any) -> tuple[str, ...]:
    kind = _inner(kind)[0]
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return get_args(kind) if get_origin(kind) is Literal else ()


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


# Help.


def _docstring(verb: type) -> tuple[list[str], dict[str, str]]:
    """Paragraphs of the summary, and the body of every section: titled ones of base classes, its own, their attributes."""
    summary, own = _sections(verb)
    told = {option for title, body in own.items() if title != "Examples" for option, _ in _entries(body)}
    first: dict[str, str] = {}
    last: list[str] = []
    for base in reversed(verb.__mro__[1:]):
        sections = _sections(base)[1] if dataclasses.is_dataclass(base) else {}
        sections.pop("Examples", None)
        for title, body in sections.items():
            entries = [(option, text) for option, text in _entries(body) if option not in told]
            told |= {option for option, _ in entries}
            lines = [f"{option}: {text}" for option, text in entries]
            if title == "Attributes":
                last += lines
            elif lines:
                first[title] = "\n".join(lines)
    more = {"More keys" if first or set(own) > {"Examples"} else "Keys": "\n".join(last)} if last else {}
    return summary, {**first, **own, **more}


def _sections(verb: type) -> tuple[list[str], dict[str, str]]:
    """Paragraphs of the summary, and the body of every section, as a class's own docstring has them."""
    lines = textwrap.dedent(f"    {verb.__doc__ or ''}").strip().splitlines()
    sections: dict[str, list[str]] = {}
    head: list[str] = []
    current = head
    for line in lines:
        if re.fullmatch(r"\S.*:", line) and not line.startswith(" "):
            current = sections.setdefault(line[:-1], [])
        else:
            current.append(line)
    paragraphs = [" ".join(part.split()) for part in "\n".join(head).split("\n\n") if part.strip()]
    return paragraphs, {title: textwrap.dedent("\n".join(body)).strip("\n") for title, body in sections.items()}


def _entries(body: str) -> list[tuple[str, str]]:
    """(option, text) of a section; several names may share a text: "low, high: bounds."."""
    found: list[tuple[str, str]] = []
    for line in body.splitlines():
        match = re.match(r"(\w+(?:, \w+)*): (.*)", line)
        if match:
            names = match[1].split(", ")
            found += [(name, match[2]) for name in names]
        elif line.strip():
            found[-len(names) :] = [(name, f"{text} {line.strip()}") for name, text in found[-len(names) :]]
    return found


def _shown(field: dataclasses.Field[Any], kind: Any) -> str:
    default = None if _required(field) else field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is dataclasses.MISSING or default in (None, ()):
        return f"{field.name}={_metavar(kind)}"
    if isinstance(default, tuple):
        return f"{field.name}=[{','.join(map(str, default))}]"
    return f"{field.name}={str(default).lower() if isinstance(default, bool) else default}"


def _metavar(kind: Any) -> str:
    for part in (kind, *get_args(kind)):
        if get_origin(part) is Annotated:
            return str(get_args(part)[1])
    inner = _inner(kind)[0]
    if get_origin(inner) is tuple:
        return f"[{_metavar(get_args(inner)[0])},...]"
    allowed = _literals(inner)
    if allowed:
        return "|".join(allowed)
    return {int: "N", float: "X", Arm: "ARM", Path: "PATH", bool: "true|false"}.get(inner, "NAME")


def _choices(kind: Any) -> str:
    allowed = _literals(kind)
    return f" One of {', '.join(allowed)}." if len(allowed) > 1 else ""


def _shown_in_usage(verb: type, field: dataclasses.Field[Any]) -> bool:
    return _required(field) or field.name in getattr(verb, "positional", ())


def _usage(verb: type, field: dataclasses.Field[Any]) -> str:
    kind = _kinds(verb)[field.name]
    if field.name in getattr(verb, "positional", ()):
        text = field.name.upper() + (" ..." if _is_tuple(kind) else "")
    else:
        text = f"{field.name}={_metavar(kind)}"
    return text if _required(field) else f"[{text}]"


def _first_example(verb: type) -> str:
    _, sections = _docstring(verb)
    lines = sections.get("Examples", "").splitlines()
    return re.split(r" {2,}", lines[0].strip())[0] if lines else f"isdt {verb.__name__.lower()} --help"
