"""The endpoint term: its walks and jumps, that an exact map leaves it nothing, and where its gradient goes."""

import dataclasses

import pytest
import torch

from isdt_policy.method import closed_forms
from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import INTERPOLANTS, flow_map_step
from isdt_policy.method.networks.mlp import MLP, MLPConfig
from isdt_policy.method.objectives import ISD
from isdt_policy.method.objectives.base import Draws
from isdt_policy.method.objectives.endpoint import Averaged, draw_jumps, trajectory
from isdt_policy.method.samplers import euler, uniform_grid
from isdt_policy.shared.errors import InputError

B = 64
OBJECTIVE = ISD(off_diagonal_weight=0.0, endpoint_weight=1.0, endpoint_fraction=0.5)


@pytest.fixture(params=["linear", "trigonometric"])
def path(request):
    return INTERPOLANTS[request.param]()


def mlp(seed=0):
    torch.manual_seed(seed)
    network = MLP(2, 3, 4, MLPConfig(width=32, depth=2, time_dim=16)).double()
    torch.nn.init.normal_(network.out.weight, std=0.3)
    return network


def draws(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def jumps_of(flow_map, levels, steps=8, rows=B):
    averaged = Averaged(flow_map, draws((B, 3), 1))
    return draw_jumps(averaged, draws((B, 4, 2)), rows, steps, levels, torch.Generator().manual_seed(0))


def test_a_walk_ends_where_the_euler_sampler_does(path):
    flow_map, noise, cond = FlowMap(mlp(), path), draws((B, 4, 2)), draws((B, 3), 1)
    walk = trajectory(flow_map, noise, cond, 8)
    assert torch.equal(walk[0], noise)
    assert not walk.requires_grad
    torch.testing.assert_close(walk[-1], euler(flow_map, noise, cond, uniform_grid(8)))


def test_at_one_level_every_jump_goes_all_the_way():
    jumps = jumps_of(FlowMap(mlp(), INTERPOLANTS["linear"]()), levels=1, rows=B // 2)
    assert (jumps.t == 1).all()
    assert (jumps.s == 0).all()
    assert torch.equal(jumps.rows, torch.arange(B // 2))


def test_shorter_jumps_are_halves_and_quarters_on_their_grid():
    jumps = jumps_of(FlowMap(mlp(), INTERPOLANTS["linear"]()), levels=3)
    length = jumps.t - jumps.s
    assert (length[:B] == 1).all()
    assert set(length[B:].tolist()) == {0.5, 0.25}
    assert torch.equal((jumps.s / length).round(), jumps.s / length)
    assert set(jumps.s[B:][length[B:] == 0.25].tolist()) == {0.0, 0.25, 0.5, 0.75}


def test_an_exact_map_jumps_to_where_its_fine_walk_goes(path):
    """The map of a Gaussian is known; a walk of many steps ends on it, and one of few does not."""
    mean, std = torch.tensor([0.3, -0.8]).double(), torch.tensor([0.5, 1.2]).double()
    flow_map = FlowMap(closed_forms.gaussian(path, mean, std), path)

    def error(steps):
        jumps = jumps_of(flow_map, levels=3, steps=steps)
        found = flow_map.step(jumps.x_t, jumps.t, jumps.s, draws((B, 3), 1)[jumps.rows])
        return (found - jumps.target).square().mean().sqrt()

    assert error(512) < 3e-3
    assert error(8) > 10 * error(512)


def test_the_gradient_is_that_of_a_regression_onto_the_frozen_walk(path):
    network, teacher = mlp(0), mlp(1)
    x, z, cond, null = draws((B, 4, 2)), draws((B, 4, 2), 2), draws((B, 3), 3), torch.zeros(3).double()
    t = torch.linspace(0.1, 0.9, B).double()
    averaged = Averaged(FlowMap(teacher, path), draws((B, 3), 4))
    fixed = Draws(z, t, t, torch.zeros(B, dtype=torch.bool))

    def gradient(weight):
        objective = dataclasses.replace(OBJECTIVE, endpoint_weight=weight)
        loss = objective(
            FlowMap(network, path), x, cond, null, torch.Generator().manual_seed(0), averaged=averaged, draws=fixed
        )
        return torch.autograd.grad(loss.total, list(network.parameters()))

    jumps = draw_jumps(averaged, x, B // 2, 8, 3, torch.Generator().manual_seed(0))
    prediction = network(jumps.x_t, jumps.t, jumps.s, cond[jumps.rows])
    landed = flow_map_step(path, jumps.x_t, prediction, jumps.t, jumps.s)
    expected = torch.autograd.grad((landed - jumps.target).square().mean(), list(network.parameters()))
    for one, none, plain in zip(gradient(2.0), gradient(0.0), expected):
        torch.testing.assert_close(one - none, 2 * plain)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(
    ("settings", "said"), [({"endpoint_fraction": 0.0}, "endpoint_fraction"), ({"endpoint_steps": 6}, "multiple of 4")]
)
def test_walks_that_cannot_be_taken_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(OBJECTIVE, **settings)
