"""The control loop: the evaluator's episodes when nothing is late, and honest counting when something is."""

import json
import time

import numpy as np
import pytest
from isdt_deploy_toys import MLP, run, tiny_policy

from isdt_policy.cli.deploy import Deploy
from isdt_policy.deploy.clock import TimedThread, VirtualClock, VirtualThread
from isdt_policy.deploy.controller import Control, control
from isdt_policy.deploy.latency import parse_latency
from isdt_policy.deploy.limits import Limits
from isdt_policy.deploy.safety import Safety
from isdt_policy.deploy.window import Window
from isdt_policy.eval.rollout import Protocol, evaluate
from isdt_policy.shared.errors import InputError


class Line:
    """A position that takes every command; an episode lasts `length` steps and succeeds if the last command was above 0."""

    def __init__(self, length=20, step_s=0.0):
        self.length, self.step_s = length, step_s

    def reset(self, seed=None, options=None):
        self.steps, self.commands = 0, []
        return {"x": np.zeros(1, np.float32)}, {}

    def step(self, command):
        time.sleep(self.step_s)
        self.steps += 1
        self.commands.append(float(command[0]))
        done = self.steps >= self.length
        return {"x": command}, float(self.steps), done, False, {"is_success": done and command[0] > 0}


class Ahead:
    """Chunk of decision k: 10 k + 1, 10 k + 2, ... Four are executed of eight."""

    n_obs_steps, n_action_steps, horizon, obs_keys = 1, 4, 8, ("x",)

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def reset(self):
        self.asked = 0

    def predict_action(self, obs, *, nfe=1, noise_seeds=None):
        time.sleep(self.seconds)
        chunk = 10.0 * self.asked + np.arange(1, 9)[None, :, None]
        self.asked += 1
        return {"action": chunk[:, :4], "action_pred": chunk}


def drive(env, policy, **options):
    safety = Safety(Limits(), action_dim=1, rate_hz=options["rate_hz"], positions=True)
    return control(policy, env, safety, Control(**options))


def test_latency_on_the_virtual_clock_holds_skips_and_repeats_exactly():
    """10 Hz, every answer 200 ms late: two periods are held ("sync") or bridged by the old chunk ("async")."""
    options = {"rate_hz": 10, "virtual": True, "episodes": 1, "latency": parse_latency("200ms")}
    env = Line(12)
    report = drive(env, Ahead(), mode="sync", **options)
    assert env.commands == [1, 2, 3, 4, 4, 4, 11, 12, 13, 14, 14, 14]
    assert (report.held, report.missed, report.interventions) == (4, 0, {"missing": 4})
    assert report.summary()["inference_ms"]["p50"] == pytest.approx(200)
    report = drive(env, Ahead(), mode="async", **options)
    assert env.commands == [1, 2, 3, 4, 5, 6, 13, 14, 15, 16, 23, 24]
    assert (report.held, report.periods) == (0, 12)
    assert report.rate_kept == pytest.approx(10)
    assert max(report.age_s) == pytest.approx(0.5)
    again = drive(env, Ahead(), mode="async", **options).summary()
    assert {k: v for k, v in again.items() if k != "compute_ms"} == {
        k: v for k, v in report.summary().items() if k != "compute_ms"
    }


def test_the_wall_clock_keeps_its_beat_and_counts_what_it_misses():
    report = drive(Line(1000), Ahead(0.002), rate_hz=50, seconds=0.6, mode="async")
    assert report.periods == pytest.approx(30, abs=2)
    assert report.held == 0
    slow = drive(Line(1000, step_s=0.03), Ahead(), rate_hz=50, seconds=0.4)  # 30 ms of work in periods of 20
    assert slow.missed == slow.periods
    assert slow.rate_kept < 35


def test_a_slow_policy_costs_actions_and_not_the_beat():
    report = drive(Line(1000), Ahead(0.1), rate_hz=50, seconds=0.8, mode="sync")
    assert report.held > 5
    assert report.missed <= 0.1 * report.periods
    assert report.summary()["inference_ms"]["p50"] > 100


def test_lost_observations_are_counted_and_episodes_follow_each_other():
    report = drive(Line(40), Ahead(), rate_hz=100, virtual=True, episodes=5, drop_obs=0.25)
    assert [e.seed for e in report.episodes] == [0, 1, 2, 3, 4]
    assert all(e.success and e.finished and e.max_reward == 40 for e in report.episodes)
    assert 25 < report.lost_observations < 75  # of 200


def test_a_fault_stops_the_run_when_asked_to():
    policy = Ahead()
    policy.predict_action = lambda obs, **_: {"action_pred": np.array([[[1.0], [2.0], [np.nan], [4.0], *[[0.0]] * 4]])}
    env = Line()
    safety = Safety(Limits(), action_dim=1, rate_hz=10, on_fault="stop", positions=True)
    report = control(policy, env, safety, Control(10, virtual=True, episodes=3))
    assert report.stopped == "not finite"
    assert env.commands == [1, 2, 2]
    assert not report.episodes[-1].finished


def test_an_episode_ends_at_the_tasks_limit_though_the_environment_goes_on():
    """The environment never truncates and succeeds in its 1000th step; the task allows 30."""
    report = drive(Line(1000), Ahead(), rate_hz=10, virtual=True, episodes=2, max_steps=30)
    assert [(e.finished, e.success, len(e.commands)) for e in report.episodes] == [(True, False, 30)] * 2


def test_a_first_action_that_cannot_be_used_stops_the_run_with_a_reason():
    policy = Ahead()
    policy.predict_action = lambda obs, **_: {"action_pred": np.full((1, 8, 1), np.nan)}
    report = drive(Line(), policy, rate_hz=10, virtual=True, episodes=2)
    assert report.stopped.startswith("the first action is missing, too old or not finite")


class Stuck(Line):
    """A sensor that has died: always the same, while the arm moves on."""

    def step(self, command):
        return ({"x": np.full(1, np.nan)}, *super().step(command)[1:])


class Frozen(Line):
    """A sensor that repeats its last bits from step 5 on, while the arm moves."""

    def step(self, command):
        seen, *rest = super().step(command)
        self.seen = seen if self.steps < 5 else self.seen
        return (self.seen, *rest)


class Resting(Ahead):
    """A policy that stays where it is."""

    def predict_action(self, obs, *, nfe=1, noise_seeds=None):
        chunk = np.ones((1, 8, 1))
        return {"action": chunk[:, :4], "action_pred": chunk}


def test_a_sensor_that_repeats_its_bits_while_the_arm_moves_makes_actions_stale():
    safety = Safety(Limits(), action_dim=1, rate_hz=10, max_age_s=0.5, positions=True)
    report = control(Ahead(), Frozen(100), safety, Control(10, virtual=True, episodes=1))
    assert report.interventions["stale"] > 50
    safety = Safety(Limits(), action_dim=1, rate_hz=10, max_age_s=0.5, positions=True)
    report = control(Resting(), Line(100), safety, Control(10, virtual=True, episodes=1))
    assert report.interventions == {}  # a robot that rests sees the same all the time


def test_a_sensor_that_dies_in_the_loop_makes_actions_stale():
    safety = Safety(Limits(), action_dim=1, rate_hz=10, max_age_s=0.5, positions=True)
    report = control(Ahead(), Stuck(100), safety, Control(10, virtual=True, episodes=1))
    assert max(report.age_s) > 9
    assert report.interventions["stale"] == 100 - 6  # 0.0 to 0.5 s are young enough


def test_without_latency_every_episode_is_the_evaluators(tmp_path):
    policy = tiny_policy(network=MLP)
    policy.save_pretrained(tmp_path / "p")
    seeds = [100_000, 100_001]
    result = evaluate(policy, Protocol("pusht", max_steps=None), seeds)
    code = run(
        Deploy, f"checkpoint={tmp_path / 'p'}", "clock=virtual", "episodes=2", f"out={tmp_path / 'd.json'}", "rate=10"
    )
    assert code == 0
    got = json.loads((tmp_path / "d.json").read_text())
    wanted = [(r.seed, r.success, r.max_reward, r.length) for r in result.episodes]
    assert [(r["seed"], r["success"], r["max_reward"], r["length"]) for r in got["records"]] == wanted
    assert got["episodes"] == 2
    assert got["options"]["limits"] == {"low": [0.0, 0.0], "high": [512.0, 512.0]}


def test_pusht_on_the_wall_clock_with_everything_injected(tmp_path, capsys):
    tiny_policy(network=MLP).save_pretrained(tmp_path / "p")

    given = ["seconds=1.5", "latency=lognormal(30ms)", "drop_obs=0.1", "mode=rtc", "limits=" + str(tmp_path / "l.json")]
    (tmp_path / "l.json").write_text(
        json.dumps({"low": [0, 0], "high": [512, 512], "step": [8, 8], "position": "agent_pos"})
    )
    assert run(Deploy, f"checkpoint={tmp_path / 'p'}", *given, f"video={tmp_path / 'v.mp4'}") == 0
    out = capsys.readouterr().out
    assert "Hz kept of 10" in out
    assert "step " in out.split("safety")[1]
    assert (tmp_path / "v.mp4").stat().st_size > 1000


@pytest.mark.parametrize(
    ("text", "low", "high", "median"),
    [
        ("none", 0, 0, 0),
        ("20ms", 0.02, 0.02, 0.02),
        ("uniform(10ms,50ms)", 0.01, 0.05, 0.03),
        ("normal(30ms, 5ms)", 0, 0.06, 0.03),
        ("lognormal(30ms)", 0, 1, 0.03),
        ("lognormal(30ms,0.1)", 0.015, 0.06, 0.03),
        ("500us", 0.0005, 0.0005, 0.0005),
    ],
)
def test_latency_distributions(text, low, high, median):
    rng = np.random.default_rng(0)
    draws = [parse_latency(text)(rng) for _ in range(2000)]
    assert low <= min(draws) <= max(draws) <= high
    assert np.median(draws) == pytest.approx(median, rel=0.05)


@pytest.mark.parametrize(
    "text", ["30", "lognorm(30ms)", "uniform(50ms,10ms)", "uniform(1ms)", "normal(1ms,2)", "-3ms", "lognormal(3ms,x)"]
)
def test_other_descriptions_of_latency_are_refused(text):
    with pytest.raises(InputError, match=r"is not understood\..*Allowed: none, 30ms"):
        parse_latency(text)


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("rte=10", "Did you mean 'rate'"),
        ("rate=0", "rate=0.0 must be above 0"),
        ("clock=wal", "Did you mean 'wall'"),
        ("drop_obs=1.5", "drop_obs=1.5"),
        ("task=pushtt", "Did you mean 'pusht'"),
        ("mode=rt", "Did you mean 'rtc'"),
        ("on_fault=panic", "not one of hold, stop"),
        ("limits=nowhere.json", "cannot be read"),
        ("loosen=true", "give the file"),
        ("out=/dev/null/d.json", "cannot be written"),
        ("video=/dev/null/d.mp4", "cannot be written"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, arg, message):
    tiny_policy(network=MLP).save_pretrained(tmp_path / "p")
    with pytest.raises(InputError, match=message):
        run(Deploy, f"checkpoint={tmp_path / 'p'}", arg)


def test_both_threads_measure_and_deliver():
    rng = np.random.default_rng(0)
    thread = TimedThread(parse_latency("20ms"), rng)
    begin = time.perf_counter()
    assert thread.submit(lambda: 3).result(2) == 3
    assert time.perf_counter() - begin >= 0.02
    thread.close()
    assert thread.total_s[0] >= 0.02 > thread.compute_s[0]
    clock = VirtualClock()
    future = VirtualThread(clock, parse_latency("20ms"), rng).submit(lambda: 3)
    with pytest.raises(TimeoutError):
        future.result(0.01)
    clock.sleep_until(0.02)
    assert future.result(0) == 3


def test_a_window_shows_the_simulator_and_stops_the_run_when_it_is_closed(tmp_path, monkeypatch, capsys):
    import pygame

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    tiny_policy(network=MLP).save_pretrained(tmp_path / "p")
    shown = []

    def watch(window):
        goes_on = show(window)
        if goes_on:
            shown.append((pygame.surfarray.array3d(pygame.display.get_surface()), window._env.render()))
        if len(shown) == 3:
            pygame.event.post(pygame.event.Event(pygame.QUIT))
        return goes_on

    show = Window.show
    monkeypatch.setattr(Window, "show", watch)
    assert run(Deploy, f"checkpoint={tmp_path / 'p'}", "seconds=5", "window=true") == 1
    assert "STOPPED      the window was closed" in capsys.readouterr().out
    assert len(shown) == 3
    for pixels, frame in shown:
        assert np.array_equal(pixels.swapaxes(0, 1), frame)
    assert pygame.display.get_init() is False
