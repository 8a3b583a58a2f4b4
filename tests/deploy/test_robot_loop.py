"""examples/robot_loop.py drives an arm in MuJoCo: in process, through a server, from ONNX; and holds it when something fails."""

import re
import runpy
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from isdt_deploy_server import Running
from isdt_deploy_toys import tiny_policy

from isdt_policy import cli
from isdt_policy.datasets.store import DemoStore
from isdt_policy.deploy.loading import load_for_robot
from isdt_policy.shared.errors import InputError

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LOOP, ARM = (runpy.run_path(str(EXAMPLES / f"{name}.py")) for name in ("robot_loop", "mujoco_arm"))
drive, Arm = LOOP["drive"], ARM["Arm"]
TINY = [
    "network.down_dims=[8,16]", "network.embed_dim=16", "network.time_dim=8", "policy.cond_dim=8", "training.device=cpu",
    "policy.encoder_hidden=[16]", "training.batch_size=32", "training.threads=1", "training.loggers=[]",
    "training.steps=150", "training.diagonal_steps=140", "training.warmup_steps=10", "training.lr=1e-2",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A policy from five recorded episodes of the arm, hardly trained."""
    folder = tmp_path_factory.mktemp("arm")
    ARM["demonstrate"](str(folder / "arm.zarr"))
    told = ["data.rate_hz=20", "data.actions=delta", f"data.path={folder / 'arm.zarr'}", f"run_dir={folder / 'run'}"]
    assert cli.main(["train", *told, *TINY]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run):
    path = run.parent / "policy.onnx"
    assert cli.main(["export", f"checkpoint={run}", f"out={path}", "check=4"]) == 0
    return path


class Watched(Arm):
    """Remembers what it was sent, and can be told what to observe."""

    def __init__(self, observe=None):
        super().__init__()
        self.sent, self.holds, self._observe = [], [], observe

    def observe(self):
        return self._observe(len(self.sent), super().observe()) if self._observe else super().observe()

    def command(self, action):
        self.sent.append(action.copy())
        super().command(action)

    def hold(self):
        self.holds.append(time.monotonic())
        super().hold()


def driven(checkpoint, arm, seconds=1.0):
    policy, limits, recorded = load_for_robot(str(checkpoint))
    return drive(policy, arm, limits, recorded.rate_hz, seconds)


def driven_until_moved(checkpoint, arm):
    """Drive for a second, and for some more where a busy machine has held the arm."""
    driven(checkpoint, arm)
    if moved(arm) <= 0.02:
        driven(checkpoint, arm, 5.0)


def moved(arm):
    return np.linalg.norm(arm.hand - Arm().hand)


def check_moved(arm, run):
    recorded = load_for_robot(str(run))[2]
    sent = np.stack(arm.sent)
    assert moved(arm) > 0.02
    assert (sent >= np.array(recorded.low) - 1e-6).all()
    assert (sent <= np.array(recorded.high) + 1e-6).all()
    assert (np.abs(np.diff(sent, axis=0)) <= np.array(recorded.step) * (1 + 1e-5)).all()
    assert arm.holds  # at the end


def test_the_arm_moves_within_the_recorded_limits(run):
    arm = Watched()
    driven_until_moved(run, arm)
    check_moved(arm, run)


def test_through_a_server(run):
    with Running(load_for_robot(str(run))[0]) as server:
        arm = Watched()
        driven_until_moved(server.uri, arm)
    check_moved(arm, run)


def test_from_onnx(run, exported):
    arm = Watched()
    driven_until_moved(exported, arm)
    check_moved(arm, run)


def test_from_onnx_without_torch_gymnasium_and_the_stores(exported, tmp_path):
    code = f"""
import runpy, sys
sys.argv = ["robot_loop.py", {str(exported)!r}, "--robot", {str(EXAMPLES / "mujoco_arm.py:Arm")!r}, "--seconds", "0.3"]
runpy.run_path({str(EXAMPLES / "robot_loop.py")!r}, run_name="__main__")
print([m for m in ("torch", "gymnasium", "zarr", "numba", "hydra") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_robot_s_computer_needs_numpy_and_onnxruntime_alone(exported):
    """What the loop imports of others: in an environment of these two (165 MB), nothing else is there."""
    code = f"""
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"filelock", "tqdm", "jinja2", "torch", "gymnasium", "zarr", "numba", "hydra", "safetensors",
                "jaxtyping", "websockets", "msgpack", "ruckig", "matplotlib"}}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Nothing())
import numpy as np
from isdt_policy.deploy.loading import load_for_robot
from isdt_policy.deploy.runtime import Runtime
from isdt_policy.deploy.safety import Safety
from isdt_policy.deploy.watchdog import Watchdog
policy, limits, recorded = load_for_robot({str(exported)!r})
runtime = Runtime(policy)
runtime.reset()
action = runtime.act({{key: np.zeros(size) for key, size in policy.obs_dims.items()}})
print(Safety(limits, action_dim=policy.action_dim, rate_hz=recorded.rate_hz, max_age_s=1.0)(action, 0.0).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(7,)"


def test_a_robot_s_computer_has_room_for_it():
    """NumPy, onnxruntime and what they need, and this package whole: at most 200 MB on the disk."""
    found, todo = {}, ["numpy", "onnxruntime"]
    while todo:
        if (name := todo.pop()) not in found:
            found[name] = metadata.distribution(name)
            todo += [re.split(r"[^\w-]", line)[0] for line in found[name].requires or () if "extra ==" not in line]
    files = [Path(str(file.locate())) for package in found.values() for file in package.files or ()]
    files += [
        path for room in ("isdt_policy", "envs", "datasets", "eval", "configs") for path in (ROOT / room).rglob("*")
    ]
    size = sum(path.stat().st_size for path in files if path.is_file())
    assert 100e6 < size < 200e6


def test_what_was_seen_and_sent_is_a_store_to_learn_from(run, tmp_path):
    log = tmp_path / "log.zarr"
    script = [sys.executable, str(EXAMPLES / "robot_loop.py"), str(run), "--robot", str(EXAMPLES / "mujoco_arm.py:Arm")]
    done = subprocess.run([*script, "--seconds", "0.5", "--log", str(log)], capture_output=True, text=True, check=True)
    assert "interventions:" in done.stdout
    assert DemoStore.open(log).keys == ("action", "robot0_eef_pos", "robot0_gripper_qpos")
    assert cli.main(["eval", "data", f"checkpoint={run}", f"data={log}", "episodes=all", f"out={tmp_path / 'o'}"]) == 0


class TestFaults:
    @pytest.mark.parametrize("lost", [lambda: None, lambda: (_ for _ in ()).throw(TimeoutError)])
    def test_a_robot_whose_observations_stop_mid_chunk_is_held(self, run, lost):
        """After the age that is allowed every command is zero displacement, while the loop goes on."""
        arm = Watched(lambda step, seen: seen if step < 6 else lost())
        counts = driven(run, arm, 2.0)
        assert counts["stale"] > 0
        assert (np.stack(arm.sent[-counts["stale"] + 10 :])[:, :6] == 0).all()

    def test_a_robot_that_hangs_is_held_by_the_watchdog(self, run):
        hung = []

        def observe(step, seen):
            if step == 6:
                hung.append(time.monotonic())
                time.sleep(1.2)
            return seen

        arm = Watched(observe)
        driven(run, arm, 3.0)
        assert len(arm.sent) == 6  # nothing was sent after it had answered again
        assert 0.3 < arm.holds[0] - hung[0] < 1.1

    def test_a_robot_that_never_answers_is_sent_nothing(self, run):
        arm = Watched(lambda step, seen: None)
        with pytest.raises(InputError, match="the robot does not answer; nothing was sent"):
            driven(run, arm)
        assert not arm.sent

    def test_a_policy_for_another_action_space_is_refused_before_anything_moves(self, run):
        arm = Watched()
        arm.action_dim = 6
        with pytest.raises(InputError, match="limit 'low' has 7 numbers, an action has 6"):
            driven(run, arm)
        assert not arm.sent

    def test_a_robot_without_what_the_policy_reads_is_refused(self, run):
        arm = Watched(lambda step, seen: {"eef_pos": seen["robot0_eef_pos"]})
        with pytest.raises(InputError, match="the policy reads observation 'robot0_eef_pos', given: eef_pos"):
            driven(run, arm)
        assert not arm.sent

    def test_a_policy_that_fails_holds(self, run):
        policy, limits, recorded = load_for_robot(str(run))
        ask, asked = policy.predict_action, []

        def fails(*args, **kwargs):
            asked.append(1)
            if len(asked) > 2:
                raise RuntimeError("the network is gone")
            return ask(*args, **kwargs)

        object.__setattr__(policy, "predict_action", fails)
        arm = Watched()
        counts = drive(policy, arm, limits, recorded.rate_hz, 2.0)
        assert counts["missing"] + counts.get("stale", 0) > 0
        assert (arm.sent[-1][:6] == 0).all()


def test_a_policy_of_a_simulator_says_what_it_is_for(tmp_path):
    tiny_policy().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="was not trained on recordings of a robot"):
        load_for_robot(str(tmp_path))


def test_the_loop_is_short_enough_to_be_copied():
    assert len((EXAMPLES / "robot_loop.py").read_text().splitlines()) < 100
