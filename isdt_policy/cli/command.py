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
classes come first, joined with its own of the same title, and what they explain under "Attributes" comes last. Types say how a
value is read: str, int, float, bool, Path, Literal, Arm, X | None, tuple[X, ...]. Class variables say the rest:

    positional  names that may be given without their key
    rest        the field that takes what no other field knows (Hydra's overrides)
    renamed     words of earlier versions and what they are called now; "+arms" for a word that added to the default of arms
    another     a second word for an option, which Python keeps for itself
    bare        True if the verb does something without any argument
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Literal, TypeVar, get_args, get_origin, get_type_hints

from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.files import PathText as PathText

SEEDS = ("seed", "seed_start", "seeds")  # which no generator takes below zero

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
    syntax = Syntax.of(verb)
    values: dict[str, object] = {}
    added: dict[str, object] = {}
    for arg in args:
        key, text = syntax.split(arg, values)
        found, key = (added, key[1:]) if key.startswith("+") else (values, key)
        # What no field knows is taken as it stands: whoever reads it has a grammar of its own.
        value = (text,) if key == syntax.rest else syntax.options[key].read(text)
        found[key] = _joined(found.get(key, ()), value)
    for key, value in added.items():
        values[key] = _joined(values.get(key, syntax.options[key].default), value)
    if absent := [f"{o.name}=" for o in syntax.options.values() if o.required and o.name not in values]:
        raise InputError(f"{', '.join(absent)} missing. For example: {syntax.example}")
    return verb(**values)


def help_text(name: str, verb: type, width: int | None = None) -> str:
    """The help of a verb, from its docstring and fields.

    Args:
        name: as it is typed, such as "data convert".
        width: columns; None takes the terminal's, 80 at least and 110 at most.
    """
    width = width or min(110, max(80, shutil.get_terminal_size((100, 24)).columns))
    syntax = Syntax.of(verb)
    summary, sections = _docstring(verb)
    examples = sections.pop("Examples", "")
    usage = " ".join([f"usage: isdt {name}", *syntax.usage(), "[key=value ...]"])
    lines = textwrap.wrap(usage, width, subsequent_indent=" " * 7, break_on_hyphens=False)
    for paragraph in summary:
        lines += ["", *textwrap.wrap(paragraph, width)]
    if examples:
        lines += ["", "examples", *(part for line in examples.splitlines() for part in _example(line, width))]
    for title, body in sections.items():
        lines += ["", title[0].lower() + title[1:]]
        entries = _entries(body)
        for i, (key, text) in enumerate(entries):
            option = syntax.options[key]
            shown = "KEY=VALUE" if key == syntax.rest and key not in syntax.positional else str(option)
            if text in [
                later for _, later in entries[i + 1 : i + 2]
            ]:  # several names share a text: it stands at the last
                lines.append(f"  {shown}")
                continue
            if not all(choice in f"{shown} {text}" for choice in option.choices):
                text += f" One of {', '.join(option.choices)}."
            rest = textwrap.wrap(text, width - 26, break_on_hyphens=False) or [""]
            first = rest.pop(0) if len(shown) <= 22 else ""
            lines += [f"  {shown:<24}{first}".rstrip(), *(" " * 26 + line for line in rest)]
    return "\n".join(lines)


def options_of(verb: type) -> dict[str, str]:
    """Every option of a verb with its explanation."""
    _, sections = _docstring(verb)
    return dict(entry for title, body in sections.items() if title != "Examples" for entry in _entries(body))


def values_of(verb: type, option: str) -> tuple[str, ...] | None:
    """What completion offers for an option: a short list of values, () for anything, None for a path."""
    found = Syntax.of(verb).options[option]
    if found.word == "PATH":
        return None
    values = ("true", "false") if found.kind is bool else found.choices
    return tuple(f"[{value}]" for value in values) if found.many else values


# Arguments.


@dataclass(frozen=True)
class Option:
    """A field of a verb.

    Attributes:
        name: its key.
        kind: makes the value, or an entry of a list, from text.
        choices: all that is allowed, if that is a short list.
        word: stands for a value in the help.
        many: it is a list.
        optional: none is a value.
        required: it has no default.
        default: its value where it is not given.
    """

    name: str
    kind: Callable[[str], object]
    choices: tuple[str, ...]
    word: str
    many: bool
    optional: bool
    required: bool
    default: object

    @classmethod
    def of(cls, field: dataclasses.Field[object], kind: object) -> Option:
        """Read it from a field and its type."""
        word, many, optional = "", False, False
        while (origin := get_origin(kind)) not in (None, Literal):  # X | None, tuple[X, ...], Annotated[X, "WORD"]
            parts = get_args(kind)
            word = parts[1] if origin is Annotated else word
            many, optional = many or origin is tuple, optional or NoneType in parts
            kind = next(part for part in parts if part is not NoneType)
        choices = get_args(kind) if origin is Literal else ()
        assert callable(kind)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        words = {int: "N", float: "X", Arm: "ARM", Path: "PATH", bool: "true|false"}
        one = "|".join(choices) or words.get(kind, "NAME")  # type: ignore[call-overload]
        word = word or (f"[{one},...]" if many else one)
        return cls(field.name, kind, choices, word, many, optional, default is MISSING, default)

    def __str__(self) -> str:
        """As the help shows it, with its default."""
        if self.required or self.default in (None, ()):
            return f"{self.name}={self.word}"
        if isinstance(self.default, tuple):
            return f"{self.name}=[{','.join(map(str, self.default))}]"
        return f"{self.name}={str(self.default).lower() if isinstance(self.default, bool) else self.default}"

    def read(self, text: str) -> object:
        """The value that a text stands for."""
        if self.optional and text.lower() in ("none", "null"):
            return None
        if not self.many:
            return self._read_one(text)
        if self.kind is int and not text.startswith(("[", "(")):  # a bare number would read as a count
            raise InputError(f"{self.name} is a list: {self.name}=[{text}].")
        parts = [part.strip().strip("'\"") for part in text.strip("[]()").split(",")]
        return tuple(self._read_one(part) for part in parts if part)

    def _read_one(self, text: str) -> object:
        if self.choices:
            if text not in self.choices:
                allowed = ", ".join(self.choices)
                raise InputError(f"{self.name}='{text}' is not one of {allowed}.{nearest(text, self.choices)}")
            return text
        if self.kind is Arm:
            return Arm.parse(text)
        if self.kind is bool:
            if text.lower() not in ("true", "false"):
                raise InputError(f"{self.name} must be true or false, got '{text}'.")
            return text.lower() == "true"
        try:
            value = self.kind(text)
        except ValueError:
            number = "a whole number" if self.kind is int else "a number"
            raise InputError(f"{self.name} must be {number}, got '{text}'.") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{self.name} must be a finite number, got '{text}'.")
        if isinstance(value, int) and not abs(value) < 2**63:
            raise InputError(f"{self.name} must be below 2**63, got {text[:50]}.")
        if isinstance(value, int) and value < 0 and self.name in SEEDS:
            raise InputError(f"{self.name} must be from 0 on, got {text}.")
        return value


@dataclass(frozen=True)
class Syntax:
    """What may follow a verb; see the docstring of this file."""

    options: Mapping[str, Option]
    positional: tuple[str, ...]
    rest: str
    renamed: Mapping[str, str]
    another: Mapping[str, str]
    example: str

    @classmethod
    def of(cls, verb: type) -> Syntax:
        """Read it from a dataclass."""
        hints = get_type_hints(verb, include_extras=True)
        options = {f.name: Option.of(f, hints[f.name]) for f in dataclasses.fields(verb)}
        lines = _sections(verb)[1].get("Examples", "").splitlines() or [f"isdt {verb.__name__.lower()} --help"]
        example = re.split(r" {2,}", lines[0].strip())[0]
        return cls(
            options, getattr(verb, "positional", ()), getattr(verb, "rest", ""), getattr(verb, "renamed", {}),
            getattr(verb, "another", {}), example,
        )  # fmt: skip

    def split(self, arg: str, values: Mapping[str, object]) -> tuple[str, str]:
        """The field that an argument sets ("+field" if it adds to the default), and the text of its value.

        Args:
            values: what earlier arguments have set.
        """
        key, separator, text = arg.partition("=")
        if arg.startswith("--"):  # --episodes=10 and --overwrite are understood too
            key, text = key[2:].replace("-", "_"), text if separator else "true"
            separator = "="
        if separator and self.another.get(key, key) in self.options:
            return self.another.get(key, key), text
        if separator and key in self.renamed:
            now = self.renamed[key].removeprefix("+")
            print(
                f"note: {key}= is now {'a part of' if now != self.renamed[key] else 'called'} {now}=", file=sys.stderr
            )
            return self.renamed[key], text
        free = next((name for name in self.positional if name not in values or self.options[name].many), None)
        named = separator and re.fullmatch(r"[+~]*[\w./@]+", key)
        if self.rest and (named or free is None):
            return self.rest, arg
        if named and re.fullmatch(r"[a-z_]+", key):
            raise InputError(f"unknown key '{key}'.{nearest(key, self.options)} Allowed: {', '.join(self.options)}.")
        if free is None:
            keys = ", ".join(self.options)
            raise InputError(f"'{arg}' is not key=value. Allowed keys: {keys}. For example: {self.example}")
        return free, arg

    def usage(self) -> list[str]:
        """What must or may follow the verb without its key, and the keys that must be given."""
        texts = []
        for name, option in self.options.items():
            text = f"{name}={option.word}"
            if name in self.positional:
                text = name.upper() + (" ..." if option.many else "")
            if option.required or name in self.positional:
                texts.append(text if option.required else f"[{text}]")
        return texts


def _example(line: str, width: int) -> list[str]:
    """One example within the width: a note that does not fit beside its command stands above it; a long command is continued."""
    if len(line) + 2 <= width:
        return [f"  {line}"]
    command, *note = re.split(r" {2,}", line.strip(), maxsplit=1)
    parts = textwrap.wrap(command, width - 8, break_long_words=False, break_on_hyphens=False)
    lines = [f"  {parts[0]}", *(f"      {part}" for part in parts[1:])]
    return [*(f"  # {text}" for text in note), *(f"{part} \\" for part in lines[:-1]), lines[-1]]


def _joined(before: object, value: object) -> object:
    """Lists that are given in parts are one list; of anything else the last counts."""
    return (*before, *value) if isinstance(before, tuple) and isinstance(value, tuple) else value


# Docstrings.


def _docstring(verb: type) -> tuple[list[str], dict[str, str]]:
    """Paragraphs of the summary, and the body of every section: titled ones of base classes, its own, their attributes."""
    summary, own = _sections(verb)
    told = {option for title, body in own.items() if title != "Examples" for option, _ in _entries(body)}
    first: dict[str, str] = {}
    last: list[str] = []
    for base in verb.__mro__[1:]:
        sections = _sections(base)[1] if dataclasses.is_dataclass(base) else {}
        sections.pop("Examples", None)
        titled: dict[str, str] = {}
        for title, body in sections.items():
            entries = [(option, text) for option, text in _entries(body) if option not in told]
            told |= {option for option, _ in entries}
            lines = [f"{option}: {text}" for option, text in entries]
            if title == "Attributes":
                last += lines
            elif lines:
                titled[title] = "\n".join(lines)
        first = {**titled, **first}
    more = {"More keys" if first or set(own) > {"Examples"} else "Keys": "\n".join(last)} if last else {}
    joined = {title: f"{body}\n{first.get(title, '')}".rstrip() for title, body in own.items()}
    return summary, {**first, **joined, **more}


def _sections(verb: type) -> tuple[list[str], dict[str, str]]:
    """Paragraphs of the summary, and the body of every section, as a class's own docstring has them."""
    lines = inspect.cleandoc(verb.__doc__ or "").splitlines()
    sections: dict[str, list[str]] = {}
    head: list[str] = []
    current = head
    for line in lines:
        if re.fullmatch(r"\S.*:", line):
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
