"""What a run does around its steps: devices, locks, interruptions, short episodes, and settings that are refused."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load_file

from isdt_policy import cli
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.envs import task_spec
from isdt_policy.envs.registry import ActionPart, ArraySpec
from isdt_policy.method.device import find_device
from isdt_policy.method.policy import Policy, weights_sha256
from isdt_policy.shared import files
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.provenance import decides_bits
from isdt_policy.training import checkpoint
from isdt_policy.training.compiling import Plan
from isdt_policy.training.config import RunConfig, compose_config, load_config
from isdt_policy.training.data import _action_parts
from isdt_policy.training.interrupt import Interrupted
from isdt_policy.training.run import build_trainer, train, write_run
from isdt_policy.training.trainer import Trainer

pytestmark = pytest.mark.slow

TINY = [
    "network.down_dims=[8,16]", "network.embed_dim=16", "network.time_dim=8", "policy.cond_dim=8", "training.device=cpu",
    "policy.encoder_hidden=[16]", "training.batch_size=16", "training.threads=1", "training.loggers=[]",
]  # fmt: skip


def overrides(store, run, *more):
    return [f"data.path={store}", f"run_dir={run}", *TINY, *more]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints/last/policy/model.safetensors")


class TestInterruption:
    def test_ctrl_c_saves_a_checkpoint_and_says_how_to_go_on(self, tiny_store, tmp_path):
        """And what goes on from there ends with the bits of a run that nobody stopped."""
        settings = ("training.steps=150", "training.checkpoint_every=150", "training.validate_every=150")
        stopped, straight = tmp_path / "stopped", tmp_path / "straight"
        command = [sys.executable, "-m", "isdt_policy", "train", *overrides(tiny_store, stopped, *settings)]
        process = subprocess.Popen([*command, "training.log_every=1"], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while not (stopped / "log.jsonl").exists() or (stopped / "log.jsonl").read_text().count("\n") < 5:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGINT)
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 130
        assert f"Go on with: isdt train resume={stopped}" in error
        assert "Traceback" not in error
        step = json.loads((stopped / "checkpoints/last/state/trainer.json").read_text())["step"]
        assert 5 <= step < 150
        train({**load_config(stopped), "if_exists": "resume"})
        train(compose_config(overrides(tiny_store, straight, *settings, "training.log_every=1")))
        assert all(torch.equal(value, weights(straight)[key]) for key, value in weights(stopped).items())

    def test_sigterm_ends_the_verb_with_its_own_code(self, tiny_store, tmp_path, monkeypatch, capsys):
        step = Trainer.advance

        def asked(trainer):
            os.kill(os.getpid(), signal.SIGTERM)
            return step(trainer)

        monkeypatch.setattr(Trainer, "advance", asked)
        run = tmp_path / "run"
        assert cli.main(["train", *overrides(tiny_store, run, "training.steps=9")]) == 128 + signal.SIGTERM
        assert f"stopped at step 1 of 9; it is saved. Go on with: isdt train resume={run}" in capsys.readouterr().err
        assert (run / "checkpoints/last").resolve().name == "0000001"

    def test_the_step_in_progress_is_finished_and_a_second_signal_does_not_wait(self, tiny_store, tmp_path):
        trainer, _ = build_trainer(compose_config(overrides(tiny_store, tmp_path / "run", "training.steps=9")))
        trainer.run.mkdir()
        steps, before = trainer.advance, signal.getsignal(signal.SIGTERM)

        def once():
            os.kill(os.getpid(), signal.SIGTERM)
            return steps()

        trainer.advance = once
        with pytest.raises(Interrupted, match="stopped at step 1"):
            trainer.fit()
        assert trainer.step == 1

        def twice():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            return steps()

        trainer.advance = twice
        with pytest.raises(KeyboardInterrupt) as stopped:
            trainer.fit()
        assert not isinstance(stopped.value, Interrupted)
        assert trainer.step == 1
        assert signal.getsignal(signal.SIGTERM) == before

    def test_while_something_compiles_it_ends_the_compiler_too_and_that_is_no_fault(self, tiny_store, tmp_path, capsys):
        """A terminal sends Ctrl-C to every program in it. The step was not done, so it is not saved as done."""
        from torch._dynamo.exc import TorchDynamoException

        run = tmp_path / "run"
        trainer, _ = build_trainer(compose_config(overrides(tiny_store, run, "training.steps=9")))
        trainer.run.mkdir()
        trainer.compile_note, steps = "on", trainer._train_step

        def compiler_ends():
            if trainer.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
                raise TorchDynamoException("CppCompileError: C++ compile error")
            return steps()

        trainer._train_step = compiler_ends
        with pytest.raises(Interrupted, match="stopped at step 2"):
            trainer.fit()
        said = capsys.readouterr().err
        assert "stopping after this step" in said
        assert "failed" not in said
        assert (run / "checkpoints/last").resolve().name == "0000002"

    def test_the_last_step_is_the_end_of_the_run_whatever_is_asked(self, tiny_store, tmp_path):
        trainer, _ = build_trainer(compose_config(overrides(tiny_store, tmp_path / "run", "training.steps=1")))
        trainer.run.mkdir()
        step = trainer.train_step

        def asked():
            os.kill(os.getpid(), signal.SIGTERM)
            return step()

        trainer.train_step = asked
        trainer.fit()
        assert (tmp_path / "run/checkpoints/last").resolve().name == "0000001"


def test_two_trainers_do_not_share_a_directory(tiny_store, tmp_path):
    config = compose_config(overrides(tiny_store, tmp_path / "run", "training.steps=1"))
    with files.claim(tmp_path / ".run.lock") as mine:
        assert mine
        with pytest.raises(InputError, match=r"another process is training '.*run'\. Wait"):
            train(config)
        assert not (tmp_path / "run").exists()
    train(config)
    train({**config, "if_exists": "overwrite"})
    assert (tmp_path / "run/checkpoints/last").exists()


def test_config_and_checkpoints_survive_a_power_cut(tiny_store, tmp_path, monkeypatch):
    """Everything is flushed before its name appears, and the names after that."""
    flushed = []
    monkeypatch.setattr("os.fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    run = train(compose_config(overrides(tiny_store, tmp_path / "run", "training.steps=1")))
    names = [name.removeprefix(f"{run.resolve()}/") for name in flushed]
    aside = "checkpoints/.0000001.tmp"
    for name in ("config.json.part", f"{aside}/policy/config.json", f"{aside}/state/optimizer.safetensors", aside):
        assert name in names
    assert names.index("checkpoints") > names.index(aside)


class TestDevice:
    def test_auto_is_a_gpu_if_there_is_one(self, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        assert find_device("auto") == torch.device("cpu")
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        assert find_device("auto") == torch.device("cuda")

    def test_the_report_says_which(self, tiny_store, tmp_path, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        settings = [s for s in overrides(tiny_store, tmp_path / "run") if not s.startswith("training.device")]
        trainer, lines = build_trainer(compose_config(settings))
        assert trainer.device == torch.device("cpu")
        assert any("on cpu (PyTorch finds no CUDA GPU)" in line for line in lines)

    @pytest.mark.parametrize("fused", [False, True])
    def test_the_state_of_the_optimiser_goes_where_its_parameters_are(self, fused):
        """Moments stayed on the CPU, and the fused step on a GPU refused them. The device "meta" stands in for one."""
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        saved = checkpoint._optimizer_tensors(model, optimizer)
        elsewhere = torch.nn.Linear(2, 2, device="meta")
        other = torch.optim.AdamW(elsewhere.parameters())
        other.param_groups[0]["fused"] = fused
        checkpoint._restore_optimizer(elsewhere, other, saved)
        for parameter in elsewhere.parameters():
            devices = {key: value.device.type for key, value in other.state[parameter].items()}
            assert devices == {"exp_avg": "meta", "exp_avg_sq": "meta", "step": "meta" if fused else "cpu"}

    def test_a_run_may_go_on_on_another_device(self, tiny_store, tmp_path):
        config = compose_config(overrides(tiny_store, tmp_path / "run", "training.steps=1"))
        train(config)
        train({**config, "if_exists": "resume", "training": {**config["training"], "device": "auto"}})


def episodes(path, lengths):
    from isdt_policy.datasets.store import DemoWriter

    rng = np.random.default_rng(0)
    with DemoWriter(path, task="pusht") as writer:
        for length in lengths:
            state = rng.uniform(100, 400, (length, 5)).astype(np.float32)
            writer.append({"state": state, "action": state[:, :2]})
    return path


class TestShortEpisodes:
    def test_a_held_out_episode_without_a_window_means_no_validation(self, tmp_path):
        """It was a division by zero at the first validation."""
        store = episodes(tmp_path / "s.zarr", [30, 5, 30])
        settings = overrides(
            store, tmp_path / "run", "training.steps=1", "training.validate_every=1", "data.split_seed=1"
        )
        found = {
            build_trainer(compose_config([*settings, f"data.split_seed={seed}"]))[0].validation for seed in range(9)
        }
        assert None in found
        for seed in range(9):
            run = train(compose_config([*settings, f"data.split_seed={seed}", "if_exists=overwrite"]))
            assert (run / "checkpoints/last").exists()

    def test_what_is_left_out_is_said(self, tmp_path):
        store = episodes(tmp_path / "s.zarr", [30, 5, 30, 7])
        _, lines = build_trainer(compose_config(overrides(store, tmp_path / "run", "data.val_ratio=0")))
        assert "2 training and 0 held-out episodes have fewer than 8 steps" in lines[1]

    def test_only_short_ones_are_refused_with_what_would_help(self, tmp_path, recwarn):
        store = episodes(tmp_path / "s.zarr", [5, 6])
        with pytest.raises(InputError, match=r"the longest has 6 steps, policy.horizon=16 needs 8"):
            build_trainer(compose_config(overrides(store, tmp_path / "run", "data.val_ratio=0")))
        assert not recwarn.list


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["training.device=gpu"], "training.device='gpu' is not one of auto, cpu, cuda"),
        (["training.device=cud"], "Did you mean 'cuda'?"),
        (["training.device=mps"], "training.device='mps' cannot be used here"),
        (["training.lr=-1"], "training.lr must be at least 0, got -1"),
        (["training.betas=[0.9]"], "training.betas must be two numbers"),
        (["training.grad_clip=-1"], "training.grad_clip must be at least 0"),
        (["training.threads=-1"], "training.threads must be at least 0"),
        (["training.weight_decay=nan"], "training.weight_decay must be a finite number"),
        (["training.lr=inf"], "training.lr must be a finite number"),
        (["training.betas=[.9,nan]"], "training.betas must be a finite number"),
        (["policy.sigma_data=nan"], "policy.sigma_data must be a finite number"),
        (["training.threads=10000000000000000000000"], "training.threads must be at most 4096"),
        (["training.seed=-1"], "training.seed must be from 0 to 2**63 - 1, got -1"),
        (["data.split_seed=-1"], "data.split_seed must be from 0"),
        (["data.max_train_episodes=-1"], "data.max_train_episodes must be at least 0"),
        (["training.loggers=[[a]]"], "is not one of auto, "),
        (["network.down_dims=[8,80000000000000000000000]"], "sizes are from 1 to "),
        (["policy.cond_dim=-8"], "cond_dim=-8 must be above 0"),
        (["task=null"], "task=null must be a text, such as task=pusht"),
        (["task=3"], "task=3 must be a text"),
        (["name=[a]"], "must be a text"),
        (["data.obs_keys=agent_pos"], "data.obs_keys='agent_pos' is not of type list"),
        (["images.trunk=convs"], "images.trunk='convs' is not one of conv, resnet. Did you mean 'conv'?"),
        (["images.head=max"], "images.head='max' is not one of keypoints, pool"),
        (["images.crop=1.5"], "images.crop must be above 0 and at most 1, got 1.5"),
        (["steps=100"], "Did you mean 'training.steps'?"),
        (["horizon=8"], "Did you mean 'policy.horizon'?"),
        (["objective.name=isdd"], "objective.name='isdd' is not one of isd, "),
        (["network.name=unet"], "Did you mean 'unet1d'?"),
        (["training.compile=often"], "training.compile='often' is not of type bool or auto (default: False)"),
        (["policy.sigma_data=-1"], "policy.sigma_data must be a number above 0"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line(arguments, expected, tiny_store, tmp_path, capsys):
    run = tmp_path / "run"
    settings = [f"data.path={tiny_store}", f"run_dir={run}", "training.steps=1", *arguments]
    assert cli.main(["train", *settings]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    assert expected in error
    assert not run.exists()


def test_a_gpu_that_is_not_there_is_one_line(tiny_store, tmp_path, capsys, monkeypatch):
    empty = torch.empty

    def absent(*args, device=None, **kwargs):
        if device == torch.device("cuda"):
            raise AssertionError("Torch not compiled with CUDA enabled")
        return empty(*args, device=device, **kwargs)

    monkeypatch.setattr("torch.empty", absent)
    assert cli.main(["train", f"data.path={tiny_store}", f"run_dir={tmp_path / 'run'}", "training.device=cuda"]) == 2
    error = capsys.readouterr().err.strip()
    assert "training.device='cuda' cannot be used here (Torch not compiled with CUDA enabled)" in error
    assert len(error.splitlines()) == 1


def test_what_is_being_compiled_is_said_before_it_takes_minutes(tiny_store, tmp_path, capsys):
    settings = overrides(tiny_store, tmp_path / "run", "training.steps=4", "training.diagonal_steps=2")
    trainer, _ = build_trainer(compose_config(settings))
    trainer.run.mkdir()
    trainer.compile_note, trainer.plan = "on", Plan(True, True)  # said, not done
    trainer.fit(until=1)
    trainer.fit()
    said = [line for line in capsys.readouterr().err.splitlines() if "compiles" in line]
    assert [line.split("first step ")[1].split(" compiles")[0] for line in said] == [
        "of part 'diagonal'",
        "of part 'complete'",
    ]


@pytest.mark.parametrize(
    ("settings", "expected", "told"),
    [
        (["training.compile=auto", "training.steps=2999"], (False, False), "fewer than 3000 steps do not pay for it"),
        (
            ["training.compile=auto", "training.steps=3000", "training.diagonal_steps=2001"],
            (True, False),
            "999 steps of",
        ),
        (["training.compile=auto", "training.steps=3000"], (True, True), ""),
        (["experiment=pusht_demo", "training.steps=100"], (False, False), "fewer than 3000 steps"),
        (["experiment=pusht_demo", "training.steps=100", "training.compile=true"], (True, True), ""),
        (["experiment=pusht_demo"], (True, True), ""),
        (["training.compile=true", "training.steps=2"], (True, True), ""),
        (["training.compile=false", "training.steps=9000"], (False, False), ""),
    ],
)
def test_what_is_compiled_is_what_its_steps_pay_for(settings, expected, told, tiny_store, tmp_path):
    plan = Plan.of(RunConfig.read(compose_config(overrides(tiny_store, tmp_path / "run", *settings))).training)
    assert (plan.network, plan.derivative) == expected
    assert told in plan.why_not


def test_a_derivative_that_is_not_compiled_is_that_of_the_plain_network(tiny_store, tmp_path, monkeypatch):
    """torch.compile cannot be asked inside a derivative."""
    fast = lambda x_t, t, s, cond: x_t  # noqa: E731
    monkeypatch.setattr("torch.compile", lambda function, mode=None: fast)
    settings = ["training.compile=auto", "training.steps=3000", "training.diagonal_steps=2500"]
    trainer, lines = build_trainer(compose_config(overrides(tiny_store, tmp_path / "run", *settings)))
    assert any("compile on (the network; 500 steps of self-distillation do not pay" in line for line in lines)
    assert trainer.flow_map.network is fast
    assert trainer.flow_map.tangent.args == (trainer.policy.flow_map.network,)


def test_the_parts_of_an_experiment_scale_with_its_steps(tiny_store, tmp_path):
    """They were as long as ever: a run of fewer steps than the warm start was nothing else."""

    def parts(*settings):
        training = compose_config(["experiment=pusht_human_nudges", *settings])["training"]
        return [training[name] for name in ("steps", "diagonal_steps", "finish_steps", "endpoint_steps")]

    steps, *planned = parts()
    assert parts(f"training.steps={steps // 10}") == [steps // 10, *[part // 10 for part in planned]]
    assert parts(f"training.steps={2 * steps}", "training.finish_steps=7")[1:] == [2 * planned[0], 7, 2 * planned[2]]
    assert parts("training.steps=1") == [1, 0, 0, 0]
    settings = ("experiment=pusht_demo", f"data.path={tiny_store}", f"run_dir={tmp_path}", "training.compile=false")
    _, lines = build_trainer(compose_config([*settings, "training.steps=10"]))
    assert any("of them the warm start, without self-distillation" in line for line in lines)


def test_parts_of_an_action_share_one_scale_only_where_the_task_names_them(tiny_store, tmp_path):
    """They were inferred from the number of entries: 7 or 10 was an arm, whatever it was."""
    config = RunConfig.read(compose_config(overrides(tiny_store, tmp_path / "run", "training.steps=1")))
    policy = replace(config.policy, action_normalization="gaussian_vectors")
    known, unknown = task_spec("lift_abs"), task_spec("pusht")
    assert _action_parts(policy, known) == (3, 6, 1)
    assert _action_parts(policy, unknown) == (2,)
    hand = replace(known, action_parts=(ActionPart("other", 10),))
    with pytest.raises(InputError, match=r"task 'lift_abs' does not say what they are. Name them in its TaskSpec"):
        _action_parts(policy, hand)
    assert _action_parts(config.policy, hand) == (10,)


class TestMaxMinutes:
    def test_a_run_ends_with_a_checkpoint_and_goes_on_to_the_same_bits(self, tiny_store, tmp_path, monkeypatch, capsys):
        settings = ("training.steps=8", "training.checkpoint_every=8", "training.validate_every=8")
        short, straight = tmp_path / "short", tmp_path / "straight"
        times = iter(range(0, 10_000, 20))  # every look at the clock is 20 s later
        with monkeypatch.context() as patch:
            patch.setattr("isdt_policy.training.trainer.time.monotonic", lambda: float(next(times)))
            assert cli.main(["train", *overrides(tiny_store, short, *settings, "training.max_minutes=1")]) == 0
        error = capsys.readouterr().err
        assert "training.max_minutes=1 is over before step 8; it is saved." in error
        assert f"go on with: isdt train resume={short}" in error
        assert 0 < checkpoint.State.read(short / "checkpoints/last/state/trainer.json").step < 8
        assert cli.main(["train", f"resume={short}"]) == 0
        train(compose_config(overrides(tiny_store, straight, *settings)))
        after, before = weights(short), weights(straight)
        assert all(torch.equal(after[key], before[key]) for key in before)

    def test_a_run_may_go_on_with_another_limit(self, tiny_store, tmp_path):
        first = overrides(tiny_store, tmp_path / "run", "training.steps=2", "training.max_minutes=5")
        train(compose_config(first))
        train(compose_config([*first, "training.max_minutes=0", "if_exists=resume"]))


class TestInit:
    """Fine-tuning begins where another policy is, on data of its own."""

    @pytest.fixture
    def base(self, tiny_store, tmp_path):
        return train(compose_config(overrides(tiny_store, tmp_path / "base", "training.steps=3")))

    @pytest.fixture
    def other_store(self, tmp_path):
        return episodes(tmp_path / "other.zarr", [40, 50, 60, 70])

    def test_weights_normaliser_and_spread_are_the_other_policys(self, base, other_store, tmp_path):
        settings = overrides(other_store, tmp_path / "tuned", "training.steps=2", f"training.init={base}")
        trainer, report = build_trainer(compose_config(settings))
        begun, averaged, expected = trainer.policy.state_dict(), trainer.ema.module.state_dict(), weights(base)
        assert all(torch.equal(begun[key], expected[key]) for key in expected)
        assert all(torch.equal(averaged[key], expected[key]) for key in expected)
        assert trainer.policy.config.sigma_data == Policy.from_pretrained(base).config.sigma_data
        assert any("begins    with the weights of" in line for line in report)

    def test_a_run_remembers_and_goes_on_without_the_other(self, base, other_store, tmp_path):
        settings = overrides(other_store, tmp_path / "tuned", "training.steps=4", f"training.init={base}")
        trainer, _ = build_trainer(compose_config(settings))
        write_run(compose_config(settings), trainer, "")
        trainer.fit(until=2)
        known = json.loads((tmp_path / "tuned/provenance.json").read_text())["init_sha256"]
        assert known == weights_sha256(base)
        straight = train(compose_config([*settings, f"run_dir={tmp_path / 'straight'}"]))
        base.rename(tmp_path / "moved")
        assert cli.main(["train", f"resume={tmp_path / 'tuned'}"]) == 0
        assert all(torch.equal(weights(tmp_path / "tuned")[key], value) for key, value in weights(straight).items())

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ("network.down_dims=[16,16]", "network"),
            ("policy.horizon=8", "policy.horizon"),
            ("data.obs_keys=[agent_pos]", "data.obs_keys"),
            ("policy.action_normalization=gaussian", "policy.action_normalization"),
        ],
    )
    def test_another_shape_is_refused_with_the_setting(self, base, tiny_store, tmp_path, change, named, capsys):
        asked = overrides(tiny_store, tmp_path / "tuned", f"training.init={base}", "policy.n_action_steps=4", change)
        assert cli.main(["train", *asked]) == 2
        error = capsys.readouterr().err
        assert f"this run {named}=" in error
        assert len(error.splitlines()) == 1
        assert not (tmp_path / "tuned").exists()

    def test_nothing_there_is_one_line(self, tiny_store, tmp_path, capsys):
        asked = overrides(tiny_store, tmp_path / "tuned", "training.init=zoo:nothing")
        assert cli.main(["train", *asked]) == 2
        assert "not in the zoo" in capsys.readouterr().err
        assert not (tmp_path / "tuned").exists()


def test_every_setting_is_explained_and_fits(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["train", "experiment=pusht_human_nudges", "--keys"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert max(map(len, told)) <= 80
    settings = compose_config(["experiment=pusht_human_nudges"])
    for section in ("data", "policy", "network", "objective", "training"):
        for key in set(settings[section]) - {"name"}:
            found = [i for i, line in enumerate(told) if line.startswith(f"{section}.{key}=")]
            assert len(found) == 1, f"{section}.{key}"
            assert told[found[0] + 1].startswith("    "), f"{section}.{key} has no explanation"


class TestData:
    def test_a_run_does_not_go_on_with_other_demonstrations(self, tiny_store, tmp_path):
        """An episode more is another split, and one number that differs is another set."""
        store, run = tmp_path / "demos.zarr", tmp_path / "run"
        shutil.copytree(tiny_store, store)
        settings = overrides(store, run, "training.steps=4", "training.checkpoint_every=2", "if_exists=resume")
        trainer, _ = build_trainer(compose_config(settings))
        write_run(compose_config(settings), trainer, "")
        trainer.fit(until=2)
        with DemoWriter(store) as writer:
            writer.append(DemoStore.open(tiny_store).episode(0))
        with pytest.raises(InputError, match="the demonstrations have changed since"):
            train(compose_config(settings))
        shutil.rmtree(store)
        shutil.copytree(tiny_store, store)
        action = zarr.open_group(store, mode="r+")["data/action"]
        first = action[0].copy()
        action[0] = first + 1
        with pytest.raises(InputError, match="the demonstrations have changed since"):
            train(compose_config(settings))
        action[0] = first
        train(compose_config(settings))
        assert (run / "checkpoints/last").resolve().name == "0000004"

    def test_a_run_of_an_earlier_version_goes_on(self, tiny_store, tmp_path):
        run = tmp_path / "run"
        settings = compose_config(overrides(tiny_store, run, "training.steps=2", "if_exists=resume"))
        write_run(settings, build_trainer(settings)[0], "")
        made = json.loads((run / "provenance.json").read_text())
        (run / "provenance.json").write_text(
            json.dumps({k: made[k] for k in made if k not in ("data_sha256", "decides_bits")})
        )
        train(settings)
        assert (run / "checkpoints/last").resolve().name == "0000002"

    def test_another_machine_is_told(self, tiny_store, tmp_path, capsys):
        run = tmp_path / "run"
        settings = compose_config(overrides(tiny_store, run, "training.steps=1", "if_exists=resume"))
        write_run(settings, build_trainer(settings)[0], "")
        made = json.loads((run / "provenance.json").read_text())
        assert made["decides_bits"] == decides_bits()
        made["decides_bits"]["instructions"] = "avx9"
        (run / "provenance.json").write_text(json.dumps(made))
        train(settings)
        assert "note: instructions was 'avx9', is " in capsys.readouterr().err


def observed(**observations):
    """PushT's actions beside other observations."""
    shapes = {key: ArraySpec(shape, "float32", "m", -1.0, 1.0, "x") for key, shape in observations.items()}
    return replace(task_spec("pusht"), id="odd", observations=shapes, default_obs_keys=tuple(shapes), stored_keys=())


class TestObservations:
    @pytest.mark.parametrize(("given", "recorded", "keys", "reason"), [
        ({"agent.pos": (2,)}, {"agent.pos": (2,)}, (), r"'agent.pos' has a '\.'.*rename=agent.pos:agent_pos"),
        ({"position": (2, 1)}, {"position": (2, 1)}, (), r"'position' with shape \(2, 1\), and policies read vectors"),
        ({"position": ()}, {"position": ()}, (), r"'position' with shape \(\), and policies read vectors.*\(1,\)"),
        ({"position": (2,)}, {"position": (3,)}, (), r"holds 'position' with shape \(3,\), task 'odd' gives \(2,\)"),
        ({"position": (2,)}, {"position": (2,)}, ("position", "action"), "'action' is what the policy answers"),
    ])  # fmt: skip
    def test_with_which_a_policy_could_not_act_are_refused_before_anything_is_written(
        self, given, recorded, keys, reason, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("isdt_policy.training.data.task_spec", lambda name: observed(**given))
        with DemoWriter(tmp_path / "odd.zarr") as writer:
            for _ in range(3):
                arrays = {key: np.zeros((30, *shape), np.float32) for key, shape in recorded.items()}
                writer.append({**arrays, "action": np.zeros((30, 2), np.float32)})
        settings = overrides(tmp_path / "odd.zarr", tmp_path / "run", "task=pusht", f"data.obs_keys=[{','.join(keys)}]")
        with pytest.raises(InputError, match=reason):
            train(compose_config(settings))
        assert not (tmp_path / "run").exists()


class TestFullDisk:
    def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one_and_one_line(self, tiny_store, tmp_path, capsys):
        run = tmp_path / "run"
        settings = overrides(tiny_store, run, "training.steps=4", "training.checkpoint_every=2", "if_exists=resume")
        trainer, _ = build_trainer(compose_config(settings))
        write_run(compose_config(settings), trainer, "")
        trainer.fit(until=2)
        size = (run / "checkpoints/last/state/optimizer.safetensors").stat().st_size
        with limited_size(size - 1):
            assert cli.main(["train", *settings]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "0000004' cannot be written" in said
        assert f"isdt train resume={run}" in said
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["0000002", "last", "lowest_error"]
        assert cli.main(["train", *settings]) == 0
        straight = tmp_path / "straight"
        train(compose_config(overrides(tiny_store, straight, "training.steps=4", "training.checkpoint_every=2")))
        assert all(torch.equal(value, weights(straight)[key]) for key, value in weights(run).items())

    def test_a_log_that_cannot_be_written_is_one_line(self, tiny_store, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(Trainer, "validate", lambda self: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
        settings = overrides(tiny_store, tmp_path / "run", "training.steps=1")
        assert cli.main(["train", *settings]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said == (
            "isdt train: a file cannot be written (No space left on device). What was finished before is safe; make room, and "
            "give the same command again."
        )


@contextlib.contextmanager
def limited_size(limit):
    """No file grows beyond so many bytes: what a write then raises is what a quota raises."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestDamagedRun:
    """A run whose files are damaged does not go on, and says which file."""

    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("damaged")
        with DemoWriter(folder / "d.zarr", task="pusht") as writer:
            rng = np.random.default_rng(0)
            for _ in range(3):
                writer.append({
                    "state": rng.uniform(50, 400, (20, 5)), "agent_pos": rng.uniform(50, 400, (20, 2)),
                    "action": rng.uniform(50, 400, (20, 2)).astype(np.float32),
                })  # fmt: skip
        return train(compose_config(overrides(folder / "d.zarr", folder / "run", "training.steps=1")))

    @pytest.mark.parametrize("section", ["images", "training", "network"])
    @pytest.mark.parametrize("value", ["x", True, [1], None])
    def test_one_line_names_a_section_that_is_none(self, run, section, value, tmp_path):
        copy = tmp_path / "run"
        shutil.copytree(run, copy, symlinks=True)
        settings = json.loads((run / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**settings, section: value}))
        with pytest.raises(InputError, match=section) as caught:
            load_config(copy)
        assert len(str(caught.value).splitlines()) == 1

    @pytest.mark.parametrize("text", [b"3", b"[]", b'{"step": []}', b'{"step": "x"}', b"{}", b"\xf4{", b"[" * 10_000])
    @pytest.mark.parametrize("name", ["config.json", "checkpoints/last/state/trainer.json"])
    def test_one_line_names_the_file(self, run, name, text, tmp_path):
        copy = tmp_path / "run"
        shutil.copytree(run, copy, symlinks=True)
        settings = load_config(run)
        (copy / name).write_bytes(text)
        with pytest.raises(InputError, match=Path(name).name) as caught:
            train(
                {**(settings if "trainer" in name else load_config(copy)), "run_dir": str(copy), "if_exists": "resume"}
            )
        assert len(str(caught.value).splitlines()) == 1
