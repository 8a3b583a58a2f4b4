"""The benchmarks measure what they say: equal parameters, ratios per turn, a fast path with the plain path's numbers."""

import json

import numpy as np
import pytest
import torch
import zarr

from isdt_policy import cli
from isdt_policy.lab.bench import baseline, train
from isdt_policy.lab.bench.baseline import ConvUNet, How, ddpm_step, matched, sampler
from isdt_policy.lab.bench.measure import interleaved, ratio, summary
from isdt_policy.lab.bench.settings import Train
from isdt_policy.lab.bench.subject import subject
from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import INTERPOLANTS
from isdt_policy.method.networks.unet1d import UNet1d, UNet1dConfig
from isdt_policy.method.objectives import ISD

pytestmark = pytest.mark.slow


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
    network = UNet1d(2, 8, 16, UNet1dConfig((32, 64), embed_dim=64, time_dim=16))
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
    assert cli.main(["bench", "env", f"task={task}", "rounds=2", "calls=5", f"out={tmp_path}/bench_env.json"]) == 0
    result = json.loads((tmp_path / "bench_env.json").read_text())
    name = f"ours / {theirs}"
    rounds = {way: np.array(timing["rounds"]) for way, timing in result["timings_ms"].items()}
    assert result["ratios"][name][0] == pytest.approx(np.median(rounds["ours"] / rounds[theirs]))
    assert name in (tmp_path / "bench_env.md").read_text()
    assert name in capsys.readouterr().out


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
    assert cli.main(["bench", "data", f"data={source}", parts, *small, f"out={tmp_path}/bench_data.json"]) == 0
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
        (["infer", "device=cuda"], "device='cuda' cannot be used here"),
        (["env", "task=lft"], "task='lft' is not one of"),
        (["eval", "episodes=1.5"], "episodes must be a whole number"),
        (["serve", "threads=-1"], "threads=-1 must be at least 0"),
        (["infer", "out=numbers"], "ends in .json"),
        (["ranks", "batch=5"], "batch is 5, which 2 processes cannot share equally"),
    ],
)
def test_bad_input_is_one_clear_line(args, message, capsys):
    if "device=cuda" in args and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert cli.main(["bench", *args]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert message in error


@pytest.mark.parametrize("images", ["true", "false"])
def test_several_processes_are_timed_against_one(images, tmp_path):
    line = ["bench", "ranks", "rounds=2", "calls=1", "batch=4", "compile=false", f"images={images}"]
    assert cli.main([*line, f"out={tmp_path}/ranks.json"]) == 0
    result = json.loads((tmp_path / "ranks.json").read_text())
    one, two = (result["timings_ms"][name] for name in ("one process", "2 processes"))
    assert (one["calls"], two["calls"]) == (2, 2)
    ratios = np.array(one["rounds"]) / np.array(two["rounds"])
    assert result["ratios"]["one process / 2 processes"][0] == pytest.approx(np.median(ratios))
    assert result["windows per second"]["one process"] == pytest.approx(4e3 / one["median"])
    work = result["processor time of a step, ms"]
    assert 0 < work["one process"] < work["all 2 together"]
    at_most = 2 * work["one process"] / work["all 2 together"]
    assert result["so on cores that are free, times faster at most"] == pytest.approx(at_most)


@pytest.mark.parametrize("bf16", [True, False])
def test_the_baseline_trains_in_the_precision_of_ours(bf16):
    """Its convolutions run in bfloat16 where ours do, its weights stay float32, and its loss falls."""
    ours = subject("4m")
    network = ConvUNet(2, ours.obs_width, (8, 16), step_dim=16)
    seen = set()
    network.down[0][0].first[0].register_forward_hook(lambda *args: seen.add(args[2].dtype))
    step = ddpm_step(network, ours.policy, ours.windows, 64, How("cpu", bf16))
    losses = [step() for _ in range(60)]
    assert seen == {torch.bfloat16 if bf16 else torch.float32}
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


@pytest.mark.parametrize("compile", [True, False])
def test_the_baseline_is_compiled_where_ours_is(compile, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: compiled.append(type(module).__name__) or module)
    monkeypatch.setattr(baseline, "matched", lambda *args: ConvUNet(2, 44, (8, 16), step_dim=16))
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++")
    found = train.measure(Train(compile=compile, rounds=1, calls=1, batch=4))
    assert ("ConvUNet" in compiled) == ("Preconditioned" in compiled) == compile
    assert ("compiled" in found.facts["both networks"]) == compile


def test_the_baseline_adds_noise_as_diffusers_does_and_asks_with_times_that_are_on_the_device():
    """One sampler step is one evaluation at the schedule's own time; no time is copied inside the loop."""
    ours, asked = subject("4m"), []

    def network(x, k, cond):
        asked.append(k)
        return torch.zeros_like(x)

    act = sampler(network, ours, "ddim", 10, "cpu")
    act()
    first = list(asked)
    asked.clear()
    act()
    assert [k.item() for k in asked] == list(range(90, -1, -10))
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(first, asked))  # made once
    scheduler = baseline._scheduler("ddpm")
    x, noise, k = torch.randn(5, 16, 2), torch.randn(5, 16, 2), torch.arange(0, 100, 20)
    signal, level = baseline.noise_levels("cpu")
    torch.testing.assert_close(signal[k] * x + level[k] * noise, scheduler.add_noise(x, noise, k))


def test_a_policy_that_sees_is_timed_against_the_usual_image_network(tmp_path, monkeypatch):
    import dataclasses

    from isdt_policy.deploy.export import export
    from isdt_policy.lab.bench import images
    from isdt_policy.method.networks.mlp import MLPConfig
    from isdt_policy.method.policy import Policy

    def small(policy, path, file):
        """Exporting the UNet takes half a minute."""
        return export(
            Policy(dataclasses.replace(policy.config, network=MLPConfig(8)), normalizer=policy.normalizer), path, file
        )

    monkeypatch.setattr(images, "export", small)
    out = tmp_path / "images.json"
    assert cli.main(["bench", "images", "batch=2", "rounds=1", "calls=1", f"out={out}"]) == 0
    found = json.loads(out.read_text())
    counts = found["parameters"]
    assert counts["DDPM"] == pytest.approx(counts["iSD-T"], rel=0.02)
    assert counts["iSD-T, conv"] < 3e6
    assert {name.split(" / ")[0] for name in found["ratios"]} == {
        "iSD-T step, ResNet18", "iSD-T step, conv", "iSD-T step, conv, two draws",
    }  # fmt: skip
    split = found["one call, of which, ms"]
    assert sum(split.values()) == pytest.approx(found["timings_ms"]["one call, ONNX Runtime"]["median"])
