"""Mutated files of every format: each is read, or refused in one line; no traceback, no hang, bounded memory.

A block of mutations runs in a forked process, so that a crash of a library is one of its file and not the end.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import test_mutations as sources
from harness import Ack, sit

from isdt_policy.deploy.limits import Limits
from isdt_policy.deploy.loading import find_limits
from isdt_policy.deploy.runner import ZEROS, OnnxPolicy
from isdt_policy.deploy.safety import Safety
from isdt_policy.eval.journal import Journal
from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.result import Result
from isdt_policy.method.policy import Policy
from isdt_policy.shared.errors import InputError
from isdt_policy.training.config import load_config
from isdt_policy.training.run import train

BLOCK, SECONDS = 100, 30
MEMORY = 4 << 30  # bytes of address space beyond what the process has at its beginning
SOURCES = {format.replace("zarr.zip", "zip"): name for name, format in sources.FORMS.items()}
SOURCES |= {"zarr": "a.zarr", "zip": "z.zarr.zip"}
OBSERVATION = {"x": np.zeros((1, 1, 2))}


def read_policy(path: Path) -> None:
    policy = Policy.from_pretrained(path)
    obs = {key: np.zeros((1, policy.n_obs_steps, spec.shape[0])) for key, spec in policy.config.observations.items()}
    policy.predict_action(obs, noise_seeds=np.array([[0, 0]]))


def read_journal(path: Path) -> None:
    Journal(path, "policy").open(Protocol("avoiding", max_steps=9))


def read_result(path: Path) -> None:
    found = Result.load(path)
    json.dumps(found.to_json())


def read_limits(path: Path) -> None:
    limits = Limits.load(path)
    stage = Safety(limits, action_dim=2, rate_hz=10, positions=True)
    stage.reset(np.zeros(2))
    command = stage(np.array([3.0, -3.0]))
    assert command is not None
    assert np.isfinite(command).all()
    find_limits(str(path), object(), None)  # type: ignore[arg-type]


def read_run(path: Path) -> None:
    config = {**load_config(path), "if_exists": "resume", "run_dir": str(path)}
    if isinstance(training := config.get("training"), dict):  # a run of 20 000 steps is no hang
        config["training"] = {**training, "max_minutes": training.get("max_minutes") or 0.05}
    train(config)


def read_onnx(path: Path) -> None:
    policy = OnnxPolicy(path / "policy.onnx")
    obs = {key: np.zeros((1, policy.n_obs_steps, size)) for key, size in policy.obs_dims.items()}
    policy.predict_action(obs, noise_seeds=np.array([[0, 0]]))


READERS: dict[str, Callable[[Path], None]] = {
    "policy": read_policy, "journal": read_journal, "result": read_result, "limits": read_limits, "run": read_run,
    "onnx": read_onnx,
}  # fmt: skip


def made(name: str, folder: Path) -> None:
    """The files that are mutated, of kinds that are no demonstrations."""
    from works import do_eval

    given = folder.parent / "inputs"
    if name in ("journal", "result"):
        do_eval(folder, given, lambda: None)
        for file in ("episodes.jsonl", "protocol.json") if name == "result" else ("eval_info.json",):
            (folder / "eval" / file).unlink()
        if name == "journal":
            head = folder / "eval/protocol.json"
            head.write_text(json.dumps({**json.loads(head.read_text()), "policy": "policy"}))
        (folder / "eval").rename(folder / "original")
    elif name == "limits":
        limits = Limits((-1, -1), (1, 1), (0.1, 0.1), (2, 2), (9, 9), (99, 99), "x", (0, None))
        (folder / "original").mkdir()
        limits.save(folder / "original")
    elif name == "run":
        shutil.copytree(given / "run", folder / "original", symlinks=True)
    elif name == "policy":
        shutil.copytree(given / "run/checkpoints/last/policy", folder / "original")
    else:
        from isdt_policy.deploy.export import FileFormat, export

        (folder / "original").mkdir()
        export(Policy.from_pretrained(given / "run"), folder / "original/policy.onnx", FileFormat("onnx"))


def attempt(name: str, folder: Path, seed: int) -> str:
    """Mutate, read; what became of it: "read" or "refused"."""
    place = folder / "work"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / "original", place, symlinks=True)
    rng = random.Random(seed)
    if name == "run":  # what people edit and what a disk loses; the weights are those of files_policy
        file = rng.choice(["config.json", "provenance.json", "checkpoints/last/state/trainer.json"])
        mutate_json(place / file, rng)
    elif name == "limits":
        mutate_json(place / "limits.json", rng)
    elif name == "policy" and seed % 2:
        mutate_json(place / "config.json", rng)
    else:
        sources.mutate(place, rng)
    if name == "onnx" and seed % 2:
        seal(place / "policy.onnx")
    try:
        READERS[name](place)
    except InputError as error:
        said = str(error)
    else:
        return "read"
    assert len(said.splitlines()) == 1, said
    return "refused"


def seal(file: Path) -> None:
    """Give a changed file the digest that it would have: what a liar writes, and not what a disk loses."""
    data = file.read_bytes() if file.is_file() else b""
    for found in list(re.finditer(rb"sha256:[0-9a-f]{64}", data))[:1]:
        start, end = found.span()
        digest = hashlib.sha256(data[:start] + ZEROS.encode() + data[end:]).hexdigest()
        file.write_bytes(data[: start + 7] + digest.encode() + data[end:])


def mutate_json(file: Path, rng: random.Random) -> None:
    """A value of a JSON file, or a few of its bytes."""
    if rng.random() < 0.85:
        file.write_text(json.dumps(sources.changed(json.loads(file.read_text()), rng)))
        return
    data = bytearray(file.read_bytes())
    data = data[: rng.randrange(len(data) + 1)] if rng.random() < 0.4 else data
    for _ in range(rng.choice((1, 3, 20)) if data else 0):
        data[rng.randrange(len(data))] = rng.randrange(256)
    file.write_bytes(data)


def prepare(name: str, folder: Path) -> Path:
    """The folder of a kind of file, with its original."""
    place = folder / f"files_{name}"
    if not (place / "made").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        make = (lambda ack: sources.originals(place)) if name in SOURCES else (lambda ack: made(name, place))
        if name not in SOURCES and not (folder / "inputs/run").exists():
            from kills import Kills

            Kills("store", folder)  # makes the inputs
        done = sit(make, place / "log", timeout_s=600)
        assert done.code == 0, done.said
        (place / "made").touch()
    return place


def trial(name: str, folder: Path) -> Callable[[int], tuple[dict[str, int], str]]:
    """Blocks of mutations of one kind of file."""
    place = prepare(name, folder)

    def one(seed: int) -> None:
        # A hang ends the process. Most hangs compute; one that waits is given longer, because others may use the machine.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(20 * SECONDS)
        if name in SOURCES:
            sources.attempt(place, SOURCES[name], seed)
        else:
            attempt(name, place, seed)

    def block(number: int) -> tuple[dict[str, int], str]:
        counts, seen, seed, end = Counter[str](), "", number * BLOCK, (number + 1) * BLOCK
        while seed < end:
            first = seed

            def work(ack: Ack, first: int = first) -> None:
                now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.RLIM_INFINITY))
                for number in range(first, end):
                    one(number)
                    ack()

            sitting = sit(work, place / "log", timeout_s=3600)
            counts["survived"] += sitting.acknowledged
            seed += sitting.acknowledged
            if seed < end:
                counts["wrong"] += 1
                seen += f"seed {seed}: exit {sitting.code}: {sitting.said[-700:]}\n"
                seed += 1
        return dict(counts), seen

    return block
