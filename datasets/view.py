"""Every episode as plots and frames, in one page that needs no network and no further package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isdt_policy.datasets.doctor import Finding, examine
from isdt_policy.datasets.formats.images import encode
from isdt_policy.datasets.split import parse_ranges
from isdt_policy.datasets.store import DemoStore
from isdt_policy.datasets.summary import is_low_dim
from isdt_policy.envs import task_ids, task_spec
from isdt_policy.shared import files, page
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.plotting import SERIES
from isdt_policy.shared.progress import Progress
from isdt_policy.shared.values import Array

# The box of the lines in a plot of 460 x 150.
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 444, 8, 120
_POINTS, _LINES = 300, 24


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One dimension over time."""

    name: str
    colour: str
    points: str


@dataclass(frozen=True)
class Plot:
    """What the template draws.

    Attributes:
        title: the key.
        about: its meaning and unit.
        axis: what runs from left to right.
        rows, columns: marks of both axes.
        lines: one per dimension.
        more: dimensions that are not drawn.
    """

    title: str
    about: str
    axis: str
    rows: list[Tick]
    columns: list[Tick]
    lines: list[Line]
    more: int


@dataclass(frozen=True)
class Film:
    """Frames of one camera, as data URLs, and their steps."""

    key: str
    frames: list[str]
    steps: list[int]


def view(
    path: str, out: Path | None = None, episodes: str | None = None, frames: int = 8, task: str | None = None
) -> Path:
    """Write the page and return its file.

    Args:
        path: a store.
        out: the page; None takes the name of the store, in the current folder.
        episodes: their numbers, such as "0-9,12"; None takes the first 20.
        frames: of each camera and episode, evenly spaced.
        task: whose units and ranges the doctor checks; None takes what the store says.

    Raises:
        InputError: no store, no such episodes, or the page cannot be written.
    """
    store = DemoStore.open(path)
    numbers = parse_ranges(episodes or f"0-{min(20, store.n_episodes) - 1}", store.n_episodes)
    target = out or Path(f"{store.path.name.removesuffix('.zip').removesuffix('.zarr')}.html")
    files.check_writable(target)
    findings = examine(path, task, images=False)
    drawn = _drawn(store, task or store.task) if frames else {}
    progress = Progress(len(numbers), "view", "episode")
    shown = []
    for number in numbers:
        own = [_told(f) for f in findings if f.episode == number and f.count == 1]
        shown.append(_episode(store, number, frames, drawn) | {"findings": own})
        progress.update()
    progress.close()
    html = page.render(
        Path(__file__).parent / "templates" / "view.html",
        title=store.path.name, n_episodes=store.n_episodes, n_steps=store.n_steps, task=store.task, episodes=shown,
        general=[_told(f) for f in findings if f.episode is None or f.count > 1],
        lengths=plot(np.diff(store.episode_ends, prepend=0), "steps of every episode", axis="episode"),
    )  # fmt: skip
    files.write_text(target, html)
    print(f"{target}: {len(numbers)} of {store.n_episodes} episodes, {target.stat().st_size / 2**20:.1f} MB")
    return target


def plot(values: Array, title: str, about: str = "", axis: str = "step") -> Plot:
    """Lines (T, d) over time."""
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    span, last = high - low or 1.0, max(len(values) - 1, 1)
    steps = np.unique(np.linspace(0, len(values) - 1, _POINTS).astype(int))
    x = _LEFT + steps / last * (_RIGHT - _LEFT)
    lines = []
    for d in range(min(values.shape[1], _LINES)):
        y = _BOTTOM - (values[steps, d] - low) / span * (_BOTTOM - _TOP)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y) if np.isfinite(b))
        lines.append(Line(f"dimension {d}", SERIES[d % len(SERIES)], points))
    marks = (
        ((_BOTTOM, low), ((_TOP + _BOTTOM) / 2, (low + high) / 2), (_TOP, high)) if high > low else ((_BOTTOM, low),)
    )
    columns = [Tick(_LEFT + share * (_RIGHT - _LEFT), f"{share * (len(values) - 1):.0f}") for share in (0, 0.5, 1)]
    rows = [Tick(at, f"{value:.4g}") for at, value in marks]
    return Plot(title, about, axis, rows, columns, lines, values.shape[1] - len(lines))


Draw = Callable[[Array], Array]  # steps of the store -> pictures


def _drawn(store: DemoStore, task: str | None) -> dict[str, Draw]:
    """Pictures that the task draws from what is stored, where nothing was filmed."""
    spec = task_spec(task) if task in task_ids() else None
    pictures = [key for key, array in spec.observations.items() if array.dtype == "uint8"] if spec else []
    filmed = any(len(store.shape(key)) == 3 for key in store.keys)
    if spec is None or spec.draw_fn is None or filmed or not pictures or not set(spec.stored_keys) <= set(store.keys):
        return {}

    def draw(steps: Array) -> Array:
        assert spec is not None
        assert spec.draw_fn is not None
        rows = {key: np.concatenate([store.read(key, int(s), int(s) + 1) for s in steps]) for key in spec.stored_keys}
        return spec.draw_fn(rows, pictures[0])

    try:
        draw(np.array([0]))
    except InputError:  # its simulator is not installed: the lines are there all the same
        return {}
    return {f"{pictures[0]}, drawn from {', '.join(spec.stored_keys)}": draw}


def _episode(store: DemoStore, number: int, frames: int, drawn: Mapping[str, Draw]) -> dict[str, object]:
    start = int(store.episode_ends[number - 1]) if number else 0
    end = int(store.episode_ends[number])
    steps = np.unique(np.linspace(start, end - 1, frames).astype(int))
    films = []
    for key in store.keys:
        shape = store.shape(key)
        if len(shape) == 3 and shape[-1] in (1, 3) and len(steps):
            pictures = [encode(store.read(key, int(step), int(step) + 1)[0]) for step in steps]
            films.append(Film(key, [page.data_url(p, "image/png") for p in pictures], (steps - start).tolist()))
    for name, draw in drawn.items():
        scenes = [page.data_url(encode(scene), "image/png") for scene in draw(steps)]
        films.append(Film(name, scenes, (steps - start).tolist()))
    about = store.attrs.get("keys", {})
    shown = [key for key in store.keys if is_low_dim(store, key) and key not in {film.key for film in films}]
    plots = [plot(store.read(key, start, end), key, _about(about.get(key, {}))) for key in shown]
    return {"number": number, "steps": end - start, "films": films, "plots": plots}


def _about(key: dict[str, str]) -> str:
    unit = f"in {key['unit']}" if key.get("unit") else ""
    return ", ".join(part for part in (key.get("meaning", ""), unit) if part)


def _told(f: Finding) -> dict[str, str]:
    place = "" if f.episode is None else f"episode {f.episode}" + ("" if f.step is None else f", step {f.step}")
    if f.count > 1:
        place = f"first in {place}, {f.count} in all"
    what = f"{f.key}: " if f.key else ""
    return {"level": f.level, "text": f"{what}{f.message}" + (f" ({place})." if place else "."), "advice": f.advice}
