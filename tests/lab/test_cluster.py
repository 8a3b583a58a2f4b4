"""Cells and trials on a Ray cluster: what they find is what one process finds."""

from __future__ import annotations

import json
import logging
import os
import sys

import pytest
import ray

from isdt_policy import cli
from isdt_policy.shared.cluster import Where
from isdt_policy.shared.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TINY = [
    "training.steps=2", "training.batch_size=8", "training.compile=false", "training.loggers=[]", "training.diagonal_steps=0",
    "network.down_dims=[8,8]", "policy.encoder_hidden=[8]", "training.warmup_steps=1",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def two_cpus():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=80_000_000,
    )
    yield
    ray.shutdown()


def square(n):
    if n == 3:
        raise InputError("3 is not allowed.")
    return n * n, os.getcwd(), os.getpid()


def test_pieces_run_elsewhere_in_the_same_folder_and_their_refusals_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Where("ray").pool() as pool:
        assert pool.room == 2
        for n in (1, 2):
            pool.submit(f"piece {n}", square, n)
        found = dict(pool.next() for _ in range(2))
        assert {name: value[:2] for name, value in found.items()} == {
            "piece 1": (1, str(tmp_path)), "piece 2": (4, str(tmp_path)),
        }  # fmt: skip
        assert os.getpid() not in {value[2] for value in found.values()}
        pool.submit("piece 3", square, 3)
        with pytest.raises(InputError, match=r"^piece 3: 3 is not allowed\.$"):
            pool.next()
    assert ray.is_initialized()  # it was not started here
    with Where("ray").pool(cpus=2) as pool:
        assert pool.room == 1


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def absent(**given):
        raise ConnectionError("no GCS there\nand more")

    monkeypatch.setattr(ray, "init", absent)
    with (
        pytest.raises(InputError, match=r"^no Ray cluster at 'head:6379': no GCS there$"),
        Where("ray", "head:6379").pool(),
    ):
        pass


def both(tmp_path, *line):
    """The same command here and on the cluster."""
    for backend in ("local", "ray"):
        assert cli.main([*line, f"backend={backend}", f"out={tmp_path / backend}"]) == 0
    return tmp_path / "local", tmp_path / "ray"


def test_cells_of_the_toy_study(tmp_path):
    line = [
        "study",
        "toys",
        "rows=[isd_t,meanflow]",
        "densities=[two_moons]",
        "seeds=[0]",
        "steps=3",
        "samples=64",
        "repeats=1",
    ]
    here, there = both(tmp_path, *line, "report=false")
    for name in ("isd_t", "meanflow"):
        a, b = (json.loads((out / f"toys/cells/{name}.json").read_text()) for out in (here, there))
        assert _without_seconds(a["result"]) == _without_seconds(b["result"])


def _without_seconds(value):
    if isinstance(value, dict):
        return {key: _without_seconds(part) for key, part in value.items() if "second" not in key}
    return [_without_seconds(part) for part in value] if isinstance(value, list) else value


def test_cells_of_the_study_of_tasks(tiny_store, tmp_path, capsys):
    line = [
        "study",
        "tasks",
        "experiments=[pusht_demo]",
        "objectives=[recipe]",
        "seeds=[1,2]",
        "episodes=2",
        "n_envs=2",
    ]
    line += [f"data.path={tiny_store}", *TINY, "arms=[1]", "report=false"]
    for backend in ("local", "ray"):
        more = [f"out={tmp_path / backend}", f"work={tmp_path / backend}_work", f"backend={backend}"]
        assert cli.main([*line, *more]) == 0
    assert capsys.readouterr().out.count("is done") == 4
    for seed in (1, 2):
        a, b = (
            json.loads((tmp_path / backend / f"pusht_demo/recipe_{seed}/eval_info.json").read_text())["episodes"]
            for backend in ("local", "ray")
        )
        assert [one["digest"] for one in a] == [one["digest"] for one in b]


def test_trials_of_a_search(tiny_store, tmp_path):
    line = [
        "tune",
        "experiment=pusht_demo",
        f"data.path={tiny_store}",
        *TINY,
        "episodes=1",
        "look_episodes=1",
        "startup=4",
    ]
    line += ["training.lr=tag(log,interval(1e-4,1e-2))", "training.threads=1", "trials=3", "prune=false"]
    here, there = both(tmp_path, *line)
    a, b = (json.loads((out / "tune.json").read_text()) for out in (here, there))
    assert len(a["trials"]) == len(b["trials"]) == 3
    scores = [{t["settings"]["training.lr"]: t["look_1"]["score"] for t in found["trials"]} for found in (a, b)]
    assert scores[0] == scores[1]
    assert len(list((there / "trials").iterdir())) == 1  # the best
