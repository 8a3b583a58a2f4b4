"""Closed forms: what must hold exactly at the exact flow map, on both paths. All in float64."""

import math

import pytest
import torch

from isdt_policy.method import closed_forms
from isdt_policy.method.flow_map import FlowMap, central_difference, exact_derivative
from isdt_policy.method.interpolants import (
    INTERPOLANTS,
    conditional_velocity,
    data_and_noise,
    eulerian_residual,
    interpolate,
)
from isdt_policy.method.samplers import compose, euler, heun, restart, uniform_grid

PATHS = [cls() for cls in INTERPOLANTS.values()]
MEAN = torch.tensor([0.3, -0.8], dtype=torch.float64)
STD = torch.tensor([0.4, 1.3], dtype=torch.float64)
NONE = torch.zeros(6, 1, dtype=torch.float64)


def names(path):
    return type(path).__name__


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.9, 0.75, 0.6, 0.5, 0.3, 0.2], dtype=torch.float64)
    s = torch.tensor([0.1, 0.7, 0.05, 0.49, 0.2, 0.1], dtype=torch.float64)
    return x, t, s


@pytest.fixture(params=PATHS, ids=names)
def path(request):
    return request.param


@pytest.fixture(params=["point mass", "gaussian"])
def exact(request, path):
    if request.param == "point mass":
        return FlowMap(closed_forms.point_mass(path, MEAN), path)
    return FlowMap(closed_forms.gaussian(path, MEAN, STD), path)


def test_rates_are_derivatives_of_the_weights_per_unit_of_phase(path):
    t = torch.linspace(0, 1, 11, dtype=torch.float64, requires_grad=True)
    for weight, rate in ((path.alpha, path.alpha_rate), (path.beta, path.beta_rate)):
        (slope,) = torch.autograd.grad(weight(t).sum(), t)
        torch.testing.assert_close(slope / path.phase_rate, rate(t), rtol=0, atol=1e-12)


def test_the_path_runs_from_data_to_noise(path):
    x, z = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    zeros = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(interpolate(path, x, z, zeros), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(interpolate(path, x, z, zeros + 1), z, rtol=0, atol=1e-12)


def test_data_and_noise_are_recovered_from_point_and_velocity(path, points):
    x, t, _ = points
    z = torch.randn_like(x)
    x_t, v = interpolate(path, x, z, t), conditional_velocity(path, x, z, t)
    data, noise = data_and_noise(path, x_t, v, t)
    torch.testing.assert_close(data, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(noise, z, rtol=0, atol=1e-12)


def test_a_step_of_no_length_changes_nothing(exact, points):
    x, t, _ = points
    torch.testing.assert_close(exact.step(x, t, t, NONE), x, rtol=0, atol=1e-12)


def test_two_steps_equal_one(exact, points):
    x, t, s = points
    middle = (t + 2 * s) / 3
    two = exact.step(exact.step(x, t, middle, NONE), middle, s, NONE)
    torch.testing.assert_close(two, exact.step(x, t, s, NONE), rtol=0, atol=1e-12)


def test_the_network_parameterises_the_exact_gaussian_map(path, points):
    x, t, s = points
    flow_map = FlowMap(closed_forms.gaussian(path, MEAN, STD), path)
    exact_map = closed_forms.gaussian_map(path, MEAN, STD)
    torch.testing.assert_close(flow_map.step(x, t, s, NONE), exact_map(x, t, s), rtol=0, atol=1e-12)


def test_the_slope_of_the_map_at_s_equal_t_is_the_velocity(exact, path, points):
    x, t, _ = points
    h = 1e-5
    slope = (x - exact.step(x, t, t - h, NONE)) / (h * path.phase_rate)
    torch.testing.assert_close(slope, exact.velocity(x, t, NONE), rtol=0, atol=1e-3)


def test_gaussian_velocity_is_the_mean_conditional_velocity(path):
    """Against regression on samples: v(x, t) is linear in x, so least squares finds it."""
    generator = torch.Generator().manual_seed(1)
    n = 400_000
    x = MEAN + STD * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    t = torch.full((n,), 0.6, dtype=torch.float64)
    x_t, v = interpolate(path, x, z, t), conditional_velocity(path, x, z, t)
    exact = closed_forms.gaussian_velocity(path, MEAN, STD)
    for axis in range(2):
        features = torch.stack([torch.ones(n, dtype=torch.float64), x_t[:, axis]], dim=1)
        fit = torch.linalg.lstsq(features, v[:, axis : axis + 1]).solution.squeeze()
        probe = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
        expected = exact(probe, t[:2])[:, axis]
        torch.testing.assert_close(torch.stack([fit[0], fit.sum()]), expected, rtol=0, atol=0.02)


def test_the_two_point_velocity_carries_noise_to_the_two_points(path):
    velocity = closed_forms.two_point_velocity(path, location=0.7, weight=0.3)
    z = torch.randn(2000, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t, s = torch.full((2000,), 0.999, dtype=torch.float64), torch.full((2000,), 0.02, dtype=torch.float64)
    end = closed_forms.integrate(path, velocity, z, t, s)
    assert (end.abs() - 0.7).abs().max() < 0.12
    assert abs((end > 0).double().mean() - 0.3) < 0.03


@pytest.mark.parametrize("eps", [None, 1e-3], ids=["exact derivative", "central difference"])
def test_the_residual_vanishes_at_the_exact_map(exact, points, eps):
    x, t, s = points
    tolerance = 1e-10 if eps is None else 1e-3
    assert exact.residual(x, t, s, NONE, eps).abs().max() < tolerance


@pytest.mark.parametrize("eps", [None, 1e-3], ids=["exact derivative", "central difference"])
def test_the_residual_of_a_wrong_map_does_not_vanish(path, points, eps):
    x, t, s = points
    right = closed_forms.gaussian(path, MEAN, STD)
    wrong = FlowMap(lambda x, t, s, c: right(x, t, s, c) + 0.3 * (t - s).reshape(-1, 1, 1) * x, path)
    assert wrong.residual(x, t, s, NONE, eps).abs().amax(dim=(1, 2)).min() > 1e-3


def test_the_residual_vanishes_for_a_two_point_mixture_integrated_finely(path):
    velocity = closed_forms.two_point_velocity(path, location=0.7)

    def network(x, t, s, cond):
        a, b = path.map_coefficients(((t - s) * path.phase_rate).reshape(-1, 1))
        off = (a * x - closed_forms.integrate(path, velocity, x, t, s)) / torch.where(b == 0, torch.ones_like(b), b)
        return torch.where(b == 0, velocity(x, t), off)

    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    t, s = torch.full((7,), 0.8, dtype=torch.float64), torch.full((7,), 0.3, dtype=torch.float64)
    residual = FlowMap(network, path).residual(x, t, s, torch.zeros(7, 1, dtype=torch.float64), eps=1e-3)
    assert residual.abs().max() < 1e-4


def test_mixing_radians_with_units_of_t_leaves_a_residual(points):
    """The classic bug: velocity per unit of t beside a derivative per radian."""
    x, t, s = points
    path = INTERPOLANTS["trigonometric"]()
    flow_map = FlowMap(closed_forms.gaussian(path, MEAN, STD), path)
    v = flow_map.velocity(x, t, NONE)
    derivative = exact_derivative(flow_map, x, t, s, NONE, v)
    mixed = eulerian_residual(path, x, flow_map.network(x, t, s, NONE), v * math.pi / 2, derivative, t, s)
    assert mixed.abs().max() > 0.1


class TestDerivative:
    @pytest.fixture
    def network(self):
        generator = torch.Generator().manual_seed(3)
        w = torch.randn(2, 2, generator=generator, dtype=torch.float64)

        def network(x, t, s, cond):
            time = t.reshape(-1, 1, 1)
            return torch.sin(x @ w.to(x.dtype) + 3 * time) * torch.exp(s.reshape(-1, 1, 1)) + (x * time) ** 3

        return network

    def test_exact_derivative_equals_complex_step(self, path, network, points):
        x, t, s = points
        v = torch.cos(x)
        h = 1e-30
        stepped = network(x + 1j * h * path.phase_rate * v, t + 1j * h, s, NONE)
        expected = stepped.imag / (h * path.phase_rate)
        actual = exact_derivative(FlowMap(network, path), x, t, s, NONE, v)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)

    def test_central_difference_converges_with_order_two(self, path, network, points):
        x, t, s = points
        v = torch.cos(x)
        flow_map = FlowMap(network, path)
        exact = exact_derivative(flow_map, x, t, s, NONE, v)
        errors = [
            (central_difference(flow_map, x, t, s, NONE, v, eps) - exact).abs().max().item()
            for eps in (0.02, 0.01, 0.005)
        ]
        for coarse, fine in zip(errors, errors[1:]):
            assert 1.9 < math.log2(coarse / fine) < 2.1

    def test_central_difference_ignores_autocast(self, path):
        torch.manual_seed(0)
        layer = torch.nn.Linear(2, 2)

        def network(x, t, s, cond):
            return layer(x) * t.reshape(-1, 1, 1)

        x, t, s, cond = torch.randn(6, 3, 2), torch.rand(6), torch.zeros(6), torch.zeros(6, 1)
        plain = central_difference(FlowMap(network, path), x, t, s, cond, x)
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = central_difference(FlowMap(network, path), x, t, s, cond, x)
        assert torch.equal(plain, under_autocast)


class TestSamplers:
    def test_composing_the_exact_map_any_number_of_times_gives_the_exact_sample(self, path, points):
        x = points[0]
        flow_map = FlowMap(closed_forms.gaussian(path, MEAN, STD), path)
        exact = MEAN + STD * x
        for n in (1, 2, 5):
            torch.testing.assert_close(compose(flow_map, x, NONE, uniform_grid(n)), exact, rtol=0, atol=1e-12)

    @pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
    def test_diagonal_samplers_converge_with_their_order(self, path, points, sampler, order):
        x = points[0]
        flow_map = FlowMap(closed_forms.gaussian(path, MEAN, STD), path)
        errors = [
            (sampler(flow_map, x, NONE, uniform_grid(n)) - (MEAN + STD * x)).abs().max().item() for n in (40, 80, 160)
        ]
        for coarse, fine in zip(errors, errors[1:]):
            assert order - 0.35 < math.log2(coarse / fine) < order + 0.35

    def test_restart_reaches_a_point_mass_in_any_number_of_steps(self, path, points):
        x = points[0]
        flow_map = FlowMap(closed_forms.point_mass(path, MEAN), path)
        for n in (1, 3):
            torch.testing.assert_close(
                restart(flow_map, x, NONE, uniform_grid(n)), MEAN.expand_as(x).contiguous(), rtol=0, atol=1e-12
            )
