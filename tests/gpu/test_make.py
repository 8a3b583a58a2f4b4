"""`make test-gpu` and `make bench-gpu`: what they start, seen with a program in the place of Python and its GPU."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from isdt_policy.cli.bench import Infer, Train
from isdt_policy.cli.command import parse

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make(tmp_path):
    """Run make where every Python says that there is a GPU, or none, and writes down what it was asked for."""
    (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")

    def run(target, gpu):
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit {0 if gpu else 1}\necho "$@" >> {tmp_path}/asked\n')
        python.chmod(0o755)
        env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}  # of `make test`
        done = subprocess.run(
            ["make", target, f"GPU_PY={python}"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        )
        asked = tmp_path / "asked"
        return done.stdout, asked.read_text().splitlines() if asked.exists() else []

    return run


@pytest.mark.parametrize("target", ["test-gpu", "bench-gpu"])
def test_without_a_gpu_it_is_one_line(make, target):
    said, asked = make(target, gpu=False)
    assert said.startswith("PyTorch finds no CUDA GPU")
    assert said.count("\n") == 1
    assert asked == []


def test_with_one_the_marked_tests_run(make):
    assert make("test-gpu", gpu=True)[1] == ["-m pytest -m gpu tests/gpu"]


def test_with_one_every_line_is_a_benchmark_that_can_be_read(make, tmp_path):
    """Three ways of starting steps at three batches and three sizes, and one row of each size."""
    asked = make("bench-gpu", gpu=True)[1]
    infer = [line.split()[4:] for line in asked if line.startswith("-m isdt_policy bench infer")]
    train = [line.split()[4:] for line in asked if line.startswith("-m isdt_policy bench train")]
    assert {parse(Infer, words).size for words in infer} == {"4m", "16m", "63m"}
    found = [parse(Train, words) for words in train]
    ways = {(one.size, one.batch, one.compile, one.graphs) for one in found}
    assert len(found) == len(ways) == 27
    assert {one.device for one in found} == {"cuda"}
    # What is there is not measured again.
    (tmp_path / "results/gpu/infer_4m.json").write_text("{}")
    (tmp_path / "asked").unlink()
    assert len(make("bench-gpu", gpu=True)[1]) == len(asked) - 1
