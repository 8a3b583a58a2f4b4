"""Files of every format with something wrong in them: each is read, or refused in one line.

`python tests/datasets/test_mutations.py 10000` tries that many, and prints what became of them.
"""

import collections
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from isdt_policy.datasets.convert import convert
from isdt_policy.datasets.store import DemoWriter
from isdt_policy.shared.errors import InputError

FORMS = {
    "a.zarr": "zarr",
    "z.zarr.zip": "zarr",
    "d.zarr": "diffusion_policy",
    "r.hdf5": "robomimic",
    "l": "lerobot",
    "m": "minari",
}
JUNK = (
    None, True, -1, 0, 3, 1e300, 2**70, "", "x", "\x1b[2J", [], {}, [1], {"a": 1}, "../..", [[["a"]]], float("nan"),
)  # fmt: skip


def originals(folder):
    rng = np.random.default_rng(0)
    attributes = {"action_space": {"rate_hz": 10}, "masks": {"train": [0, 1]}, "keys": {"state": {"unit": "m"}}}
    with DemoWriter(folder / "source.zarr", task="pusht", attributes=attributes) as writer:
        for steps in (4, 5, 3):
            image = rng.integers(0, 255, (steps, 12, 10, 3), np.uint8)
            episode = {"state": rng.random((steps, 5)), "img": image, "action": rng.random((steps, 7), np.float32)}
            writer.append(episode, info={"name": f"demo_{steps}", "tasks": ["a"]})
    for name, format in FORMS.items():
        convert(folder / "source.zarr", folder / name, to=format)
    return folder


def changed(value, rng):
    """A JSON value with something else in one place."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        rest = {k: v for k, v in value.items() if k != key}
        return rest if rng.random() < 0.15 else {**rest, key: changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return [changed(v, rng) if i == place else v for i, v in enumerate(value)]
    return rng.choice(JUNK)


def mutate(path, rng):
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    texts = [f for f in files if f.suffix == ".json" or f.name.startswith(".z")]
    file = rng.choice(texts if texts and rng.random() < 0.6 else files)
    if file in texts and rng.random() < 0.85:
        file.write_text(json.dumps(changed(json.loads(file.read_text()), rng)))
        return
    data, how = bytearray(file.read_bytes()), rng.random()
    if how < 0.1:
        file.unlink()
        return
    if how < 0.3:
        data = data[: rng.randrange(len(data) + 1)]
    for _ in range(rng.choice((1, 1, 3, 20)) if data else 0):
        data[rng.randrange(len(data))] = rng.randrange(256)
    file.write_bytes(data)


def attempt(folder, name, seed):
    """Convert a mutated file; what became of it."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    original, path = folder / name, work / name
    (shutil.copytree if original.is_dir() else shutil.copy)(original, path)
    mutate(path, random.Random(seed))
    try:
        convert(path, work / "out.zarr")
    except InputError as error:
        refused = str(error)
    else:
        return "read"
    assert len(refused.splitlines()) == 1, refused
    assert not (work / "out.zarr").exists()
    return "refused"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return originals(tmp_path_factory.mktemp("mutations"))


@pytest.mark.parametrize("name", FORMS)
def test_a_mutated_file_is_read_or_refused_in_one_line(name, folder):
    assert "refused" in {attempt(folder, name, seed) for seed in range(15)}


if __name__ == "__main__":
    place = originals(Path(tempfile.mkdtemp()))
    names = list(FORMS)
    found: collections.Counter = collections.Counter()
    for i in range(int(sys.argv[1])):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found[names[i % 6], attempt(place, names[i % 6], i)] += 1
    print("\n".join(f"{name:<12} {what:<8} {count}" for (name, what), count in sorted(found.items())))
