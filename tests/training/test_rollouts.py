"""Success while a run trains."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import types

import pytest

from isdt_policy.method.policy import Policy
from isdt_policy.shared.errors import InputError
from isdt_policy.training.config import compose_config
from isdt_policy.training.loggers import LOGGERS, Log
from isdt_policy.training.readings import shown
from isdt_policy.training.rollouts import Rollouts, check_task
from isdt_policy.training.run import train

SHORT = [
    "network.down_dims=[8,16]", "network.embed_dim=16", "network.time_dim=8", "policy.cond_dim=8", "training.device=cpu",
    "policy.encoder_hidden=[16]", "training.batch_size=16", "training.threads=1", "training.warmup_steps=1",
    "data.max_train_episodes=4", "training.eval_episodes=1", "training.validate_every=100", "training.checkpoint_every=100",
]  # fmt: skip


class Memory:
    seen: list = []  # noqa: RUF012

    def __init__(self, run, step):
        pass

    def write(self, step, values):
        self.seen.append((step, dict(values)))

    def close(self):
        pass


@pytest.mark.slow  # two evaluations in processes of their own
def test_a_run_measures_itself_keeps_the_best_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(LOGGERS, "memory", Memory)
    ways = [
        *SHORT,
        f"run_dir={tmp_path / 'run'}",
        "training.steps=6",
        "training.eval_every=3",
        "training.loggers=[memory]",
    ]
    run = train(compose_config(["task=pusht", *ways]))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "rollout_success" in line]
    assert [line["step"] for line in measured] == [3, 6]
    assert all(0 <= line["rollout_success"] <= 1 for line in measured)
    films = [
        value
        for _, values in Memory.seen
        for name, value in values.items()
        if name.startswith("rollout_") and name[8:].isdigit()
    ]
    assert films
    assert all(film.suffix == ".mp4" and film.exists() for film in films)
    assert Policy.from_pretrained(run / "checkpoints" / "best_success").task == "pusht"
    said = capsys.readouterr().err
    assert f"checkpoint={run / 'checkpoints' / 'best_success'}" in said
    assert re.search(r"train: after 3 steps: \d\.\d\d \[\d\.\d\d, \d\.\d\d\] success in \d+ episodes at", said)
    assert [folder.parent.name for folder in (run / "rollouts").glob("*/policy")] == [
        "0000006"
    ]  # of equal ones the later
    # A run that goes on knows what was measured, and nothing of steps that it will do again.
    log = Log(run, 3)
    assert Rollouts(run, 3, 1, log, 6).best.step == 6
    assert Rollouts(run, 3, 1, log, 3).best is None
    assert not (run / "rollouts" / "0000006").exists()
    log.close()


@pytest.mark.slow
def test_a_measurement_does_not_outlive_a_training_that_is_killed(tmp_path):
    code = f"""
import time
from pathlib import Path
from isdt_policy.deploy.loading import load_policy
from isdt_policy.training.loggers import Log
from isdt_policy.training.rollouts import Rollouts
run = Path({str(tmp_path)!r})
rollouts = Rollouts(run, 2, 100000, Log(run, 0), 0)
rollouts.after(2, load_policy("zoo:pusht_human"))
print(rollouts._running[1].pid, flush=True)
time.sleep(600)
"""
    training = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert training.stdout is not None
    measuring = int(training.stdout.readline())
    journal = tmp_path / "rollouts" / "0000002"
    give_up = time.monotonic() + 120
    while not (running := "episodes" in (journal / "log.txt").read_text()) and time.monotonic() < give_up:
        time.sleep(0.2)
    os.kill(measuring, 0)  # it is there
    training.kill()
    training.wait()
    while os.path.exists(f"/proc/{measuring}") and time.monotonic() < give_up:
        time.sleep(0.2)
    assert running
    assert not os.path.exists(f"/proc/{measuring}")


def test_success_so_far_stands_beside_the_course_of_the_loss():
    step = {"loss": 1.0, "diagonal": 0.2, "grad_norm": 2.0, "lr": 1e-3}
    assert list(shown(step, {"success": 0.5})) == ["diagonal", "success", "grad", "lr"]


def test_a_measurement_that_fails_is_one_line_and_training_goes_on(tmp_path, capsys):
    class Broken:
        def save_pretrained(self, path):
            path.mkdir()

        sampling = type("Sampling", (), {"usual_nfe": 1})()

    log = Log(tmp_path, 0)
    rollouts = Rollouts(tmp_path, 2, 1, log, 0)
    rollouts.after(2, Broken())
    assert "no episodes could be run" in rollouts.finish()
    log.close()
    assert "isdt train: no episodes of step 2: isdt eval: no policy at" in capsys.readouterr().err


def test_without_a_simulator_it_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="without a registered task have no simulator"):
        check_task("")


def test_a_film_is_shown_by_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    import numpy as np
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    from isdt_policy.eval.film import write_mp4

    write_mp4(tmp_path / "film.mp4", [np.full((64, 64, 3), 20 * i, np.uint8) for i in range(8)], 10)
    log = Log(tmp_path, 0, ["tensorboard"])
    log.write(1, {"rollout_0": tmp_path / "film.mp4", "rollout_success": 0.5})
    log.close()
    events = next((tmp_path / "tensorboard").iterdir())
    tags = {value.tag for event in EventFileLoader(str(events)).Load() for value in event.summary.value}
    assert {"rollout_0", "rollout_success"} <= tags


def test_weights_and_biases_gets_numbers_and_films_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    import numpy as np

    from isdt_policy.eval.film import write_mp4

    monkeypatch.setenv("WANDB_MODE", "offline")
    write_mp4(tmp_path / "film.mp4", [np.full((64, 64, 3), 20 * i, np.uint8) for i in range(8)], 10)
    log = Log(tmp_path, 0, ["wandb"])
    log.write(4, {"loss": 0.5})
    log.write(2, {"rollout_success": 0.5, "rollout_0": tmp_path / "film.mp4"})  # of an earlier step, ended later
    log.close()
    (kept,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(kept.glob("*.wandb"))
    assert list(kept.rglob("*.mp4"))
    shutil.rmtree(tmp_path / "wandb")


def test_trackio_gets_numbers_and_films(tmp_path, monkeypatch):
    """What it is called with; results/interop/trackio_films.py is the same with the real one, which wants an older pillow."""
    got = []

    class Project:
        def log(self, values, step):
            got.append((step, values))

        def finish(self):
            got.append("finished")

    def begin(project, **settings):
        got.append((project, settings["name"]))
        return Project()

    there = types.ModuleType("trackio")
    there.init, there.Video = begin, lambda film, format: (film.name, format)
    monkeypatch.setitem(sys.modules, "trackio", there)
    log = Log(tmp_path, 0, ["trackio"])
    log.write(4, {"loss": 0.5})
    log.write(2, {"rollout_success": 0.5, "rollout_0": tmp_path / "film.mp4"})
    log.close()
    films = {"rollout_success": 0.5, "rollout_0": ("film.mp4", "mp4")}
    assert got == [("isdt-policy", tmp_path.name), (4, {"loss": 0.5}), (2, films), "finished"]
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(InputError, match=r"pip install 'isdt-policy\[trackio\]'"):
        Log(tmp_path, 0, ["trackio"])
