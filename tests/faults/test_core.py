"""The fast core of the fault suite: a few trials of every part; tests/faults/run.py has them all."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "deploy"), str(HERE.parent / "datasets")]

import run as suite  # noqa: E402

pytestmark = pytest.mark.slow

# What a kill leaves was forked from a process without threads; here it is started as one.
SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {paths}
import run as suite
suite.WORK, suite.KEPT = Path({work!r}), Path({work!r}) / "kept"
raise SystemExit(suite.main({parts}))
"""


def tried(tmp_path, *parts):
    """Outcomes of some trials, made in a process of its own."""
    import json
    import subprocess

    paths = [str(HERE), str(HERE.parent / "deploy"), str(HERE.parent / "datasets")]
    script = SCRIPT.format(paths=paths, work=str(tmp_path), parts=list(parts))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "kept").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def all_survive(trials):
    assert trials
    assert [trial for trial in trials if set(trial["counts"]) - {"survived", "not killed"}] == []


def test_writers_converters_trainings_and_evaluations_survive_kills(tmp_path):
    all_survive(tried(tmp_path, "kill_store=2", "kill_convert=2", "kill_train=1", "kill_eval=1", "orphans=1"))


def test_commands_sensors_and_servers(tmp_path):
    all_survive(tried(tmp_path, "commands=64000", "sensors=24", "servers=5"))


def test_a_policy_a_journal_a_result_and_limits_with_something_wrong_in_them(tmp_path):
    all_survive(tried(tmp_path, "files_policy=100", "files_journal=100", "files_result=100", "files_limits=100"))
    all_survive(tried(tmp_path / "onnx", "files_onnx=100"))


def test_every_part_has_a_target_and_says_what_it_is():
    assert all(target > 0 and what for target, what in suite.TARGETS.values())


@pytest.mark.parametrize("part", ["kill_store", "files_policy"])
def test_a_part_that_is_done_is_not_made_again(part, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "KEPT", tmp_path)
    (tmp_path / f"{part}.jsonl").write_text('{"trial": 0, "counts": {"survived": 1}}\n')
    monkeypatch.setattr(suite, "trials_of", lambda part: pytest.fail("made again"))
    suite.run(part, 1)
