"""`isdt data view`: every episode as plots and frames, in one HTML file that needs no network and no further package."""

from __future__ import annotations

import base64
import html
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.datasets.doctor import Finding, examine
from isdt_policy.datasets.formats.images import encode
from isdt_policy.datasets.split import parse_ranges
from isdt_policy.datasets.store import DemoStore
from isdt_policy.datasets.summary import is_low_dim
from isdt_policy.shared.progress import Progress

_COLOURS = (
    "#4269d0",
    "#efb118",
    "#ff725c",
    "#6cc5b0",
    "#3ca951",
    "#ff8ab7",
    "#a463f2",
    "#97bbf5",
    "#9c6b4e",
    "#9498a0",
)
_WIDTH, _HEIGHT, _POINTS = 420, 110, 300


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
    """
    store = DemoStore.open(path)
    numbers = parse_ranges(episodes or f"0-{min(20, store.n_episodes) - 1}", store.n_episodes)
    target = Path(out or f"{store.path.name.removesuffix('.zip').removesuffix('.zarr')}.html")
    findings = examine(path, task, images=False)
    progress = Progress(len(numbers), "view", "episode")
    sections = []
    for number in numbers:
        sections.append(_episode(store, number, frames, [f for f in findings if f.episode == number]))
        progress.update()
    progress.close()
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_text(_page(store, findings, sections, numbers), encoding="utf-8")
    os.replace(temporary, target)
    print(f"{target}: {len(numbers)} of {store.n_episodes} episodes, {target.stat().st_size / 2**20:.1f} MB")
    return target


def plot(values: NDArray[Any], title: str) -> str:
    """Lines (T, d) over time as an SVG figure."""
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    span = high - low or 1.0
    steps = np.unique(np.linspace(0, len(values) - 1, _POINTS).astype(int))
    x = steps / max(len(values) - 1, 1) * _WIDTH
    lines = []
    for d in range(min(values.shape[1], 3 * len(_COLOURS))):
        y = (1 - (values[steps, d] - low) / span) * _HEIGHT
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y) if np.isfinite(b))
        lines.append(
            f'<polyline points="{points}" stroke="{_COLOURS[d % len(_COLOURS)]}"><title>{d}</title></polyline>'
        )
    return (
        f"<figure><figcaption>{html.escape(title)} <small>{low:.4g} .. {high:.4g}</small></figcaption>"
        f'<svg viewBox="-2 -4 {_WIDTH + 4} {_HEIGHT + 8}" width="{_WIDTH}">{"".join(lines)}</svg></figure>'
    )


def _episode(store: DemoStore, number: int, frames: int, findings: list[Finding]) -> str:
    start = int(store.episode_ends[number - 1]) if number else 0
    end = int(store.episode_ends[number])
    parts = [f'<section id="e{number}"><h2>episode {number} <small>{end - start} steps</small></h2>']
    parts += [f'<p class="{f.level}">{html.escape(_words(f))}</p>' for f in findings]
    steps = np.unique(np.linspace(start, end - 1, frames).astype(int))
    for key in store.keys:
        shape = store.shape(key)
        if len(shape) == 3 and shape[-1] in (1, 3):
            parts.append(f'<div class="frames"><b>{html.escape(key)}</b>')
            for step in steps:
                data = base64.b64encode(encode(store.read(key, int(step), int(step) + 1)[0])).decode()
                parts.append(f'<img src="data:image/png;base64,{data}" title="step {step - start}" alt="">')
            parts.append("</div>")
    parts.append('<div class="plots">')
    parts += [plot(store.read(key, start, end), key) for key in store.keys if is_low_dim(store, key)]
    return "".join([*parts, "</div></section>"])


def _words(f: Finding) -> str:
    step = "" if f.step is None else f" step {f.step}"
    return f"{f.level}, {f.check}: {f.key}{step}: {f.message}. {f.advice}"


def _page(store: DemoStore, findings: list[Finding], sections: list[str], numbers: list[int]) -> str:
    lengths = np.diff(store.episode_ends, prepend=0)
    links = " ".join(f'<a href="#e{n}">{n}</a>' for n in numbers)
    general = "".join(f'<p class="{f.level}">{html.escape(_words(f))}</p>' for f in findings if f.episode is None)
    name = html.escape(store.path.name)
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 1340px; padding: 0 1em; color: #222 }}
small {{ color: #777; font-weight: normal }}
figure {{ margin: 0 }} figcaption {{ font-size: 13px }}
svg {{ background: #f6f6f6; max-width: 100% }} polyline {{ fill: none; stroke-width: 1.3 }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fill, minmax({_WIDTH}px, 1fr)); gap: 8px }}
.frames img {{ height: 96px; image-rendering: pixelated; margin: 2px }} .frames b {{ display: block; font-size: 13px }}
.error {{ color: #b00020 }} .warning {{ color: #9a5b00 }} .note {{ color: #555 }}
nav {{ font-size: 13px }}
</style>
<h1>{name}</h1>
<p>{store.n_episodes} episodes, {store.n_steps} steps; task {html.escape(str(store.task or "unknown"))};
{len(numbers)} episodes shown. Lines are coloured by dimension; hover to see which.</p>
{general}
{plot(lengths, "length of every episode, steps")}
<nav>{links}</nav>
{"".join(sections)}
</html>
"""
