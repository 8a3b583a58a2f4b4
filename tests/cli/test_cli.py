"""The command line: --help that imports nothing heavy, one clear line for every mistake, exit code 2, nothing half-written."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import zarr

from isdt_policy import cli
from isdt_policy.cli import command
from isdt_policy.training.config import compose_config, options

ROOT = Path(__file__).parents[2]


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from isdt_policy.cli import main; main(['--help']); "
        "print([m for m in ('torch', 'numpy', 'hydra') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "isdt train experiment=pusht_demo" in result.stdout


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"isdt {verb}" in text
    assert "example" in text.lower()


def test_help_keeps_to_its_width_and_says_a_text_of_several_options_once():
    @dataclass(frozen=True)
    class Base:
        """Options that are inherited.

        How:
            speed: fast or slow.
        """

        speed: Literal["fast", "slow", "still"] = "fast"

    @dataclass(frozen=True)
    class Count(Base):
        """Count.

        Examples:
            isdt count low=1 high=2        a note that does not fit
            isdt count low=1

        How:
            low, high: bounds of what is counted.
        """

        low: int = 0
        high: int = 9

    text = command.help_text("count", Count, width=40)
    assert all(len(line) <= 40 for line in text.splitlines())
    assert "  # a note that does not fit\n  isdt count low=1 high=2\n  isdt count low=1\n" in text
    how = " ".join(text.split("how\n")[1].split())
    assert how == "low=0 high=9 bounds of what is counted. speed=fast fast or slow. One of fast, slow, still."


def test_an_unknown_verb_names_the_nearest(capsys):
    assert cli.main(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


@pytest.fixture
def broken(tmp_path):
    """Build a Diffusion Policy store and break it."""

    def make(**changes):
        path = tmp_path / "demos.zarr"
        group = zarr.open_group(path, mode="w", zarr_format=2)
        arrays = {
            "data/state": np.full((50, 5), 200, np.float32),
            "data/action": np.full((50, 2), 200, np.float32),
            "meta/episode_ends": np.array([20, 50]),
        }
        for name, value in {**arrays, **changes}.items():
            group.create_array(name, data=value)
        return path

    return make


def nan_action():
    action = np.full((50, 2), 200, np.float32)
    action[33, 1] = np.nan
    return action


BAD_STORES = {
    "unequal lengths": ({"data/action": np.zeros((49, 2), np.float32)}, "49"),
    "ends that do not increase": ({"meta/episode_ends": np.array([30, 20, 50])}, "episode_ends"),
    "ends that overrun": ({"meta/episode_ends": np.array([20, 60])}, "episode_ends"),
    "NaN in actions": ({"data/action": nan_action()}, "33"),
    "actions of another size": ({"data/action": np.random.default_rng(0).random((50, 7), np.float32)}, "7"),
}


@pytest.mark.parametrize("case", BAD_STORES)
def test_a_bad_store_is_one_line_and_nothing_is_written(case, broken, tmp_path, capsys):
    changes, expected = BAD_STORES[case]
    run = tmp_path / "run"
    assert cli.main(["train", "task=pusht", f"data.path={broken(**changes)}", f"run_dir={run}"]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert expected in error
    assert not run.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data.path=/nowhere/demos.zarr"], "/nowhere/demos.zarr"),
        (["data.path={store}", "data.obs_keys=[keypoint_s]"], "keypoints"),
        (["training.sed=3"], "Did you mean 'training.seed'?"),
        (["experiment=pusht_dem"], "Did you mean 'pusht_demo'?"),
        (["objective=isd"], "Did you mean 'isd_t'?"),
        (["training.steps=0"], "training.steps must be at least 1"),
        (["training.lr=fast"], "training.lr='fast' is not of type float"),
        (["objective.weight_powr=1"], "Did you mean 'objective.weight_power'?"),
        (["objective.guidance_scale=1.5"], "Add objective.cond_drop=0.1"),
        (["policy.n_action_steps=16"], "n_action_steps=16 does not fit"),
        (["policy.horizon=18", "policy.n_action_steps=8"], "horizon 18"),
        (["task=pushed"], "Did you mean 'pusht'?"),
        (["if_exists=replace"], "error, resume, overwrite"),
        (["steps"], "not key=value"),
        (["resume=/nowhere/run"], "not a run directory"),
        (["resume=/nowhere/run", "training.lr=1"], "give no others"),
    ],
)
def test_bad_settings_are_one_line_and_nothing_is_written(arguments, expected, tiny_store, tmp_path, capsys):
    filled = [a.format(store=tiny_store) for a in arguments]
    if not any(a.startswith(("data.path", "resume", "steps")) for a in filled):
        filled.append(f"data.path={tiny_store}")
    run = tmp_path / "run"
    if not any(a.startswith("resume") for a in filled):
        filled.append(f"run_dir={run}")
    assert cli.main(["train", *filled]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    assert expected in error
    assert not run.exists()


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes(name):
    """A run is called after its experiment, and after objective and seed where one experiment serves several."""
    config = compose_config([f"experiment={name}", "data.path=my_robot.zarr"])
    named = "my_robot" if name == "own_robot" else name  # that experiment is anybody's
    assert config["name"] == name or re.fullmatch(rf"{named}-\w+-s42", config["name"])
    assert config["run_dir"] == f"outputs/{config['name']}"


def test_every_folder_of_code_is_in_the_package():
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for top in ("isdt_policy", "envs", "datasets", "eval", "configs"):
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            found.add(".".join(parts if parts[0] == "isdt_policy" else ("isdt_policy", *parts)))
    assert found == listed


def test_a_reader_that_has_seen_enough_is_no_error():
    """`isdt --help | head -1`: no traceback."""
    process = subprocess.Popen(
        [sys.executable, "-m", "isdt_policy", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0
