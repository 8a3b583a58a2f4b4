"""The shapes in signatures are checked while the tests run: a wrong one is refused where it enters."""

import subprocess
import sys

import pytest
import torch
from jaxtyping import TypeCheckError

from isdt_policy.method.flow_map import FlowMap, with_tangent
from isdt_policy.method.interpolants import Linear, interpolate
from isdt_policy.method.objectives import FlowMatching
from isdt_policy.method.objectives.base import mean_square


def test_axes_of_one_name_have_one_size():
    x, t = torch.zeros(5, 4, 2), torch.zeros(5)
    assert interpolate(Linear(), x, x, t).shape == x.shape
    with pytest.raises(TypeCheckError, match="'t'"):
        interpolate(Linear(), x, x, torch.zeros(4))
    with pytest.raises(TypeCheckError, match="'z'"):
        interpolate(Linear(), x, x[:, :3], t)


def test_a_loss_is_a_number_per_sample_and_a_mask_is_of_its_steps():
    error = torch.zeros(5, 4, 2)
    assert mean_square(error, torch.ones(5, 4, dtype=torch.bool)).shape == (5,)
    with pytest.raises(TypeCheckError, match="'keep'"):
        mean_square(error, torch.ones(5, 4))  # numbers in place of truths
    with pytest.raises(TypeCheckError, match="'keep'"):
        mean_square(error, torch.ones(4, 5, dtype=torch.bool))


def test_what_a_network_answers_is_checked_too():
    wrong = FlowMap(lambda x_t, t, s, cond: x_t[:, :1], Linear())
    x, t, cond = torch.zeros(5, 4, 2), torch.zeros(5), torch.zeros(5, 3)
    with pytest.raises(TypeCheckError, match="return value"):
        wrong.velocity(x, t, cond)
    with pytest.raises(TypeCheckError, match="'null'"):
        FlowMatching()(wrong, x, cond, cond, torch.Generator())


def test_what_is_compiled_is_left_out():
    """torch.compile cannot read the check; the map itself is checked around it."""
    assert not hasattr(with_tangent, "__wrapped__")
    assert not hasattr(Linear.alpha, "__wrapped__")
    assert hasattr(FlowMap.velocity, "__wrapped__")


def test_outside_the_tests_nothing_is_checked():
    code = (
        "import torch; from isdt_policy.method.interpolants import Linear, interpolate; x = torch.zeros(5, 4, 2); "
        "print(interpolate(Linear(), x, x, torch.zeros(1)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.Size([5, 4, 2])"
