"""What is killed: seven pieces of work, each with what must hold right after a kill and at the end of the last sitting."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from harness import Ack
from safetensors.torch import load_file

from isdt_policy.cli.command import parse
from isdt_policy.cli.data_record import Record
from isdt_policy.datasets import formats
from isdt_policy.datasets.convert import convert
from isdt_policy.datasets.generate import generate
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.eval.journal import Journal
from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.result import Result
from isdt_policy.eval.rollout import evaluate
from isdt_policy.lab.tune import search
from isdt_policy.lab.tune.settings import Tuning
from isdt_policy.method.policy import Policy
from isdt_policy.training import checkpoint
from isdt_policy.training.config import compose_config
from isdt_policy.training.run import train

TASK = "avoiding"  # its expert and its episodes are the cheapest
TINY = [
    "network.down_dims=[8,16]", "network.embed_dim=16", "network.time_dim=8", "policy.cond_dim=8", "training.device=cpu",
    "policy.encoder_hidden=[16]", "training.batch_size=16", "training.threads=1", "training.loggers=[]", "task=avoiding",
    "training.compile=false", "training.amp=off", "training.diagonal_steps=2", "training.warmup_steps=2",
]  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A piece of work that goes on where it was killed.

    Attributes:
        do: (folder, inputs, ack): the work, from nothing or from what is there.
        look: (folder, inputs, acknowledged): what must hold right after a kill, before anything goes on.
        compare: (folder, folder of a work that nobody killed): what must hold at the end.
        before: (folder, inputs): what is there beforehand.
    """

    do: Callable[[Path, Path, Ack], object]
    look: Callable[[Path, Path, int], None]
    compare: Callable[[Path, Path], None]
    before: Callable[[Path, Path], None] = lambda folder, inputs: None


def inputs(folder: Path) -> None:
    """Demonstrations and a policy that the works need."""
    generate(str(folder / "demos.zarr"), TASK, episodes=3, workers=1)
    convert(folder / "demos.zarr", folder / "older.zarr", to="zarr")
    with DemoWriter(folder / "older.zarr") as writer:  # what is there before a conversion: one episode more
        writer.append(DemoStore.open(folder / "demos.zarr").episode(0), info={})
    train(
        compose_config([*TINY, f"data.path={folder / 'demos.zarr'}", f"run_dir={folder / 'run'}", "training.steps=4"])
    )


def acknowledging(owner: object, name: str, ack: Ack) -> None:
    """Acknowledge each return of a method."""
    method = getattr(owner, name)

    def and_then(*args: object, **options: object) -> object:
        result = method(*args, **options)
        ack()
        return result

    setattr(owner, name, and_then)


# Stores.


def episode(number: int) -> dict[str, np.ndarray]:
    """An episode that tells its number."""
    steps = 1 + number % 4
    return {
        "state": np.full((steps, 3), number, np.float32), "action": np.full((steps, 2), -number, np.float32),
        "image": np.full((steps, 24, 24, 3), number % 256, np.uint8),
    }  # fmt: skip


def do_store(folder: Path, _: Path, ack: Ack) -> None:
    with DemoWriter(folder / "o.zarr") as writer:
        for number in range(writer.n_episodes, 5):
            writer.append(episode(number), {"next": number + 1}, {"number": number})
            ack()


def look_store(folder: Path, _: Path, acknowledged: int) -> None:
    if (
        not (folder / "o.zarr").exists()
        or not json.loads((folder / "o.zarr/zarr.json").read_text())["attributes"]["n_episodes"]
    ):
        assert acknowledged == 0, f"{acknowledged} episodes were acknowledged, none is there"
        return
    store = DemoStore.open(folder / "o.zarr")
    n = store.n_episodes
    assert acknowledged <= n <= acknowledged + 1, f"{acknowledged} episodes were acknowledged, {n} are there"
    assert store.attrs["next"] == n
    assert [info["number"] for info in store.episode_info()] == list(range(n))
    for number in range(n):
        for key, value in episode(number).items():
            np.testing.assert_array_equal(store.episode(number)[key], value)


def same_store(folder: Path, straight: Path) -> None:
    a, b = DemoStore.open(folder / "o.zarr"), DemoStore.open(straight / "o.zarr")
    assert a.episode_ends.tolist() == b.episode_ends.tolist()
    assert a.episode_info() == b.episode_info()
    assert a.keys == b.keys
    for key in a.keys:
        np.testing.assert_array_equal(a.read(key), b.read(key))


def do_record(folder: Path, given: Path, ack: Ack) -> None:
    acknowledging(DemoWriter, "append", ack)
    words = [f"out={folder / 'o.zarr'}", f"checkpoint={given / 'run'}", "episodes=4", "max_steps=8", "n_envs=2"]
    parse(Record, words).run("")


def do_generate(folder: Path, _: Path, ack: Ack) -> None:
    acknowledging(DemoWriter, "append", ack)
    generate(str(folder / "o.zarr"), TASK, episodes=5, workers=1)


def look_appended(folder: Path, _: Path, acknowledged: int) -> None:
    """At least what was acknowledged is there; `compare` looks at every number."""
    if acknowledged:
        n = DemoStore.open(folder / "o.zarr").n_episodes
        assert acknowledged <= n <= acknowledged + 1, f"{acknowledged} episodes were acknowledged, {n} are there"


# Conversions over something that is there.

TARGETS = {
    "o.zarr": "zarr",
    "o.hdf5": "robomimic",
    "o_lerobot": "lerobot",
    "o_minari": "minari",
    "o_dp.zarr": "diffusion_policy",
}


def target(folder: Path) -> str:
    """Which target a folder is for, by its name: trials take turns."""
    return list(TARGETS)[int(folder.name.rpartition("_")[2]) % len(TARGETS)]


def before_convert(folder: Path, given: Path) -> None:
    convert(given / "older.zarr", folder / target(folder), to=TARGETS[target(folder)])


def do_convert(folder: Path, given: Path, ack: Ack) -> None:
    convert(given / "demos.zarr", folder / target(folder), to=TARGETS[target(folder)], overwrite=True)
    ack()


def n_and_bits(path: Path) -> tuple[int, bytes]:
    recording = formats.read(path)
    return recording.n_episodes, b"".join(e["action"].tobytes() for e in recording.load(recording.numbers))


def look_convert(folder: Path, given: Path, acknowledged: int) -> None:
    """Old or new, complete; new if it was acknowledged."""
    found = n_and_bits(folder / target(folder))
    old, new = n_and_bits(given / "older.zarr"), n_and_bits(given / "demos.zarr")
    assert found == new or (found == old and not acknowledged), f"{found[0]} episodes, neither the old nor the new ones"


def same_convert(folder: Path, straight: Path) -> None:
    left = sorted(path.name for path in folder.iterdir())
    assert left == [target(folder)], f"parts are left: {left}"


# Runs.


def do_train(folder: Path, given: Path, ack: Ack) -> None:
    acknowledging(checkpoint, "save", ack)
    more = ["training.steps=12", "training.checkpoint_every=2", "training.validate_every=12", "if_exists=resume"]
    train(compose_config([*TINY, f"data.path={given / 'demos.zarr'}", f"run_dir={folder / 'run'}", *more]))


def look_train(folder: Path, _: Path, acknowledged: int) -> None:
    if acknowledged:
        last = folder / "run/checkpoints/last"
        step = json.loads((last / "state/trainer.json").read_text())["step"]
        assert step >= 2 * acknowledged, f"{acknowledged} checkpoints were acknowledged, the last one is of step {step}"
        Policy.from_pretrained(folder / "run")


def same_train(folder: Path, straight: Path) -> None:
    for name in ("policy/model", "state/model", "state/optimizer"):
        a, b = (load_file(run / f"run/checkpoints/last/{name}.safetensors") for run in (folder, straight))
        assert all(torch.equal(value, b[key]) for key, value in a.items()), f"{name} has other bits"
    logs = [
        [json.loads(line) for line in (run / "run/log.jsonl").read_text().splitlines()] for run in (folder, straight)
    ]
    steps = [[line["step"] for line in log] for log in logs]
    assert steps[0] == steps[1], "the log has other lines"


def do_eval(folder: Path, given: Path, ack: Ack) -> None:
    acknowledging(Journal, "append", ack)
    policy = Policy.from_pretrained(given / "run")
    journal = Journal(folder / "eval", policy.fingerprint)
    evaluate(policy, Protocol(TASK, max_steps=9), range(100_000, 100_004), [1, 2], journal=journal).save(
        folder / "eval"
    )


def look_eval(folder: Path, _: Path, acknowledged: int) -> None:
    path = folder / "eval/episodes.jsonl"
    n = path.read_bytes().count(b"\n") if path.exists() else 0
    assert n >= acknowledged, f"{acknowledged} episodes were acknowledged, {n} are there"


def same_eval(folder: Path, straight: Path) -> None:
    a, b = (Result.load(place / "eval") for place in (folder, straight))
    assert a.episodes == b.episodes
    assert {arm: numbers.score for arm, numbers in a.arms.items()} == {
        arm: numbers.score for arm, numbers in b.arms.items()
    }


def do_tune(folder: Path, given: Path, ack: Ack) -> None:
    acknowledging(search.report.Report, "write", ack)
    fixed, space = search.read_space([
        *TINY, f"data.path={given / 'demos.zarr'}", "training.steps=6", "training.checkpoint_every=2",
        "training.lr=choice(1e-4,1e-3)",
    ])  # fmt: skip
    tuning = Tuning(trials=2, looks=(0.5,), look_episodes=1, episodes=1, startup=9, n_envs=2, out=folder / "tune")
    search.tune(tuning, fixed, space)


def look_tune(folder: Path, _: Path, acknowledged: int) -> None:
    if acknowledged:
        assert (folder / "tune/tune.json").exists()
        n = len(json.loads((folder / "tune/tune.json").read_text())["trials"])
        assert n >= min(acknowledged, 2), f"{acknowledged} trials were acknowledged, {n} are there"


def same_tune(folder: Path, straight: Path) -> None:
    found = json.loads((folder / "tune/tune.json").read_text())["trials"]
    assert len(found) >= 2
    known = {
        json.dumps(t["settings"]): t["look_1"] for t in json.loads((straight / "tune/tune.json").read_text())["trials"]
    }
    for trial in found:
        assert trial["look_1"] == known.get(json.dumps(trial["settings"]), trial["look_1"]), (
            "the same settings, another score"
        )


WORKS = {
    "store": Work(do_store, look_store, same_store),
    "record": Work(do_record, look_appended, same_store),
    "generate": Work(do_generate, look_appended, same_store),
    "convert": Work(do_convert, look_convert, same_convert, before_convert),
    "train": Work(do_train, look_train, same_train),
    "eval": Work(do_eval, look_eval, same_eval),
    "tune": Work(do_tune, look_tune, same_tune),
}
