"""Several processes train what one trains: two of them on this machine, over Gloo, and this one beside them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import isdt_train_ranks as ranks

from isdt_policy.shared.errors import InputError
from isdt_policy.training import launch
from isdt_policy.training.config import load_config
from isdt_policy.training.distributed import ALONE, World, from_environment
from isdt_policy.training.run import build_trainer, train


@pytest.fixture(scope="module")
def pair(tiny_store, tmp_path_factory):
    """What both processes saw, and the folder where they trained."""
    folder = tmp_path_factory.mktemp("pair")
    variables = {
        **os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch._free_port()),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, ranks.__file__, str(tiny_store), str(folder)]
    children = [subprocess.Popen(command, env={**variables, "RANK": str(rank)}) for rank in range(2)]
    try:
        codes = [child.wait() for child in children]
    finally:
        for child in children:
            child.kill()
    assert codes == [0, 9]  # the second one is killed at the end
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)], folder


@pytest.fixture(scope="module")
def alone(tiny_store):
    return ranks.everything(tiny_store, ALONE)


@pytest.mark.slow  # two more processes, which import torch
@pytest.mark.parametrize(
    ("name", "kind", "tolerance"),
    [("times", "float32", 1e-6), *((name, "float64", 1e-12) for name in ranks.OBJECTIVES)],
)
def test_two_processes_learn_from_what_one_learns_from(pair, alone, name, kind, tolerance):
    """The same windows and, because losses are the same to rounding from the first step on, the same draws."""
    said, _ = pair
    one, (first, second) = alone[f"{name} {kind}"], (rank["everything"][f"{name} {kind}"] for rank in said)
    for whole, *parts in zip(one["rows"], first["rows"], second["rows"]):
        assert [whole[0::2], whole[1::2]] == parts
    for step, (mine, its) in enumerate(zip(one["numbers"], first["numbers"], strict=True)):
        assert its == pytest.approx(mine, rel=tolerance, abs=tolerance), f"step {step}"
    assert first["numbers"] == second["numbers"]
    assert first["bits"] == second["bits"]


@pytest.mark.slow
def test_the_same_number_of_processes_gives_the_same_bits(pair):
    said, _ = pair
    assert said[0]["again"]["times float32"] == said[0]["everything"]["times float32"]["numbers"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("batch", "training.batch_size is 15, which 2 processes cannot share equally"),
        ("fraction", "objective.off_diagonal_fraction=0.3 takes is 5, which 2 processes cannot share equally"),
        ("settings", "do not agree: training.lr is 0.001 in process 0 and 0.002 in process 1"),
        ("data", "process 1: "),
        ("nan", "step 2: loss term 'diagonal' is nan"),
    ],
)
def test_what_is_wrong_is_told_once_and_ends_all(pair, name, expected):
    """Process 0 tells it; the other one raises what the command line is silent about."""
    (first, second), folder = pair
    assert expected in first[name][1]
    assert second[name] == [second[name][0], first[name][1]]
    if name != "nan":
        assert not (folder / name).exists()


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_leaves_a_checkpoint(pair, tiny_store):
    """The run then goes on in one process, and ends where the run that nobody killed ended."""
    (first, _), folder = pair
    kind, text = first["died"]
    assert kind == "Ended"
    assert text.startswith("another process of this training has ended")
    assert first["seconds"] < 60
    assert os.readlink(folder / "died/checkpoints/last") == "0000002"
    state = json.loads((folder / "died/checkpoints/last/state/trainer.json").read_text())
    assert set(state) == {"step", "seed", "amp", "best", "threads"}
    config = ranks.settings(tiny_store, folder / "died", "training.checkpoint_every=2")
    train({**config, "if_exists": "resume"})
    # Losses, not weights: AdamW divides a gradient by its own size, so where it is next to nothing, rounding decides.
    mine, whole = (_losses(folder / run / "log.jsonl") for run in ("died", "whole"))
    assert sorted(mine) == [1, 2, 3, 4, 5]
    assert mine == pytest.approx(whole, rel=1e-6, abs=1e-6)


def _losses(log: Path) -> dict[int, float]:
    return {
        record["step"]: record["loss"] for record in map(json.loads, log.read_text().splitlines()) if "loss" in record
    }


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a whole number"),
    ],
)
def test_variables_of_a_launcher_that_make_no_sense_are_one_line(variables, expected, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=expected):
        from_environment()


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    second = World(1, 2, 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert [second.device(name) for name in ("auto", "cuda", "cpu", "cuda:0")] == ["cuda:1", "cuda:1", "cpu", "cuda:0"]
    assert ALONE.device("cuda") == "cuda"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert second.device("auto") == "cpu"


def test_nproc_within_several_processes_is_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="has started several already"):
        launch.start(2, [])
    with pytest.raises(InputError, match="nproc=0 must be at least 1"):
        launch.start(0, [])


@pytest.mark.slow
def test_nproc_trains_in_two_processes_and_sigterm_saves(tiny_store, tmp_path):
    """The whole command: one report, one checkpoint, the code of a shell; one process goes on from there."""
    run = tmp_path / "run"
    given = [word for word in (*ranks.SMALL, f"data.path={tiny_store}", f"run_dir={run}") if word != "training.steps=5"]
    child = subprocess.Popen(
        [sys.executable, "-m", "isdt_policy", "train", "nproc=2", *given, "training.steps=100000"],
        stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    try:
        while child.poll() is None and not (run / "log.jsonl").exists():
            time.sleep(0.1)
        child.terminate()
        _, said = child.communicate()
    finally:
        child.kill()
    assert child.returncode == 128 + signal.SIGTERM, said
    assert said.count("2 processes share every batch") == 1
    assert said.count("it is saved. Go on with:") == 1
    step = json.loads((run / "checkpoints/last/state/trainer.json").read_text())["step"]
    config = load_config(run)
    assert config["training"]["steps"] == 100000
    trainer, _ = build_trainer(config)
    trainer.resume()
    assert trainer.step == step >= 1
    trainer.train_step()
