"""The benchmarks measure what they say: equal parameters, ratios per turn, a fast path with the plain path's numbers."""

import json

import numpy as np
import pytest
import torch

from isdt_policy.bench.baseline import ConvUNet, matched
from isdt_policy.bench.command import main
from isdt_policy.bench.measure import interleaved, ratio, summary
from isdt_policy.errors import InputError
from isdt_policy.flow_map import FlowMap
from isdt_policy.interpolants import INTERPOLANTS
from isdt_policy.networks.unet1d import UNet1d
from isdt_policy.objectives import ISD


@pytest.mark.parametrize("count", [5_257_090, 5_000_000, 5_500_000])
def test_the_baseline_has_as_many_parameters(count):
    network = matched(2, 44, (64, 128, 256), count)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(count, rel=0.02)
    out = network(torch.randn(3, 16, 2), torch.zeros(3), torch.randn(3, 44))
    assert out.shape == (3, 16, 2)


def test_the_baseline_learns_and_sees_observations_and_step():
    torch.manual_seed(0)
    network = ConvUNet(2, 4, (16, 32), step_dim=16)
    x, cond = torch.randn(2, 16, 2), torch.randn(2, 4)
    reference = network(x, torch.tensor([3, 3]), cond)
    assert not torch.allclose(network(x, torch.tensor([50, 50]), cond), reference, atol=1e-4)
    assert not torch.allclose(network(x, torch.tensor([3, 3]), -cond), reference, atol=1e-4)


def test_a_ratio_is_taken_turn_by_turn():
    """Turn two fell on a busy machine: both ways took ten times as long, and the ratio does not notice."""
    a, b = summary([[2.0, 2.0], [20.0, 20.0], [2.2, 2.2]]), summary([[1.0, 1.0], [10.0, 10.0], [1.0, 1.0]])
    assert ratio(a, b) == pytest.approx((2.0, 2.0, 2.2))
    assert a.median == pytest.approx(2.2)
    assert a.calls == 6


def test_turns_alternate():
    order = []
    ways = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    interleaved(ways, rounds=2, calls=2, warmup=1)
    assert "".join(order) == "ab" + "aabb" * 2


@pytest.mark.parametrize("path", ["linear", "trigonometric"])
def test_bf16_training_agrees_with_float32(path):
    """Loss within 2 %, gradient within 10 % of its length: bfloat16 keeps eight bits, the difference stays in float32."""
    torch.manual_seed(0)
    network = UNet1d(action_dim=2, cond_dim=8, horizon=16, down_dims=(32, 64), embed_dim=64, time_dim=16)
    torch.nn.init.normal_(network.out.weight, std=0.1)
    flow_map = FlowMap(network, INTERPOLANTS[path]())
    x, cond, null = torch.randn(64, 16, 2), torch.randn(64, 8), torch.zeros(8)

    def step(enabled):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = ISD(guidance_scale=2.0)(flow_map, x, cond, null, torch.Generator().manual_seed(1)).total
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in network.parameters()])

    (plain_loss, plain), (fast_loss, fast) = step(False), step(True)
    assert fast_loss == pytest.approx(plain_loss, rel=0.02)
    assert (fast - plain).norm() / plain.norm() < 0.1


def test_env_writes_its_numbers(tmp_path, capsys):
    assert main(["env", "rounds=2", "calls=5", f"out={tmp_path}/bench_env.json"]) == 0
    result = json.loads((tmp_path / "bench_env.json").read_text())
    name = "gym-pusht / ours"
    rounds = {way: np.array(timing["rounds"]) for way, timing in result["timings_ms"].items()}
    assert result["ratios"][name][0] == pytest.approx(np.median(rounds["gym-pusht"] / rounds["ours"]))
    assert name in (tmp_path / "bench_env.md").read_text()
    assert name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "train"),
        (["train", "size=5m"], "4m, 16m, 63m"),
        (["infer", "sise=4m"], "size"),
        (["infer", "device=cuda"], "finds no GPU"),
    ],
)
def test_bad_input_is_one_clear_line(args, message):
    if "device=cuda" in args and torch.cuda.is_available():
        args = ["infer", "device=cuda", "size=none"]
        message = "4m, 16m, 63m"
    with pytest.raises(InputError, match=message):
        main(args)
