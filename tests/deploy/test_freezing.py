"""Continuing a chunk, on a distribution whose flow map is known."""

import numpy as np
import pytest
import torch
from isdt_deploy_toys import observations, tiny_policy

from isdt_policy.deploy.freezing import PrefixPolicy, candidate_noise, inpaint, inpainting_grid
from isdt_policy.deploy.runtime import Runtime
from isdt_policy.method.closed_forms import integrate
from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import Linear, expand
from isdt_policy.method.samplers import restart, uniform_grid
from isdt_policy.shared.errors import InputError

PATH = Linear()


def all_or_nothing() -> FlowMap:
    """Data: chunks that are +1 in every step or -1 in every step, equally likely. A step tells all others."""

    def velocity(x, t):
        a, b = PATH.alpha(expand(t, x)), PATH.beta(expand(t, x)).clamp_min(1e-3)
        mean = torch.tanh(x.sum((1, 2), keepdim=True) * a / b.square())  # E[data | x]
        return (x - mean) / b

    def network(x, t, s, cond):
        d = expand(t - s, x)
        return (x - integrate(PATH, velocity, x, t, s, 60)) / d

    return FlowMap(network, PATH)


def agreement(candidates: int, n_frozen: int, evaluations: int, sign: float) -> float:
    """Share of the free actions that have the sign of the frozen ones."""
    rng, rows = torch.Generator().manual_seed(0), 1000
    z = torch.randn(rows, candidates + evaluations - 1, 8, 1, generator=rng, dtype=torch.float64)
    known, weight = torch.full((rows, 8, 1), sign, dtype=torch.float64), torch.zeros(rows, 8, dtype=torch.float64)
    weight[:, :n_frozen] = 1
    data = inpaint(all_or_nothing(), z, torch.zeros(rows, 1), uniform_grid(evaluations), known, weight)
    assert torch.equal(data[:, :n_frozen], known[:, :n_frozen])
    return float((sign * data[:, n_frozen:] > 0).double().mean())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_is_frozen_decides_the_rest(sign):
    assert 0.3 < agreement(16, 0, 2, sign) < 0.7  # nothing frozen: as many below as above
    assert agreement(16, 3, 2, sign) > 0.99


def test_without_candidates_the_free_actions_outvote_the_frozen_ones():
    """Why there are candidates: one jump lands in one of two modes, and five free actions hold the second jump there."""
    assert 0.3 < agreement(1, 3, 2, 1.0) < 0.7


def test_with_nothing_known_it_is_the_restart_sampler_from_the_first_noise():
    policy = tiny_policy()
    cond, weight = torch.randn(5, 16), torch.zeros(5, 16)
    first = torch.randn(5, 7, 16, 2)
    fresh = torch.stack([torch.randn(2, 16, 2, generator=torch.Generator().manual_seed(i)) for i in range(5)])
    with torch.inference_mode():
        noise = torch.cat([first, fresh], dim=1)
        ours = inpaint(policy.flow_map, noise, cond, uniform_grid(3), torch.randn(5, 16, 2), weight)
        generators = [torch.Generator().manual_seed(i) for i in range(5)]
        theirs = restart(policy.flow_map, first[:, 0], cond, uniform_grid(3), generators)
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)


def test_later_jumps_keep_the_spread_of_the_data():
    """Data N(0, 1) in closed form: adding the noise that data came from would widen it to sqrt(2) of that at t = 1/2."""

    def velocity(x, t):
        a, b = PATH.alpha(expand(t, x)), PATH.beta(expand(t, x))
        return x * (b - a) / (a.square() + b.square())

    gaussian = FlowMap(lambda x, t, s, cond: (x - integrate(PATH, velocity, x, t, s, 40)) / expand(t - s, x), PATH)
    noise = torch.randn(20_000, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    zeros = torch.zeros(20_000, 1, 1, dtype=torch.float64)
    data = inpaint(gaussian, noise, torch.zeros(20_000, 1), uniform_grid(2), zeros, zeros[..., 0])
    assert float(data.std()) == pytest.approx(1, abs=0.02)


def test_the_first_candidate_is_the_noise_of_predict_action():
    drawn = candidate_noise((2, 16, 2), 16, np.array([[7, 0], [7, 1]]))
    assert drawn.shape == (2, 16, 16, 2)
    for row in (0, 1):
        expected = np.random.default_rng([7, row]).standard_normal((16, 2), dtype=np.float32)
        assert np.array_equal(drawn[row, 0], expected)


def test_frozen_actions_come_back_to_the_last_bit_in_the_environments_units():
    policy = PrefixPolicy(tiny_policy(reference="agent_pos"))
    obs, seeds = observations(3), np.zeros((3, 2), np.int64)
    known = np.random.default_rng(1).uniform(0, 512, (3, 16, 2)).astype(np.float32)
    weight = np.zeros((3, 16), np.float32)
    weight[:, :5] = 1
    pred = policy.continue_action(obs, known, weight, nfe=1, noise_seeds=seeds)["action_pred"]
    assert np.array_equal(pred[:, :5], known[:, :5])
    other = policy.continue_action(obs, known + 50, weight, nfe=1, noise_seeds=seeds)["action_pred"]
    assert np.abs(other[:, 5:] - pred[:, 5:]).max() > 1  # the rest listens to what is frozen


def test_a_frozen_policy_continues_chunks_with_the_same_bits():
    policy = PrefixPolicy(tiny_policy())
    frozen = policy.freeze(2, rows=3)
    for rows, nfe in ((3, 2), (3, 1), (3, 4), (2, 2)):  # one evaluation is taken as two; the last two are not frozen
        obs, seeds = observations(rows), np.array([[9, i] for i in range(rows)])
        known, weight = np.full((rows, 16, 2), 7.0), np.zeros((rows, 16))
        weight[:, :4] = 1
        answers = [p.continue_action(obs, known, weight, nfe=nfe, noise_seeds=seeds) for p in (policy, frozen)]
        assert np.array_equal(answers[0]["action_pred"], answers[1]["action_pred"])
    assert list(frozen._replays) == [inpainting_grid(2)]


def test_a_real_policy_runs_in_real_time_chunks():
    runtime = Runtime(PrefixPolicy(tiny_policy()), mode="rtc")
    runtime.reset(seed=0)
    obs = {k: v[0, -1] for k, v in observations(1).items()}
    assert np.isfinite([runtime.act(obs) for _ in range(20)]).all()


def test_bad_input_is_refused():
    policy = PrefixPolicy(tiny_policy())
    with pytest.raises(InputError, match=r"known \(2, 16, 2\) and weight"):
        policy.continue_action(observations(3), np.zeros((2, 16, 2)), np.zeros((3, 16)))
    with pytest.raises(InputError, match="for every action"):
        policy.continue_action(observations(3), np.zeros((3, 16, 2)), np.full((3, 16), 0.5))
    with pytest.raises(InputError, match="takes a number of evaluations"):
        inpainting_grid("euler10")
    assert inpainting_grid(1) == (1.0, 0.5, 0.0)
