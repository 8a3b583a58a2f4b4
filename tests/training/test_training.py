"""Training: exact resume after kill -9, non-finite losses, what is logged and saved."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from isdt_policy.method.flow_map import with_tangent
from isdt_policy.method.objectives import ISD
from isdt_policy.method.policy import Policy
from isdt_policy.shared import files
from isdt_policy.shared.errors import InputError
from isdt_policy.training import checkpoint
from isdt_policy.training.config import compose_config
from isdt_policy.training.ema import EMA
from isdt_policy.training.phases import learning_rate
from isdt_policy.training.run import build_trainer, train, write_run
from isdt_policy.training.trainer import NonFiniteLoss, TrainingConfig

TINY = [
    "network.down_dims=[8,16]", "network.embed_dim=16", "network.time_dim=8", "policy.cond_dim=8",
    "policy.encoder_hidden=[16]", "training.batch_size=16", "training.threads=1", "training.log_every=1",
    "training.warmup_steps=10", "training.loggers=[]", "data.val_ratio=0.1",
]  # fmt: skip


def overrides(store, run, *more):
    return [f"data.path={store}", f"run_dir={run}", *TINY, *more]


def command(store, run, *more):
    return [sys.executable, "-m", "isdt_policy", "train", *overrides(store, run, *more)]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    last = run / "checkpoints" / "last"
    files = ("policy/model", "state/model", "state/optimizer")
    return {f"{f}:{k}": v for f in files for k, v in load_file(last / f"{f}.safetensors").items()}


def losses(run: Path) -> dict[int, float]:
    text = (run / "log.jsonl").read_text()
    # Of a run that is still writing, whoever reads may see half of the last line.
    records = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return {r["step"]: r["loss"] for r in records if "loss" in r}


@pytest.mark.slow
def test_resume_after_kill_is_bit_identical(tiny_store, tmp_path):
    """200 steps = 100 + kill -9 + 100: weights, EMA, optimiser, and every step's loss (noise, times, data order)."""
    settings = ("training.steps=200", "training.checkpoint_every=100", "training.validate_every=100")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run(command(tiny_store, straight, *settings), check=True, capture_output=True)

    process = subprocess.Popen(command(tiny_store, killed, *settings), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (killed / "log.jsonl").exists() or max(losses(killed), default=0) < 130:
        assert process.poll() is None, "training ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert json.loads((killed / "checkpoints/last/state/trainer.json").read_text())["step"] == 100

    subprocess.run([sys.executable, "-m", "isdt_policy", "train", f"resume={killed}"], check=True, capture_output=True)
    expected, actual = tensors(straight), tensors(killed)
    assert expected.keys() == actual.keys()
    assert [k for k in expected if not torch.equal(expected[k], actual[k])] == []
    assert losses(straight) == losses(killed)
    assert len(losses(killed)) == 200


def test_a_complete_run_is_not_trained_again(tiny_store, tmp_path, capsys):
    config = compose_config(overrides(tiny_store, tmp_path / "run", "training.steps=3"))
    run = train(config)
    before = tensors(run)
    train({**config, "if_exists": "resume"})
    assert "complete, 3 of 3 steps" in capsys.readouterr().err
    assert all(torch.equal(v, before[k]) for k, v in tensors(run).items())
    with pytest.raises(InputError, match="already holds a run"):
        train(config)
    with pytest.raises(InputError, match=r"training.lr=0.001, now training.lr=0.5"):
        train({**config, "if_exists": "resume", "training": {**config["training"], "lr": 0.5}})


def test_a_run_from_before_a_setting_existed_is_the_same_run(tiny_store, tmp_path, capsys):
    config = compose_config(overrides(tiny_store, tmp_path / "run", "training.steps=1"))
    run = train(config)
    saved = json.loads((run / "config.json").read_text())
    assert saved["objective"].pop("off_diagonal_fraction") == 1.0
    (run / "config.json").write_text(json.dumps(saved))
    train({**config, "if_exists": "resume"})
    assert "complete, 1 of 1 steps" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"off_diagonal_fraction=1.0, now objective.off_diagonal_fraction=0.25"):
        train({**config, "if_exists": "resume", "objective": {**config["objective"], "off_diagonal_fraction": 0.25}})


def test_the_saved_policy_acts_like_the_averaged_one_in_memory(tiny_store, tmp_path):
    trainer, _ = build_trainer(compose_config(overrides(tiny_store, tmp_path / "run", "training.steps=5")))
    trainer.run.mkdir()
    trainer.fit()
    loaded = Policy.from_pretrained(tmp_path / "run")
    rng = np.random.default_rng(0)
    obs = {key: rng.uniform(0, 500, (3, 2, dim)) for key, dim in loaded.config.obs_dims.items()}
    seeds = np.array([[1, 0], [2, 0], [3, 0]])
    for steps in (1, 2, "euler3"):
        a = trainer.ema.module.eval().predict_action(obs, nfe=steps, noise_seeds=seeds)
        b = loaded.predict_action(obs, nfe=steps, noise_seeds=seeds)
        assert np.array_equal(a["action_pred"], b["action_pred"])
        assert b["action_pred"].shape == (3, 16, 2)
        assert np.array_equal(b["action"], b["action_pred"][:, 1:9])


def test_the_normaliser_is_fitted_on_training_episodes_only(tiny_store, tmp_path):
    from isdt_policy.datasets.store import DemoStore
    from isdt_policy.datasets.windows import train_val_split

    trainer, _ = build_trainer(compose_config(overrides(tiny_store, tmp_path, "data.val_ratio=0.5")))
    store = DemoStore.open(tiny_store)
    train_episodes, held_out = train_val_split(store.n_episodes, 0.5, 42)
    assert len(train_episodes) == len(held_out) == 6
    starts = np.r_[0, store.episode_ends[:-1]]
    actions = np.concatenate([store.read("action", starts[e], store.episode_ends[e]) for e in train_episodes])
    normalised = trainer.policy.normalizer.action(torch.from_numpy(actions)[:, None])  # the same map at every step
    torch.testing.assert_close(normalised.amin((0, 1)), -torch.ones(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(normalised.amax((0, 1)), torch.ones(2), rtol=0, atol=1e-5)
    assert not np.allclose(store.read("action").min(0), actions.min(0))  # the held-out ones would have changed it


@pytest.mark.parametrize(("term", "index"), [("diagonal", 0), ("off_diagonal", 1)])
def test_a_non_finite_term_stops_the_run_and_is_named(tiny_store, tmp_path, monkeypatch, term, index):
    trainer, _ = build_trainer(compose_config(overrides(tiny_store, tmp_path / "run", "training.steps=9")))
    trainer.run.mkdir()
    original = ISD.__call__

    def poisoned(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        if trainer.step == 4:
            loss.terms[term] = torch.tensor(float("nan"))
        return loss

    monkeypatch.setattr(ISD, "__call__", poisoned)
    with pytest.raises(NonFiniteLoss, match=rf"step 4: loss term '{term}' is nan"):
        trainer.fit()


def test_a_diverging_run_stops_by_itself(tiny_store, tmp_path):
    config = compose_config(overrides(
        tiny_store, tmp_path / "run", "training.lr=1e30", "training.grad_clip=0", "training.warmup_steps=1",
        "objective.weight_power=0", "training.amp=off",
    ))  # fmt: skip
    trainer, _ = build_trainer(config)
    trainer.run.mkdir()
    with pytest.raises(NonFiniteLoss, match=r"step \d+"):
        trainer.fit()


def test_an_interrupted_checkpoint_is_invisible(tiny_store, tmp_path, monkeypatch):
    """A crash while the second checkpoint is being written leaves the first one in place and loadable."""
    config = compose_config(overrides(tiny_store, tmp_path / "run", "training.steps=4", "training.checkpoint_every=2"))
    trainer, _ = build_trainer(config)
    trainer.run.mkdir()
    original = files.flush

    def crash(path, top):
        if trainer.step == 4:
            raise KeyboardInterrupt
        original(path, top)

    monkeypatch.setattr(files, "flush", crash)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert (tmp_path / "run/checkpoints/last").resolve().name == "0000002"
    Policy.from_pretrained(tmp_path / "run")


def test_ema_follows_its_formula():
    online, averaged = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    online.weight.data.fill_(0.0)
    ema = EMA(online, averaged, decay=0.5)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, -1.0, 4.0, 0.5, 3.0, 2.0, 8.0, 1.0, 1.0]):
        online.weight.data.fill_(value)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert averaged.weight.item() == pytest.approx(expected, rel=1e-6)


def test_the_learning_rate_warms_up_and_ends_at_zero(tiny_store, tmp_path):
    trainer, _ = build_trainer(compose_config(overrides(tiny_store, tmp_path, "training.steps=110", "training.lr=1.0")))
    assert trainer.learning_rate(0) == pytest.approx(0.1)
    assert trainer.learning_rate(9) == pytest.approx(1.0)
    assert trainer.learning_rate(60) == pytest.approx(0.5)
    assert trainer.learning_rate(110) == pytest.approx(0.0)


FINISH = [
    "training.steps=30", "training.diagonal_steps=5", "training.finish_steps=6", "training.endpoint_steps=4",
    "objective.endpoint_weight=1",
]  # fmt: skip


@pytest.mark.slow
def test_a_finish_goes_on_from_the_average_and_is_the_same_when_resumed(tiny_store, tmp_path):
    for name, until in (("straight", (30,)), ("stopped", (20, 24, 26, 28, 30))):
        for end in until:
            every = "training.checkpoint_every=1"
            config = compose_config(overrides(tiny_store, tmp_path / name, *FINISH, every))
            trainer, _ = build_trainer(config)
            write_run(config, trainer, "")  # resumes what is there
            trainer.fit(until=end)
    expected, actual = tensors(tmp_path / "straight"), tensors(tmp_path / "stopped")
    assert [k for k in expected if not torch.equal(expected[k], actual[k])] == []
    records = [json.loads(line) for line in (tmp_path / "straight/log.jsonl").read_text().splitlines()]
    terms = {r["step"]: {"off_diagonal", "endpoint"} & set(r) for r in records if "loss" in r}
    assert terms[5] == set()
    assert terms[6] == terms[20] == {"off_diagonal"}
    assert terms[21] == terms[26] == set()
    assert terms[27] == {"endpoint"}


def test_the_learning_rate_of_a_finish_is_its_own():
    config = TrainingConfig(
        steps=300, finish_steps=100, endpoint_steps=50, warmup_steps=20, lr=1e-2, finish_lr=1e-3, endpoint_lr=1e-4
    )
    for first, last, peak in ((0, 149, 1e-2), (150, 249, 1e-3), (250, 299, 1e-4)):
        assert learning_rate(config, first + 19) == pytest.approx(peak)
        assert learning_rate(config, last) < 0.01 * peak


def test_every_window_is_seen_once_an_epoch_in_an_order_of_its_own(tiny_store, tmp_path):
    trainer, _ = build_trainer(compose_config(overrides(tiny_store, tmp_path, "training.batch_size=7")))
    n = trainer.train.n_windows
    stream = np.concatenate([trainer.indices(step) for step in range(2 * n // 7 + 1)])
    first, second = stream[:n], stream[n : 2 * n]
    assert np.array_equal(np.sort(first), np.arange(n))
    assert np.array_equal(np.sort(second), np.arange(n))
    assert not np.array_equal(first, second)


def test_bf16_autocast_stays_close_to_float32(tiny_store, tmp_path):
    """Same weights, same draws: the loss within 2 %, the gradient's direction within 5 % of float32's."""

    def gradient(amp):
        trainer, _ = build_trainer(compose_config(overrides(tiny_store, tmp_path, f"training.amp={amp}")))
        torch.manual_seed(1)
        torch.nn.init.normal_(trainer.policy.network.network.out.weight, std=0.1)
        trainer.config = TrainingConfig(**{**trainer.config.__dict__, "lr": 0.0, "grad_clip": 0.0})
        loss = trainer.train_step()["loss"]
        return loss, torch.cat([p.grad.flatten() for p in trainer.parameters if p.grad is not None])

    (loss32, g32), (loss16, g16) = gradient("off"), gradient("bf16")
    assert abs(loss16 - loss32) / loss32 < 0.02
    assert torch.nn.functional.cosine_similarity(g32, g16, dim=0) > 0.95


def test_a_run_keeps_its_precision_on_a_machine_that_would_choose_another(tiny_store, tmp_path, monkeypatch):
    """amp=auto: bfloat16 where it is multiplied in hardware; a resumed run goes on as it began."""
    config = compose_config(overrides(tiny_store, tmp_path / "run", "training.steps=4", "training.amp=auto"))

    def trainer_where(in_hardware):
        monkeypatch.setattr("isdt_policy.training.trainer.multiplies_bf16", lambda device: in_hardware)
        trainer, _ = build_trainer(config)
        trainer.run.mkdir(exist_ok=True)
        return trainer

    assert trainer_where(False).amp == "off"
    first = trainer_where(True)
    assert first.amp == "bf16"
    first.fit(until=2)
    other = trainer_where(False)
    other.resume()
    assert (other.step, other.amp) == (2, "bf16")
    other.fit()
    first.fit()
    for mine, its in zip(first.parameters, other.parameters, strict=True):
        assert torch.equal(mine, its)


def test_a_run_keeps_the_number_of_threads_that_it_found_free(tiny_store, tmp_path, monkeypatch):
    """threads=0: as many as there are free cores; a run that goes on at a busy moment keeps the number, and so its bits."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    settings = [s for s in overrides(tiny_store, tmp_path / "run", "training.steps=4") if "threads" not in s]
    config, before = compose_config(settings), torch.get_num_threads()
    try:
        monkeypatch.setattr("isdt_policy.training.run.free_cores", lambda most: 2)
        first, lines = build_trainer(config)
        assert any("2 threads" in line for line in lines)
        first.run.mkdir()
        first.fit(until=2)
        monkeypatch.setattr("isdt_policy.training.run.free_cores", lambda most: 1)
        other, lines = build_trainer(config)
        assert any("1 threads (of 2 cores; others are busy)" in line for line in lines)
        other.resume()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_where_compilation_fails_training_goes_on_and_says_why(tiny_store, tmp_path, monkeypatch, capsys):
    """A broken C++ compiler: the run equals one that never asked for compilation."""
    plain, _ = build_trainer(compose_config(overrides(tiny_store, tmp_path / "plain", "training.steps=2")))
    plain.run.mkdir()
    plain.fit()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/bin/false",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    settings = overrides(tiny_store, tmp_path / "broken", "training.steps=2", "training.compile=true")
    broken, _ = build_trainer(compose_config(settings))
    broken.run.mkdir()
    broken.fit()
    assert "so training runs uncompiled" in capsys.readouterr().err
    assert losses(tmp_path / "plain") == losses(tmp_path / "broken")


def test_the_log_is_on_the_disk_before_a_checkpoint_after_which_its_steps_are_not_done_again(
    tiny_store, tmp_path, monkeypatch
):
    order = []
    fsync, save = os.fsync, checkpoint.save

    def flushed(descriptor):
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def saved(*args, **options):
        order.append("checkpoint")
        return save(*args, **options)

    monkeypatch.setattr("os.fsync", flushed)
    monkeypatch.setattr(checkpoint, "save", saved)
    ways = ["training.steps=2", "training.checkpoint_every=1", "training.log_every=1"]
    trainer, _ = build_trainer(compose_config(overrides(tiny_store, tmp_path / "run", *ways)))
    trainer.run.mkdir()
    trainer.fit()
    found = [number for number, event in enumerate(order) if event == "checkpoint"]
    assert len(found) == 2
    assert all(order[number - 1] == "log.jsonl" for number in found)


@pytest.mark.slow
def test_what_a_killed_compilation_left_is_compiled_again(tiny_store, tmp_path):
    """PyTorch keeps what it compiled, and takes a file that was cut short as well.

    In a process of its own: other tests give this one other compilers.
    """
    code = f"""
import math, subprocess, sys, torch
from dataclasses import replace
from pathlib import Path
from isdt_policy.training.config import compose_config
from isdt_policy.training.run import build_trainer
subprocess.run([sys.executable, "-c", "import torch; torch.compile(torch.sin)(torch.ones(3))"], check=True)
(compiled,) = Path({str(tmp_path / "cache")!r}).rglob("*.main.so")
compiled.write_bytes(b"")
small = torch.compile(torch.sin)
trainer, _ = build_trainer(compose_config({overrides(tiny_store, tmp_path / "run", "training.compile=true")!r}))
def network(*args):
    small(torch.ones(3))
    return trainer.policy.flow_map.network(*args)
trainer.flow_map = replace(trainer.policy.flow_map, network=network)
assert math.isfinite(trainer.train_step()["off_diagonal"])
print(trainer.compile_note, compiled.stat().st_size > 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.stdout.split() == ["on", "True"]
    assert "uncompiled" not in done.stderr


@pytest.mark.slow
def test_where_compiling_the_derivative_fails_training_goes_on(tiny_store, tmp_path, capsys):
    """It fails in the middle of a derivative, which stays open: torch has room for one at a time."""
    trainer, _ = build_trainer(compose_config(overrides(tiny_store, tmp_path, "training.compile=true")))

    def fails(x_t, t, s, cond, dx, dt):
        # torch 2.13 refuses a part of a tensor whose tangent is a whole one.
        return torch.compile(partial(with_tangent, lambda x, time, s, cond: x * time.reshape(-1, 1, 1)))(
            x_t, torch.cat([t, t])[: len(t)], s, cond, dx, dt
        )

    trainer.flow_map = replace(trainer.flow_map, tangent=fails)
    assert math.isfinite(trainer.train_step()["off_diagonal"])
    assert "so training runs uncompiled" in capsys.readouterr().err


@pytest.mark.parametrize("mirror", ["false", "true"])
def test_named_masks_choose_the_episodes(mirror, tmp_path):
    """robomimic's filter keys. Episode i is i + 20 steps long, so the number of windows says which were read."""
    from isdt_policy.datasets.store import DemoWriter

    store = tmp_path / "masked.zarr"
    with DemoWriter(store, task="pusht", attributes={"masks": {"train": [0, 2], "valid": [3]}}) as writer:
        for i in range(4):
            state = np.full((20 + i, 5), 100.0 + i, np.float32)
            writer.append({"state": state, "action": state[:, :2]})
    per_episode = {i: (20 + i) - 16 + 1 + 7 + 1 for i in range(4)}  # edge padding of 1 before and 7 after
    twice = 2 if mirror == "true" else 1
    settings = overrides(store, tmp_path / "run", f"data.mirror={mirror}")

    trainer, _ = build_trainer(compose_config([*settings, "data.mask=train", "data.val_mask=valid"]))
    assert trainer.train.n_windows == twice * (per_episode[0] + per_episode[2])
    assert trainer.validation.n_windows == twice * per_episode[3]
    trainer, _ = build_trainer(compose_config([*settings, "data.val_mask=valid"]))
    assert trainer.train.n_windows == twice * sum(per_episode[i] for i in range(3))
    with pytest.raises(InputError, match=r"no episode mask 'trian'. Did you mean 'train'\?"):
        build_trainer(compose_config([*settings, "data.mask=trian"]))


def test_goals_in_hindsight_are_read_and_stay_on_their_side_of_the_split(tmp_path):
    """Episode i holds i + 1 pushes of 20 steps, each followed by a rest of 12, so the windows say which were read."""
    from isdt_policy.datasets.store import DemoWriter

    path = tmp_path / "pushes.zarr"
    with DemoWriter(path, task="pusht", attributes={"masks": {"valid": [1]}}) as writer:
        for i in range(3):
            x = 200 + np.cumsum(np.r_[0, np.tile(np.r_[np.full(20, 2.0), np.zeros(12)], i + 1)])
            state = np.stack([x - 50, np.full_like(x, 256), x, np.full_like(x, 256), np.full_like(x, 0.7)], axis=1)
            writer.append({"state": state.astype(np.float32), "action": state[:, :2].astype(np.float32)})

    def windows(length):
        return length - 16 + 1 + 7 + 1  # edge padding of 1 before and 7 after

    # The first push has 21 states, the later ones their last 32.
    made = {i: windows(1 + 32 * (i + 1)) + windows(21) + i * windows(32) for i in range(3)}
    settings = overrides(path, tmp_path / "run", "data.hindsight=true", "data.mirror=true", "data.val_mask=valid")
    trainer, lines = build_trainer(compose_config(settings))
    assert trainer.train.n_windows == 2 * (made[0] + made[2])
    assert trainer.validation.n_windows == 2 * made[1]
    assert "goals in hindsight" in lines[0]
