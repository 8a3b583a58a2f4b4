"""What a GPU must do as a CPU does: `make test-gpu`. `make test` runs the same on the CPU; no card has run it yet."""

from __future__ import annotations

import asyncio
import contextlib
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

from isdt_policy.deploy.freezing import PrefixPolicy
from isdt_policy.method.device import set_arithmetic
from isdt_policy.method.policy import Policy
from isdt_policy.training import launch, memory, readings
from isdt_policy.training.run import build_trainer, train
from isdt_policy.training.trainer import NonFiniteLoss

NAMES = sorted(
    file.name[:-5] for file in (resources.files("isdt_policy.configs") / "objective").iterdir() if file.is_file()
)
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def on_both(first, *names):
    """All of them on a GPU; on the CPU, where other tests have them, one to see that the test runs."""
    return [(first, "cpu"), *(pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in (first, *names))]


@pytest.fixture(scope="module", params=["cpu", CUDA])
def device(request):
    return request.param


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    set_arithmetic(torch.device("cuda"), tf32=False, deterministic=False)


def settings(store, run, device, *more):
    config = ranks.settings(store, run, f"training.device={device}", *more)
    return {**config, "if_exists": "resume"}


def trainer_of(*given):
    trainer, _ = build_trainer(settings(*given))
    if trainer.device.type == "cpu":  # in a GPU's place
        trainer.readings = readings.Readings(readings.BEHIND)
    return trainer


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{part}:{name}": value
        for part in ("state/model", "state/optimizer", "policy/model")
        for name, value in load_file(run / "checkpoints/last" / f"{part}.safetensors").items()
    }


@pytest.fixture(scope="module")
def run(tiny_store, tmp_path_factory, device):
    return train(settings(tiny_store, tmp_path_factory.mktemp("runs") / "run", device))


def history(policy, batch, seed=0):
    rng = np.random.default_rng(seed)
    return {
        key: rng.uniform(0, 500, (batch, policy.n_obs_steps, dim)).astype(np.float32)
        for key, dim in policy.config.obs_dims.items()
    }


def assert_same(mine, its, device):
    """To the last bit where both ran on the CPU."""
    if device == "cpu":
        assert np.array_equal(mine, its)
    np.testing.assert_allclose(mine, its, rtol=1e-3, atol=0.5)  # of 512 pixels


# Training.


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_twenty_steps_and_ten_and_ten_are_the_same_bits(tiny_store, tmp_path, device, amp):
    more = ("training.steps=20", "training.deterministic=true", f"training.amp={amp}", "training.checkpoint_every=10")
    train(settings(tiny_store, tmp_path / "whole", device, *more))
    trainer = trainer_of(tiny_store, tmp_path / "halves", device, *more)
    trainer.run.mkdir()
    trainer.fit(until=10)
    other = trainer_of(tiny_store, tmp_path / "halves", device, *more)
    other.resume()
    other.fit()
    whole, halves = tensors(tmp_path / "whole"), tensors(tmp_path / "halves")
    assert all(torch.equal(value, halves[name]) for name, value in whole.items())


@pytest.mark.parametrize(("name", "device"), on_both("isd_t", *(name for name in NAMES if name != "isd_t")))
def test_every_objective_starts_as_on_the_cpu(tiny_store, tmp_path, name, device):
    """Draws come from the CPU, so the first loss is the same to rounding."""
    more = [f"objective={name}", "training.diagonal_steps=0"]
    more += ["policy.interpolant=trigonometric"] if name == "diffusion" else []
    first = []
    for place in ("cpu", device):
        trainer = trainer_of(tiny_store, tmp_path / place, place, *more)
        first.append(trainer.train_step())
        trainer.train_step()
    assert first[1]["loss"] == pytest.approx(first[0]["loss"], rel=1e-3)


@contextlib.contextmanager
def nobody_waits(device):
    if device == "cpu":
        with ranks.NoNumberIsRead():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ranks.OBJECTIVES)
def test_no_step_waits_for_the_gpu(tiny_store, tmp_path, device, name):
    trainer = trainer_of(tiny_store, tmp_path / "run", device, *ranks.OBJECTIVES[name])
    trainer.train_step()
    trainer.train_step()
    with nobody_waits(device):
        trainer.advance()


def test_a_bad_step_skips_itself(tiny_store, tmp_path, device):
    trainer = trainer_of(tiny_store, tmp_path / "run", device)
    trainer.train_step()
    trainer.policy.normalizer.action.scale.fill_(float("nan"))
    before = [p.detach().clone() for p in trainer.parameters]
    with pytest.raises(NonFiniteLoss, match="step 1"):
        trainer.train_step()
    assert all(map(torch.equal, before, trainer.parameters))


@pytest.fixture
def quick_compiler(monkeypatch):
    """On a CPU writing and compiling C++ takes minutes, and other tests do it."""
    real = torch.compile

    def use(device):
        if device == "cpu":
            monkeypatch.setattr(torch, "compile", lambda module, mode=None: real(module, backend="aot_eager"))

    return use


def test_compiled_steps_are_eager_ones(tiny_store, tmp_path, device, quick_compiler):
    quick_compiler(device)
    losses = []
    for compiled in ("false", "true"):
        trainer = trainer_of(tiny_store, tmp_path / compiled, device, f"training.compile={compiled}")
        losses.append([trainer.train_step()["loss"] for _ in range(3)])
        assert trainer.compile_note == ("on" if compiled == "true" else "off")
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize(("name", "device"), on_both(*ranks.OBJECTIVES))
def test_steps_of_graphs_are_compiled_ones(tiny_store, tmp_path, name, device, quick_compiler):
    """Where this fails, training.graphs does not hold for that objective."""
    quick_compiler(device)
    more = [*ranks.OBJECTIVES[name], "training.compile=true"]
    losses = []
    for graphs in ("false", "true"):
        trainer = trainer_of(tiny_store, tmp_path / graphs, device, *more, f"training.graphs={graphs}")
        losses.append([trainer.train_step()["loss"] for _ in range(4)])
        assert trainer.compile_note == "on"
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_step_takes_the_memory_that_was_foreseen(tiny_store, tmp_path, device):
    trainer = trainer_of(tiny_store, tmp_path / "run", device, "training.batch_size=2048", "training.diagonal_steps=0")
    need = memory.need_of(trainer, trainer.parameters)
    if device == "cpu":
        assert memory.free_bytes(trainer.device) is None
        held = memory._peak(lambda: trainer.train_step()) + sum(2 * p.nbytes for p in trainer.parameters)
    else:
        assert memory.free_bytes(trainer.device) > 0
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        trainer.train_step()
        held = torch.cuda.max_memory_allocated() - before
    assert need.of(2048) == pytest.approx(held, rel=0.3)


def test_two_processes_on_two_gpus_learn_what_one_learns(tiny_store, tmp_path, device):
    """On one card the second process is refused in one line."""
    one = trainer_of(tiny_store, tmp_path / "one", device)
    one.run.mkdir()
    one.fit()
    given = [f"data.path={tiny_store}", f"run_dir={tmp_path / 'two'}", *ranks.SMALL, f"training.device={device}"]
    code = launch.start(2, given)
    if device == "cuda" and torch.cuda.device_count() < 2:
        assert code == 2
        assert not (tmp_path / "two").exists()
        return
    assert code == 0
    a, b = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-3, atol=1e-4)


# Acting.


def test_a_policy_answers_as_on_the_cpu(run, device):
    on_cpu, there = Policy.from_pretrained(run), Policy.from_pretrained(run).to(device)
    obs, seeds = history(on_cpu, 5), np.arange(10).reshape(5, 2)
    for nfe in (1, 2, "euler5", "heun3", "restart2"):
        a, b = (p.predict_action(obs, nfe=nfe, noise_seeds=seeds)["action_pred"] for p in (on_cpu, there))
        assert_same(a, b, device)
    assert there.computes_on == ("cpu" if device == "cpu" else torch.cuda.get_device_name())


@pytest.mark.parametrize("rows", [1, 16])
def test_a_frozen_policy_answers_as_it_did_before(run, device, rows):
    """One launch for all that it does; a later call does not write over an earlier answer."""
    policy = Policy.from_pretrained(run, rows).to(device)
    frozen = policy.freeze(1, 2, "euler5", "heun3", rows=rows)
    asked = [(history(policy, 3, seed), np.array([[seed, i] for i in range(3)])) for seed in (1, 2, 3)]
    for nfe in (1, 2, "euler5", "heun3", "restart2"):
        answers = [frozen.predict_action(obs, nfe=nfe, noise_seeds=seeds)["action_pred"] for obs, seeds in asked]
        for answer, (obs, seeds) in zip(answers, asked):
            assert_same(answer, policy.predict_action(obs, nfe=nfe, noise_seeds=seeds)["action_pred"], device)
    with torch.no_grad():
        policy.network.network.out.bias += 1
    obs, seeds = asked[0]
    a, b = (p.predict_action(obs, noise_seeds=seeds)["action_pred"] for p in (frozen, policy))
    assert_same(a, b, device)


def test_a_frozen_policy_continues_chunks_as_it_did_before(run, device):
    policy = PrefixPolicy(Policy.from_pretrained(run).to(device))
    frozen, obs, seeds = policy.freeze(2), history(policy.policy, 1), np.array([[1, 2]])
    known, weight = np.full((1, policy.horizon, 2), 250.0, np.float32), np.zeros((1, policy.horizon), np.float32)
    weight[:, :4] = 1
    a, b = (p.continue_action(obs, known, weight, nfe=2, noise_seeds=seeds)["action_pred"] for p in (policy, frozen))
    assert_same(a, b, device)
    assert np.array_equal(b[:, :4], known[:, :4])


def test_a_row_does_not_depend_on_the_rows_beside_it(run, device):
    policy = Policy.from_pretrained(run).to(device)
    obs, seeds = history(policy, 20), np.arange(40).reshape(20, 2)
    whole = policy.predict_action(obs, noise_seeds=seeds)["action_pred"]
    for row in (0, 7, 19):
        alone = {key: value[row : row + 1] for key, value in obs.items()}
        one = policy.predict_action(alone, noise_seeds=seeds[row : row + 1])["action_pred"]
        assert np.array_equal(one[0], whole[row])


def test_an_evaluation_is_the_same_twice(run, tmp_path, device):
    from isdt_policy.cli import main

    line = [
        "eval",
        f"checkpoint={run}",
        f"device={device}",
        "episodes=4",
        "max_steps=20",
        "report=false",
        "n_workers=2",
    ]
    assert main([*line, f"out={tmp_path / 'a'}"]) == 0
    assert main(["eval", "repeat", str(tmp_path / "a")]) == 0


def test_an_export_answers_as_the_policy_does(run, tmp_path, device):
    pytest.importorskip("onnxscript")
    from isdt_policy.deploy.export import export
    from isdt_policy.deploy.runner import OnnxPolicy

    policy = Policy.from_pretrained(run).to(device)
    obs, seeds = history(policy, 1), np.array([[1, 2]])
    expected = policy.predict_action(obs, noise_seeds=seeds)["action_pred"]
    exported = OnnxPolicy(str(export(policy, tmp_path / "policy.onnx")))
    np.testing.assert_allclose(exported.predict_action(obs, noise_seeds=seeds)["action_pred"], expected, atol=0.5)


def test_a_server_answers_as_the_policy_does(run, device):
    """Asked from a thread of its own, by a client that sends one row."""
    pytest.importorskip("websockets")
    pytest.importorskip("msgpack")
    from isdt_policy.deploy.client import PolicyClient
    from isdt_policy.deploy.server import PolicyServer, Serving

    policy = Policy.from_pretrained(run).to(device)
    obs, seeds = history(policy, 1), np.array([[1, 2]])

    async def ask():
        async with PolicyServer(policy, Serving(port=0)) as server:
            with await asyncio.to_thread(PolicyClient, f"ws://127.0.0.1:{server.port}") as client:
                return await asyncio.to_thread(client.predict_action, obs, noise_seeds=seeds)

    answer = asyncio.run(ask())["action_pred"]
    assert_same(answer, policy.predict_action(obs, noise_seeds=seeds)["action_pred"], device)


def test_the_control_loop_runs(run, device, tmp_path):
    from isdt_policy.cli import main

    line = ["deploy", f"checkpoint={run}", f"device={device}", "seconds=1", f"out={tmp_path / 'numbers.json'}"]
    assert main(line) == 0


def test_a_device_that_is_not_there_is_one_line(run, capsys):
    from isdt_policy.cli import main

    number = torch.cuda.device_count()
    capsys.readouterr()
    assert main(["eval", f"checkpoint={run}", f"device=cuda:{number}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_process_that_steps_environments_leaves_the_card_alone():
    """It does not even load torch, so it makes no CUDA context, which would take some hundred MB of the card."""
    program = (
        "import isdt_policy.eval.workers, isdt_policy.eval.ray_backend, sys; from isdt_policy.envs import make; "
        "make('pusht').reset(seed=0); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
