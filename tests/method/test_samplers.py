"""Samplers beyond the flow map's own: diffusers' schedulers against closed forms, regression, restarts, what is refused."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
import torch

from isdt_policy.envs.protocol import ObsSpec
from isdt_policy.method import closed_forms
from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import INTERPOLANTS, Trigonometric
from isdt_policy.method.networks.mlp import MLPConfig
from isdt_policy.method.noise_schedule import NoiseSchedule
from isdt_policy.method.policy import Policy, PolicyConfig
from isdt_policy.method.samplers import Sampling, compose, ddim, ddpm, euler, plan, regress, restart
from isdt_policy.shared.errors import InputError

MEAN = torch.tensor([0.3, -0.8], dtype=torch.float64)
STD = torch.tensor([0.5, 1.2], dtype=torch.float64)
NONE = torch.zeros(6, 1, dtype=torch.float64)
PREDICTIONS = ["epsilon", "sample", "v_prediction"]


@pytest.fixture
def noise():
    return torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def denoiser(prediction):
    return FlowMap(closed_forms.gaussian_denoiser(MEAN, STD, prediction), Trigonometric())


class TestDiffusers:
    @pytest.mark.parametrize("prediction", PREDICTIONS)
    @pytest.mark.parametrize("n", [5, 7])
    def test_ddim_is_euler_on_the_trigonometric_path_at_its_levels(self, noise, prediction, n):
        """5 divides the 100 levels and 7 does not."""
        schedule = NoiseSchedule(prediction)
        scheduler = schedule.scheduler("ddim")
        levels = {
            (5, False): [99, 79, 59, 39, 19], (5, True): [80, 60, 40, 20, 0],
            (7, False): [84, 70, 56, 42, 28, 14, 0], (7, True): [84, 70, 56, 42, 28, 14, 0],
        }[n, prediction == "epsilon"]  # fmt: skip
        grid = [*schedule.times(scheduler.alphas_cumprod)[levels].tolist(), 0.0]
        velocity = FlowMap(closed_forms.gaussian(Trigonometric(), MEAN, STD), Trigonometric())
        expected = euler(velocity, noise, NONE, grid)
        actual = ddim(denoiser(prediction), noise, NONE, n, schedule)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)  # diffusers' levels are in single precision

    @pytest.mark.parametrize("prediction", PREDICTIONS)
    def test_ddim_converges_to_the_exact_flow(self, noise, prediction):
        """On 1000 levels, of which the last holds a trace of data: error of first order in the number of steps."""
        schedule = NoiseSchedule(prediction, train_steps=1000)
        errors = [
            (ddim(denoiser(prediction), noise, NONE, n, schedule) - (MEAN + STD * noise)).abs().max().item()
            for n in (25, 50, 100)
        ]
        assert errors[-1] < 0.12
        for coarse, fine in zip(errors, errors[1:]):
            assert 0.7 < math.log2(coarse / fine) < 1.3

    @pytest.mark.parametrize(("prediction", "n"), [("epsilon", 100), ("sample", 20), ("v_prediction", 10)])
    def test_ddpm_has_the_moments_of_its_recursion(self, prediction, n):
        """x_prev = A E[x | x_k] + B x_k + sigma z is affine for Gaussian data, so mean and variance follow exactly."""
        schedule, rows = NoiseSchedule(prediction), 20_000
        abar = schedule.scheduler().alphas_cumprod.double()
        ratio = 100 // n
        levels = torch.arange(0, 100, ratio).flip(0) + (0 if prediction == "epsilon" else ratio - 1)
        mean, variance = torch.zeros(2).double(), torch.ones(2).double()
        for k in levels.tolist():
            here, below = abar[k], abar[k - ratio] if k >= ratio else torch.tensor(1.0).double()
            step = here / below
            a = below.sqrt() * (1 - step) / (1 - here)
            b = step.sqrt() * (1 - below) / (1 - here)
            gain = here.sqrt() * STD**2 / (here * STD**2 + 1 - here)  # E[x | x_k] = m + gain (x_k - sqrt(abar) m)
            sigma = (1 - below) / (1 - here) * (1 - step)
            mean = a * (MEAN + gain * (mean - here.sqrt() * MEAN)) + b * mean
            variance = (a * gain + b) ** 2 * variance + sigma
        torch.manual_seed(1)
        start = torch.randn(rows, 2, dtype=torch.float64)
        x = ddpm(denoiser(prediction), start, torch.zeros(rows, 1), n, schedule)
        assert ((x.mean(0) - mean).abs() < 4 * (variance / rows).sqrt()).all()
        assert ((x.var(0) / variance - 1).abs() < 4 * math.sqrt(2 / rows)).all()
        if (
            n == 100
        ):  # all levels together give nearly the data's moments; the posterior's variance is a little too small
            torch.testing.assert_close(mean, MEAN, rtol=0, atol=0.01)
            torch.testing.assert_close(variance.sqrt(), STD, rtol=0.04, atol=0)

    def test_a_row_of_ddpm_depends_on_its_own_generator_only(self, noise):
        def run(seeds, rows):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            schedule = NoiseSchedule("sample")
            return ddpm(denoiser("sample"), noise[rows], NONE[rows], 10, schedule, generators=generators)

        together = run([5, 6, 7], [0, 1, 2])
        assert torch.equal(run([7, 5], [2, 0]), together[[2, 0]])
        assert not torch.equal(run([8, 6, 7], [0, 1, 2])[0], together[0])

    @pytest.mark.parametrize("sampler", [ddim, ddpm])
    def test_the_predicted_data_is_clipped(self, noise, sampler):
        """The last step answers with its prediction of the data; diffusers adds noise of 1e-10 to it."""
        free = sampler(denoiser("sample"), 3 * noise, NONE, 10, NoiseSchedule("sample"))
        clipped = sampler(denoiser("sample"), 3 * noise, NONE, 10, NoiseSchedule("sample"), clip=0.5)
        assert free.abs().max() > 1.0
        assert clipped.abs().max() <= 0.5 + 1e-6

    def test_the_levels_are_points_of_the_trigonometric_path(self):
        schedule = NoiseSchedule()
        abar = schedule.scheduler().alphas_cumprod
        times = schedule.times(abar)
        assert ((times[1:] > times[:-1]) & (times[1:] < 1)).all()
        torch.testing.assert_close(Trigonometric().alpha(times).square(), abar.double(), rtol=0, atol=1e-7)

    def test_without_diffusers_the_error_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "diffusers.schedulers.scheduling_ddpm", None)
        with pytest.raises(InputError, match=r"pip install 'isdt-policy\[diffusers\]'"):
            NoiseSchedule().scheduler()


class TestRestart:
    def test_noise_added_again_is_fresh_and_gives_the_datas_distribution(self):
        """With the exact map any number of restarts samples N(m, S); the initial noise, added again, would widen it."""
        path, rows = INTERPOLANTS["linear"](), 4000
        flow_map = FlowMap(closed_forms.gaussian(path, MEAN, STD), path)
        z = torch.randn(rows, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        generators = [torch.Generator().manual_seed(i) for i in range(rows)]
        x = restart(flow_map, z, torch.zeros(rows, 1), (1.0, 0.7, 0.0), generators)
        again = restart(flow_map, z, torch.zeros(rows, 1), (1.0, 0.7, 0.0))
        assert ((x.mean(0) - MEAN).abs() < 4 * STD / math.sqrt(rows)).all()
        torch.testing.assert_close(x.std(0), STD, rtol=0.05, atol=0)
        assert (again.std(0) > 1.1 * STD).all()
        assert abs(np.corrcoef(x[:, 0], z[:, 0])[0, 1]) < 0.9

    def test_one_jump_is_the_one_step_sampler(self, noise):
        path = INTERPOLANTS["trigonometric"]()
        flow_map = FlowMap(closed_forms.gaussian(path, MEAN, STD), path)
        assert torch.equal(restart(flow_map, noise, NONE, (1.0, 0.0)), compose(flow_map, noise, NONE, (1.0, 0.0)))


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_regression_starts_from_zero_and_refines_at_its_time(noise, name):
    path, calls = INTERPOLANTS[name](), []

    def network(x, t, s, cond):
        calls.append((x.clone(), t[0].item(), s[0].item()))
        return x + 1.0

    once = regress(FlowMap(network, path), noise, NONE, (1.0, 0.0))
    assert torch.equal(once, torch.ones_like(noise))
    calls.clear()
    twice = regress(FlowMap(network, path), noise, NONE, (1.0, 0.1, 0.0))
    shrunk = path.alpha(torch.tensor(0.1).double())
    torch.testing.assert_close(twice, torch.full_like(noise, 1.0 + shrunk))
    assert [call[1:] for call in calls] == [(1.0, 0.0), (0.1, 0.0)]
    assert torch.equal(calls[0][0], torch.zeros_like(noise))


class TestPlan:
    def test_chosen_times_are_walked_in_order(self, noise):
        path = INTERPOLANTS["linear"]()
        flow_map = FlowMap(closed_forms.gaussian(path, MEAN, STD), path)
        for text in ("euler@0.6@0.25", "euler@.6@.25"):
            actual = plan(text).run(flow_map, noise, NONE)
            assert torch.equal(actual, euler(flow_map, noise, NONE, (1.0, 0.6, 0.25, 0.0)))
        assert [plan(s).evaluations for s in ("@0.5", "heun@0.5", "restart3")] == [2, 3, 3]
        assert plan("@0.5").run.func is compose

    @pytest.mark.parametrize("steps", ["euler@0.3@0.6", "@1.5", "@0", "@", "euler10@0.5", "compose@1"])
    def test_grids_that_do_not_fall_are_refused(self, steps):
        with pytest.raises(InputError, match=r"'"):
            plan(steps)

    @pytest.mark.parametrize(
        ("kind", "steps", "message"),
        [
            ("diffusion", "euler10", r"diffusers scheduler; allowed: .*ddimN, ddpmN"),
            ("diffusion", "restart2", r"allowed: .*ddimN, ddpmN"),
            ("diffusion", "ddpm101", r"N at most 100"),
            ("diffusion", "ddim@0.5", r"diffusers chooses the noise levels"),
            ("flow_map", "ddim10", r"trained as a flow map; allowed: .*composeN, eulerN, heunN, restartN"),
            ("velocity", "compose2", r"diagonal alone.*allowed: .*eulerN, heunN"),
            ("consistency", "heun5", r"jump to the data alone; allowed: .*restartN"),
            ("regression", 2, r"answers in 1 evaluations"),
            ("regression", "euler10", r"the action itself"),
            ("flow_map", "ddin10", r"names no sampler that there is.*Did you mean 'ddim'"),
        ],
    )
    def test_a_sampler_that_the_network_was_not_taught_is_refused(self, kind, steps, message):
        with pytest.raises(InputError, match=message):
            plan(steps, Sampling(kind))

    def test_a_number_means_the_kinds_own_sampler(self):
        own = {"flow_map": compose, "velocity": euler, "consistency": restart, "regression": regress, "diffusion": ddim}
        for kind, sampler in own.items():
            assert plan(1, Sampling(kind)).run.func is sampler
            assert plan(1, Sampling(kind)).evaluations == 1
        refined = plan(2, Sampling("regression", refine_time=0.1))
        assert refined.evaluations == 2
        assert refined.run.keywords["times"] == (1.0, 0.1, 0.0)
        assert [plan(s, Sampling("diffusion")).stochastic for s in (10, "ddpm10")] == [False, True]


def policy(sampling: Sampling):
    torch.manual_seed(0)
    config = PolicyConfig(
        task="pusht", observations={"agent_pos": ObsSpec((2,))}, action_dim=2, cond_dim=16, encoder_hidden=(32,),
        interpolant="trigonometric", network=MLPConfig(width=32, depth=2), sampling=sampling,
    )  # fmt: skip
    policy = Policy(config)
    torch.nn.init.normal_(policy.network.network.out.weight, std=0.3)
    limits = {"min": np.zeros(2), "max": np.full(2, 512.0), "mean": np.full(2, 256.0), "std": np.ones(2)}
    policy.normalizer.fit({"agent_pos": limits, "action": limits})
    return policy.eval()


DIFFUSION = Sampling("diffusion", prediction="sample")


class TestPolicies:
    @pytest.mark.parametrize(
        ("sampling", "steps"),
        [
            (DIFFUSION, "ddpm5"), (DIFFUSION, "ddim5"), (DIFFUSION, 3), (Sampling("consistency"), 3),
            (Sampling(), "restart2"), (Sampling("regression", refine_time=0.1), 2),
        ],
    )  # fmt: skip
    def test_a_rows_action_does_not_depend_on_its_neighbours(self, sampling, steps):
        """Bit for bit, beyond one padded call, for samplers that draw as they go."""
        acting = policy(sampling)
        obs = {"agent_pos": np.random.default_rng(0).uniform(0, 512, (19, 2, 2))}
        seeds = np.stack([np.arange(19), np.arange(19) % 5], axis=1)
        together = acting.predict_action(obs, nfe=steps, noise_seeds=seeds)["action_pred"]
        for rows in ([0], [18], [7, 3], list(range(18, -1, -1))):
            part = acting.predict_action({"agent_pos": obs["agent_pos"][rows]}, nfe=steps, noise_seeds=seeds[rows])
            assert np.array_equal(part["action_pred"], together[rows])
        assert np.isfinite(together).all()
        if acting.plan(steps).stochastic:  # from the same start, rows of other seeds draw other noise on the way
            z, cond = torch.zeros(2, 16, 2), torch.zeros(2, 16)
            assert not torch.equal(*acting.sample(z, cond, steps))

    def test_regression_is_deterministic_without_seeds(self):
        obs = {"agent_pos": np.full((1, 2, 2), 100.0)}
        acting = policy(Sampling("regression", refine_time=0.1))
        for steps in (1, 2):
            a, b = (acting.predict_action(obs, nfe=steps)["action"] for _ in range(2))
            assert np.array_equal(a, b)

    def test_what_the_objective_taught_is_saved_with_the_policy(self, tmp_path):
        saved = policy(dataclasses.replace(DIFFUSION, train_steps=50))
        saved.save_pretrained(tmp_path)
        loaded = Policy.from_pretrained(tmp_path)
        assert loaded.sampling == Sampling("diffusion", prediction="sample", train_steps=50)
        obs, seeds = {"agent_pos": np.full((2, 2, 2), 100.0)}, np.array([[1, 0], [2, 0]])
        for steps in (4, "ddpm50"):
            a, b = (p.predict_action(obs, nfe=steps, noise_seeds=seeds)["action"] for p in (saved, loaded))
            assert np.array_equal(a, b)
        with pytest.raises(InputError, match="N at most 50"):
            loaded.predict_action(obs, nfe="ddpm51")

    def test_a_policy_saved_before_there_were_kinds_is_a_flow_map(self, tmp_path):
        policy(Sampling()).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        del config["sampling"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert Policy.from_pretrained(tmp_path).sampling == Sampling("flow_map")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"sampling": {"kind": "difusion"}}, "Did you mean 'diffusion'"),
            ({"sampling": {"kind": "diffusion", "train_step": 10}}, "unknown key 'sampling.train_step'"),
            ({"sampling": {"kind": "diffusion"}, "interpolant": "linear"}, "policy.interpolant=trigonometric"),
        ],
    )
    def test_settings_that_cannot_be_are_refused(self, change, message):
        with pytest.raises(InputError, match=message):
            PolicyConfig.from_json(
                {"format_version": 1, "task": "", "obs_dims": {"agent_pos": 2}, "action_dim": 2, **change}
            )

    def test_clipping_follows_the_range_of_normalised_actions(self):
        acting = policy(DIFFUSION)
        with torch.no_grad():
            acting.network.network.out.bias.fill_(9.0)
            acting.network.network.out.weight.zero_()
        noise, cond = torch.zeros(2, 16, 2), torch.zeros(2, 16)
        assert acting.sample(noise, cond, 5).max() == 1.0
        loose = Policy(PolicyConfig(**{**acting.config.__dict__, "action_normalization": "gaussian"}))
        loose.load_state_dict(acting.state_dict())
        assert loose.sample(noise, cond, 5).max() == 5.0
