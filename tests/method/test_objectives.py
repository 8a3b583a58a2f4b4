"""The family of objectives on closed forms: fixed points, stop-gradients, convergence, masks. Double precision."""

import dataclasses
import math

import pytest
import torch

from isdt_policy.method import closed_forms
from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import (
    INTERPOLANTS,
    conditional_velocity,
    data_and_noise,
    eulerian_residual,
    interpolate,
)
from isdt_policy.method.networks.mlp import MLP, MLPConfig
from isdt_policy.method.objectives import (
    ISD,
    MIP,
    OBJECTIVES,
    Consistency,
    Diffusion,
    DiscreteConsistency,
    Eulerian,
    FlowMatching,
    Lagrangian,
    MeanFlow,
    Progressive,
    Regression,
)
from isdt_policy.method.objectives.base import Draws
from isdt_policy.method.objectives.progressive import compose_predictions, dyadic_times
from isdt_policy.shared.errors import InputError

B = 8
MEAN = torch.tensor([0.3, -0.8], dtype=torch.float64)
STD = torch.tensor([0.5, 1.2], dtype=torch.float64)
PLAIN = {"cond_drop": 0.0, "weight_power": 0.0}
SELF_DISTILLATIONS = {
    "isd": ISD(**PLAIN, derivative="jvp"),
    "isd, bounded": ISD(**PLAIN, derivative="jvp", bound=0.05),
    "eulerian": Eulerian(**PLAIN, derivative="jvp"),
    "eulerian, derivative frozen": Eulerian(**PLAIN, derivative="jvp", through_derivative=False),
    "eulerian, divided": Eulerian(**PLAIN, derivative="jvp", divide_by_step=True),
    "lagrangian": Lagrangian(**PLAIN, derivative="jvp"),
    "progressive": Progressive(**PLAIN),
    "progressive, uniform": Progressive(**PLAIN, split="uniform"),
}
# With a velocity of the single sample: right on average, not sample by sample.
SAMPLE_VELOCITY = {
    "flow matching": FlowMatching(**PLAIN),
    "meanflow": MeanFlow(**PLAIN, derivative="jvp"),
    "consistency": Consistency(**PLAIN, derivative="jvp"),
}


@pytest.fixture(params=["linear", "trigonometric"])
def path(request):
    return INTERPOLANTS[request.param]()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, B, 4, 2, generator=generator, dtype=torch.float64)
    t = 0.3 + 0.6 * torch.rand(B, generator=generator, dtype=torch.float64)
    s = t * torch.rand(B, generator=generator, dtype=torch.float64)
    cond = torch.randn(B, 3, generator=generator, dtype=torch.float64)
    return {"x": x, "z": z, "t": t, "s": s, "cond": cond, "null": torch.zeros(3, dtype=torch.float64)}


def evaluate(objective, flow_map, batch, seed=0, **changes):
    """The loss with every draw fixed that the objective has."""
    v = {**batch, **changes}
    rows = v["x"].shape[0]
    draws = Draws(v["z"], v["t"], v["s"], torch.zeros(rows, dtype=torch.bool))
    generator = torch.Generator().manual_seed(seed)
    return objective(flow_map, v["x"], v["cond"], v["null"], generator, keep=v.get("keep"), draws=draws)


def mlp(seed=0):
    torch.manual_seed(seed)
    network = MLP(2, 3, 4, MLPConfig(width=32, depth=2, time_dim=16)).double()
    torch.nn.init.normal_(network.out.weight, std=0.3)
    return network


def gaussian(path):
    return FlowMap(closed_forms.gaussian(path, MEAN, STD), path)


def wobbled(network):
    """`network` plus a parameter times a smooth function of everything, so that gradients at `network` can be taken."""
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def perturbed(x, t, s, cond):
        time, end = t.reshape(-1, 1, 1), s.reshape(-1, 1, 1)
        return network(x, t, s, cond) + theta[0] * torch.sin(x + time - 2 * end) + theta[1] * (1 + x * time)

    return perturbed, theta


def reflected(path, batch, t):
    """Samples and their mirror images in E[v | x_t]: same points, velocities whose mean is the marginal velocity exactly."""
    x_t, v_t = interpolate(path, batch["x"], batch["z"], t), conditional_velocity(path, batch["x"], batch["z"], t)
    mirrored = 2 * closed_forms.gaussian_velocity(path, MEAN, STD)(x_t, t) - v_t
    x, z = data_and_noise(path, x_t, mirrored, t)
    twice = {key: torch.cat([batch[key], batch[key]]) for key in ("t", "s", "cond")}
    return {**batch, **twice, "x": torch.cat([batch["x"], x]), "z": torch.cat([batch["z"], z])}


class TestFixedPoints:
    @pytest.mark.parametrize("name", SELF_DISTILLATIONS)
    def test_self_distillation_vanishes_at_the_exact_map_and_at_no_other(self, path, batch, name):
        exact = closed_forms.gaussian(path, MEAN, STD)
        objective = SELF_DISTILLATIONS[name]
        assert evaluate(objective, FlowMap(exact, path), batch).terms["off_diagonal"] < 1e-20
        wrong = FlowMap(lambda x, t, s, c: exact(x, t, s, c) + 0.3 * (t - s).reshape(-1, 1, 1) * x, path)
        assert evaluate(objective, wrong, batch).terms["off_diagonal"] > 1e-4

    @pytest.mark.parametrize("name", [name for name in SELF_DISTILLATIONS if not name.startswith("progressive")])
    def test_it_vanishes_for_the_finite_difference_too(self, path, batch, name):
        objective = dataclasses.replace(SELF_DISTILLATIONS[name], derivative="central", eps=1e-3)
        assert evaluate(objective, gaussian(path), batch).terms["off_diagonal"] < 1e-8

    @pytest.mark.parametrize("split", ["middle", "uniform"])
    def test_the_shortcut_model_is_exact_but_for_its_shortest_steps(self, path, batch, split):
        """Two Euler steps of the velocity teach the shortest ones: they miss by h^2, so F by h."""
        losses = []
        for levels in (5, 6, 7):
            t = torch.full((B,), 0.5 + 0.5 ** (levels - 1), dtype=torch.float64)
            objective = Progressive(**PLAIN, levels=levels, split="middle")
            shortest = evaluate(objective, gaussian(path), batch, t=t, s=torch.full_like(t, 0.5))
            losses.append(shortest.terms["off_diagonal"].sqrt().item())
            longer = evaluate(
                dataclasses.replace(objective, split=split), gaussian(path), batch, t=torch.ones_like(t), s=0 * t
            )
            assert longer.terms["off_diagonal"] < 1e-20
        for coarse, fine in zip(losses, losses[1:]):
            assert 0.9 < math.log2(coarse / fine) < 1.1

    @pytest.mark.parametrize("name", [*SAMPLE_VELOCITY, "discrete consistency"])
    def test_the_exact_map_of_a_point_mass_has_no_loss(self, path, batch, name):
        objective = {**SAMPLE_VELOCITY, "discrete consistency": DiscreteConsistency(**PLAIN)}[name]
        flow_map = FlowMap(closed_forms.point_mass(path, MEAN), path)
        at = {"x": MEAN.expand(B, 4, 2)}
        assert evaluate(objective, flow_map, batch, **at).total < 1e-20
        wrong = FlowMap(lambda x, t, s, c: flow_map.network(x, t, s, c) + 0.1 * torch.cos(x), path)
        assert evaluate(objective, wrong, batch, **at).total > 1e-5

    @pytest.mark.parametrize("name", SAMPLE_VELOCITY)
    def test_the_expected_gradient_vanishes_at_the_exact_map(self, path, batch, name):
        """Over mirrored pairs, which share x_t and whose mean velocity is the marginal one."""
        network, theta = wobbled(closed_forms.gaussian(path, MEAN, STD))
        flow_map, objective = FlowMap(network, path), SAMPLE_VELOCITY[name]
        pairs = reflected(path, batch, batch["t"])
        (gradient,) = torch.autograd.grad(evaluate(objective, flow_map, pairs).total, theta)
        assert gradient.abs().max() < 1e-12
        (one_sided,) = torch.autograd.grad(evaluate(objective, flow_map, batch).total, theta)
        assert one_sided.abs().max() > 1e-2

    def test_the_bias_of_discrete_consistency_is_of_the_order_of_its_step(self, path, batch):
        network, theta = wobbled(closed_forms.gaussian(path, MEAN, STD))
        t = torch.full((B,), 0.5, dtype=torch.float64)
        pairs = reflected(path, {**batch, "t": t}, t)
        sizes = []
        for intervals in (32, 64, 128, 256):
            loss = evaluate(DiscreteConsistency(**PLAIN, intervals=intervals), FlowMap(network, path), pairs).total
            (gradient,) = torch.autograd.grad(loss, theta)
            sizes.append(gradient.norm().item())
        for coarse, fine in zip(sizes, sizes[1:]):
            assert 0.7 < math.log2(coarse / fine) < 1.3

    def test_a_constant_map_satisfies_discrete_consistency_above_the_lowest_level_only(self, path, batch):
        """The degenerate solution: X(x_t, t -> 0) = 0 everywhere."""

        def network(x, t, s, cond):
            a, b = path.map_coefficients(((t - s) * path.phase_rate).reshape(-1, 1, 1))
            return torch.where(b == 0, 0.0, a * x / torch.where(b == 0, 1.0, b))

        objective = DiscreteConsistency(**PLAIN, intervals=10)
        assert evaluate(objective, FlowMap(network, path), batch).total < 1e-20
        lowest = evaluate(objective, FlowMap(network, path), batch, t=torch.full((B,), 0.1, dtype=torch.float64))
        expected = batch["x"].square().mean() / (path.phase_rate / 10)
        torch.testing.assert_close(lowest.total, expected)

    def test_regression_and_refinement_have_conditional_means_as_minimisers(self, path, batch):
        """MIP's first answer is E[x], its second E[x | x_t*]: gradients of mirrored pairs vanish there."""
        posterior = closed_forms.gaussian_posterior(path, MEAN, STD)

        def exact(x, t, s, cond):
            first = (t == 1).reshape(-1, 1, 1)
            return torch.where(first, MEAN.expand_as(x), posterior(x, t)[0])

        network, theta = wobbled(exact)
        flow_map = FlowMap(network, path)
        twice = {key: torch.cat([batch[key], batch[key]]) for key in ("z", "t", "s", "cond")}
        about_mean = {**batch, **twice, "x": torch.cat([batch["x"], 2 * MEAN - batch["x"]])}
        (gradient,) = torch.autograd.grad(evaluate(Regression(), flow_map, about_mean).total, theta)
        assert gradient.abs().max() < 1e-12

        objective = MIP(refine_time=0.2)
        t = torch.full((B,), 0.2, dtype=torch.float64)
        pairs = reflected(path, batch, t)
        loss = evaluate(objective, flow_map, pairs)
        regression = evaluate(Regression(), flow_map, pairs)
        torch.testing.assert_close(loss.terms["regression"], regression.total.detach())
        (gradient,) = torch.autograd.grad(loss.total - regression.total, theta)
        assert gradient.abs().max() < 1e-12

    @pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
    def test_diffusion_is_minimised_by_the_exact_denoiser(self, batch, prediction):
        path = INTERPOLANTS["trigonometric"]()
        objective = Diffusion(prediction=prediction)
        network, theta = wobbled(closed_forms.gaussian_denoiser(MEAN, STD, prediction))
        level = torch.tensor([3, 20, 50, 80, 98, 10, 30, 70])
        scheduler = objective.sampling.schedule.scheduler()
        t = objective.sampling.schedule.times(scheduler.alphas_cumprod)[level]
        pairs = reflected(path, batch, t)

        def gradient(data, level):
            null, generator = data["null"], torch.Generator()
            loss = objective(
                FlowMap(network, path), data["x"], data["cond"], null, generator, draws=Draws(data["z"], level=level)
            )
            return torch.autograd.grad(loss.total, theta)[0].abs().max()

        assert gradient(pairs, level.repeat(2)) < 1e-5  # diffusers keeps its noise levels in single precision
        assert gradient(batch, level) > 1e-2


class TestStopGradients:
    """Each gradient equals that of a loss written out by hand with its target frozen."""

    def compare(self, objective, path, batch, by_hand):
        network = mlp()
        loss = evaluate(objective, FlowMap(network, path), batch)
        x_t, v_t = (f(path, batch["x"], batch["z"], batch["t"]) for f in (interpolate, conditional_velocity))
        expected = by_hand(network, x_t, v_t, batch["t"], batch["s"], batch["cond"])
        torch.testing.assert_close(loss.total, expected)
        parameters = list(network.parameters())
        for a, b in zip(torch.autograd.grad(loss.total, parameters), torch.autograd.grad(expected, parameters)):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("kind", ["meanflow", "consistency"])
    def test_single_sample_velocity(self, path, batch, kind):
        def by_hand(network, x_t, v_t, t, s, cond):
            if kind == "consistency":
                s = torch.zeros_like(s)
            tangents = (v_t, torch.full_like(t, 1 / path.phase_rate))
            rate = torch.func.jvp(lambda x, time: network(x, time, s, cond), (x_t, t), tangents)[1].detach()
            d = ((t - s) * path.phase_rate).reshape(-1, 1, 1)
            prediction = network(x_t, t, s, cond)
            if path == INTERPOLANTS["linear"]():
                target = v_t - d * rate
            else:
                frozen = prediction.detach()
                target = frozen + torch.cos(d) * (v_t - frozen) - torch.sin(d) * (x_t + rate)
            return (prediction - target).square().mean()

        objective = {"meanflow": MeanFlow, "consistency": Consistency}[kind](**PLAIN, derivative="jvp")
        self.compare(objective, path, batch, by_hand)

    def test_lagrangian(self, path, batch):
        def by_hand(network, x_t, v_t, t, s, cond):
            prediction = network(x_t, t, s, cond)
            d = ((t - s) * path.phase_rate).reshape(-1, 1, 1)
            with torch.no_grad():
                h = 1e-6
                rate = network(x_t, t, s + h, cond) - network(x_t, t, s - h, cond)
                rate = rate / (2 * h * path.phase_rate)
                if path == INTERPOLANTS["linear"]():
                    target = network(x_t - d * prediction, s, s, cond) + d * rate
                else:
                    arrived = torch.cos(d) * x_t - torch.sin(d) * prediction
                    velocity = network(arrived, s, s, cond)
                    target = velocity + (1 - torch.cos(d)) * prediction - torch.sin(d) * x_t + torch.sin(d) * rate
            return (network(x_t, t, t, cond) - v_t).square().mean() + (prediction - target).square().mean()

        objective = Lagrangian(**PLAIN, derivative="jvp")
        network = mlp()
        loss = evaluate(objective, FlowMap(network, path), batch).total
        x_t, v_t = (f(path, batch["x"], batch["z"], batch["t"]) for f in (interpolate, conditional_velocity))
        expected = by_hand(network, x_t, v_t, batch["t"], batch["s"], batch["cond"])
        parameters = list(network.parameters())
        for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize("levels", [0, 6])
    def test_progressive(self, path, batch, levels):
        def by_hand(network, x_t, v_t, t, s, cond):
            flow_map, u = FlowMap(network, path), (t + s) / 2
            a, b = path.map_coefficients(((t - s) * path.phase_rate).reshape(-1, 1, 1))
            with torch.no_grad():
                two = flow_map.step(flow_map.step(x_t, t, u, cond), u, s, cond)
                target = (a * x_t - two) / b
            off = (network(x_t, t, s, cond) - target).square().mean()
            return (network(x_t, t, t, cond) - v_t).square().mean() + off

        self.compare(Progressive(**PLAIN, levels=levels), path, {**batch, "s": batch["t"] - 0.2}, by_hand)

    def test_discrete_consistency(self, path, batch):
        def by_hand(network, x_t, v_t, t, s, cond):
            flow_map, zero, lower = FlowMap(network, path), torch.zeros_like(t), t - 0.1
            with torch.no_grad():
                target = flow_map.step(interpolate(path, batch["x"], batch["z"], lower), lower, zero, cond)
            return (flow_map.step(x_t, t, zero, cond) - target).square().mean() / (0.1 * path.phase_rate)

        t = torch.tensor([0.1, 0.2, 0.4, 0.5, 0.7, 0.8, 0.9, 1.0], dtype=torch.float64)
        self.compare(DiscreteConsistency(**PLAIN, intervals=10), path, {**batch, "t": t}, by_hand)

    @pytest.mark.parametrize("divide", [False, True])
    @pytest.mark.parametrize("through", [True, False])
    @pytest.mark.parametrize("derivative", ["jvp", "central"])
    def test_eulerian_differentiates_the_derivative_only_if_told(self, path, batch, through, divide, derivative):
        """Against a difference quotient of the loss along one direction in weight space, all that is frozen held fixed."""
        network = mlp()
        names = [name for name, _ in network.named_parameters()]
        start = dict(network.named_parameters())
        generator = torch.Generator().manual_seed(3)
        direction = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in start.items()}
        x_t, v_t = (f(path, batch["x"], batch["z"], batch["t"]) for f in (interpolate, conditional_velocity))
        t, s, cond = batch["t"], batch["s"], batch["cond"]
        v_hat = network(x_t, t, t, cond).detach()

        def at(h):
            moved = {n: (start[n] + h * direction[n]).detach() for n in names}
            return lambda x, t, s, c: torch.func.functional_call(network, moved, (x, t, s, c))

        def rate(f):
            tangents = (v_hat, torch.full_like(t, 1 / path.phase_rate))
            return torch.func.jvp(lambda x, time: f(x, time, s, cond), (x_t, t), tangents)[1]

        frozen = rate(at(0.0))

        def loss(h):
            f = at(h)
            derivative = rate(f) if through else frozen
            residual = eulerian_residual(path, x_t, f(x_t, t, s, cond), v_hat, derivative, t, s)
            if divide:
                residual = residual / path.map_coefficients(((t - s) * path.phase_rate).reshape(-1, 1, 1))[1]
            return residual.square().mean() + (f(x_t, t, t, cond) - v_t).square().mean()

        expected = (loss(1e-5) - loss(-1e-5)) / 2e-5
        objective = Eulerian(
            **PLAIN, derivative=derivative, eps=1e-4, through_derivative=through, divide_by_step=divide
        )
        actual = torch.autograd.grad(evaluate(objective, FlowMap(network, path), batch).total, list(start.values()))
        slope = sum((g * direction[n]).sum() for n, g in zip(names, actual))
        torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-6)


DIFFERENTIATED = {
    **{name: objective for name, objective in SELF_DISTILLATIONS.items() if hasattr(objective, "derivative")},
    "meanflow": SAMPLE_VELOCITY["meanflow"],
    "consistency": SAMPLE_VELOCITY["consistency"],
}


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_the_loss_with_the_central_difference_converges_with_order_two(path, batch, name):
    flow_map, objective = FlowMap(mlp(), path), DIFFERENTIATED[name]
    exact = evaluate(objective, flow_map, batch).total
    central = dataclasses.replace(objective, derivative="central")
    errors = [
        (evaluate(dataclasses.replace(central, eps=eps), flow_map, batch).total - exact).abs().item()
        for eps in (4e-3, 2e-3, 1e-3)
    ]
    for coarse, fine in zip(errors, errors[1:]):
        assert 1.85 < math.log2(coarse / fine) < 2.15


class TestRelations:
    @pytest.mark.parametrize("objective", [ISD, MeanFlow, Eulerian, Lagrangian, Progressive])
    def test_without_its_off_diagonal_term_each_is_flow_matching(self, path, batch, objective):
        flow_map = FlowMap(mlp(), path)
        plain = evaluate(FlowMatching(**PLAIN, guidance_scale=1.5), flow_map, batch).total
        warm = evaluate(objective(**PLAIN, guidance_scale=1.5, off_diagonal_weight=0.0), flow_map, batch)
        assert torch.equal(warm.total, plain)
        assert list(warm.terms) == ["diagonal"]

    def test_meanflow_is_isd_with_the_velocity_of_the_sample(self, path, batch):
        flow_map = FlowMap(mlp(), path)
        cousin = evaluate(ISD(**PLAIN, velocity="sample"), flow_map, batch).terms
        meanflow = evaluate(MeanFlow(**PLAIN), flow_map, batch)
        torch.testing.assert_close(meanflow.total, cousin["off_diagonal"], rtol=1e-12, atol=0)
        on = evaluate(MeanFlow(**PLAIN), flow_map, batch, s=batch["t"])
        torch.testing.assert_close(on.terms["diagonal"], cousin["diagonal"], rtol=1e-12, atol=0)
        assert on.terms["off_diagonal"] == 0

    def test_eulerian_with_its_derivative_frozen_is_isd_on_the_linear_path_only(self, path, batch):
        network = mlp()

        def gradient(objective):
            loss = evaluate(objective, FlowMap(network, path), batch).total
            return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])

        a = gradient(ISD(**PLAIN, derivative="jvp"))
        b = gradient(SELF_DISTILLATIONS["eulerian, derivative frozen"])
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12) == (path == INTERPOLANTS["linear"]())

    def test_the_shortest_steps_of_a_shortcut_model_are_taught_by_the_diagonal(self, path, batch):
        calls, network = [], mlp()

        def recorded(x, t, s, cond):
            calls.append((t, s))
            return network(x, t, s, cond)

        t = torch.full((B,), 0.75, dtype=torch.float64)
        for length, on_diagonal in ((0.25, True), (0.5, False)):
            calls.clear()
            evaluate(Progressive(**PLAIN, levels=3), FlowMap(recorded, path), batch, t=t, s=t - length)
            teacher = calls[1:]
            assert [torch.equal(start, end) for start, end in teacher] == [on_diagonal] * 2
            assert torch.equal(teacher[1][0], t - length / 2)

    def test_composed_predictions_are_the_two_steps(self, path, batch):
        """X(d1 + d2) with the composed F = the two steps, at any split and for a step of no length."""
        x, first, second = batch["x"], batch["z"], torch.cos(batch["x"])
        t, s, cond = batch["t"], batch["s"], batch["cond"]
        for share in (0.0, 0.2, 0.5, 1.0):
            u = t - share * (t - s)
            whole = FlowMap(lambda *_, u=u: compose_predictions(path, x, first, second, t, u, s), path).step(
                x, t, s, cond
            )
            between = FlowMap(lambda *_: first, path).step(x, t, u, cond)
            torch.testing.assert_close(whole, FlowMap(lambda *_: second, path).step(between, u, s, cond))
        assert compose_predictions(path, x, first, second, t, t, t).isfinite().all()

    def test_dyadic_steps_start_at_multiples_of_their_length(self):
        t, s = dyadic_times(20_000, 4, torch.Generator().manual_seed(0))
        length = t - s
        for k in range(4):
            rows = length == 0.5**k
            assert abs(rows.double().mean() - 0.25) < 0.015
            assert torch.equal((s[rows] / 0.5**k).round(), s[rows] / 0.5**k)
            assert len(s[rows].unique()) == 2**k

    def test_a_quarter_of_meanflows_rows_are_off_the_diagonal(self):
        seen = []

        def network(x, t, s, cond):
            seen.append((s < t).double().mean())
            return torch.zeros_like(x)

        x, cond = torch.zeros(20_000, 1, 1), torch.zeros(20_000, 1)
        flow_map = FlowMap(network, INTERPOLANTS["linear"]())
        MeanFlow()(flow_map, x, cond, torch.zeros(1), torch.Generator().manual_seed(0))
        assert abs(seen[0] - 0.25) < 0.01


EVERY = {**OBJECTIVES, "shortcut": lambda: Progressive(levels=4)}


def made(name):
    return EVERY[name]()


@pytest.mark.parametrize("name", EVERY)
class TestContract:
    """What every objective owes its caller; a new one is tested here as soon as it is registered."""

    def loss(self, name, batch, network=None, keep=None, seed=0):
        flow_map = FlowMap(network or mlp(), INTERPOLANTS["trigonometric"]())
        generator = torch.Generator().manual_seed(seed)
        return made(name)(flow_map, batch["x"], batch["cond"], batch["null"], generator, keep=keep)

    def test_it_is_a_function_of_its_generator_and_gives_gradients_and_terms(self, name, batch):
        network = mlp()
        loss = self.loss(name, batch, network)
        assert torch.equal(loss.total, self.loss(name, batch, network).total)
        if name != "regression":  # which draws nothing
            assert not torch.equal(loss.total, self.loss(name, batch, network, seed=1).total)
        assert loss.terms
        assert all(term.ndim == 0 and term.isfinite() and not term.requires_grad for term in loss.terms.values())
        loss.total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())

    def test_it_leaves_the_callers_tensors_alone(self, name, batch):
        copies = {key: value.clone() for key, value in batch.items()}
        self.loss(name, batch)
        for key, value in batch.items():
            assert torch.equal(value, copies[key]), key

    def test_steps_that_are_not_kept_do_not_count(self, name, batch):
        """With a network that treats each step of the chunk by itself, what happens at a masked step cannot matter."""

        def network(x, t, s, cond):
            return torch.sin(x + t.reshape(-1, 1, 1) - 2 * s.reshape(-1, 1, 1)) + cond.mean()

        keep = torch.tensor([True, True, False, False]).expand(B, 4)
        changed = {**batch, "x": batch["x"] + torch.tensor([0.0, 0.0, 5.0, -3.0]).double().reshape(1, 4, 1)}
        kept = self.loss(name, batch, network, keep).total
        torch.testing.assert_close(self.loss(name, changed, network, keep).total, kept, rtol=1e-12, atol=0)
        assert abs(self.loss(name, changed, network).total - self.loss(name, batch, network).total) > 1e-6
        everything = self.loss(name, batch, network, torch.ones(B, 4, dtype=torch.bool)).total
        torch.testing.assert_close(everything, self.loss(name, batch, network).total, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        (ISD, {"derivative": "exact"}, "derivative='exact' is not one of jvp, central"),
        (ISD, {"bound": -1.0}, "bound must be at least 0"),
        (ISD, {"velocity": "sampled"}, "Did you mean 'sample'"),
        (MeanFlow, {"times": "lognormal"}, "Did you mean 'logit_normal'"),
        (Progressive, {"split": "midle"}, "Did you mean 'middle'"),
        (MIP, {"refine_time": 1.0}, "refine_time must be between"),
        (DiscreteConsistency, {"intervals": 0}, "intervals must be at least 1"),
        (Diffusion, {"prediction": "eps"}, "prediction='eps' is not one of epsilon, sample, v_prediction"),
    ],
)
def test_wrong_settings_are_refused_by_name(objective, options, message):
    with pytest.raises(InputError, match=message):
        objective(**options)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_diffusion_noises_and_aims_as_diffusers_does(batch, prediction):
    """To the last bit, although nothing of the schedule is copied to where the batch is."""
    objective, asked = Diffusion(prediction=prediction), []

    def network(x, t, s, cond):
        asked.append((x, t))
        return torch.zeros_like(x)

    x, z = batch["x"].float(), batch["z"].float()
    level = torch.arange(0, 96, 96 // len(x))[: len(x)]
    generator = torch.Generator().manual_seed(0)
    flow_map = FlowMap(network, INTERPOLANTS["trigonometric"]())
    loss = objective(flow_map, x, batch["cond"].float(), batch["null"].float(), generator, draws=Draws(z, level=level))
    scheduler = objective.sampling.schedule.scheduler()
    assert torch.equal(asked[0][0], scheduler.add_noise(x, z, level))
    assert torch.equal(asked[0][1], objective.sampling.schedule.times(scheduler.alphas_cumprod)[level].float())
    target = {"epsilon": z, "sample": x, "v_prediction": scheduler.get_velocity(x, z, level)}[prediction]
    torch.testing.assert_close(loss.terms["diffusion"], target.square().mean())


def test_diffusion_is_refused_on_the_linear_path(batch):
    with pytest.raises(InputError, match="interpolant=trigonometric"):
        evaluate(Diffusion(), FlowMap(mlp(), INTERPOLANTS["linear"]()), batch)
