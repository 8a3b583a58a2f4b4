"""`isdt tune`: what is searched, what a killed search goes on with, who is stopped, and how well the early look ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from isdt_policy import cli
from isdt_policy.eval.statistics import Estimate
from isdt_policy.lab.tune.report import overrides_of, rank_correlation
from isdt_policy.lab.tune.search import read_space, tune
from isdt_policy.lab.tune.settings import Tuning
from isdt_policy.shared import files

pytestmark = pytest.mark.slow

TINY = [
    "experiment=pusht_demo", "training.steps=4", "training.diagonal_steps=0", "training.compile=false",
    "training.batch_size=4", "training.threads=1", "training.loggers=[]", "network.down_dims=[8,16]",
    "data.max_train_episodes=4", "episodes=1", "look_episodes=1", "startup=1",
]  # fmt: skip
SPACE = ["objective.bound=choice(0,0.3,1)", "training.lr=tag(log,interval(1e-4,1e-2))"]


def test_hydras_sweeps_become_optunas_distributions_and_the_rest_stays():
    fixed, space = read_space([*SPACE, "policy.encoder_octaves=range(0,7)", "task=pusht", "a.b=int(interval(1,8))",
                               "data.obs_keys=choice([agent_pos],[agent_pos,keypoints])"])  # fmt: skip
    assert fixed == ["task=pusht"]
    assert space["objective.bound"].choices == ("0", "0.3", "1")
    assert (space["training.lr"].low, space["training.lr"].high, space["training.lr"].log) == (1e-4, 1e-2, True)
    assert space["policy.encoder_octaves"].choices == tuple("0123456")
    assert (space["a.b"].low, space["a.b"].high, type(space["a.b"]).__name__) == (1, 8, "IntDistribution")
    assert overrides_of({"data.obs_keys": space["data.obs_keys"].choices[1]}) == ["data.obs_keys=[agent_pos,keypoints]"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["experiment=pusht_demo"], "nothing to search"),
        (["training.lr=interval(2,1)"], "interval"),
        (["training.lr=tag(log,interval(0,1))"], "low"),
        ([*SPACE, "trials=0"], "at least 1"),
        ([*SPACE, "looks=[1.5]"], "between 0 and 1"),
        ([*SPACE, "looks=[early]"], "looks must be a number"),
        (["objective.bond=choice(0,1)"], "objective.bound"),
    ],
)
def test_bad_searches_are_refused_in_a_line(arguments, expected, tmp_path, capsys):
    assert cli.main(["tune", *arguments, f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error
    assert len(error.splitlines()) == 1


def test_a_killed_search_goes_on_in_mid_trial_and_ends_as_an_undisturbed_one(tmp_path, capsys):
    """Same trials, same scores: the interrupted trial is taken up from its checkpoint, with the settings it had drawn."""
    command = [sys.executable, "-m", "isdt_policy", "tune", *TINY, *SPACE, "trials=2", "prune=false"]
    out = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, f"out={out}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    while not list(out.glob("trials/*/eval_2/episodes.jsonl")):  # the first look of the first trial has begun
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (interrupted,) = (p.name for p in (out / "trials").iterdir())
    assert not (out / "tune.json").exists()
    subprocess.run([*command, f"out={out}"], check=True, capture_output=True, env=environment)
    result = json.loads((out / "tune.json").read_text())
    assert [t["state"] for t in result["trials"]] == ["complete"] * 2
    assert interrupted in {t["run"] for t in result["trials"]}
    # The settings of that trial were drawn before the kill, by the sampler of an undisturbed search too.
    whole = tmp_path / "whole"
    subprocess.run([*command, f"out={whole}", "trials=1"], check=True, capture_output=True, env=environment)
    undisturbed = json.loads((whole / "tune.json").read_text())["trials"][0]
    again = next(t for t in result["trials"] if t["run"] == interrupted)
    assert undisturbed["settings"] == again["settings"]
    assert undisturbed["look_1"] == again["look_1"]
    # One trial's weights stay: the best.
    assert len(list((out / "trials").iterdir())) == 1
    text = (out / "tune.md").read_text()
    assert "Best so far: `isdt train experiment=pusht_demo" in text
    page = (out / "tune.html").read_text()
    assert page.count("<svg") == 2
    assert result["best"] in page.replace("&#39;", "'")
    # Another space in the same folder is another search.
    assert cli.main(["tune", *TINY, SPACE[0], f"out={out}"]) == 2
    assert "cannot be compared" in capsys.readouterr().err


def test_a_run_below_the_median_is_stopped_at_its_look(tmp_path, monkeypatch):
    """Real trainings of a few steps; only the scores are given, as three untrained policies score alike."""
    scores = iter([0.5, 0.9, 0.2, 0.7, 0.8])  # look and end of trial 0, look of 1 (stopped), look and end of 2
    real = __import__("isdt_policy.eval.rollout", fromlist=["evaluate"]).evaluate

    def scored(*args, **kwargs):
        result = real(*args, **kwargs)
        arms = {arm: replace(s, score=Estimate(next(scores), 0.0, 1.0, 0.95, 1)) for arm, s in result.arms.items()}
        return replace(result, arms=arms)

    monkeypatch.setattr("isdt_policy.lab.tune.search.evaluate", scored)
    tuning = Tuning(trials=3, looks=(0.5,), look_episodes=1, episodes=1, startup=1, out=tmp_path / "out")
    fixed = [a for a in TINY if a.split("=")[0] not in ("episodes", "look_episodes", "startup")]
    result = tune(tuning, fixed, read_space(SPACE)[1]).to_json()
    states = {t["trial"]: (t["state"], t.get("stopped", "")) for t in result["trials"]}
    assert states == {0: ("complete", ""), 1: ("pruned", "below the median at step 2"), 2: ("complete", "")}
    assert [t["trial"] for t in result["trials"]] == [0, 2, 1]  # best first
    assert result["trials"][0]["look_1"]["score"]["value"] == 0.9
    chosen = result["trials"][0]["settings"]
    assert result["best"].endswith(" ".join(overrides_of(chosen)))


def test_a_run_that_diverges_is_named_and_the_search_goes_on(tmp_path):
    space = read_space(["training.lr=choice(1e30)"])[1]
    fixed = [a for a in TINY if a.split("=")[0] not in ("episodes", "look_episodes", "startup")]
    fixed.append("training.warmup_steps=0")
    tuning = Tuning(trials=2, look_episodes=1, episodes=1, startup=1, out=tmp_path / "out")
    result = tune(tuning, fixed, space).to_json()
    assert [t["state"] for t in result["trials"]] == ["pruned"] * 2
    assert all("step" in t["stopped"] for t in result["trials"])
    assert "stopped: step" in (tmp_path / "out" / "tune.md").read_text()


@pytest.mark.parametrize("name", ["4774062736", "12345e6789"])
def test_a_trial_may_be_called_by_digits_alone(name, tmp_path, monkeypatch):
    """As one of a hundred is: its name is a digest."""
    monkeypatch.setattr("isdt_policy.lab.tune.search._folder", lambda *_: name)
    fixed = [a for a in TINY if a.split("=")[0] not in ("episodes", "look_episodes", "startup")]
    tuning = Tuning(trials=1, look_episodes=1, episodes=1, startup=1, out=tmp_path / "out")
    result = tune(tuning, [*fixed, "training.warmup_steps=0"], read_space(["training.lr=choice(1e30)"])[1]).to_json()
    assert [t["run"] for t in result["trials"]] == [name]


def test_two_searches_in_one_folder_are_refused(tmp_path, capsys):
    with files.claim(tmp_path / "lock") as mine:
        assert mine
        assert cli.main(["tune", *TINY, *SPACE, f"out={tmp_path}"]) == 2
    assert "another isdt tune is at work" in capsys.readouterr().err
    with files.claim(tmp_path / "lock") as mine:
        assert mine


def test_the_rank_correlation_is_spearmans():
    """Five runs, looks in the order 1 2 3 4 5, ends in the order 2 1 4 3 5: 1 - 6 * 4 / (5 * 24) = 0.8."""
    import optuna

    ends = [2.0, 1.0, 4.0, 3.0, 5.0]
    trials = [
        optuna.trial.create_trial(value=end, user_attrs={"look_0.4": {"score": {"value": float(i)}}})
        for i, end in enumerate(ends)
    ]
    found = rank_correlation(trials, 0.4)
    assert found is not None
    assert found["value"] == pytest.approx(0.8)
    assert found["low"] < 0 < found["value"] < found["high"] < 1  # five runs say little
    assert rank_correlation(trials[:3], 0.4) is None
