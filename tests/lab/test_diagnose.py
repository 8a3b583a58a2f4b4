"""Diagnostics against closed forms in float64, and `isdt diagnose` from arguments to page."""

import html
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from isdt_policy import cli
from isdt_policy.envs.protocol import ObsSpec
from isdt_policy.lab.diagnose.gradients import Summary, gradient_norms, loss_terms
from isdt_policy.lab.diagnose.gradients import summary as gradient_summary
from isdt_policy.lab.diagnose.measure import (
    Diversity,
    FlowError,
    Measures,
    NullDrift,
    Triangle,
    consistency_residual,
    diversity,
    flow_error,
    null_drift,
    semigroup_error,
    triangle_pairs,
)
from isdt_policy.lab.diagnose.reading import ROLLOUTS, Training, read, what_to_do
from isdt_policy.lab.diagnose.run import diagnose, run_config
from isdt_policy.lab.diagnose.settings import Settings
from isdt_policy.method import closed_forms
from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import INTERPOLANTS, Linear, expand
from isdt_policy.method.networks.mlp import MLPConfig
from isdt_policy.method.objectives import ISD, OBJECTIVES
from isdt_policy.method.policy import Policy, PolicyConfig
from isdt_policy.method.samplers import Sampling
from isdt_policy.shared.errors import InputError
from isdt_policy.training.config import RunConfig

pytestmark = pytest.mark.slow

PATHS = [cls() for cls in INTERPOLANTS.values()]
MEAN = torch.tensor([0.3, -0.8], dtype=torch.float64)
STD = torch.tensor([0.4, 1.3], dtype=torch.float64)
ONE = torch.ones(1, dtype=torch.float64)


@pytest.fixture(params=PATHS, ids=lambda path: type(path).__name__)
def path(request):
    return request.param


@pytest.fixture
def batch():
    """(x, cond, noise) of 50 Gaussian chunks of 4 steps."""
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 50, 4, 2, generator=generator, dtype=torch.float64)
    return MEAN + STD * x, torch.zeros(50, 1, dtype=torch.float64), noise


def shifted(path, offset):
    """The exact Gaussian map, with `offset` added to F off the diagonal."""
    exact = closed_forms.gaussian(path, MEAN, STD)
    return FlowMap(lambda x, t, s, c: exact(x, t, s, c) + offset * expand((t != s).to(x), x), path)


# The (t, s) triangle.


def test_the_triangle_holds_every_pair_once():
    pairs = triangle_pairs(10)
    assert len(set(pairs)) == len(pairs) == 55
    assert all(0 <= s < t <= 1 for t, s in pairs)
    assert (1.0, 0.0) in pairs


def test_residual_and_semigroup_error_vanish_at_the_exact_map(path, batch):
    x, cond, noise = batch
    flow_map = shifted(path, 0.0)
    assert consistency_residual(flow_map, x, cond, noise, 5).error.max() < 1e-12
    assert semigroup_error(flow_map, x, cond, noise, 5).error.max() < 1e-12
    difference = consistency_residual(flow_map, x, cond, noise, 5, eps=1e-3)
    assert 1e-9 < difference.error.max() < 1e-3  # the central difference has an error of its own, O(eps^2)


def test_a_shift_of_the_prediction_shows_with_its_size(path, batch):
    """F + e has the residual -b'(d) e, and its velocity, on the diagonal, is the exact one."""
    x, cond, noise = batch
    found = consistency_residual(shifted(path, 0.25), x, cond, noise, 5)
    d = torch.from_numpy(found.t - found.s) * path.phase_rate
    np.testing.assert_allclose(found.error, 0.25 * path.map_coefficient_rates(d)[1].abs(), rtol=0, atol=1e-12)
    velocity = closed_forms.gaussian_velocity(path, MEAN, STD)
    i = int(np.flatnonzero((found.t == 1) & (found.s == 0))[0])
    expected = velocity(noise, torch.ones(50, dtype=torch.float64)).square().mean().sqrt().item()
    assert found.scale[i] == pytest.approx(expected, rel=1e-12)
    assert found.one_step == pytest.approx(found.error[i] / expected)


def test_two_steps_of_a_shifted_map_differ_by_a_known_amount(batch):
    """Linear: X' = X - (t - s) e, so two steps miss one by (t - r) e (1 - gain of r -> s), gain the ratio of spreads."""
    x, cond, noise = batch
    found = semigroup_error(shifted(Linear(), 0.25), x, cond, noise, 5)
    r = (found.t + found.s) / 2

    def spread(time):
        return np.sqrt(np.square((1 - time)[:, None] * STD.numpy()) + np.square(time)[:, None])

    miss = 0.25 * (found.t - r)[:, None] * (1 - spread(found.s) / spread(r))
    np.testing.assert_allclose(found.error, np.sqrt(np.square(miss).mean(axis=1)), rtol=1e-10)
    data = (x - x.mean(dim=0)).square().mean().sqrt().item()
    np.testing.assert_allclose(found.scale, data, rtol=1e-12)
    assert found.overall == pytest.approx(np.sqrt(np.square(miss).mean()) / data)


# The network's own flow.


def test_a_shifted_map_lands_beside_its_flow_by_the_shift_and_n_evaluations_by_what_is_left_of_it(path, batch):
    """The flow is the diagonal's, which the shift leaves alone; linear: each step adds (1/n) e, then shrinks with the rest."""
    x, cond, noise = batch
    assert flow_error(shifted(path, 0.0), x, cond, noise).distance.max() < 1e-2  # what Heun's method itself misses
    found = flow_error(shifted(path, 0.25), x, cond, noise, evaluations=(1, 2))
    b = path.map_coefficients(torch.tensor(path.phase_rate, dtype=torch.float64))[1].item()
    np.testing.assert_allclose(found.distance[0], 0.25 * b, rtol=0.05)
    if isinstance(path, Linear):
        half = torch.tensor(0.5, dtype=torch.float64)
        gain = STD / torch.sqrt(half**2 * STD**2 + half**2)  # from t = 1/2 to 0, the ratio of spreads
        expected = (0.125 * (1 + gain)).square().mean().sqrt().item()
        np.testing.assert_allclose(found.distance[1], expected, rtol=0.05)
    spread = (x - x.mean(dim=0)).square().mean(dim=(0, 2)).sqrt().numpy()
    np.testing.assert_allclose(found.spread, spread, rtol=1e-12)
    ratio = np.sqrt(np.square(found.distance[0, 1:]).mean() / np.square(spread[1:]).mean())
    assert found.relative(slice(1, None))[0] == pytest.approx(ratio)


def test_the_velocity_of_a_gaussian_misses_what_the_point_leaves_open(path):
    """Var(v | x_t) = (alpha beta' - beta alpha')^2 var(x) / (alpha^2 var(x) + beta^2), and the bracket is 1 on both paths."""
    generator = torch.Generator().manual_seed(3)
    x, noise = torch.randn(2, 20_000, 1, 2, generator=generator, dtype=torch.float64)
    x = MEAN + STD * x
    found = flow_error(shifted(path, 0.0), x, x.new_zeros(len(x), 1), noise, times=(0.1, 0.5, 1.0))
    for t, error in zip(found.t, found.velocity):
        at = torch.tensor(t, dtype=torch.float64)
        left = STD**2 / (path.alpha(at) ** 2 * STD**2 + path.beta(at) ** 2)
        assert error == pytest.approx(left.mean().item(), rel=0.03)


# Gradients.


def test_gradient_norms_of_known_losses():
    a, b, frozen = torch.tensor([3.0, 4.0], requires_grad=True), torch.zeros(1, requires_grad=True), torch.ones(1)
    shared = a.square().sum()
    found = gradient_norms({"square": shared, "half": shared / 2 + 12 * b.sum(), "b": 2 * b.sum()}, [a, b, frozen])
    assert found == pytest.approx({"square": 10.0, "half": 13.0, "b": 2.0})
    assert a.grad is None


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 2, dtype=torch.float64)

    def forward(self, x, t, s, cond):
        times = torch.stack([t, s, cond[:, 0]], -1)[:, None].expand(*x.shape[:2], 3)
        return torch.tanh(self.layer(torch.cat([x, times], -1)))


@pytest.mark.parametrize("name", [n for n, cls in OBJECTIVES.items() if hasattr(cls(), "off_diagonal_weight")])
def test_terms_are_those_of_the_objective_and_add_up(name, batch):
    x, cond, _ = batch
    torch.manual_seed(0)
    network = Small()
    flow_map = FlowMap(network, Linear())
    objective = OBJECTIVES[name](off_diagonal_weight=0.5, weight_power=0.0)
    found = loss_terms(objective, flow_map, x, cond, ONE, seed=3)
    logged = objective(flow_map, x, cond, ONE, torch.Generator().manual_seed(3))
    assert list(found) == ["diagonal", "off_diagonal", "loss"]
    diagonal, off_diagonal = (logged.terms[k].item() for k in ("diagonal", "off_diagonal"))
    # MeanFlow's rows are on the diagonal or off it, and its log averages each over its own rows.
    share = round(50 * found["diagonal"].item() / diagonal, 6) / 50 if name == "meanflow" else 1.0
    assert found["diagonal"].item() == pytest.approx(share * diagonal)
    assert found["off_diagonal"].item() == pytest.approx(0.5 * (1 - share if share < 1 else 1.0) * off_diagonal)
    assert (50 * share) % 1 == 0
    assert found["loss"].item() == pytest.approx(logged.total.item())
    parts = [torch.autograd.grad(found[k], network.layer.weight, retain_graph=True)[0] for k in found]
    torch.testing.assert_close(parts[0] + parts[1], parts[2])
    assert parts[1].abs().max() > 1e-3


def test_the_loss_is_taken_as_trained_and_a_single_term_stands_alone(batch):
    x, cond, _ = batch
    flow_map = FlowMap(Small(), Linear())
    weighted = loss_terms(ISD(weight_power=1.0), flow_map, x, cond, ONE, seed=3)
    plain = loss_terms(ISD(weight_power=0.0), flow_map, x, cond, ONE, seed=3)
    assert weighted["diagonal"].item() == pytest.approx(plain["diagonal"].item())
    assert weighted["loss"].item() != pytest.approx(plain["loss"].item(), rel=0.01)
    assert list(loss_terms(ISD(off_diagonal_weight=0.0), flow_map, x, cond, ONE, seed=3)) == ["diagonal", "loss"]
    assert list(loss_terms(OBJECTIVES["regression"](), flow_map, x, cond, ONE, seed=3)) == ["loss"]


def test_the_tail_is_the_99_percent_quantile_over_the_median():
    found = gradient_summary([1.0] * 50 + [2.0] * 1 + [9.0] * 50)
    assert found == Summary(median=2.0, p99=9.0, max=9.0, tail=4.5)


# Samples.


def test_diversity_of_a_gaussian(path):
    """One exact step has the data's spread; Euler's is a product of known gains; the data lie as far out as they are spread."""
    generator = torch.Generator().manual_seed(1)
    n = 400
    x = MEAN + STD * torch.randn(n, 3, 2, generator=generator, dtype=torch.float64)
    cond = torch.zeros(n, 1, dtype=torch.float64)
    found = diversity(shifted(path, 0.0), x, cond, generator, draws=16, euler_steps=3)
    assert found.one_step.shape == found.euler.shape == found.data.shape == found.from_euler.shape == (n, 3)
    exact = STD.square().mean().sqrt().item()
    assert np.sqrt(np.square(found.one_step).mean()) == pytest.approx(exact, rel=0.02)

    gain = torch.ones(2, dtype=torch.float64)
    velocity = closed_forms.gaussian_velocity(path, torch.zeros(2, dtype=torch.float64), STD)
    for i in range(3):
        a, b = path.map_coefficients(torch.tensor(path.phase_rate / 3, dtype=torch.float64))
        gain = gain * (a - b * velocity(torch.ones(1, 2, dtype=torch.float64), ONE * (1 - i / 3))[0])
    expected = gain.square().mean().sqrt().item()
    assert np.sqrt(np.square(found.euler).mean()) == pytest.approx(expected, rel=0.02)
    assert found.against_euler == pytest.approx(exact / expected, rel=0.01)  # the same noise, so nearly without error
    apart = (gain - STD).square().mean().sqrt().item()
    assert np.sqrt(np.square(found.from_euler).mean()) >= 0.98 * apart > 0.02


def test_the_data_are_as_far_from_the_mean_as_samples_are_spread():
    """Euler of a point-mass-free, straight flow is exact: data N(0, 1) on the linear path in many steps. Few draws, so that
    the correction for their mean's own error, 1 / draws of the variance, would be seen."""
    path, generator = Linear(), torch.Generator().manual_seed(2)
    one, zero = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    x = torch.randn(2000, 1, 2, generator=generator, dtype=torch.float64)
    flow_map = FlowMap(closed_forms.gaussian(path, zero, one), path)
    found = diversity(flow_map, x, x.new_zeros(2000, 1), generator, draws=2, euler_steps=20, rows=4000)
    spread = np.sqrt(np.square(found.euler).mean())
    assert np.sqrt(np.square(found.data).mean()) == pytest.approx(
        math.sqrt((1 + spread**2 / 2) / 1.5), rel=0.03
    )  # a data point of variance 1 less the mean of two samples, times 2 / 3
    assert found.against_data == pytest.approx(1.0, rel=0.05)


def test_a_collapsed_map_has_no_diversity_and_no_residual(batch):
    """A constant map is consistent with itself on every pair and only its samples give it away."""
    x, cond, noise = batch
    flow_map = FlowMap(lambda x, t, s, c: torch.where(expand(t == s, x), -MEAN.expand_as(x), (x - MEAN) / expand(
        torch.where(t == s, 1.0, t - s), x)), Linear())  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    assert consistency_residual(flow_map, x, cond, noise, 5).error.max() < 1e-12
    assert diversity(flow_map, x, cond, generator, draws=4).against_euler < 1e-12


# The null branch.


def test_null_drift_is_the_distance_of_the_means(path, batch):
    x, _, noise = batch
    exact = closed_forms.gaussian(path, MEAN, STD)
    cond = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(25)[:, None]  # on average nothing
    flow_map = FlowMap(lambda x, t, s, c: exact(x, t, s, c) + 0.5 * expand(c[:, 0], x), path)
    right = null_drift(flow_map, x, cond, 0 * ONE, noise, 5)
    np.testing.assert_allclose(right.drift, 0.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(right.effect, 0.5, rtol=1e-12)
    np.testing.assert_allclose(right.noise, 0.5 / 7, rtol=1e-12)  # unbiased deviation of +-0.5 over sqrt(50)
    assert right.overall == 0.0

    wrong = null_drift(flow_map, x, cond, 0.4 * ONE, noise, 5)
    np.testing.assert_allclose(wrong.drift, 0.2, rtol=1e-12)
    beyond = math.sqrt(0.2**2 - 0.25 / 49)
    assert wrong.overall == pytest.approx(beyond / np.sqrt(np.square(wrong.velocity).mean()))


# The reading.


def triangle(overall=0.1, one_step=0.02, pairs=100):
    """A triangle with these two numbers: one pair has the one, the others share what is left of the other."""
    rest = math.sqrt((pairs * overall**2 - one_step**2) / (pairs - 1))
    error = np.array([one_step] + [rest] * (pairs - 1))
    return Triangle(np.ones(pairs), np.arange(pairs) / pairs, error, np.ones(pairs))


def numbers(
    consistency=(), semigroup=(), one=0.05, euler=1.0, data=1.0, drift=0.01, norms=(1.0, 2.0)
):  # fmt: skip
    """Measures of a healthy policy, but for what is given."""
    column = np.ones((1, 1))
    return Measures(
        triangle(**dict(consistency)), triangle(**dict(semigroup)),
        FlowError(np.array([1.0, 4.0]), np.array([[one], [0.01]]), np.ones(1), np.array([0.1, 1.0]), np.array([0.4, 0.1])),
        Diversity(column, column / euler, column / data, column, 64, 10),
        NullDrift(np.ones(1), np.array([drift]), np.zeros(1), np.array([0.5]), np.ones(1)),
        {"loss": list(norms)}, slice(0, 1),
    )  # fmt: skip


def test_the_made_up_numbers_are_what_they_say():
    m = numbers({"overall": 0.9, "one_step": 0.3}, one=0.3, euler=0.6, data=0.7, drift=0.4)
    assert (m.consistency.overall, m.consistency.one_step) == pytest.approx((0.9, 0.3))
    assert (m.diversity.against_euler, m.diversity.against_data) == pytest.approx((0.6, 0.7))
    assert (m.flow.relative(m.executed)[0], m.null_drift.overall) == pytest.approx((0.3, 0.4))


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({"norms": [1.0] * 9 + [99.0]}, "gradients", "heavy tail:"),
        ({"consistency": {"overall": 0.9}}, "consistency", "does not follow its own velocity"),
        ({"consistency": {"one_step": 0.9}}, "consistency", "rarely draws that pair"),
        ({"data": 0.3}, "diversity", "lie further out"),
        ({"semigroup": {"one_step": 0.3}}, "semigroup", "gives another action"),
        ({"one": 0.3}, "flow", "is what brings it closer"),
        ({"euler": 0.1}, "diversity", "collapsed"),
        ({"euler": 0.6}, "diversity", "narrower"),
        ({"euler": 1.6}, "diversity", "wider"),
        ({"drift": 0.4}, "null", "never trained"),
    ],
)
def test_the_reading_names_what_is_wrong_and_nothing_else(changes, key, says):
    healthy = {line.key: line for line in read(numbers())}
    assert all(line.good for line in healthy.values())
    assert what_to_do(list(healthy.values())) == []
    assert says not in healthy[key].text
    ill = {line.key: line for line in read(numbers(**changes))}
    assert says in ill[key].text + ill[key].advice
    assert [k for k, line in ill.items() if not line.good] == [key]
    about_one_step = key in ("diversity", "consistency", "semigroup", "flow")
    assert [a for a in what_to_do(list(ill.values())) if a != ROLLOUTS] == [f"{ill[key].title}: {ill[key].advice}"]
    assert (ROLLOUTS in what_to_do(list(ill.values()))) == about_one_step


def test_a_clip_that_bites_in_most_batches_asks_for_a_look():
    half, all_of_them = (read(numbers(), Training(grad_clip=clip))[0] for clip in (1.5, 0.5))
    assert "the clip at 1.5 bites in 50% of batches" in half.text
    assert half.good
    assert "the clip at 0.5 bites in 100% of batches" in all_of_them.text
    assert not all_of_them.good
    assert "Try training.grad_clip=3," in all_of_them.advice


def test_a_null_branch_that_was_never_trained_is_not_held_against_a_policy():
    expected = read(numbers(drift=2.0), Training(cond_drop=0.0))[-1]
    assert expected.good is None
    assert "as expected" in expected.text
    assert not expected.advice
    wrong = read(numbers(drift=2.0), Training(cond_drop=0.1))[-1]
    assert wrong.good is False
    assert "raise objective.cond_drop" in wrong.advice


# The command.


@pytest.fixture(scope="module")
def run(tiny_store, tmp_path_factory):
    """A run of three steps."""
    from isdt_policy.training.config import compose_config
    from isdt_policy.training.run import train

    return train(compose_config([
        f"data.path={tiny_store}", f"run_dir={tmp_path_factory.mktemp('runs') / 'run'}", "training.steps=3",
        "network.down_dims=[8,16]", "network.embed_dim=16", "network.time_dim=8", "policy.cond_dim=8",
        "policy.encoder_hidden=[16]", "training.batch_size=16", "training.threads=1", "training.loggers=[]",
        "training.compile=false", "data.val_ratio=0.2", "training.amp=off",
    ]))  # fmt: skip


QUICK = ("batches=3", "windows=9", "draws=3", "grid=3")


def test_the_command_runs_end_to_end(run, capsys):
    pytest.importorskip("matplotlib")
    assert cli.main(["diagnose", f"checkpoint={run}", *QUICK]) == 0
    out = capsys.readouterr().out
    info = json.loads((run / "diagnostics" / "diagnostics.json").read_text())
    assert info["schema"] == "isdt-diagnose/1"
    assert info["command"] == f"isdt diagnose checkpoint={run} batches=3 windows=9 draws=3 grid=3"
    assert info["data"].startswith("held-out episodes of")
    assert info["n_windows"] == 9
    assert {k: v["n"] for k, v in info["gradient_norms"].items()} == {"diagonal": 3, "off_diagonal": 3, "loss": 3}
    assert len(info["consistency"]["error"]) == 6
    assert np.shape(info["flow"]["distance"]) == (3, 16)
    assert np.shape(info["diversity"]["one_step"]) == (9, 16)
    assert all(line["text"] in out for line in info["reading"])
    assert all(advice in out for advice in info["what_to_do"])
    page = html.unescape((run / "diagnostics" / "diagnostics.html").read_text())
    assert page.count("<svg") == 7
    assert all(line["text"] in page for line in info["reading"])
    assert all(advice in page for advice in info["what_to_do"])


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(run, tmp_path):
    quick = {"batches": 1, "windows": 4, "draws": 2, "grid": 2}
    first, again, other = (
        diagnose(Settings(str(run), out=tmp_path / str(i), seed=seed, **quick)).info for i, seed in enumerate((0, 0, 1))
    )
    for key in ("consistency", "semigroup", "flow", "diversity", "null_drift", "gradient_norms"):
        assert first[key] == again[key]
        assert first[key] != other[key]


def test_a_bare_policy_needs_data_and_gives_no_gradients(run, tiny_store, tmp_path):
    bare = tmp_path / "bare"
    Policy.from_pretrained(run).save_pretrained(bare)
    with pytest.raises(InputError, match=r"not the run that trained it.*give data=PATH"):
        diagnose(Settings(str(bare)))
    info = diagnose(Settings(str(bare), data=str(tiny_store), windows=4, draws=2, grid=2)).info
    assert info["data"] == f"all 12 episodes of {tiny_store}"
    assert info["gradient_norms"] == {}
    assert info["reading"][0]["good"] is None


def test_policies_that_are_no_flow_maps_are_refused(tmp_path):
    policy = Policy(
        PolicyConfig("pusht", {"state": ObsSpec((5,))}, 2, network=MLPConfig(), sampling=Sampling("velocity"))
    )
    ones = {"min": -np.ones(5), "max": np.ones(5), "mean": np.zeros(5), "std": np.ones(5)}
    policy.normalizer.fit({"state": ones, "action": {k: v[:2] for k, v in ones.items()}})
    policy.save_pretrained(tmp_path / "velocity")
    with pytest.raises(InputError, match=r"is no flow map \(sampling.kind='velocity'\): it was not trained to jump"):
        diagnose(Settings(str(tmp_path / "velocity")))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["checkpoint=x", "batchs=3"], "unknown key 'batchs'. Did you mean 'batches'?"),
        (["checkpoint=x", "windows=1"], "windows=1 must be at least 2"),
        (["checkpoint=x", "draws=many"], "draws must be a whole number, got 'many'"),
        (["checkpoint=/nowhere/at/all"], "the path does not exist"),
        (["data=x"], "checkpoint= missing"),
    ],
)
def test_wrong_arguments_are_explained(args, message, capsys):
    assert cli.main(["diagnose", *args]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_the_run_of_an_old_checkpoint_is_read_in_todays_words():
    """Version 0.1.0 had training.tensorboard."""
    run = Path(__file__).parents[1] / "fixtures/v0_1/run_isd_t"
    for place in (run, run / "checkpoints/last", run / "checkpoints/last/policy"):
        settings = run_config(place)
        assert "loggers" in RunConfig.read(settings).training.__dict__
