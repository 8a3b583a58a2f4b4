"""`isdt eval` from a checkpoint to numbers, report and videos, and back from the JSON to the same episodes."""

import json
import re
from dataclasses import fields
from pathlib import Path

import av
import numpy as np
import pytest
from isdt_eval_toys import torch_policy

from isdt_policy.cli import VERBS, load
from isdt_policy.cli import main as isdt
from isdt_policy.cli.acting import check_fits
from isdt_policy.cli.command import parse
from isdt_policy.cli.eval import Eval
from isdt_policy.envs import task_spec
from isdt_policy.shared.errors import InputError

OLD = Path(__file__).parents[1] / "fixtures" / "v0_1"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "policy"
    torch_policy(0.0, 512.0).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def evaluated(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated")
    arguments = ["arms=[1,2,euler3]", "episodes=4", "max_steps=40", "videos=2", f"out={out}"]
    assert isdt(["eval", f"checkpoint={checkpoint}", *arguments]) == 0
    return out


def test_numbers_come_with_all_it_takes_to_get_them_again(evaluated, checkpoint):
    info = json.loads((evaluated / "eval_info.json").read_text())
    assert list(info["arms"]) == ["1", "2", "euler3"]
    assert info["seeds"] == [100_000, 100_001, 100_002, 100_003]
    assert info["seed_purpose"] == "final"
    assert len(info["episodes"]) == 12
    for summary in info["arms"].values():
        assert summary["n"] == 4
        assert (
            0 <= summary["success_rate"]["low"] <= summary["success_rate"]["value"] <= summary["success_rate"]["high"]
        )
    assert info["command"].startswith(f"isdt eval checkpoint={checkpoint}")
    assert info["versions"]["gym-pusht"] == "0.1.8"
    assert re.fullmatch("[0-9a-f]{64}", info["policy"]["fingerprint"])
    assert (info["policy"]["device"], info["policy"]["rows"]) == ("cpu", 16)  # which last bits these are
    assert {"commit", "hardware", "timing", "protocol", "options"} <= set(info)
    # LeRobot's names
    assert {"avg_sum_reward", "avg_max_reward", "pc_success", "eval_s", "eval_ep_s"} <= set(info["aggregated"])
    assert set(info["per_episode"][0]) == {"episode_ix", "sum_reward", "max_reward", "success", "seed"}


def test_a_result_repeats_from_its_json_alone(evaluated, capsys):
    assert isdt(["eval", "repeat", str(evaluated / "eval_info.json"), "n_envs=3"]) == 0
    assert "12 of 12 episodes identical" in capsys.readouterr().out


def test_repeat_says_that_it_computes_elsewhere_or_otherwise(evaluated, tmp_path, capsys):
    info = json.loads((evaluated / "eval_info.json").read_text())
    info["policy"].update(device="NVIDIA H100", rows=1)
    (tmp_path / "changed.json").write_text(json.dumps(info))
    isdt(["eval", "repeat", str(tmp_path / "changed.json"), "episodes=1"])
    said = capsys.readouterr().err
    assert "the device was NVIDIA H100, is cpu here" in said
    assert "the rows of a call was 1, is 16 here" in said


def test_repeat_says_which_episode_differs(evaluated, tmp_path, capsys):
    info = json.loads((evaluated / "eval_info.json").read_text())
    info["episodes"][2]["digest"] = "0" * 32
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(info))
    assert isdt(["eval", "repeat", str(path), "episodes=3"]) == 1
    text = capsys.readouterr().out
    assert "differs: seed 100002, arm 1" in text
    assert "8 of 9 episodes identical" in text


def test_repeat_refuses_other_weights(evaluated, tmp_path, capsys):
    other = torch_policy(0.0, 500.0)
    other.save_pretrained(tmp_path / "other")
    assert isdt(["eval", "repeat", str(evaluated), f"checkpoint={tmp_path / 'other'}"]) == 2
    assert "are not the ones of" in capsys.readouterr().err


def test_report_opens_without_network(evaluated):
    page = (evaluated / "report.html").read_text()
    outside = re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:|#)[^"'\s>]+|@import|url\((?!#)""", page)
    assert outside == []
    assert page.count("<video") == page.count("data:video/mp4;base64,") == 2
    assert "<svg" in page
    assert "isdt eval repeat" in page
    assert "Failures" in page
    assert page.index("Failures") < page.index("Successes")
    assert "None in 12 episodes" in page  # successes of an untrained policy


def test_videos_are_the_evaluated_episodes_and_play_in_browsers(evaluated):
    page = (evaluated / "report.html").read_text()
    assert "differs from the evaluated episode" not in page
    paths = sorted((evaluated / "videos").glob("*.mp4"))
    assert len(paths) == 2
    with av.open(str(paths[0])) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert len(frames) == 41 + 20  # 40 steps and the start, and the end shown for a second
    assert np.abs(frames[0].astype(int) - frames[40]).max() > 50  # something moved
    head = paths[0].read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # the index stands first


def test_rollouts_become_a_dataset(checkpoint, tmp_path):
    from isdt_policy.datasets.store import DemoStore

    store = tmp_path / "rollouts.zarr"
    arguments = [f"out={tmp_path / 'out'}", "episodes=3", "max_steps=20", "report=false", f"record={store}"]
    assert isdt(["eval", f"checkpoint={checkpoint}", *arguments]) == 0
    demos = DemoStore.open(store)
    assert demos.n_episodes == 3
    assert list(demos.episode_ends) == [20, 40, 60]
    assert demos.task == "pusht"
    assert demos.read("action").shape == (60, 2)
    info = json.loads((tmp_path / "out" / "eval_info.json").read_text())
    assert demos.read("state")[20].tolist() == pytest.approx(info["episodes"][1]["initial_state"])


def test_train_set_initial_states(checkpoint, tmp_path):
    from isdt_policy.datasets.store import DemoWriter

    store = tmp_path / "demos.zarr"
    states = np.array([[100, 100, 200, 200, 1.0], [300, 300, 200, 300, 2.0]], np.float32)
    with DemoWriter(store, task="pusht") as writer:
        for state in states:
            writer.append({"state": np.tile(state, (5, 1)), "action": np.zeros((5, 2), np.float32)})
    arguments = [f"init=train:{store}", "max_steps=10", "report=false", f"out={tmp_path / 'out'}"]
    assert isdt(["eval", f"checkpoint={checkpoint}", *arguments]) == 0
    info = json.loads((tmp_path / "out" / "eval_info.json").read_text())
    assert info["seed_purpose"] == "training"
    assert [r["initial_state"] for r in info["episodes"]] == [pytest.approx(s.tolist(), rel=1e-5) for s in states]


def test_a_chunk_executed_in_part_is_asked_for_more_often(checkpoint, tmp_path):
    for n, out in ((8, "whole"), (2, "part")):
        arguments = [f"checkpoint={checkpoint}", "episodes=1", "max_steps=8", "videos=0", "report=false"]
        assert isdt(["eval", *arguments, f"n_action_steps={n}", f"out={tmp_path / out}"]) == 0
    whole, part = (json.loads((tmp_path / out / "eval_info.json").read_text()) for out in ("whole", "part"))
    assert (whole["policy"]["config"]["n_action_steps"], part["policy"]["config"]["n_action_steps"]) == (8, 2)
    assert whole["episodes"][0]["digest"] != part["episodes"][0]["digest"]
    assert isdt(["eval", *arguments, "n_action_steps=4", f"out={tmp_path / 'part'}"]) == 2  # not mixed with another's


def test_the_noise_scale_of_an_evaluation_is_in_its_protocol_and_its_episodes(checkpoint, tmp_path):
    arguments = [f"checkpoint={checkpoint}", "episodes=1", "max_steps=8", "videos=0", "report=false"]
    for out, scale in (("own", []), ("same", ["noise_scale=1"]), ("half", ["noise_scale=0.5"])):
        assert isdt(["eval", *arguments, *scale, f"out={tmp_path / out}"]) == 0
    own, same, half = (json.loads((tmp_path / out / "eval_info.json").read_text()) for out in ("own", "same", "half"))
    assert [info["protocol"]["noise_scale"] for info in (own, same, half)] == [None, 1.0, 0.5]
    assert half["policy"]["config"]["noise_scale"] == 0.5
    assert own["episodes"][0]["digest"] == same["episodes"][0]["digest"] != half["episodes"][0]["digest"]
    assert isdt(["eval", *arguments, f"out={tmp_path / 'half'}"]) == 2  # not mixed with another's
    assert isdt(["eval", "repeat", str(tmp_path / "half" / "eval_info.json")]) == 0
    assert isdt(["compare", str(tmp_path / "own"), str(tmp_path / "half")]) == 0  # the same initial states


def test_an_evaluation_begun_before_a_condition_was_one_goes_on(checkpoint, tmp_path):
    arguments = [f"checkpoint={checkpoint}", "max_steps=8", "videos=0", "report=false", f"out={tmp_path}"]
    assert isdt(["eval", *arguments, "episodes=1"]) == 0
    head = json.loads((tmp_path / "protocol.json").read_text())
    del head["protocol"]["noise_scale"]
    (tmp_path / "protocol.json").write_text(json.dumps(head))
    assert isdt(["eval", *arguments, "episodes=2"]) == 0
    assert isdt(["eval", *arguments, "episodes=2", "noise_scale=0.5"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=CKPT", "noise_scale=2"], "noise_scale must be in [0, 1], got 2"),
        (["policy=expert", "task=pusht", "noise_scale=0.5"], "an expert draws nothing"),
        (["checkpoint=CKPT", "episodes=0"], "episodes=0 evaluates nothing"),
        (["checkpoint=CKPT", "seeds=[100000,100000]"], "listed twice"),
        (["checkpoint=CKPT", "seed_start=199999", "episodes=2"], "cross from one range"),
        (["checkpoint=CKPT", "amrs=[1]"], "Did you mean 'arms'"),
        (["checkpoint=CKPT", "episodes=many"], "episodes must be a whole number, got 'many'"),
        (["checkpoint=CKPT", "report=maybe"], "report must be true or false"),
        (["checkpoint=CKPT", "task=pushtt"], "Did you mean 'pusht'"),
        (["checkpoint=CKPT", "arms=[euler]"], "nfe='euler' names no sampler"),
        (["checkpoint=CKPT", "seed_protocol=legacy"], "pusht-legacy"),
        (["checkpoint=CKPT", "n_latency_steps=8"], "allowed: 0 to 7"),
        (["checkpoint=CKPT", "n_action_steps=16"], "n_action_steps=16 does not fit"),
        (["policy=expert", "task=pusht", "n_action_steps=4"], "for checkpoints"),
        (["checkpoint=CKPT", "init=test"], "allowed: seed, train:STORE"),
        (["checkpoint=nowhere"], "does not exist"),
        (["policy=expert"], "needs task="),
        (["policy=oracle", "task=pusht"], "is not one of expert"),
        (["somewhere"], "is not key=value"),
        (["repeat", "nowhere.json"], "cannot be read"),
        (["checkpoint=CKPT", "out=FILE"], "cannot be written"),
        (["checkpoint=CKPT", "episodes=1.5"], "episodes must be a whole number, got '1.5'"),
        (["checkpoint=CKPT", "n_envs=0"], "n_envs must be at least 1"),
        (["policy=expert", "task=pusht", "init=train:STORE", "seeds=[7]"], "has no episode 7"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, checkpoint, tmp_path, capsys):
    (tmp_path / "file").touch()
    places = {"CKPT": checkpoint, "FILE": tmp_path / "file", "STORE": OLD / "demos.zarr.zip"}
    for word, place in places.items():
        arguments = [a.replace(word, str(place)) for a in arguments]
    if arguments[0] != "repeat":
        arguments = [f"out={tmp_path / 'out'}", *arguments]
    assert isdt(["eval", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("isdt eval")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out" / "eval_info.json").exists()


def test_a_checkpoint_that_does_not_fit_the_task_is_refused():
    class Other:
        obs_keys, task = ("state", "gripper"), "pusht"

    with pytest.raises(InputError, match="'gripper', which task 'pusht' does not give"):
        check_fits(Other(), task_spec("pusht"))


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.split()[0] in ("eval", "compare")])
def test_help_teaches_every_option(verb, capsys):
    assert isdt([*verb.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert [field.name for field in fields(load(verb)) if f"{field.name}=" not in text] == []


def test_the_words_of_earlier_versions_still_work_with_a_hint(checkpoint, tmp_path, capsys):
    arguments = [f"checkpoint={checkpoint}", "episodes=1", "max_steps=8", "report=false", f"out={tmp_path}"]
    assert isdt(["eval", *arguments, "steps=[2]", "baselines=[euler3]"]) == 0
    assert "steps= is now called arms=" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "eval_info.json").read_text())["arms"]) == ["2", "euler3"]


@pytest.mark.parametrize(
    ("words", "arms"),
    [
        (["baselines=[euler10]"], ["1", "euler10"]),
        (["baselines=[euler10]", "steps=[1,2]"], ["1", "2", "euler10"]),
        (["arms=[2]", "baselines=[euler10]", "baselines=[euler4]"], ["2", "euler10", "euler4"]),
    ],
)
def test_baselines_are_added_to_the_other_arms_as_in_version_0_1(words, arms):
    assert [arm.name for arm in parse(Eval, ["checkpoint=run", *words]).arms] == arms


def test_a_larger_result_is_not_replaced_by_a_smaller_one_unasked(checkpoint, tmp_path, capsys):
    arguments = [f"checkpoint={checkpoint}", "max_steps=8", "report=false", f"out={tmp_path}"]
    assert isdt(["eval", *arguments, "episodes=3", "arms=[1,2]"]) == 0
    before = (tmp_path / "eval_info.json").read_bytes()
    for fewer in (["episodes=1", "arms=[1,2]"], ["episodes=3", "arms=[1]"]):
        capsys.readouterr()
        assert isdt(["eval", *arguments, *fewer]) == 2
        assert "overwrite=true" in capsys.readouterr().err
    assert (tmp_path / "eval_info.json").read_bytes() == before
    assert isdt(["eval", *arguments, "episodes=3", "arms=[1,2,euler3]"]) == 0  # more is no loss
    assert isdt(["eval", *arguments, "episodes=1", "overwrite=true"]) == 0
    assert len(json.loads((tmp_path / "eval_info.json").read_text())["episodes"]) == 1


def test_other_weights_need_overwrite(checkpoint, tmp_path, capsys):
    torch_policy(0.0, 500.0).save_pretrained(tmp_path / "other")
    shared = ["episodes=1", "max_steps=10", "report=false", f"out={tmp_path / 'out'}"]
    assert isdt(["eval", f"checkpoint={checkpoint}", *shared]) == 0
    assert isdt(["eval", f"checkpoint={tmp_path / 'other'}", *shared]) == 2
    assert "overwrite=true" in capsys.readouterr().err
    assert isdt(["eval", f"checkpoint={tmp_path / 'other'}", *shared, "overwrite=true"]) == 0
