"""What a store holds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from isdt_policy.datasets.frames import LOW_DIM
from isdt_policy.datasets.store import DemoStore
from isdt_policy.shared.errors import printable
from isdt_policy.shared.values import Array, JsonObject


def blocks(store: DemoStore, key: str, megabytes: int = 64) -> Iterator[tuple[int, Array]]:
    """Read a key piece by piece: (first step, array) of at most `megabytes` each."""
    step_bytes = store.dtype(key).itemsize * int(np.prod(store.shape(key)))
    steps = max(1, megabytes * 2**20 // max(step_bytes, 1))
    for start in range(0, store.n_steps, steps):
        yield start, store.read(key, start, min(start + steps, store.n_steps))


def is_low_dim(store: DemoStore, key: str) -> bool:
    """Whether a step of a key is a vector, and no picture."""
    return int(np.prod(store.shape(key))) <= LOW_DIM


def summary(store: DemoStore) -> JsonObject:
    """Facts about a store, as plain JSON values."""
    lengths = np.diff(store.episode_ends, prepend=0)
    return {
        "path": str(store.path),
        "layout": "isdt" if "isdt_schema" in store.attrs else "diffusion_policy",
        "task": store.task,
        "episodes": store.n_episodes,
        "steps": store.n_steps,
        "episode_length": {
            "min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max()),
        },
        "keys": {key: _key_facts(store, key) for key in store.keys},
        "notes": store.notes,
        "attributes": {k: v for k, v in store.attrs.items() if k not in ("keys", "task", "n_episodes")},
    }  # fmt: skip


def _key_facts(store: DemoStore, key: str) -> JsonObject:
    shape = store.shape(key)
    facts: JsonObject = {
        "shape": list(shape),
        "dtype": str(store.dtype(key)),
        "megabytes_in_memory": round(store.n_steps * int(np.prod(shape)) * store.dtype(key).itemsize / 2**20, 2),
    } | store.attrs.get("keys", {}).get(key, {})
    if is_low_dim(store, key):
        pieces = [block.reshape(len(block), -1) for _, block in blocks(store, key)]
        facts["min"] = np.min([p.min(axis=0) for p in pieces], axis=0).astype(float).tolist()
        facts["max"] = np.max([p.max(axis=0) for p in pieces], axis=0).astype(float).tolist()
    return facts


def table(facts: JsonObject) -> str:
    """The facts of `summary` for people."""
    length = facts["episode_length"]
    wide = max(12, *(len(key) + 2 for key in facts["keys"]))
    lines = [
        f"{facts['path']}   layout {facts['layout']}   task {facts['task'] or '-'}",
        f"{facts['episodes']} episodes, {facts['steps']} steps; "
        f"length {length['min']} to {length['max']}, median {length['median']:g}",
        "",
        f"{'key':<{wide}}{'shape':<16}{'dtype':<9}{'MB':>8}  {'smallest .. largest':<26}unit",
    ]
    for key, f in facts["keys"].items():
        span = f"{min(f['min']):.4g} .. {max(f['max']):.4g}" if "min" in f else "-"
        lines.append(
            f"{key:<{wide}}{'x'.join(map(str, f['shape'])) or '1':<16}{f['dtype']:<9}{f['megabytes_in_memory']:>8.4g}  "
            f"{span:<26}{f.get('unit', '')}".rstrip()
        )
    lines += [f"note: {note}" for note in facts["notes"]]
    attributes = facts["attributes"]
    for name in ("action_space", "env", "provenance"):
        if name in attributes:
            lines.append(f"\n{name:<14}{_flat(attributes[name])}")
    if attributes.get("masks"):
        lines.append(f"\n{'masks':<14}" + ", ".join(f"{k} ({len(v)})" for k, v in attributes["masks"].items()))
    return printable("\n".join(lines))


def _flat(value: object) -> str:
    """A nested value on one line, cut where it gets long."""
    text = ", ".join(f"{k} {_flat(v)}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) < 400 else text[:400] + " ... (format=json shows all)"
