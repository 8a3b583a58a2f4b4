"""Where tensors live, and how a GPU computes."""

from __future__ import annotations

import os

import pytest
import torch

from isdt_policy.cli import main
from isdt_policy.method.device import describe_gpu, find_device, sent, set_arithmetic
from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import INTERPOLANTS
from isdt_policy.shared.errors import InputError
from isdt_policy.training.compiling import compiled
from isdt_policy.training.config import compose_config
from isdt_policy.training.run import LATER
from isdt_policy.training.settings import TrainingConfig


@pytest.fixture
def as_they_were():
    """Settings of this process that a test may change."""
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags
    torch.backends.cudnn.deterministic = False
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.parametrize("on", [False, True])
def test_settings_of_a_gpu_reach_products_and_convolutions_alike(on, as_they_were):
    set_arithmetic(torch.device("cuda"), tf32=on, deterministic=on)
    assert torch.backends.cuda.matmul.allow_tf32 is on
    assert torch.backends.cudnn.allow_tf32 is on
    assert torch.backends.cudnn.deterministic is on
    assert torch.are_deterministic_algorithms_enabled() is on
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is on


def test_the_cpu_computes_as_it_always_does(as_they_were):
    before = torch.get_float32_matmul_precision()
    set_arithmetic(torch.device("cpu"), tf32=True, deterministic=True)
    assert torch.get_float32_matmul_precision() == before
    assert not torch.are_deterministic_algorithms_enabled()
    assert describe_gpu(torch.device("cpu")) == {}


def test_what_is_sent_takes_type_and_device():
    like = torch.empty(1, dtype=torch.float64, device="meta")
    moved = sent(torch.ones(3), like)
    assert (moved.dtype, moved.device.type, tuple(moved.shape)) == (torch.float64, "meta", (3,))


@pytest.mark.parametrize(("device", "mode"), [("cuda", "reduce-overhead"), ("cpu", None)])
def test_graphs_are_of_a_gpu_alone(device, mode, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda module, mode=None: asked.append(mode) or module)
    monkeypatch.setattr("shutil.which", lambda name: name)
    flow_map = FlowMap(torch.nn.Identity(), INTERPOLANTS["linear"]())
    assert compiled(flow_map, torch.device(device), graphs=True)[1] == "on"
    assert compiled(flow_map, torch.device(device))[1] == "on"
    assert asked == [mode, mode, None, None]


def test_graphs_without_compilation_are_refused():
    with pytest.raises(InputError, match=r"add training\.compile=true"):
        TrainingConfig(graphs=True)


def test_runs_from_before_these_settings_are_the_same_runs():
    training = compose_config(["experiment=pusht_demo"])["training"]
    later = ("tf32", "deterministic", "graphs")
    assert [training[key] for key in later] == [False] * 3
    assert [LATER[f"training.{key}"] for key in later] == [False] * 3


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "cdua", "cuda:x", "mps"])
def test_a_device_that_is_not_there_is_refused_with_what_helps(name, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="device="):
        find_device(name)


@pytest.mark.parametrize(
    "line",
    [
        ["eval", "checkpoint={policy}"],
        ["eval", "curve", "checkpoint={policy}"],
        ["data", "record", "checkpoint={policy}", "out={folder}/out.zarr"],
        ["deploy", "checkpoint={policy}", "task=pusht"],
        ["serve", "checkpoint={policy}"],
        ["diagnose", "checkpoint={policy}"],
        ["tune", "experiment=pusht_demo", "training.lr=choice(1e-4,1e-3)", "out={folder}/tune"],
        ["bench", "train"],
        ["bench", "infer"],
        ["bench", "eval"],
        ["bench", "serve"],
        ["eval", "data", "checkpoint={policy}"],
        ["deploy", "table", "checkpoint={policy}", "out={folder}/table"],
        ["train", "experiment=pusht_demo", "run_dir={folder}/run", "training."],
    ],
    ids=lambda line: " ".join(word for word in line if "=" not in word and "." not in word),
)
def test_every_verb_refuses_a_gpu_that_is_not_there_in_one_line(line, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    prefix = "training." if line[-1] == "training." else ""
    words = [word.format(policy="zoo:pusht_human", folder=tmp_path) for word in line if word != "training."]
    assert main([*words, f"{prefix}device=cuda"]) == 2
    said = capsys.readouterr().err
    assert f"{prefix}device='cuda' cannot be used here" in said or "checkpoints" in said
    assert said.count("\n") <= 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("checkpoint", ["policy.onnx", "ws://127.0.0.1:1"])
def test_what_runs_elsewhere_takes_no_device(checkpoint, capsys):
    assert main(["deploy", f"checkpoint={checkpoint}", "device=cuda"]) == 2
    assert "device='cuda': " in capsys.readouterr().err
