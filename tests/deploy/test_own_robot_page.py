"""The commands of docs/own_robot.md, from recordings to a moving arm: people's recordings, and their twin made by the arm."""

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest

from isdt_policy import cli
from isdt_policy.datasets.store import DemoStore

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RECORDING = "lift_ph_low_dim.hdf5"
# Training is cut short; everything else runs as it is printed.
SHORT = [
    "network.down_dims=[8,16]", "network.embed_dim=16", "network.time_dim=8", "policy.cond_dim=8", "training.device=cpu",
    "policy.encoder_hidden=[16]", "training.batch_size=16", "training.threads=1", "training.loggers=[]", "training.lr=1e-2",
    "training.steps=60", "training.diagonal_steps=55", "training.warmup_steps=5",
]  # fmt: skip


def lines():
    page = (ROOT / "docs/own_robot.md").read_text()
    return [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]


def made(folder):
    """Recordings of the arm itself, in the same format and with the same keys."""
    arm = runpy.run_path(str(ROOT / "examples/mujoco_arm.py"))
    arm["demonstrate"](str(folder / "arm.zarr"))
    assert cli.main(["data", "convert", str(folder / "arm.zarr"), str(folder / RECORDING)]) == 0


def as_lerobot(folder):
    """The same recordings as others leave them in LeRobot's format: with their rate, and without what only we write."""
    for words in (
        [RECORDING, "before.zarr"], ["describe", "before.zarr", "rate_hz=20"], ["before.zarr", "my_lerobot_dataset", "to=lerobot"],
    ):  # fmt: skip
        assert cli.main(["data", *(() if words[0] == "describe" else ("convert",)), *words]) == 0
    shutil.rmtree("before.zarr")
    Path("my_lerobot_dataset/meta/isdt.json").unlink()


def follow_the_page(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    as_lerobot(folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    for line in lines():
        words = shlex.split(line)
        if words[0] == "isdt":
            short = SHORT if words[1] == "train" else ["check=4"] if words[1] == "export" else []
            allowed = (0, 1) if words[1:3] == ["data", "doctor"] else (0,)  # two episodes may well have findings
            assert cli.main([*words[1:], *short]) in allowed, line
        else:
            assert words[0] == "python", line
            seconds = words.index("--seconds") + 1
            monkeypatch.setattr("sys.argv", [*words[1:seconds], "1.0", *words[seconds + 1 :]])
            runpy.run_path(words[1], run_name="__main__")
            assert "interventions:" in capsys.readouterr().out, line
    seen = DemoStore.open("today.zarr").episode(0)
    assert abs(seen["robot0_eef_pos"][-1] - seen["robot0_eef_pos"][0]).max() > 0.003
    assert Path("outputs/my_robot/eval_data/held_out.html").exists()


def test_people_s_recordings_move_the_arm(real_data, tmp_path, monkeypatch, capsys):
    shutil.copy(real_data / "robomimic_samples" / RECORDING, tmp_path)
    follow_the_page(tmp_path, monkeypatch, capsys)


def test_the_arm_s_own_recordings_move_it(tmp_path, monkeypatch, capsys):
    made(tmp_path)
    follow_the_page(tmp_path, monkeypatch, capsys)


def test_what_is_asked_for_is_what_the_page_says(tmp_path, monkeypatch, capsys):
    made(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "convert", RECORDING, "my_robot.zarr"]) == 0
    capsys.readouterr()
    assert cli.main(["train", "data.path=my_robot.zarr"]) == 2
    asked = " ".join((ROOT / "docs/own_robot.md").read_text().split("```text\n")[1].split("```")[0].split())
    assert capsys.readouterr().err.strip() == asked
    # Given as it is, a recording is converted first: once.
    for _ in range(2):
        assert cli.main(["train", f"data.path={RECORDING}"]) == 2
        told = capsys.readouterr()
        assert "training on lift_ph_low_dim.zarr, converted from lift_ph_low_dim.hdf5" in told.out
        assert told.err.strip().splitlines()[-1] == asked.replace("my_robot.zarr", "lift_ph_low_dim.zarr")
    Path("other").mkdir()
    assert cli.main(["data", "convert", "my_robot.zarr", "other/lift_ph_low_dim.hdf5"]) == 0
    assert cli.main(["train", "data.path=other/lift_ph_low_dim.hdf5"]) == 2
    assert "'lift_ph_low_dim.zarr' exists and was not made of 'other/lift_ph" in capsys.readouterr().err


def test_a_setting_that_is_wrong_is_said_before_anything_is_converted(tmp_path, monkeypatch, capsys):
    made(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert cli.main(["train", f"data.path={RECORDING}", "training.stepps=3"]) == 2
    assert "training.steps" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
