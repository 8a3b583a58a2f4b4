"""What a GPU must do as a CPU does: `make test-gpu`. `make test` does not collect this file; it has run on no card yet."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import isdt_train_ranks as ranks

from isdt_policy.method.policy import Policy
from isdt_policy.training import launch
from isdt_policy.training.run import build_trainer, train
from isdt_policy.training.trainer import NonFiniteLoss

NAMES = sorted(
    file.name[:-5] for file in (resources.files("isdt_policy.configs") / "objective").iterdir() if file.is_file()
)
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]


def settings(store, run, *more):
    config = ranks.settings(store, run, "training.device=cuda", *more)
    return {**config, "if_exists": "resume"}


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{part}:{name}": value
        for part in ("state/model", "state/optimizer", "policy/model")
        for name, value in load_file(run / "checkpoints/last" / f"{part}.safetensors").items()
    }


@pytest.fixture(scope="module")
def run(tiny_store, tmp_path_factory):
    return train(settings(tiny_store, tmp_path_factory.mktemp("runs") / "run"))


def history(policy, batch, seed=0):
    rng = np.random.default_rng(seed)
    return {
        key: rng.uniform(0, 500, (batch, policy.n_obs_steps, dim)).astype(np.float32)
        for key, dim in policy.config.obs_dims.items()
    }


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_twenty_steps_and_ten_and_ten_are_the_same_bits(tiny_store, tmp_path, amp):
    more = ("training.steps=20", "training.deterministic=true", f"training.amp={amp}", "training.checkpoint_every=10")
    train(settings(tiny_store, tmp_path / "whole", *more))
    trainer, _ = build_trainer(settings(tiny_store, tmp_path / "halves", *more))
    trainer.run.mkdir()
    trainer.fit(until=10)
    other, _ = build_trainer(settings(tiny_store, tmp_path / "halves", *more))
    other.resume()
    other.fit()
    whole, halves = tensors(tmp_path / "whole"), tensors(tmp_path / "halves")
    assert all(torch.equal(value, halves[name]) for name, value in whole.items())


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_starts_as_on_the_cpu(tiny_store, tmp_path, name):
    """Draws come from the CPU, so the first loss is the same to rounding."""
    more = [f"objective={name}", "training.diagonal_steps=0"]
    more += ["policy.interpolant=trigonometric"] if name == "diffusion" else []
    first = []
    for device in ("cpu", "cuda"):
        config = ranks.settings(tiny_store, tmp_path / device, *more, f"training.device={device}")
        trainer, _ = build_trainer(config)
        first.append(trainer.train_step())
        trainer.train_step()
    assert first[1]["loss"] == pytest.approx(first[0]["loss"], rel=1e-3)


@pytest.mark.parametrize("name", ranks.OBJECTIVES)
def test_no_step_waits_for_the_gpu(tiny_store, tmp_path, name):
    trainer, _ = build_trainer(settings(tiny_store, tmp_path / "run", *ranks.OBJECTIVES[name]))
    trainer.train_step()
    trainer.train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_bad_step_skips_itself(tiny_store, tmp_path):
    trainer, _ = build_trainer(settings(tiny_store, tmp_path / "run"))
    trainer.train_step()
    trainer.policy.normalizer.action.scale.fill_(float("nan"))
    before = [p.detach().clone() for p in trainer.parameters]
    with pytest.raises(NonFiniteLoss, match="step 1"):
        trainer.train_step()
    assert all(map(torch.equal, before, trainer.parameters))


def test_compiled_steps_are_eager_ones(tiny_store, tmp_path):
    losses = []
    for compiled in ("false", "true"):
        trainer, _ = build_trainer(settings(tiny_store, tmp_path / compiled, f"training.compile={compiled}"))
        losses.append([trainer.train_step()["loss"] for _ in range(3)])
        assert trainer.compile_note == ("on" if compiled == "true" else "off")
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_policy_answers_as_on_the_cpu(run):
    on_cpu, on_gpu = Policy.from_pretrained(run), Policy.from_pretrained(run).to("cuda")
    obs, seeds = history(on_cpu, 5), np.arange(10).reshape(5, 2)
    for nfe in (1, 2, "euler5", "heun3", "restart2"):
        a, b = (p.predict_action(obs, nfe=nfe, noise_seeds=seeds)["action_pred"] for p in (on_cpu, on_gpu))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=0.5)  # of 512 pixels


def test_a_row_does_not_depend_on_the_rows_beside_it(run):
    policy = Policy.from_pretrained(run).to("cuda")
    obs, seeds = history(policy, 20), np.arange(40).reshape(20, 2)
    whole = policy.predict_action(obs, noise_seeds=seeds)["action_pred"]
    for row in (0, 7, 19):
        alone = {key: value[row : row + 1] for key, value in obs.items()}
        one = policy.predict_action(alone, noise_seeds=seeds[row : row + 1])["action_pred"]
        assert np.array_equal(one[0], whole[row])


def test_an_evaluation_is_the_same_twice(run, tmp_path):
    from isdt_policy.cli import main

    for out in ("a", "b"):
        line = ["eval", f"checkpoint={run}", "device=cuda", "episodes=4", "max_steps=20", "report=false", "n_workers=2"]
        assert main([*line, f"out={tmp_path / out}"]) == 0
    assert main(["eval", "repeat", str(tmp_path / "a")]) == 0


def test_an_export_answers_as_the_gpu_does(run, tmp_path):
    pytest.importorskip("onnxscript")
    from isdt_policy.deploy.export import export
    from isdt_policy.deploy.runner import OnnxPolicy

    policy = Policy.from_pretrained(run).to("cuda")
    obs, seeds = history(policy, 1), np.array([[1, 2]])
    expected = policy.predict_action(obs, noise_seeds=seeds)["action_pred"]
    exported = OnnxPolicy(str(export(policy, tmp_path / "policy.onnx")))
    np.testing.assert_allclose(exported.predict_action(obs, noise_seeds=seeds)["action_pred"], expected, atol=0.5)


def test_two_processes_on_two_gpus_learn_what_one_learns(tiny_store, tmp_path):
    """On one card the second process is refused in one line."""
    one, _ = build_trainer(settings(tiny_store, tmp_path / "one"))
    one.run.mkdir()
    one.fit()
    given = [f"data.path={tiny_store}", f"run_dir={tmp_path / 'two'}", *ranks.SMALL, "training.device=cuda"]
    code = launch.start(2, given)
    if torch.cuda.device_count() < 2:
        assert code == 2
        assert not (tmp_path / "two").exists()
        return
    assert code == 0
    a, b = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-4, atol=1e-5)


def test_a_device_that_is_not_there_is_one_line(run, capsys):
    from isdt_policy.cli import main

    number = torch.cuda.device_count()
    assert main(["eval", f"checkpoint={run}", f"device=cuda:{number}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_process_without_gpus_imports_what_workers_import():
    """Workers that step environments must not take memory on the card."""
    program = "import isdt_policy.eval.workers, sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
