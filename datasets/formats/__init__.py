"""Demonstration formats of other people, one file each.

A format is a module of this folder. What it offers:

    LOOK                        how a path of it looks, for people
    ENDINGS                     names of targets that mean this format without to=; may be empty
    recognises(path)            whether what is there is of this format, judged by looking inside
    read(path, how)             a `Recording`. `how` may be ignored: what is not wanted is left out afterwards
    write(recording, path, provenance)      may be absent: then the format is only read. `path` does not exist yet.

`FORMATS` lists them. Everything downstream sees recordings only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.values import Array, Json, JsonObject

# format -> module; the first that recognises a path reads it. They are imported when they are needed.
FORMATS: dict[str, str] = {
    "d3il": "isdt_policy.datasets.formats.d3il",
    "zarr": "isdt_policy.datasets.formats.native",
    "diffusion_policy": "isdt_policy.datasets.formats.diffusion_policy",
    "robomimic": "isdt_policy.datasets.formats.robomimic",
    "lerobot": "isdt_policy.datasets.formats.lerobot",
    "minari": "isdt_policy.datasets.formats.minari",
}

Episode = dict[str, Array]  # {key: (T, *shape)}


@dataclass(frozen=True)
class Reading:
    """How a source is read.

    Attributes:
        keys: only these keys, by their names in a store, and the action; None takes all. Others need not be readable.
        rename: {name in the source: name in the store}.
        images: of the pictures only these, by their names in a store; None takes all that `keys` does.
        actions: what the actions are ("delta" or "absolute"), where the source does not say it or says it wrongly.
    """

    keys: tuple[str, ...] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    actions: str | None = None
    images: tuple[str, ...] | None = None

    def wants(self, key: str, picture: bool = False) -> bool:
        """Whether a key of the source is wanted; a picture that `images` names need not be among `keys`."""
        name = self.rename.get(key, key)
        if picture and self.images is not None:
            return name in self.images
        return self.keys is None or name in (*self.keys, *(self.images or ()), "action")


EVERYTHING = Reading()


@dataclass(frozen=True)
class Recording:
    """Demonstrations on their way from one format to another.

    Attributes:
        format: name in FORMATS.
        path: where they are.
        numbers: which episodes of the source; ascending.
        load: reads the episodes of some numbers, in their order.
        task: task id, if known.
        attributes: attributes of our store (keys, action_space, env, masks, ...), as far as the format has them.
        info: one object per episode, as in meta/episode_info; may be empty.
        notes: what could not be carried over, for people.
    """

    format: str
    path: Path
    numbers: Sequence[int]
    load: Callable[[Sequence[int]], Iterator[Episode]]
    task: str | None = None
    attributes: Json = field(default_factory=dict)
    info: list[JsonObject] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def n_episodes(self) -> int:
        return len(self.numbers)

    def episodes(self) -> Iterator[Episode]:
        """A fresh pass over the episodes."""
        return self.load(self.numbers)

    def name(self, place: int) -> str:
        """What the source calls an episode."""
        named = self.info[place].get("name") if self.info else None
        return str(named or f"episode {self.numbers[place]}")

    def changed(self, change: Callable[[Episode], Episode]) -> Recording:
        """The same with every episode changed."""
        return replace(self, load=lambda numbers: map(change, self.load(numbers)))


def recognised(path: Path) -> str | None:
    """The format of what is at `path`, or None."""
    return next((name for name in FORMATS if module(name).recognises(path)), None) if path.exists() else None


def detect(path: str | Path) -> str:
    """The format of what is at `path`, found by looking inside.

    Raises:
        InputError: nothing is there, or no format that is known.
    """
    where = Path(path)
    if not where.exists():
        raise InputError(f"no demonstrations at '{path}': the path does not exist.")
    found = recognised(where)
    if found:
        return found
    if where.is_dir():
        inside = sorted(child for child in where.iterdir() if child.suffix in (".zarr", ".hdf5", ".zip"))
        hint = f" Did you mean '{inside[0]}'?" if inside else ""
    else:
        hint = " The file is empty." if not where.stat().st_size else " It may be cut short: download it again."
    known = "; ".join(f"{name}: {module(name).LOOK}" for name in FORMATS)
    raise InputError(f"'{path}' is in no format that is known ({known}).{hint}")


def read(path: str | Path, how: Reading = EVERYTHING) -> Recording:
    """Open demonstrations of any format.

    Raises:
        InputError: nothing is there, no format that is known, or it cannot be read. Keys that are not there are noticed with
            the first episode.
    """
    with _door(path):
        recording: Recording = module(detect(path)).read(Path(path), how)
        task, masks = recording.task, recording.attributes.get("masks", {})
        known = [type(entry) is dict for entry in recording.info]
        if not isinstance(task, str | None) or len(known) not in (0, recording.n_episodes) or not all(known):
            raise ValueError("its task or the information of its episodes is of another kind")
        if any(not 0 <= number < recording.n_episodes for mask in masks.values() for number in mask):
            raise ValueError("a mask names episodes that are not there")
    load = recording.load
    recording = replace(recording, load=lambda numbers: _through_door(path, load(numbers)))

    def named(episode: Episode) -> Episode:
        absent = sorted({*how.rename} - {*episode})
        if absent:
            raise InputError(f"'{path}' has no key '{absent[0]}'; it has {', '.join(sorted(episode))}.")
        pictures = {key: value for key, value in episode.items() if is_picture(value)}
        chosen = {how.rename.get(k, k): value for k, value in episode.items() if how.wants(k, k in pictures)}
        absent = sorted({*(how.images or ())} - {how.rename.get(key, key) for key in pictures})
        if absent:
            named = [how.rename.get(key, key) for key in pictures]
            raise InputError(
                f"images: '{path}' has no pictures '{absent[0]}'.{nearest(absent[0], named)} It has: {', '.join(named) or 'none'}."
            )
        absent = sorted({*(how.keys or ())} - {*chosen})
        if absent:
            raise InputError(f"'{path}' has no key '{absent[0]}'; it has {', '.join(sorted(episode))}.")
        return chosen

    return recording.changed(named) if how != EVERYTHING else recording


def is_picture(values: Array) -> bool:
    """Whether the values of an episode, time first, are pictures of any layout and type."""
    return values.ndim >= 3 and values[:1].size > 256


@contextmanager
def _door(path: str | Path) -> Iterator[None]:
    """What a file of unknown origin may raise, in one line. Whatever is wrong with it, it was not asked for."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"'{path}' is damaged, or not made as its format says ({type(error).__name__}: {reason})."
        ) from error


def _through_door(path: str | Path, episodes: Iterator[Episode]) -> Iterator[Episode]:
    while True:
        with _door(path):
            episode = next(episodes, None)
        if episode is None:
            return
        yield episode


def module(format: str) -> ModuleType:
    """The module that reads and writes a format."""
    if format not in FORMATS:
        raise InputError(f"format '{format}' is not known.{nearest(format, FORMATS)} Formats: {', '.join(FORMATS)}.")
    return importlib.import_module(FORMATS[format])


def of_target(target: Path) -> str:
    """The format that the name of a target stands for.

    Raises:
        InputError: it stands for no format.
    """
    endings = {ending: name for name in FORMATS for ending in module(name).ENDINGS}
    for ending, name in endings.items():
        if target.name.endswith(ending):
            return name
    raise InputError(
        f"'{target}': the name of a target ends in {', '.join(endings)}; or say to=FORMAT "
        f"({', '.join(name for name in FORMATS if name not in endings.values())} need it)."
    )
