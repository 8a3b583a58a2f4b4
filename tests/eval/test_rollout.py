"""Rollouts: every seed once, the same numbers however they are computed, and clear words when something is wrong."""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from isdt_eval_toys import Chaos, Clock, NoisyPolicy, evaluate, torch_policy

from isdt_policy.eval import inference
from isdt_policy.eval.episode import Start
from isdt_policy.eval.function_policy import FunctionPolicy
from isdt_policy.eval.protocol import Protocol
from isdt_policy.shared.errors import InputError

SEEDS = list(range(100_000, 100_007))
CHAOS = Protocol("chaos")


class Unguarded:
    """A torch policy that leaves padding to the evaluator (no `inference_rows`)."""

    def __init__(self, policy):
        self.policy = policy
        self.n_obs_steps, self.n_action_steps, self.obs_keys = 2, 8, ("state",)
        self.batches = set()

    def reset(self):
        pass

    def predict_action(self, obs, *, nfe=1, noise_seeds=None):
        self.batches.add(len(noise_seeds))
        # Padding by the policy itself would hide a missing one in the evaluator.
        unpadded = type(self.policy)(self.policy.config, inference_rows=len(noise_seeds)).eval()
        unpadded.load_state_dict(self.policy.state_dict())
        return unpadded.predict_action(obs, nfe=nfe, noise_seeds=noise_seeds)


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.slow
def test_results_do_not_depend_on_how_many_run_at_a_time(guarded):
    def run(n_envs):
        policy = torch_policy() if guarded else Unguarded(torch_policy())
        return evaluate(policy, CHAOS, SEEDS, [1, "euler3"], n_envs=n_envs, make_env=partial(Chaos, 40)).episodes

    reference = run(1)
    assert [(r.arm.name, r.seed) for r in reference] == [(a, s) for a in ("1", "euler3") for s in SEEDS]
    assert len({r.digest for r in reference}) == len(reference)
    for n_envs in (2, 5, 50):
        assert run(n_envs) == reference


def test_pusht_results_do_not_depend_on_how_many_run_at_a_time():
    policy = FunctionPolicy(lambda o: o["state"][2:4] + 60 * np.sin(o["state"][:2]), ["state"])
    protocol = Protocol("pusht", max_steps=60)
    reference, *others = [evaluate(policy, protocol, SEEDS, n_envs=n).episodes for n in (1, 2, 5)]
    assert all(other == reference for other in others)
    assert reference[0].initial_state[:2] == (113.0, 100.0)  # gym-pusht 0.1.8, seed 100000


def test_results_do_not_depend_on_workers():
    run = partial(evaluate, NoisyPolicy(), CHAOS, SEEDS, [1, 2], make_env=Chaos)
    reference = run(n_envs=1).episodes
    assert run(n_envs=5, n_workers=2).episodes == reference
    assert run(n_envs=2, n_workers=3).episodes == reference


def test_every_arm_has_its_own_noise_and_every_episode_its_own_seed():
    seen = []

    class Spy(NoisyPolicy):
        def predict_action(self, obs, *, nfe=1, noise_seeds=None):
            seen.extend((nfe, *row) for row in noise_seeds.tolist() if row[0] >= 100_000)
            return super().predict_action(obs, nfe=nfe, noise_seeds=noise_seeds)

    evaluate(Spy(), CHAOS, SEEDS, [1, 2], n_envs=3, make_env=partial(Chaos, 12))
    assert sorted(seen) == sorted((arm, seed, k) for arm in (1, 2) for seed in SEEDS for k in range(3))


@pytest.mark.parametrize("latency", [0, 1, 2])
def test_history_and_executed_slice(latency):
    """The clock's observation is its step, so histories can be read off; actions are decision * 100 + index."""
    histories, executed = [], []

    class Reader:
        n_obs_steps, n_action_steps, obs_keys, inference_rows = 2, 4, ("t",), 1

        def reset(self):
            pass

        def predict_action(self, obs, *, nfe=1, noise_seeds=None):
            if noise_seeds[0, 0] < 100_000:
                label = 0
            else:
                histories.append(obs["t"][0, :, 0].tolist())
                label = int(noise_seeds[0, 1])
            chunk = (100 * label + np.arange(4, dtype=np.float32))[None, :, None]
            return {"action": chunk, "action_pred": chunk}

    class Recorder(Clock):
        def step(self, action):
            executed.append(int(action[0]))
            return super().step(action)

    evaluate(Reader(), Protocol("clock", n_latency_steps=latency), [100_000], make_env=partial(Recorder, 8))
    if latency == 0:
        assert histories == [[0, 0], [3, 4]]
        assert executed == [0, 1, 2, 3, 100, 101, 102, 103]
    elif latency == 1:  # three actions a decision; the newest observation is one step old
        assert histories == [[0, 0], [1, 2], [4, 5]]
        assert executed == [1, 2, 3, 101, 102, 103, 201, 202]
    else:
        assert histories == [[0, 0], [0, 0], [1, 2], [3, 4]]
        assert executed == [2, 3, 102, 103, 202, 203, 302, 303]


def test_summary_numbers_by_hand():
    policy = FunctionPolicy(lambda o: [0.0, 0.0], ["state"])
    result = evaluate(policy, CHAOS, SEEDS, make_env=partial(Chaos, 12))
    summary, records = result[1], result.episodes
    successes = [r for r in records if r.success]
    assert 0 < len(successes) < len(records)
    assert summary.success_rate.value == len(successes) / 7
    assert summary.score.value == pytest.approx(np.mean([r.max_reward for r in records]))
    assert summary.mean_steps_to_success == np.mean([r.steps_to_success for r in successes])
    assert summary.aliases()["pc_success"] == pytest.approx(100 * len(successes) / 7)
    assert summary.aliases()["test/mean_score"] == summary.score.value
    assert set(summary.to_json()["latency"]["single_row_ms"]) == {"p50", "p95", "p99"}


def test_an_environment_that_never_speaks_of_success_has_no_rate():
    class Silent(Chaos):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, {"coverage": info["coverage"]}

    class Late(Chaos):  # speaks of success in the step that is one, and not before
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, {"success": True} if info["is_success"] else {}

    said, silent, late = (
        evaluate(NoisyPolicy(), CHAOS, SEEDS, make_env=partial(env, 12)) for env in (Chaos, Silent, Late)
    )
    assert [r.success for r in silent.episodes] == [None] * 7
    assert (silent[1].n_success, silent[1].success_rate) == (None, None)
    assert silent[1].score == said[1].score
    assert [r.digest for r in silent.episodes] == [r.digest for r in said.episodes]
    assert 0 < said[1].n_success < 7
    assert late[1].success_rate == said[1].success_rate


def test_the_latency_of_one_row_is_that_of_the_policy_alone():
    class Alone(NoisyPolicy):
        def predict_action(self, obs, **given):
            time.sleep(0.003)
            return super().predict_action(obs, **given)

    class Many(NoisyPolicy):
        def freeze(self, *nfe, rows=1):
            assert (nfe, rows) == ((1,), 1)
            return Alone()

    result = evaluate(Many(), CHAOS, SEEDS, make_env=partial(Chaos, 12))
    assert result[1].latency.single_row_ms.p50 > 3 > result[1].latency.batch_ms.p50
    assert inference.CALLS > 10


def test_interrupted_evaluation_resumes_with_what_was_done(tmp_path):
    run = partial(evaluate, NoisyPolicy(), CHAOS, SEEDS, [1, 2], make_env=Chaos)
    whole = run().episodes
    run(out=tmp_path)
    path = tmp_path / "episodes.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:40])  # killed in the middle of a line
    again = run(out=tmp_path)
    assert again.episodes == whole
    assert again.timing.episodes == 9
    assert len(path.read_text().splitlines()) == 14
    heard = []
    more = evaluate(
        NoisyPolicy(), CHAOS, [*SEEDS, 100_100], [1], make_env=Chaos, out=tmp_path,
        listener=lambda record, done, total: heard.append((record.seed, done, total)),
    )  # fmt: skip
    assert more.timing.episodes == 1
    assert heard == [(100_100, 8, 8)], "the seven of the other arm are not part of this evaluation"


KILLED = """
import sys
sys.path.insert(0, {path!r})
from functools import partial
from isdt_eval_toys import Chaos, NoisyPolicy, evaluate
from isdt_policy.eval.protocol import Protocol
import time
class Slow(Chaos):
    def step(self, action):
        time.sleep(0.002)
        return super().step(action)
evaluate(NoisyPolicy(), Protocol("chaos"), range(100000, 100020), [1], n_envs=4, make_env=Slow, out={out!r})
"""


def test_kill_minus_nine_loses_only_the_episodes_in_flight(tmp_path):
    script = KILLED.format(path=str(Path(__file__).parent), out=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script])
    path = tmp_path / "episodes.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not path.exists() or path.read_bytes().count(b"\n") < 4):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = path.read_bytes().count(b"\n")
    run = partial(evaluate, NoisyPolicy(), CHAOS, range(100_000, 100_020), [1], n_envs=4, make_env=Chaos)
    resumed = run(out=tmp_path)
    assert resumed.timing.episodes == 20 - done > 0
    assert resumed.episodes == run().episodes
    seeds = [json.loads(line)["seed"] for line in path.read_text().splitlines()]
    assert sorted(seeds) == list(range(100_000, 100_020))


def test_episodes_of_different_evaluations_are_not_mixed(tmp_path):
    run = partial(evaluate, NoisyPolicy(), CHAOS, SEEDS, out=tmp_path, make_env=Chaos)
    run(fingerprint="a")
    with pytest.raises(InputError, match="policy a, now b"):
        run(fingerprint="b")
    with pytest.raises(InputError, match="n_latency_steps was 0, now 1"):
        evaluate(
            NoisyPolicy(), Protocol("chaos", n_latency_steps=1), SEEDS, out=tmp_path, make_env=Chaos, fingerprint="a"
        )


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_nan_stops_with_the_seed_and_keeps_what_was_done(tmp_path, n_workers):
    env = partial(Chaos, 12, {100_004: "nan"})
    with pytest.raises(InputError, match=r"seed 100004.*'state' is not finite at step 3.*kept in"):
        evaluate(NoisyPolicy(), CHAOS, SEEDS, n_envs=1, n_workers=n_workers, make_env=env, out=tmp_path)
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == 4


def test_a_policy_that_raises_is_named_with_seed_and_decision():
    def act(obs):
        raise ZeroDivisionError("oh")

    with pytest.raises(InputError, match=r"ZeroDivisionError: oh \(at seed 100000, decision 0, arm 1"):
        evaluate(FunctionPolicy(act, ["state"]), CHAOS, SEEDS, make_env=Chaos)


@pytest.mark.parametrize(
    ("action", "message"),
    [([np.nan, 0], "not finite"), ([[0, 0], [0, 0]], r"shape \(7, 2, 2\); expected \(7, 1, action_dim\)")],
)
def test_actions_that_do_not_fit_are_refused(action, message):
    with pytest.raises(InputError, match=message):
        evaluate(FunctionPolicy(lambda o: action, ["state"]), CHAOS, SEEDS, make_env=Chaos)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "episodes=0"),
        ({"seeds": [100_000, 100_000]}, "twice"),
        ({"arms": []}, "no arms"),
        ({"arms": [1, "1"]}, "repeat"),
        ({"n_envs": 0}, "n_envs"),
        ({"protocol": Protocol("pushtt"), "make_env": None}, "Did you mean 'pusht'"),
        ({"protocol": Protocol("chaos", n_latency_steps=4)}, "allowed: 0 to 3"),
        ({"policy": None}, "either"),
    ],
)
def test_bad_input_is_one_clear_line(change, message):
    arguments = {"policy": NoisyPolicy(), "protocol": CHAOS, "seeds": SEEDS, "make_env": Chaos, **change}
    with pytest.raises(InputError, match=message) as caught:
        evaluate(**arguments)
    assert "\n" not in str(caught.value)


def test_scripted_actor_with_access_to_the_environment():
    result = evaluate(None, Protocol("clock"), SEEDS, make_env=Clock, make_actor=lambda env: lambda obs: [env.t + 1.0])
    assert [r.sum_reward for r in result.episodes] == [sum(range(1, 13))] * 7


def test_trajectories_are_kept_on_request():
    result = evaluate(NoisyPolicy(), CHAOS, SEEDS[:2], make_env=partial(Chaos, 12), keep=("trajectory",))
    trajectory = result.kept[result.episodes[0].key].trajectory
    assert trajectory["state"].shape == (12, 5)
    assert trajectory["action"].shape == (12, 2)


def test_initial_states_can_be_given():
    states = {seed: Start((0.5, 0.4, 0.3, 0.2, 0.1)) for seed in SEEDS}
    result = evaluate(NoisyPolicy(), CHAOS, SEEDS, make_env=Chaos, init_states=states)
    assert all(r.initial_state == pytest.approx(states[100_000].state) for r in result.episodes)
