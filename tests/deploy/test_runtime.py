"""The runtime on policies whose every action is known: which chunk acts in which step, on which observations."""

from concurrent.futures import Future

import numpy as np
import pytest

from isdt_policy.deploy.limits import Limits
from isdt_policy.deploy.runtime import Runtime
from isdt_policy.deploy.safety import Safety
from isdt_policy.shared.errors import InputError


class Counting:
    """Action of decision k, j steps ahead of its newest observation: 100 k + j. Remembers what it was shown."""

    n_obs_steps, n_action_steps, horizon, obs_keys = 2, 4, 8, ("x",)

    def __init__(self):
        self.seen, self.seeds, self.known = [], [], []

    def reset(self):
        pass

    def predict_action(self, obs, *, nfe=1, noise_seeds=None):
        if not np.isfinite(obs["x"]).all():
            raise InputError("not finite")
        pred = 100.0 * len(self.seen) + np.arange(-1, 7)[None, :, None].astype(np.float32)
        self.seen.append(obs["x"][0, :, 0].tolist())
        self.seeds.append(noise_seeds)
        return {"action": pred[:, 1:5], "action_pred": pred}

    def continue_action(self, obs, known, weight, *, nfe=2, noise_seeds=None):
        self.known.append((known[0, :, 0].tolist(), weight[0].tolist()))
        answer = self.predict_action(obs)
        frozen = weight[..., None] == 1
        return {"action_pred": np.where(frozen, known, answer["action_pred"]).astype(np.float32)}


class Delayed:
    """An executor whose answers arrive when the test says so."""

    def __init__(self):
        self.jobs = []

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        self.jobs.append((future, lambda: fn(*args, **kwargs)))
        return future

    def deliver(self):
        future, job = self.jobs.pop(0)
        try:
            future.set_result(job())
        except Exception as error:
            future.set_exception(error)


def run(runtime, n, start=0):
    return [runtime.step({"x": [float(i)]}) for i in range(start, start + n)]


def values(decisions):
    return [None if d.action is None else float(d.action[0]) for d in decisions]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_instant_policy_executes_each_chunk_from_its_newest_observation(mode):
    runtime = Runtime(policy := Counting(), mode=mode)
    decisions = run(runtime, 9)
    assert values(decisions) == [0, 1, 2, 3, 100, 101, 102, 103, 200]
    assert [d.age for d in decisions] == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    # History: updated in every step, not only where a decision is made; the first is repeated at the start.
    assert policy.seen == [[0, 0], [3, 4], [7, 8]]


def test_the_receding_horizon_is_a_choice():
    assert values(run(Runtime(Counting(), execute=2), 5)) == [0, 1, 100, 101, 200]
    assert values(run(Runtime(Counting(), execute=7), 8)) == [0, 1, 2, 3, 4, 5, 6, 100]
    for execute in (0, 8):
        with pytest.raises(InputError, match="a chunk holds 1 to 7 actions"):
            Runtime(Counting(), execute=execute)


def test_temporal_ensembling_weighs_every_chunk_that_covers_the_step():
    """At step 2 with execute = 1: chunk 0 says 2, chunk 1 says 101, chunk 2 says 200; weights 1, e^-m, e^-2m, oldest first."""
    got = values(run(Runtime(Counting(), execute=1, ensemble=0.5), 9))
    w = np.exp(-0.5 * np.arange(3))
    assert got[:3] == pytest.approx([0, (1 + 100 * w[1]) / (1 + w[1]), np.dot(w, [2, 101, 200]) / w.sum()])
    # At step 8 the chunks of decisions 2 .. 8 cover it: seven actions ahead of an observation, and no more.
    said = [100 * k + 8 - k for k in range(2, 9)]
    assert got[8] == pytest.approx(np.average(said, weights=np.exp(-0.5 * np.arange(7))))


def late(mode, after=4, delay=2, n=10, **options):
    """Run with a first chunk at once and every later one `delay` steps after it was asked for."""
    executor, policy = Delayed(), Counting()
    runtime = Runtime(policy, mode=mode, executor=executor, wait_s=0.0, **options)
    got, due = [], None
    for i in range(n):
        if i == 0:  # the first is waited for without limit, so it has to be there
            executor.submit = lambda fn, /, *a, **k: _now(fn, *a, **k)
        elif i == 1:
            del executor.submit
        if due is not None and i == due:
            executor.deliver()
            due = None
        got += run(runtime, 1, i)
        if executor.jobs and due is None:
            due = i + delay
    return policy, got


def _now(fn, *args, **kwargs):
    future = Future()
    future.set_result(fn(*args, **kwargs))
    return future


def test_a_late_synchronous_answer_is_held_for_and_then_executed_from_its_beginning():
    policy, got = late("sync")
    assert values(got) == [0, 1, 2, 3, None, None, 100, 101, 102, 103]
    assert policy.seen == [[0, 0], [3, 4]]  # as it was when the question was asked
    assert [d.age for d in got[6:]] == [2, 3, 4, 5]


def test_a_late_asynchronous_answer_joins_in_time():
    policy, got = late("async")
    assert values(got) == [0, 1, 2, 3, 4, 5, 102, 103, 104, 105]
    assert policy.seen[:2] == [[0, 0], [3, 4]]
    assert [d.age for d in got] == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5]


def test_an_answer_later_than_the_plan_is_long_leaves_steps_without_action():
    _, got = late("async", delay=5, n=12)
    assert values(got) == [0, 1, 2, 3, 4, 5, 6, None, None, 105, 106, None]


def test_real_time_chunking_freezes_what_will_have_been_executed():
    policy, got = late("rtc", n=12)
    # The first delay is not known yet: one step is frozen. It turns out to be two, so then two are.
    known, weight = policy.known[0]
    assert known[:2] == [3, 4]
    assert weight == [1, 1, 0, 0, 0, 0, 0, 0]
    assert values(got)[:8] == [0, 1, 2, 3, 4, 5, 102, 103]
    known, weight = policy.known[1]  # asked in step 8: executed 103, due before an answer 104 and 105
    assert known[:3] == [103, 104, 105]
    assert weight == [1, 1, 1, 0, 0, 0, 0, 0]
    assert values(got)[8:] == [104, 105, 202, 203]


def test_reset_forgets_history_plan_noise_counter_and_a_running_inference():
    executor = Delayed()
    policy = Counting()
    runtime = Runtime(policy, mode="async", executor=executor, wait_s=0.0)
    executor.submit = _now
    runtime.reset(seed=7)
    run(runtime, 4)
    del executor.submit
    run(runtime, 1, 4)  # starts the second inference
    assert len(executor.jobs) == 1
    stale = executor.jobs[0]
    executor.submit = _now
    runtime.reset(seed=9)
    stale[0].set_result({"action_pred": np.full((1, 8, 1), -999, np.float32)})
    decisions = run(runtime, 5, 50)
    assert -999 not in values(decisions)
    assert [d.step for d in decisions] == [0, 1, 2, 3, 4]
    assert policy.seen[1] == [50, 50]
    assert [s.tolist() for s in policy.seeds] == [[[7, 0]], [[9, 0]], [[9, 1]]]


def test_lost_and_broken_observations_repeat_the_last_good_one():
    runtime = Runtime(policy := Counting(), execute=2)
    for obs in ({"x": [1.0]}, None, {"x": [np.nan]}, {"x": [4.0]}, {"x": [5.0]}):
        runtime.step(obs)
    assert policy.seen == [[1, 1], [1, 1], [4, 5]]
    assert runtime.repeated_observations == 2
    runtime.reset()
    with pytest.raises(InputError, match="nothing to repeat"):
        runtime.step(None)


@pytest.mark.parametrize("dead", [None, {"x": [np.nan]}, {"x": [7.0]}], ids=["None", "NaN", "the same bits"])
@pytest.mark.parametrize("timed", [False, True])
def test_a_dead_sensor_is_noticed(dead, timed):
    """Two minutes at 20 Hz with a sensor that has died: every action soon counts as stale, although answers are fresh."""
    runtime = Runtime(Counting(), execute=2)
    stage = Safety(Limits(), action_dim=1, rate_hz=20, max_age_s=0.5, positions=True)
    runtime.step({"x": [7.0]}, 0.0 if timed else None)
    ages = []
    for k in range(1, 2400):
        decision = runtime.step(dead, 0.0 if timed else None)  # what repeats itself repeats its time too
        ages.append(k / 20 - decision.taken_s if timed else decision.age / 20)
        stage(decision.action, ages[-1])
    assert ages == pytest.approx([k / 20 for k in range(1, 2400)])
    assert stage.counts["stale"] == 2400 - 1 - 10
    assert runtime.repeated_observations == 2399


def test_a_new_time_makes_the_same_bits_new_and_an_old_time_makes_new_bits_old():
    runtime = Runtime(policy := Counting(), execute=1)
    for k in range(4):
        decision = runtime.step({"x": [7.0]}, 0.1 * k)
        assert (decision.age, decision.taken_s) == (0, 0.1 * k)
    decision = runtime.step({"x": [8.0]}, 0.2)  # overtaken on its way
    assert (decision.age, decision.taken_s) == (1, pytest.approx(0.3))
    assert policy.seen[-1] == [7, 7]


@pytest.mark.parametrize("answer", [
    None, 5, [], {}, {"action_pred": None}, {"action_pred": "abc"}, {"action_pred": [["a"]]},
    {"action_pred": np.zeros((1, 3, 1))}, {"action_pred": np.zeros((1, 8, 2))}, {"action_pred": np.zeros((2, 8, 1))},
    {"action_pred": np.zeros(8)}, {"action_pred": np.zeros((0, 8, 1))}, {"action_pred": np.zeros((1, 8, 1), complex)},
    {"action_pred": np.array([[[None]]])},
], ids=str)  # fmt: skip
def test_an_answer_that_is_no_chunk_is_held_for_and_asked_again(answer):
    runtime = Runtime(policy := Counting())
    got = run(runtime, 4)
    right = policy.predict_action
    policy.predict_action = lambda obs, **_: answer
    got += run(runtime, 2, 4)
    assert isinstance(runtime.error, InputError)
    policy.predict_action = right
    got += run(runtime, 2, 6)
    assert values(got) == [0, 1, 2, 3, None, None, 100, 101]


def test_the_callers_buffer_may_be_reused():
    runtime, buffer = Runtime(policy := Counting(), execute=1), np.zeros(1)
    for i in range(3):
        buffer[0] = i
        runtime.step({"x": buffer})
    assert policy.seen == [[0, 0], [0, 1], [1, 2]]


class Failing(Counting):
    armed = False

    def predict_action(self, obs, *, nfe=1, noise_seeds=None):
        if self.armed:
            self.armed = False
            raise InputError("the link is down")
        return super().predict_action(obs)


def test_a_failing_inference_leaves_the_plan_and_is_tried_again():
    runtime = Runtime(policy := Failing(), mode="async", execute=2)
    got = run(runtime, 2)
    policy.armed = True
    got += run(runtime, 2, 2)
    assert values(got) == [0, 1, 2, 100]  # step 2 from the old plan, step 3 from the one asked for in step 3
    policy.armed = True
    fresh = Runtime(policy)
    with pytest.raises(InputError, match="the link is down"):
        fresh.act({"x": [0.0]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "asink"}, "Did you mean 'async'"),
        ({"ensemble": -1.0}, "ensemble=-1.0 must be"),
        ({"mode": "rtc"}, "PrefixPolicy"),
    ],
)
def test_bad_options_are_refused(options, message):
    policy = Counting()
    if options.get("mode") == "rtc":
        policy = type("Plain", (), {k: v for k, v in vars(Counting).items() if k != "continue_action"})()
    with pytest.raises(InputError, match=message):
        Runtime(policy, **options)


def test_a_missing_key_names_the_nearest():
    with pytest.raises(InputError, match="reads observation 'x'"):
        Runtime(Counting()).step({"y": [0.0]})
    runtime = Runtime(Counting())
    runtime.step({"x": [0.0]})
    with pytest.raises(InputError, match=r"shape \(2,\), before it was \(1,\)"):
        runtime.step({"x": [0.0, 1.0]})
