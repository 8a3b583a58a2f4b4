"""A task made from a store: what is read, what is left out and why, and what is asked for in one line."""

import numpy as np
import pytest

from isdt_policy.datasets.own_task import Told, followed, own_task, with_action
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.shared.errors import InputError

SAID = {"action_space": {"type": "absolute", "rate_hz": 20.0}}


def arm_episode(rng, steps=40, **more):
    """Three joints that follow their targets, as a teleoperated arm records them."""
    time = np.linspace(0, 1, steps)[:, None]
    target = np.sin(4 * time * rng.uniform(0.5, 1, 3) + rng.uniform(0, 6, 3)).astype(np.float32)
    joints = np.vstack([target[:1], target[:-1]])
    grip = (time[:, 0] > 0.5).astype(np.float32)[:, None]
    return {
        "joints": np.hstack([joints, grip]),
        "action": np.hstack([target, grip]),
        "wrench": rng.normal(size=(steps, 6)).astype(np.float32),
        **{key: value(np.hstack([target, grip])) for key, value in more.items()},
    }


def store_of(path, attributes=SAID, drop=(), **more):
    rng = np.random.default_rng(0)
    with DemoWriter(path, attributes=attributes) as writer:
        for _ in range(4):
            episode = arm_episode(rng, **more)
            writer.append({key: value for key, value in episode.items() if key not in drop})
    return DemoStore.open(path)


def test_everything_is_taken_from_the_store(tmp_path):
    store = store_of(tmp_path / "arm.zarr", {**SAID, "keys": {"joints": {"unit": "rad"}}})
    made = own_task(store, Told())
    assert made.spec.default_obs_keys == ("joints", "wrench")
    assert made.spec.observations["joints"].shape == (4,)
    assert made.spec.observations["joints"].unit == "rad"
    assert (made.spec.id, made.spec.rate_hz, made.spec.action.shape) == ("arm", 20.0, (4,))
    assert made.recorded.position == "joints"
    assert made.recorded.neutral is None  # positions hold by staying


def test_limits_are_what_was_recorded(tmp_path):
    store = store_of(tmp_path / "arm.zarr")
    action, recorded = store.read("action"), own_task(store, Told()).recorded
    margin = 0.05 * np.ptp(action, axis=0)
    assert recorded.low == pytest.approx(action.min(axis=0) - margin)
    assert recorded.high == pytest.approx(action.max(axis=0) + margin)
    inside = [np.abs(np.diff(store.episode(i)["action"], axis=0)).max(axis=0) for i in range(4)]
    assert recorded.step == pytest.approx(np.max(inside, axis=0))  # leaps between episodes are none


def test_displacements_hold_at_zero_and_a_gripper_where_it_is(tmp_path):
    store = store_of(tmp_path / "arm.zarr")
    recorded = own_task(store, Told(actions="delta")).recorded
    assert recorded.neutral == (0.0, 0.0, 0.0, None)
    assert recorded.position == ""


def test_what_gives_the_action_away_or_says_nothing_is_left_out_by_default(tmp_path):
    more = {
        "actions": lambda action: action.astype(np.float64),
        "action_next": lambda action: -action,
        "bias": lambda action: np.full((len(action), 2), 3.0),
        "timestamp": lambda action: np.arange(len(action)),
        "reward": lambda action: action[:, 0],
        "camera": lambda action: np.zeros((len(action), 32, 32, 3), np.uint8),
    }
    made = own_task(store_of(tmp_path / "arm.zarr", **more), Told())
    assert made.spec.default_obs_keys == ("joints", "wrench")
    assert (
        "not read: action_next (named like an action), actions (a copy of the action), bias (constant), "
        "camera (pictures), reward (not an observation), timestamp (not an observation)"
    ) in "\n".join(made.notes)
    asked = own_task(DemoStore.open(tmp_path / "arm.zarr"), Told(obs_keys=("joints", "bias")))
    assert asked.spec.default_obs_keys == ("joints", "bias")


def test_a_copy_that_was_rounded_is_a_copy(tmp_path):
    """float64 in one key and float32 in the other, as recorders write them."""
    rng = np.random.default_rng(1)
    with DemoWriter(tmp_path / "arm.zarr", attributes=SAID) as writer:
        for _ in range(3):
            action = rng.normal(size=(30, 2))
            writer.append({"q": rng.normal(size=(30, 2)), "action": action, "goal": action.astype(np.float32)})
    assert own_task(DemoStore.open(tmp_path / "arm.zarr"), Told()).spec.default_obs_keys == ("q",)


@pytest.mark.parametrize(
    ("build", "told", "expected"),
    [
        ({"attributes": {}}, Told(), r"how many steps a second has \(data.rate_hz=N\) nor what an action is .*'joints'"),
        ({"attributes": {}}, Told(rate_hz=20), r"does not say what an action is \(data.actions=absolute"),
        ({"attributes": {}}, Told(actions="delta"), r"does not say how many steps a second has \(data.rate_hz=N\)\.$"),
        ({"drop": ["action"]}, Told(), r"no key is called action; it has joints, wrench.*data.action_key=KEY"),
        (
            {"drop": ["action"], "action_joints": np.copy, "action_tool": np.negative},
            Told(),
            r"several keys may be the action \(action_joints, action_tool\).*data.action_key=KEY",
        ),
        ({}, Told(obs_keys=("joint",)), r"has no key 'joint'. Did you mean 'joints'\?"),
        ({}, Told(obs_keys=("joints", "action")), r"'action' is the action; a policy learns to copy it"),
        ({"goal": np.copy}, Told(obs_keys=("goal",)), r"'goal' is a copy of the action"),
        ({}, Told(action_key="actoin"), r"data.action_key='actoin' is no key.* Did you mean 'action'\?"),
        ({"agent.pos": np.negative}, Told(), r"rename=agent.pos:agent_pos"),
    ],
)  # fmt: skip
def test_what_is_missing_or_ambiguous_is_one_line(build, told, expected, tmp_path):
    store = store_of(tmp_path / "arm.zarr", **build)
    with pytest.raises(InputError, match=expected) as raised:
        own_task(store, told)
    assert "\n" not in str(raised.value)


def test_another_key_is_the_action_if_it_is_named(tmp_path):
    store = store_of(tmp_path / "arm.zarr", drop=["action"], action_joints=np.copy, action_tool=np.negative)
    made = own_task(store, Told(action_key="action_tool"))
    assert made.action_key == "action_tool"
    assert "action_joints" not in made.spec.default_obs_keys
    view = with_action(store, "action_tool")
    assert (view.read("action") == store.read("action_tool")).all()
    assert "action_tool" not in view.keys


def test_a_position_is_a_key_near_which_actions_lie_and_never_another():
    rng = np.random.default_rng(0)
    action = np.cumsum(rng.normal(size=(200, 2)), axis=0)
    near, far = action + 0.1 * rng.normal(size=action.shape), rng.normal(size=action.shape)
    assert followed(action, {"far": far, "near": near, "wide": np.hstack([near, near])}) == "near"
    assert followed(action, {"far": far}) == ""
