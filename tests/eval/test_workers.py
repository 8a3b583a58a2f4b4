"""Workers that hang, die or misbehave: retried once, then recorded; never dropped, never a hang."""

from functools import partial

import pytest
from isdt_eval_toys import Chaos, NoisyPolicy, evaluate

from isdt_policy.eval.protocol import Protocol
from isdt_policy.shared.errors import InputError

pytestmark = pytest.mark.slow

SEEDS = list(range(100_000, 100_008))


@pytest.fixture(scope="module")
def healthy():
    return {r.seed: r for r in evaluate(NoisyPolicy(), Protocol("chaos"), SEEDS, make_env=Chaos).episodes}


@pytest.mark.parametrize("kind", ["hang", "crash"])
def test_lost_worker_is_retried_once_then_its_episode_is_an_error(kind, healthy):
    env = partial(Chaos, 40, {100_002: kind})
    run = partial(evaluate, NoisyPolicy(), Protocol("chaos"), SEEDS, n_envs=4, n_workers=2, make_env=env)
    result = run(timeout_s=4.0)
    bad = {r.seed: r for r in result.episodes if not r.ok}
    assert list(bad) == [100_002]
    assert ("no answer" if kind == "hang" else "exit code 3") in bad[100_002].error
    assert "tried 2 times" in bad[100_002].error
    # Neighbours in the same process lost their environment too; their results are as if nothing had happened.
    assert all(r == healthy[r.seed] for r in result.episodes if r.seed != 100_002)
    assert (result[1].n, result[1].n_error) == (8, 1)


@pytest.mark.parametrize("kind", ["hang_once", "crash_once"])
def test_a_passing_fault_leaves_no_trace(kind, healthy, tmp_path):
    env = partial(Chaos, 40, {100_003: kind}, str(tmp_path))
    protocol = Protocol("chaos")
    result = evaluate(NoisyPolicy(), protocol, SEEDS, n_envs=4, n_workers=2, make_env=env, timeout_s=4.0)
    assert result.episodes == tuple(healthy[s] for s in SEEDS)


@pytest.mark.parametrize("n_workers", [0, 1])
def test_an_environment_that_raises_is_an_error_too(n_workers, healthy):
    env = partial(Chaos, 40, {100_005: "raise"})
    result = evaluate(NoisyPolicy(), Protocol("chaos"), SEEDS, n_envs=3, n_workers=n_workers, make_env=env)
    bad = [r for r in result.episodes if not r.ok]
    assert [r.seed for r in bad] == [100_005]
    assert "RuntimeError: the simulator is unwell" in bad[0].error
    assert all(r == healthy[r.seed] for r in result.episodes if r.ok)


def test_episodes_that_ended_in_an_error_get_another_chance_on_resume(tmp_path, healthy):
    marks, out = tmp_path / "marks", tmp_path / "out"
    marks.mkdir()
    run = partial(evaluate, NoisyPolicy(), Protocol("chaos"), SEEDS, out=out)
    first = run(make_env=partial(Chaos, 40, {100_001: "raise"}, str(marks)))
    assert first[1].n_error == 1
    second = run(make_env=Chaos)
    assert second.episodes == tuple(healthy[s] for s in SEEDS)
    assert second.timing.episodes == 1


def test_an_evaluation_in_which_nothing_works_stops_early(tmp_path):
    env = partial(Chaos, 40, dict.fromkeys(SEEDS, "raise"))
    with pytest.raises(InputError, match=r"each of the first 3 episodes failed.*unwell"):
        evaluate(NoisyPolicy(), Protocol("chaos"), SEEDS, make_env=env)
