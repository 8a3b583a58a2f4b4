"""Against the real LeRobot, in an environment of its own: `make test-lerobot`."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import lerobot  # noqa: E402
import lerobot_robot_springs  # noqa: E402, F401
import pusht_states  # noqa: E402
from lerobot.datasets.compute_stats import aggregate_stats, compute_episode_stats  # noqa: E402
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402
from lerobot_policy_isdt import IsdtPolicy  # noqa: E402
from lerobot_policy_isdt.convert import to_lerobot  # noqa: E402

from isdt_policy import Protocol, cli, evaluate  # noqa: E402
from isdt_policy.datasets.convert import convert  # noqa: E402
from isdt_policy.datasets.formats import read  # noqa: E402
from isdt_policy.datasets.store import DemoStore, DemoWriter  # noqa: E402
from isdt_policy.method.policy import Policy  # noqa: E402

SMALL = '--policy.settings=["network.down_dims=[16,32]","policy.encoder_hidden=[32]"]'


def run(name, *words, timeout=500):
    """One of LeRobot's own commands, without the hub."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HERE)}
    code = f"import sys, lerobot_robot_springs, lerobot_env_pusht_frames; from lerobot.scripts.{name} import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A store with two cameras, keys of one and two axes, flags and two tasks, and what `to=lerobot` made of it."""
    folder = tmp_path_factory.mktemp("ours")
    rng = np.random.default_rng(0)
    with DemoWriter(folder / "store.zarr", attributes={"action_space": {"rate_hz": 10}}) as writer:
        for steps in (20, 31, 25):
            writer.append({
                "state": rng.normal(size=(steps, 3)).astype(np.float32),
                "points": rng.normal(size=(steps, 9, 2)).astype(np.float32),
                "front": rng.integers(0, 256, (steps, 24, 32, 3), np.uint8),
                "wrist": rng.integers(0, 256, (steps, 16, 16, 3), np.uint8),
                "action": rng.normal(size=(steps, 2)).astype(np.float32),
                "reward": rng.random(steps).astype(np.float32), "success": rng.random(steps) > 0.5,
            })  # fmt: skip
        writer.set_episode_info([{"tasks": ["push"]}, {"tasks": ["pull"]}, {"tasks": ["push"]}])
    convert(folder / "store.zarr", folder / "ours", to="lerobot")
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The same kinds, written by LeRobot itself, with images in tables and with videos."""
    folder = tmp_path_factory.mktemp("theirs")
    for kind in ("image", "video"):
        features = {
            "observation.state": {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]},
            "observation.images.front": {"dtype": kind, "shape": (48, 64, 3), "names": ["height", "width", "channels"]},
            "observation.images.wrist": {"dtype": kind, "shape": (32, 32, 3), "names": ["height", "width", "channels"]},
            "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
            "next.success": {"dtype": "bool", "shape": (1,), "names": None},
            "note": {"dtype": "string", "shape": (1,), "names": None},
        }
        dataset = LeRobotDataset.create(
            "me/x", fps=10, features=features, root=folder / kind, use_videos=kind == "video", robot_type="so101"
        )
        for episode in range(3):
            for step in range(12 + episode):
                dataset.add_frame({
                    "observation.state": np.full(3, step + 100 * episode, np.float32), "action": np.ones(2, np.float32),
                    "observation.images.front": np.full((48, 64, 3), 10 * step + episode, np.uint8),
                    "observation.images.wrist": np.full((32, 32, 3), 200 - 10 * step, np.uint8),
                    "next.success": np.array([step == 11]), "note": f"step {step}",
                    "task": ("pick", "place")[episode % 2],
                })  # fmt: skip
            dataset.save_episode()
        dataset.finalize()
    return folder


class TestDatasets:
    def test_its_class_opens_ours(self, ours):
        dataset, store = LeRobotDataset("me/ours", root=ours / "ours"), DemoStore.open(ours / "store.zarr")
        assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (3, 76, 10)
        row = dataset[25]  # the sixth step of the second episode
        assert row["task"] == "pull"
        np.testing.assert_array_equal(row["observation.state"], store.episode(1)["state"][5])
        np.testing.assert_array_equal(row["observation.points"], store.episode(1)["points"][5].ravel())
        picture = (row["observation.front"] * 255).round().byte().movedim(0, -1)
        np.testing.assert_array_equal(picture, store.episode(1)["front"][5])
        assert row["next.success"].dtype == torch.bool

    def test_statistics_are_those_of_its_own_writer(self, ours):
        dataset, store = LeRobotDataset("me/ours", root=ours / "ours"), DemoStore.open(ours / "store.zarr")
        numbers = {"observation.state": "state", "observation.points": "points", "action": "action"}
        features = {name: dataset.meta.features[name] for name in numbers}
        episodes = [
            {name: store.episode(i)[key].reshape(len(store.episode(i)[key]), -1) for name, key in numbers.items()}
            for i in range(3)
        ]
        expected = aggregate_stats([compute_episode_stats(episode, features) for episode in episodes])
        for name, found in expected.items():
            assert set(dataset.meta.stats[name]) == set(found)
            for kind, value in found.items():
                # Its quantiles come from histograms of 5 000 bins.
                np.testing.assert_allclose(dataset.meta.stats[name][kind], value, atol=0.35 if kind[0] == "q" else 1e-6)
        assert dataset.meta.stats["observation.front"]["mean"].shape == (3, 1, 1)

    def test_its_tools_keep_statistics(self, ours, tmp_path):
        from lerobot.datasets.dataset_tools import delete_episodes, split_dataset

        dataset = LeRobotDataset("me/ours", root=ours / "ours")
        less = delete_episodes(dataset, [1], output_dir=tmp_path / "less", repo_id="me/less")
        state = np.concatenate([DemoStore.open(ours / "store.zarr").episode(i)["state"] for i in (0, 2)])
        stats = json.loads((tmp_path / "less/meta/stats.json").read_text())
        np.testing.assert_allclose(stats["observation.state"]["mean"], state.mean(0), atol=1e-6)
        assert less.num_episodes == 2
        assert {"q01", "q99"} <= set(stats["action"])
        parts = split_dataset(dataset, {"train": [0, 1], "val": [2]}, output_dir=tmp_path / "parts")
        assert all(part.meta.stats["action"] for part in parts.values())
        back = read(tmp_path / "less")  # ours opens what its tools leave
        assert [len(episode["action"]) for episode in back.episodes()] == [20, 25]

    def test_hugging_face_s_library_decodes_the_pictures(self, ours):
        from datasets import load_dataset

        table = load_dataset("parquet", data_files=str(ours / "ours/data/*/*.parquet"), split="train")
        picture = np.asarray(table[3]["observation.front"])
        np.testing.assert_array_equal(picture, DemoStore.open(ours / "store.zarr").episode(0)["front"][3])

    @pytest.mark.parametrize("kind", ["image", "video"])
    def test_ours_opens_what_it_writes(self, kind, theirs, tmp_path):
        recording = read(theirs / kind)
        assert any("not carried over: note" in note for note in recording.notes)
        convert(theirs / kind, tmp_path / "store.zarr")
        store = DemoStore.open(tmp_path / "store.zarr")
        assert store.keys == ("action", "front", "state", "success", "wrist")
        assert [entry["tasks"] for entry in store.episode_info()] == [["pick"], ["place"], ["pick"]]
        for number in range(3):
            episode, steps = store.episode(number), np.arange(12 + number)
            np.testing.assert_array_equal(episode["state"][:, 0], steps + 100 * number)
            np.testing.assert_array_equal(episode["success"].ravel(), steps == 11)
            for key, level in (("front", 10 * steps + number), ("wrist", 200 - 10 * steps)):
                off = 0 if kind == "image" else 6  # what the codec leaves
                np.testing.assert_allclose(episode[key].mean((1, 2, 3)), level, atol=off)

    def test_there_and_back_through_its_class(self, theirs, tmp_path):
        convert(theirs / "image", tmp_path / "store.zarr")
        convert(tmp_path / "store.zarr", tmp_path / "again", to="lerobot")
        first, again = LeRobotDataset("me/x", root=theirs / "image"), LeRobotDataset("me/x", root=tmp_path / "again")
        assert set(again.meta.features) == set(first.meta.features) - {"note"}
        assert again.meta.robot_type == "so101"
        for place in (0, 13, 38):
            for name in again.meta.features:
                assert torch.equal(torch.as_tensor(first[place][name]), torch.as_tensor(again[place][name])), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A policy that lerobot-train made of PushT's states, in a few steps."""
    folder = tmp_path_factory.mktemp("trained")
    pusht_states.write(folder / "store.zarr", episodes=4)
    convert(folder / "store.zarr", folder / "data", to="lerobot")
    said = run(
        "lerobot_train", "--policy.type=isdt", "--dataset.repo_id=me/pusht", f"--dataset.root={folder / 'data'}",
        "--policy.push_to_hub=false", "--policy.device=cpu", "--batch_size=8", "--steps=6", "--save_freq=6",
        "--env_eval_freq=0", "--num_workers=0", f"--output_dir={folder / 'out'}", "--log_freq=2", "--wandb.enable=false",
        "--policy.diagonal_steps=3", SMALL,
    )  # fmt: skip
    return folder / "out/checkpoints/000006/pretrained_model", said


def test_two_commands_bring_a_dataset_of_its_own_to_a_moving_robot(tmp_path, monkeypatch):
    """Five episodes, recorded by its class: isdt train, and the loop of docs/own_robot.md."""
    examples = HERE.parents[2] / "examples"
    arm = runpy.run_path(str(examples / "mujoco_arm.py"))
    arm["demonstrate"](str(tmp_path / "recorded.zarr"))
    names = {"robot0_eef_pos": "observation.state", "robot0_gripper_qpos": "observation.gripper", "action": "action"}
    store = DemoStore.open(tmp_path / "recorded.zarr")
    features = {
        names[key]: {"dtype": "float32", "shape": store.shape(key), "names": [f"{key}_{i}" for i in range(store.shape(key)[0])]}
        for key in names
    }  # fmt: skip
    dataset = LeRobotDataset.create("me/arm", fps=20, features=features, root=tmp_path / "arm")
    for number in range(store.n_episodes):
        episode = store.episode(number)
        for step in range(len(episode["action"])):
            rows = {name: episode[key][step].astype(np.float32) for key, name in names.items()}
            dataset.add_frame({**rows, "task": "lift it"})
        dataset.save_episode()
    dataset.finalize()
    (tmp_path / "arm_here.py").write_text(
        f"import runpy, sys\nimport numpy as np\nBase = runpy.run_path({str(examples / 'mujoco_arm.py')!r})['Arm']\n"
        "class Arm(Base):\n    def observe(self):\n        seen = super().observe()\n"
        "        return {'state': seen['robot0_eef_pos'], 'gripper': seen['robot0_gripper_qpos']}\n"
    )
    monkeypatch.chdir(tmp_path)
    short = [
        "network.down_dims=[16,32]", "policy.encoder_hidden=[32]", "training.steps=60", "training.diagonal_steps=55",
        "training.batch_size=16", "training.loggers=[]", "training.device=cpu", "training.warmup_steps=5", "training.lr=1e-2",
    ]  # fmt: skip
    assert cli.main(["train", "data.path=arm", "data.actions=delta", "name=arm", *short]) == 0
    command = [
        sys.executable,
        str(examples / "robot_loop.py"),
        "outputs/arm",
        "--robot",
        "arm_here.py:Arm",
        "--seconds",
        "1",
    ]
    said = subprocess.run([*command, "--log", "seen.zarr"], capture_output=True, text=True)
    assert "interventions:" in said.stdout, said.stderr
    seen = DemoStore.open("seen.zarr").episode(0)["state"]
    assert abs(seen[-1] - seen[0]).max() > 0.003


class TestPolicy:
    def test_lerobot_train_trains_both_parts(self, trained):
        folder, said = trained
        losses = [float(x) for x in re.findall(r"loss:([\d.]+)", said)]
        assert len(losses) == 3
        assert np.isfinite(losses).all()
        assert "off_diagonal" in said
        policy = IsdtPolicy.from_pretrained(folder)
        assert int(policy.steps) == 6
        online, averaged = policy.policy.state_dict(), policy.averaged.state_dict()
        assert any(not torch.equal(online[name], averaged[name]) for name in online)
        policy.averaged.normalizer.check()  # with the dataset's statistics

    def test_lerobot_eval_runs_it(self, trained, tmp_path):
        run(
            "lerobot_eval", f"--policy.path={trained[0]}", "--policy.device=cpu", "--env.type=pusht",
            "--env.obs_type=environment_state_agent_pos", "--env.episode_length=20", "--eval.n_episodes=2",
            "--eval.batch_size=2", "--eval.use_async_envs=false", f"--output_dir={tmp_path}",
        )  # fmt: skip
        assert json.loads((tmp_path / "eval_info.json").read_text())["overall"]["n_episodes"] == 2

    def test_lerobot_eval_measures_what_isdt_eval_does(self, tmp_path, capsys):
        """zoo:pusht_human in the same ten episodes, with noise of its own in each program."""
        to = [sys.executable, "-m", "lerobot_policy_isdt.convert", "zoo:pusht_human", str(tmp_path / "there")]
        subprocess.run(to, check=True, capture_output=True)
        run(
            "lerobot_eval", f"--policy.path={tmp_path / 'there'}", "--policy.device=cpu", "--env.type=pusht_frames",
            "--eval.n_episodes=10", "--eval.batch_size=5", "--eval.use_async_envs=false", "--seed=5000",
            f"--output_dir={tmp_path / 'eval'}",
        )  # fmt: skip
        theirs = json.loads((tmp_path / "eval/eval_info.json").read_text())["overall"]["pc_success"]
        ours = evaluate(
            Policy.from_pretrained("zoo:pusht_human"), Protocol("pusht"), seeds=range(5000, 5010), arms=[1]
        )[1].success_rate
        with capsys.disabled():
            print(f"\nLeRobot's lerobot-eval of zoo:pusht_human: {theirs:g} % of 10; isdt eval: {100 * ours.value:g} %")
        assert abs(theirs - 100 * ours.value) <= 30
        assert theirs >= 60

    def test_lerobot_rollout_drives_a_robot(self, tmp_path):
        rng = np.random.default_rng(0)
        with DemoWriter(tmp_path / "store.zarr", attributes={"action_space": {"rate_hz": 30}}) as writer:
            for _ in range(3):
                path = np.cumsum(rng.normal(size=(40, 2)), 0).astype(np.float32)
                writer.append({"state": path, "action": path + 1})
        train = [
            "train", f"data.path={tmp_path / 'store.zarr'}", "data.actions=absolute", f"run_dir={tmp_path / 'run'}",
            "network.down_dims=[16,32]", "policy.encoder_hidden=[32]", "training.steps=4", "training.diagonal_steps=2",
            "training.batch_size=8", "training.loggers=[]", "training.device=cpu", "training.warmup_steps=1",
        ]  # fmt: skip
        assert cli.main(train) == 0
        command = [sys.executable, "-m", "lerobot_policy_isdt.convert", str(tmp_path / "run"), str(tmp_path / "there")]
        assert "lerobot-eval" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
        said = run(
            "lerobot_rollout", "--strategy.type=base", f"--policy.path={tmp_path / 'there'}", "--policy.device=cpu",
            "--robot.type=springs", "--task=push", "--duration=3", "--fps=10",
        )  # fmt: skip
        assert int(re.search(r"springs were sent (\d+) commands", said).group(1)) > 5

    def test_a_run_of_ours_answers_the_same_there(self):
        """zoo:pusht_human, through LeRobot's select_action and by itself, from the same seeds."""
        names = {key: f"observation.{key}" for key in Policy.from_pretrained("zoo:pusht_human").obs_keys}
        there, here = to_lerobot("zoo:pusht_human", names), Policy.from_pretrained("zoo:pusht_human")
        rng = np.random.default_rng(0)
        steps = [
            {key: rng.normal(size=(1, spec.size)).astype(np.float32) for key, spec in here.config.observations.items()}
            for _ in range(8)
        ]
        torch.manual_seed(5)
        answers = [there.select_action({names[k]: torch.from_numpy(v) for k, v in step.items()}) for step in steps]
        torch.manual_seed(5)
        expected = []
        for now in (0, 6):  # six actions of a chunk are executed
            history = {k: np.stack([steps[max(now - 1, 0)][k], steps[now][k]], 1) for k in steps[0]}
            seeds = torch.randint(2**62, (1, 2)).numpy()
            expected += list(here.predict_action(history, noise_seeds=seeds)["action"][0])
        np.testing.assert_array_equal(np.concatenate(answers), expected[:8])

    def test_pictures_come_as_bytes_with_their_channels_last(self, ours, tmp_path):
        said = run(
            "lerobot_train", "--policy.type=isdt", "--dataset.repo_id=me/x", f"--dataset.root={ours / 'ours'}",
            "--policy.push_to_hub=false", "--policy.device=cpu", "--batch_size=4", "--steps=2", "--save_freq=2",
            "--env_eval_freq=0", "--num_workers=0", f"--output_dir={tmp_path / 'out'}", "--log_freq=1", "--wandb.enable=false",
            "--policy.diagonal_steps=1", '--policy.settings=["network.down_dims=[16,32]","images.crop=1"]',
        )  # fmt: skip
        assert "loss:" in said
        policy = IsdtPolicy.from_pretrained(tmp_path / "out/checkpoints/000002/pretrained_model")
        assert policy.averaged.config.images["front"].shape == (24, 32, 3)

    def test_what_it_trained_goes_back(self, trained, tmp_path):
        command = [sys.executable, "-m", "lerobot_policy_isdt.convert", str(trained[0]), str(tmp_path / "back")]
        subprocess.run(command, check=True, capture_output=True)
        assert Policy.from_pretrained(tmp_path / "back").obs_keys == ("environment_state", "state")


def test_versions(capsys):
    with capsys.disabled():
        print(f"\nLeRobot {lerobot.__version__}, Python {sys.version.split()[0]}, torch {torch.__version__}")
