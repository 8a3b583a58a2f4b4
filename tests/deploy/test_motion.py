"""Commands are differenced as a robot would: no combination of limits is exceeded, whatever is asked."""

import itertools
from collections import Counter

import numpy as np
import pytest

from isdt_policy.deploy.limits import Limits
from isdt_policy.deploy.safety import Safety

KINDS = ("low", "high", "step", "velocity", "acceleration", "jerk")
ORDER = {"step": (1, 0), "velocity": (1, 1), "acceleration": (2, 2), "jerk": (3, 3)}  # differences, powers of dt


def random_limits(rng, names, size, scale):
    """From hardly any freedom to limits that never matter."""
    spread = {"step": (-3, 0.3), "velocity": (-2, 2), "acceleration": (-2, 4), "jerk": (-2, 6)}
    values = {name: scale * 10 ** rng.uniform(*spread[name], size) for name in names if name in spread}
    bounds = {name: scale * sign * rng.uniform(0.2, 1, size) for name, sign in (("low", -1), ("high", 1))}
    return values | {name: bounds[name] for name in names if name in bounds}


def drive(rng, stage, start, scale, n):
    """Commands for targets that jump, creep, stand still, are missing or not finite."""
    target, path = start, [start] * 3
    for _ in range(n):
        kind = rng.choice(["jump", "far", "creep", "same", "missing", "nan"], p=[0.25, 0.05, 0.25, 0.35, 0.05, 0.05])
        if kind in ("jump", "far"):
            target = scale * rng.normal(0, 1e3 if kind == "far" else 1, len(start))
        elif kind == "creep":
            target = target + scale * rng.normal(0, 0.01, len(start))
        action = {"missing": None, "nan": np.full(len(start), np.nan)}.get(kind, target)
        path.append(stage(action).astype(np.float64))
    return np.array(path)


@pytest.mark.parametrize("r", range(len(KINDS) + 1))
def test_no_combination_of_limits_is_exceeded(r):
    rng, counts = np.random.default_rng(r), Counter()
    for names in itertools.combinations(KINDS, r):
        for _ in range(4):
            size, dt = int(rng.integers(1, 4)), float(10 ** rng.uniform(-3, -0.5))
            scale = 10 ** rng.uniform(-2, 2, size)
            values = random_limits(rng, names, size, scale)
            stage = Safety(Limits(**values, position="x"), action_dim=size, rate_hz=1 / dt)
            start = (scale * rng.normal(0, 1, size)).astype(np.float32).astype(np.float64)  # often outside the bounds
            stage.reset(start)
            path = drive(rng, stage, start, scale, 120)
            assert np.isfinite(path).all()
            for name in set(names) & set(ORDER):
                order, power = ORDER[name]
                rounding = 2**order * np.abs(path).max(axis=0) * 2**-24  # of commands in float32
                changes = np.abs(np.diff(path, order, axis=0))
                assert (changes <= values[name] * dt**power * (1 + 1e-6) + rounding).all(), (names, name)
            if "low" in names:
                assert (path >= np.minimum(values["low"], start)).all()
            if "high" in names:
                assert (path <= np.maximum(values["high"], start)).all()
            counts += stage.counts
    if r >= 3:
        assert counts["acceleration or jerk"] > 100
        assert counts["not planned"] < 0.2 * counts["acceleration or jerk"]


@pytest.mark.parametrize("rates", [
    {"velocity": (1.0,)},
    {"step": (0.02,), "acceleration": (4.0,)},
    {"velocity": (1.0,), "acceleration": (4.0,), "jerk": (80.0,)},
])  # fmt: skip
def test_a_start_outside_the_bounds_goes_back_within_the_limits(rates):
    stage = Safety(Limits(low=(-1,), high=(1,), position="x", **rates), action_dim=1, rate_hz=50)
    stage.reset(np.array([3.0]))
    path = np.array([3.0, *(stage(np.array([-5.0]))[0] for _ in range(400))])
    assert np.diff(path).max() <= 0
    assert -np.diff(path).min() <= 0.02 + 2 * 3 * 2**-24  # two commands, rounded to float32
    assert path[-1] == -1


def test_a_bound_that_float32_cannot_hold_is_not_left_by_rounding():
    stage = Safety(Limits(low=(-0.1,), high=(0.1,)), action_dim=1, rate_hz=10, positions=True)
    assert abs(float(stage(np.array([9.0]))[0])) <= 0.1
    assert float(stage(np.array([-9.0]))[0]) >= -0.1
    assert dict(stage.counts) == {"bounds": 2}
    assert stage(np.array([0.1])) == pytest.approx(0.1)
    assert stage.counts["bounds"] == 2  # that one was as asked


@pytest.mark.parametrize("values", [
    {},
    {"low": (-np.inf,), "high": (np.inf,)},
    {"low": (-1e300,), "high": (1e300,)},
    {"velocity": (np.inf,), "position": "x"},
    {"jerk": (1e300,), "position": "x"},
    {"acceleration": (np.inf,), "velocity": (1e-300,), "position": "x"},
])  # fmt: skip
def test_no_number_however_large_makes_a_command_infinite(values):
    stage = Safety(Limits(**values), action_dim=1, rate_hz=10, positions=True)
    stage.reset(np.zeros(1))
    for action in (1e300, -1e300, 3e38, -3e38, np.inf, 1e15, 5.0, -2.0):
        command = stage(np.array([action]))
        assert np.isfinite(command).all()
        assert command.dtype == np.float32
    assert stage.counts["not finite"] == 3


def test_bounds_that_no_command_can_keep_are_refused():
    for values in ({"low": (np.inf,)}, {"high": (-np.inf,)}):
        with pytest.raises(ValueError, match="no command can keep"):
            Limits(**values)


def test_what_cannot_be_planned_follows_the_old_plan_to_rest_and_is_counted(monkeypatch):
    stage = Safety(Limits(acceleration=(4.0,), position="x"), action_dim=1, rate_hz=50)
    stage.reset(np.zeros(1))
    path = [stage(np.array([1.0]))[0] for _ in range(20)]  # at speed

    class Broken:
        def calculate(self, *_):
            raise RuntimeError("no profile")

    monkeypatch.setattr(stage._motion, "_planner", Broken())
    path += [stage(np.array([-1.0]))[0] for _ in range(80)]
    assert np.abs(np.diff(path, 2)).max() <= 4.0 / 50**2 * (1 + 1e-3) + 4 * 2**-24
    assert path[-1] == pytest.approx(1, abs=1e-6)
    assert stage.counts["not planned"] == 80


def test_a_position_that_is_not_finite_is_refused():
    stage = Safety(Limits(), action_dim=2, rate_hz=10, positions=True)
    with pytest.raises(ValueError, match="not finite"):
        stage.reset(np.array([0.0, np.nan]))
