"""Results as files: what earlier versions wrote is read, and written again as it was."""

import json
from pathlib import Path

import pytest

from isdt_policy.eval.result import EpisodeRecord, Result
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests/fixtures/v0_1/eval/eval_info.json"
# One of each kind: a trained policy with and without other samplers, an expert, diffusion, selection seeds.
KINDS = ["pusht_demo", "pusht_expert", "tasks/square/diffusion_42", "can_isd", "tasks/lift/recipe_42"]


@pytest.mark.parametrize("name", [OLD, *KINDS])
def test_what_version_0_1_wrote_is_read_and_written_again_as_it_was(name, tmp_path):
    path = ROOT / "results" / name
    before = json.loads((path if path.is_file() else path / "eval_info.json").read_text())
    after = json.loads(Result.load(path).save(tmp_path).read_text())
    before["protocol"] = {**dict.fromkeys(("n_action_steps", "noise_scale")), **before["protocol"]}
    before["policy"] = {**dict.fromkeys(("training", "device", "rows")), **before["policy"]}
    assert after == before
    assert list(after) == list(before)
    assert list(after["episodes"][0]) == list(before["episodes"][0])


def test_an_error_is_an_episode_that_failed(tmp_path):
    record = EpisodeRecord(3, Arm.parse("euler10"), False, 0.0, error="worker died (tried 2 times)")
    data = record.to_json()
    assert (data["arm"], data["status"], data["error"]) == ("euler10", "error", "worker died (tried 2 times)")
    assert EpisodeRecord.from_json(data) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "isdt-eval/2"}, "this version reads isdt-eval/1"),
        ({"schema": "isdt-tune/1"}, "is not a result of `isdt eval`"),
        ({"episodes": None}, "is damaged"),
        ({"arms": {"1": {}}}, "'success_rate' is missing"),
        ({"arms": {"euler@2": {}}}, "times must fall"),
        ({"protocol": {"task": "pusht", "wind": 3}}, "'wind'"),
        ({"seeds": ["a"]}, "is damaged"),
        ({"policy": 3}, "is damaged"),
        ({"timing": {"wall_s": "x"}}, "wall_s is 'x'"),
        ({"timing": {"episodes": [1]}}, r"episodes is \[1\]"),
        ({"policy": {"parameters": 1.5}}, "parameters is 1.5"),
        ({"commit": {}}, "commit is {}"),
    ],
)
def test_a_file_that_is_no_result_is_named_in_one_line(change, message, tmp_path):
    path = tmp_path / "eval_info.json"
    path.write_text(json.dumps({**json.loads(OLD.read_text()), **change}))
    with pytest.raises(InputError, match=message) as caught:
        Result.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
