"""The benchmarks measure what they say: equal parameters, ratios per turn, a fast path with the plain path's numbers."""

import json

import numpy as np
import pytest
import torch
import zarr

from isdt_policy.lab.bench.baseline import ConvUNet, matched
from isdt_policy.lab.bench.command import main
from isdt_policy.lab.bench.measure import interleaved, ratio, summary
from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import INTERPOLANTS
from isdt_policy.method.networks.unet1d import UNet1d
from isdt_policy.method.objectives import ISD
from isdt_policy.shared.errors import InputError


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


@pytest.mark.parametrize(("task", "theirs"), [("pusht", "gym-pusht"), ("lift", "bare robosuite")])
def test_env_writes_its_numbers(task, theirs, tmp_path, capsys):
    assert main(["env", f"task={task}", "rounds=2", "calls=5", f"out={tmp_path}/bench_env.json"]) == 0
    result = json.loads((tmp_path / "bench_env.json").read_text())
    name = f"ours / {theirs}"
    rounds = {way: np.array(timing["rounds"]) for way, timing in result["timings_ms"].items()}
    assert result["ratios"][name][0] == pytest.approx(np.median(rounds["ours"] / rounds[theirs]))
    assert name in (tmp_path / "bench_env.md").read_text()
    assert name in capsys.readouterr().out
    with pytest.raises(InputError, match="task='lft' is not one of"):
        main(["env", "task=lft"])


def foreign_store(path):
    """As Diffusion Policy writes it, with images as floats."""
    rng = np.random.default_rng(0)
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array(
        "data/img", data=rng.integers(0, 256, (90, 12, 12, 3)).astype(np.float32), chunks=(40, 12, 12, 3)
    )
    group.create_array("data/state", data=rng.random((90, 5), np.float32))
    group.create_array("data/action", data=rng.random((90, 2), np.float32))
    group.create_array("meta/episode_ends", data=np.array([50, 90]))
    return path


def test_data_writes_its_numbers(tmp_path):
    source = foreign_store(tmp_path / "a.zarr")
    small = ["rounds=3", "seconds=0.001", "batch=16", "frames=128"]
    parts = "parts=windows,images,import"
    assert main(["data", f"data={source}", parts, *small, f"out={tmp_path}/bench_data.json"]) == 0
    result = json.loads((tmp_path / "bench_data.json").read_text())
    for name, slower, faster in (
        ("windows: per item / ours", "windows: per item", "windows: ours"),
        ("import: key by key / ours", "import: key by key", "import: ours"),
        (
            "images (noise): per item, in memory / ours, mapped",
            "images (noise): per item, in memory",
            "images (noise): ours, mapped",
        ),
    ):
        rounds = {way: np.array(timing["rounds"]) for way, timing in result["timings_ms"].items()}
        assert result["ratios"][name][0] == pytest.approx(np.median(rounds[slower] / rounds[faster]))
        assert name in (tmp_path / "bench_data.md").read_text()
    assert result["keys"] == "state"
    assert result["bytes per batch of windows"] == 16 * (
        4 * (2 * 5 + 16 * 2) + 16
    )  # float32, and a byte of is_pad a step
    assert result["windows"] == 90 + 2 * (1 + 7 - 15)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "bench_data.json", "bench_data.md"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["data", "parts=window"], "Did you mean 'windows'?"),
        (["data", "rounds=0"], "rounds=0"),
        (["data", "parts=import"], "a store of ours"),
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
