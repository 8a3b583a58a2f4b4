"""Limits on known commands; faults; the watchdog."""

import json
import threading

import numpy as np
import pytest

from isdt_policy.deploy.limits import Limits
from isdt_policy.deploy.safety import Safety
from isdt_policy.deploy.watchdog import Watchdog
from isdt_policy.shared.errors import InputError


def safety(rate_hz=10, position=None, on_fault="hold", max_age_s=None, **limits):
    options = {"on_fault": on_fault, "max_age_s": max_age_s, "positions": "neutral" not in limits}
    stage = Safety(Limits(**limits), action_dim=2, rate_hz=rate_hz, **options)
    stage.reset(position)
    return stage


def test_bounds_are_per_dimension():
    stage = safety(low=(0, -1), high=(512, 1))
    assert stage(np.array([600, -3])).tolist() == [512, -1]
    assert stage(np.array([5, 0.5])).tolist() == [5, 0.5]
    assert dict(stage.counts) == {"bounds": 1}


def test_a_step_limit_bounds_the_change_per_command_and_a_velocity_limit_the_change_per_second():
    stage = safety(step=(10, 100), position=[0, 0])
    assert [stage(np.array([25, 25])).tolist() for _ in range(3)] == [[10, 25], [20, 25], [25, 25]]
    assert dict(stage.counts) == {"step": 2}
    stage = safety(velocity=(100, 1000), position=[0, 0])  # at 10 Hz: 10 and 100 a command
    assert [stage(np.array([25, 25])).tolist() for _ in range(3)] == [[10, 25], [20, 25], [25, 25]]
    assert dict(stage.counts) == {"velocity": 2}


def test_without_a_position_the_first_command_is_only_bounded():
    assert safety(step=(10, 10), high=(50, 50))(np.array([99, 0])).tolist() == [50, 0]


def test_jerk_acceleration_and_velocity_hold_on_a_jumping_target_and_it_is_reached_without_overshoot():
    dt, limits = 0.02, {"velocity": (1.0, 2.0), "acceleration": (4.0, 8.0), "jerk": (40.0, 80.0)}
    stage = Safety(Limits(low=(-1, -1), high=(1, 1), position="x", **limits), action_dim=2, rate_hz=50)
    stage.reset(np.zeros(2))
    rng = np.random.default_rng(0)
    targets = [rng.uniform(-2, 2, 2) for _ in range(200)] + [np.array([0.7, -0.3])] * 150
    path = np.array([np.zeros(2), np.zeros(2), np.zeros(2)] + [stage(t) for t in targets], np.float64)
    assert np.abs(path).max() <= 1
    for order, name in ((1, "velocity"), (2, "acceleration"), (3, "jerk")):
        rates = np.abs(np.diff(path, order, axis=0)) / dt**order
        # A difference of positions averages the true rate; float32 rounding of positions is divided by dt^order.
        assert (rates.max(axis=0) <= np.array(limits[name]) + 8 * 1.2e-7 / dt**order).all(), name
        assert (rates.max(axis=0) >= 0.5 * np.array(limits[name])).all(), f"{name} was never near its limit"
    assert path[-1] == pytest.approx([0.7, -0.3], abs=1e-6)
    assert stage.counts["acceleration or jerk"] > 100


def test_a_rest_to_rest_move_does_not_swing_past_its_target():
    stage = Safety(Limits(jerk=(50.0,), position="x"), action_dim=1, rate_hz=50)
    stage.reset(np.zeros(1))
    path = np.array([stage(np.ones(1))[0] for _ in range(80)])
    assert path.max() <= 1 + 1e-6
    assert path[-1] == pytest.approx(1)
    # Four phases of constant jerk j take T = (32 d / j)^(1/3) = 0.862 s for d = 1, j = 50: step 43 is still on its way.
    assert path[42] == pytest.approx(1, abs=1e-3)
    assert path[20] == pytest.approx(0.5, abs=0.03)  # half way at T / 2


def test_missing_nan_and_stale_actions_are_held_for():
    stage = safety(max_age_s=0.5)
    assert stage(None) is None  # nothing to hold yet
    stage(np.array([1.0, 2.0]))
    for action, age in ((None, 0), (np.array([np.nan, 0]), 0), (np.array([np.inf, 0]), 0), (np.array([9.0, 9.0]), 0.6)):
        assert stage(action, age).tolist() == [1, 2]
    assert stage(np.array([3.0, 4.0]), 0.5).tolist() == [3, 4]
    assert dict(stage.counts) == {"missing": 2, "not finite": 2, "stale": 1}


def test_stop_lasts_until_reset():
    stage = safety(on_fault="stop", position=[1, 2])
    stage(np.array([3.0, 4.0]))
    stage(np.array([np.nan, 0]))
    assert stage.stopped == "not finite"
    assert stage(np.array([9.0, 9.0])).tolist() == [3, 4]
    assert dict(stage.counts) == {"not finite": 1, "stopped": 1}
    stage.reset()
    assert stage(np.array([9.0, 9.0])).tolist() == [9, 9]


def test_holding_goes_on_towards_the_last_good_target_within_its_limits():
    stage = safety(step=(10, 10), position=[0, 0])
    stage(np.array([25.0, 0]))
    assert [stage(None).tolist()[0] for _ in range(3)] == [20, 25, 25]


@pytest.mark.parametrize("on_fault", ["hold", "stop"])
def test_no_answer_means_no_motion_for_displacements_and_the_gripper_stays(on_fault):
    """An action is a displacement in x, and a gripper that keeps what it was told."""
    stage = safety(low=(-0.1, -1), high=(0.1, 1), neutral=(0, None), on_fault=on_fault)
    moved = [stage(np.array([0.1, 0.7]))[0]]
    held = [stage(None), *(stage(np.array([np.nan, 0])) for _ in range(49))]
    assert sum(moved) + sum(command[0] for command in held) == pytest.approx(0.1)
    assert {float(command[1]) for command in held} == {np.float32(0.7)}
    assert stage.counts["missing"] == 1


@pytest.mark.parametrize(("limits", "options"), [
    ({"neutral": (0, 0)}, {}), ({"neutral": (None, None)}, {}), ({"position": "x"}, {}), ({}, {"positions": True}),
])  # fmt: skip
def test_a_stage_that_does_not_know_what_no_motion_is_drives_nothing(limits, options):
    with pytest.raises(InputError, match="nothing says which action is no motion"):
        Safety(Limits(low=(-0.1, -0.1), high=(0.1, 0.1)), action_dim=2, rate_hz=10)
    Safety(Limits(low=(-0.1, -0.1), high=(0.1, 0.1), **limits), action_dim=2, rate_hz=10, **options)


def test_the_neutral_command_is_reached_within_the_limits_and_is_known_before_the_first_action():
    stage = safety(step=(0.1, 0.1), neutral=(0, 0), position=[0.25, 0])
    stage(np.array([0.25, 0.0]))
    assert [stage(None)[0] for _ in range(4)] == pytest.approx([0.15, 0.05, 0, 0])
    assert safety(neutral=(0, 0))(None).tolist() == [0, 0]
    assert safety(neutral=(0, None))(None) is None


def test_limits_hold_together():
    task = Limits(low=(0, 0), high=(512, 512))
    hub = Limits(low=(-9000, 100), high=(9000, 9000), step=(50, 60), position="agent_pos")
    both = task.and_also(hub).and_also(Limits(step=(90, 10), neutral=(0, None)))
    assert both == Limits((0, 100), (512, 512), (50, 10), position="agent_pos", neutral=(0, None))
    with pytest.raises(InputError, match="mine allow nothing that the others do"):
        task.and_also(Limits(low=(600, 0)), "mine")
    with pytest.raises(InputError, match="have 3 numbers per limit, an action has 2"):
        task.and_also(Limits(step=(1, 1, 1)))
    with pytest.raises(InputError, match="start from 'x', the others from 'agent_pos'"):
        both.and_also(Limits(position="x"))


def test_limits_travel_as_json(tmp_path):
    limits = Limits(low=(0, 0), high=(512, 512), step=(40, 40), position="agent_pos", neutral=(0, None))
    assert Limits.load(limits.save(tmp_path)) == limits == Limits.load(tmp_path)
    (tmp_path / "limits.json").write_text(json.dumps({"hihg": [1, 1]}))
    with pytest.raises(InputError, match=r"unknown limit 'hihg'\. Did you mean 'high'"):
        Limits.load(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"low": [2, 0], "high": [1, 1]}, "is above 'high'"),
        ({"step": [0, 1]}, "must be above 0"),
        ({"step": [float("nan"), 1]}, "list of numbers"),
        ({"low": [0], "high": [1, 1]}, "different lengths"),
        ({"low": "abc"}, "list of numbers"),
        ({"neutral": [0, "x"]}, "list of numbers"),
        ({"neutral": [0, float("inf")]}, "must be finite"),
        ({"neutral": [0], "low": [0, 0]}, "different lengths"),
    ],
)
def test_impossible_limits_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        Limits.from_dict(values)


def test_limits_of_another_robot_are_refused():
    with pytest.raises(InputError, match="has 3 numbers, an action has 2"):
        safety(low=(0, 0, 0))
    with pytest.raises(InputError, match="need 'position'"):
        safety(jerk=(1, 1))
    with pytest.raises(InputError, match=r"shape \(3,\), expected \(2,\)"):
        safety()(np.zeros(3))


def test_the_watchdog_barks_once_per_silence_and_not_while_it_hears_beats():
    barked = threading.Event()
    with Watchdog(0.15, barked.set) as watchdog:
        for _ in range(20):
            watchdog.beat()
            assert not barked.wait(0.01)
        assert barked.wait(2.0)
        barked.clear()
        assert not barked.wait(0.3)  # the same silence
        assert watchdog.silences == 1
        watchdog.beat()
        assert barked.wait(2.0)
        assert watchdog.silences == 2
