"""The doctor finds each planted fault where it was planted, and nothing in clean data."""

import json
import sys

import numpy as np
import pytest
import zarr

from isdt_policy.cli import main
from isdt_policy.datasets.doctor import examine

FAULT_EPISODE, FAULT_STEP = 4, 20


def clean(count=10, seed=0):
    """A scene like PushT's: the agent runs after its target, the block rests, turns onto the goal; a quaternion and a camera."""
    rng = np.random.default_rng(seed)
    episodes = []
    for _ in range(count):
        steps = int(rng.integers(40, 60))
        time = np.linspace(0, 1, steps)
        target = 256 + 200 * np.sin(np.outer(time, rng.uniform(3, 9, 2)) + rng.uniform(0, 6, 2))
        target += rng.normal(0, 10, target.shape)
        agent = np.empty((steps, 2))
        agent[0] = target[0] + 20
        for t in range(steps - 1):
            agent[t + 1] = agent[t] + 0.7 * (target[t] - agent[t])
        to_go = np.clip(1 - time, 0, 0.5)
        angle = np.mod(np.pi / 4 - rng.uniform(1, 4) * to_go, 2 * np.pi)
        block = 256 - 50 * to_go
        half = 0.2 + time
        image = np.broadcast_to(rng.integers(0, 255, (1, 12, 12, 3)), (steps, 12, 12, 3)).copy()
        image[np.arange(steps), np.arange(steps) % 12] = np.arange(steps)[:, None, None]
        episodes.append(
            {
                "state": np.stack([*agent.T, block, block, angle], axis=1).astype(np.float32),
                "eef_quat": np.stack([np.cos(half), *np.outer([0.6, 0.64, 0.48], np.sin(half))], axis=1).astype(
                    np.float32
                ),
                "image": image.astype(np.uint8),
                "action": target.astype(np.float32),
            }
        )
    return episodes


def store(tmp_path, episodes):
    group = zarr.open_group(tmp_path / "demos.zarr", mode="w", zarr_format=2, attributes={"task": "pusht"})
    for key in episodes[0]:
        group.create_array(f"data/{key}", data=np.concatenate([episode[key] for episode in episodes]))
    group.create_array("meta/episode_ends", data=np.cumsum([len(episode["action"]) for episode in episodes]))
    return str(tmp_path / "demos.zarr")


def at_fault(key, change):
    """Plant a fault in one episode."""

    def plant(episodes):
        episodes[FAULT_EPISODE][key] = change(episodes[FAULT_EPISODE][key].copy())
        return episodes

    return plant


def put(value, *where):
    def change(array):
        array[where] = value
        return array

    return change


def freeze(array):
    array[FAULT_STEP : FAULT_STEP + 8] = array[FAULT_STEP]
    return array


def everywhere(key, change):
    def plant(episodes):
        return [episode | {key: change(episode[key])} for episode in episodes]

    return plant


def join(episodes):
    both = {key: np.concatenate([episodes[4][key], episodes[5][key]]) for key in episodes[4]}
    return [*episodes[:4], both, *episodes[6:]]


def flip(array):
    array[FAULT_STEP + 1 :] *= -1
    return array


def shift(steps):
    """Action rows moved by `steps` against the observations."""

    def plant(episodes):
        return [e | {"action": np.roll(e["action"], steps, axis=0)} for e in episodes]

    return plant


# name -> (fault, check, level, key, episode and step if the fault has a place)
def copied(episodes):
    return [{**episode, "actions": episode["action"]} for episode in episodes]


PLANTED = {
    "NaN in the state": (at_fault("state", put(np.nan, FAULT_STEP, 1)), "finite", "error", "state", True),
    "a constant action": (everywhere("action", put(7, slice(None), 1)), "constant", "warning", "action", False),
    "a constant observation": (everywhere("state", put(7, slice(None), 2)), "constant", "note", "state", False),
    "a saturated action": (
        everywhere("action", lambda a: np.clip(a, None, [300, 512])), "saturated", "warning", "action", False),
    "an outlier action": (at_fault("action", put(5000, FAULT_STEP, 0)), "outlier", "warning", "action", True),
    "a frozen sensor": (at_fault("state", freeze), "frozen", "warning", "state", True),
    "a frozen camera": (at_fault("image", freeze), "frozen", "warning", "image", True),
    "a dark camera": (at_fault("image", put(0, FAULT_STEP)), "images", "warning", "image", True),
    "images as floats": (everywhere("image", lambda a: a.astype(np.float32)), "images", "note", "image", False),
    "an episode twice": (lambda e: [*e, e[FAULT_EPISODE]], "repeated", "warning", "", False),
    "a quaternion that flips": (at_fault("eef_quat", flip), "quaternion", "warning", "eef_quat", True),
    "a quaternion that is none": (at_fault("eef_quat", put(0, FAULT_STEP)), "quaternion", "error", "eef_quat", True),
    "two episodes joined": (join, "episode_ends", "warning", "state", False),
    "an episode of one step": (
        lambda e: [*e, {k: v[:1] for k, v in e[0].items()}], "episode_ends", "warning", "", False),
    "actions one step late": (shift(1), "alignment", "error", "state", False),
    "actions two steps early": (shift(-2), "alignment", "warning", "state", False),
    "the action as an observation": (copied, "leak", "error", "actions", False),
    "degrees": (everywhere("state", lambda s: s * [1, 1, 1, 1, 180 / np.pi]), "units", "error", "state", False),
    "normalised actions": (everywhere("action", lambda a: a / 256 - 1), "units", "error", "action", False),
    "normalised state": (everywhere("state", lambda s: s / 512), "units", "error", "state", False),
    "demonstrators who stop short": (everywhere("state", lambda s: s + np.array([0, 0, 9, 0, 0])), "success", "warning", "", False),
    "one episode in other units": (at_fault("eef_quat", lambda q: q * 1000), "units", "warning", "eef_quat", False),
}  # fmt: skip


def test_clean_demonstrations_have_no_findings(tmp_path, capsys):
    path = store(tmp_path, clean())
    assert examine(path) == []
    assert main(["data", "doctor", path]) == 0
    assert "0 errors, 0 warnings, 0 notes" in capsys.readouterr().out


def test_a_body_that_settles_is_no_leap(tmp_path):
    """As the can in robomimic's samples: put down, it sinks by a twentieth of a millimetre in the first step."""
    rng = np.random.default_rng(0)
    episodes = clean()
    for episode in episodes:
        steps = len(episode["action"])
        body = np.repeat([[*rng.uniform(-0.3, 0.3, 2), 0.86]], steps, axis=0)
        body[0, 2] += 5e-5 * (episode is episodes[3])
        episode["object"] = np.concatenate([body, body - episode["state"][:, :3] / 500], axis=1)
    assert examine(store(tmp_path, episodes)) == []


def test_a_copy_of_the_action_does_not_make_the_action_rows_look_shifted(tmp_path):
    assert {f.check for f in examine(store(tmp_path, copied(clean())))} == {"leak"}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_where_it_is(name, tmp_path):
    plant, check, level, key, has_place = PLANTED[name]
    found = examine(store(tmp_path, plant(clean())))
    matching = [f for f in found if (f.check, f.level, f.key) == (check, level, key)]
    assert matching, found
    if has_place:
        assert (matching[0].episode, matching[0].step) == (FAULT_EPISODE, FAULT_STEP)
    assert all(f.advice and f.message for f in found)


def at_another_goal(episodes):
    """The block is brought to (100, 300) from wherever it was; an angle that its recorder never brought back."""
    rng = np.random.default_rng(1)
    for episode in episodes:
        to_go = np.linspace(1, 0, len(episode["state"]))[:, None]
        episode["state"][:, 2:4] = np.array([100, 300]) + to_go * rng.uniform(-150, 150, 2)
    return episodes


def test_demonstrations_for_another_goal_are_said_to_be_that(tmp_path):
    (found,) = examine(store(tmp_path, at_another_goal(clean())))
    assert found.check == "success"
    assert "all end with state 2, 3" in found.message
    assert "near 100, 300" in found.message
    assert found.advice.startswith("recorded for another goal?")


def test_an_angle_that_goes_on_past_a_turn_is_not_taken_for_degrees(tmp_path):
    def unwrapped(state):
        return np.column_stack([state[:, :4], np.unwrap(state[:, 4]) + 2 * np.pi])

    (found,) = [f for f in examine(store(tmp_path, everywhere("state", unwrapped)(clean()))) if f.level == "error"]
    assert found.check == "units"
    assert "numpy.mod(state[:, 4], 2 * numpy.pi)" in found.advice
    degrees = examine(
        store(tmp_path / "degrees", everywhere("state", lambda s: s * [1, 1, 1, 1, 180 / np.pi])(clean()))
    )
    assert any("degrees" in f.advice for f in degrees)


def test_demonstrations_longer_than_the_task_are_said_to_be_that(tmp_path):
    slow = everywhere("state", lambda s: np.repeat(s, 8, axis=0))(
        everywhere("action", lambda a: np.repeat(a, 8, axis=0))(clean())
    )
    for episode in slow:
        episode["eef_quat"], episode["image"] = (np.repeat(episode[key], 8, axis=0) for key in ("eef_quat", "image"))
    found = [f for f in examine(store(tmp_path, slow), images=False) if "the task ends after 300" in f.message]
    assert [f.level for f in found] == ["warning"]


def test_one_bound_for_numbers_of_several_units_is_no_range(tmp_path):
    """Adroit's door: metres and radians within +-200, which is a safeguard."""
    rng = np.random.default_rng(0)
    episodes = [
        {
            "observation": rng.normal(0, 0.5, (100, 39)).astype(np.float32),
            "action": rng.uniform(-1, 1, (100, 28)).astype(np.float32),
        }
        for _ in range(3)
    ]
    assert [f for f in examine(store(tmp_path, episodes), task="adroit_door") if f.check == "units"] == []


def test_what_cannot_be_opened_is_one_finding_and_exit_code_one(tmp_path, capsys):
    assert main(["data", "doctor", str(tmp_path / "nowhere.zarr"), "format=json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [f["check"] for f in found] == ["structure"]


def test_the_human_demonstrations_of_pusht_are_sound_but_none_ends_in_a_success(real_data):
    path = str(real_data / "pusht_human" / "pusht_cchi_v7_replay.zarr")
    assert examine(path, images=False) == []  # the file names no task, so nothing is known of success
    (found,) = examine(path, task="pusht", images=False)
    assert (found.check, found.count) == ("success", 206)
    assert found.message.startswith("0 of 206 episodes end in a success")
    assert "data.hindsight=true" in found.advice


def test_without_the_extra_of_a_task_its_data_are_one_line(tiny_store, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shapely", None)
    assert main(["data", "doctor", str(tiny_store), "images=false"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "isdt data doctor: Judging success in PushT needs shapely, which is not installed: pip install 'isdt-policy[pusht]'.\n"
    )
