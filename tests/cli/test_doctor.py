"""`isdt doctor`: says what is missing for a purpose, with the command that installs it, on machines that lack nearly all of it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from isdt_policy import cli
from isdt_policy.cli import doctor as verb
from isdt_policy.cli.command import values_of
from isdt_policy.envs import doctor, registry
from isdt_policy.shared.extras import EXTRAS

ROOT = Path(__file__).parents[2]


def test_its_packages_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(lines: list[str]) -> set[str]:
        return {re.split(r"[^\w.-]", line)[0] for line in lines} - {"isdt-policy"}

    listed = {extra: names(lines) for extra, lines in project["optional-dependencies"].items()}
    assert {extra: set(packages) for extra, packages in EXTRAS.items()} == {
        extra: listed[extra] for extra in listed if extra not in ("all", "dev")
    }
    assert set(verb.CORE) == names(project["dependencies"])


def test_it_reports_what_works(capsys):
    assert cli.main(["doctor", "pusht"]) == 0
    out = capsys.readouterr().out
    assert "pymunk" in out
    assert "task pusht works (gym-pusht 0.1.8" in out
    assert "mujoco" not in out


def test_it_may_be_asked_for_a_purpose(capsys):
    assert cli.main(["doctor", "for=deploy"]) == 0
    said = capsys.readouterr()
    assert "ruckig" in said.out
    assert "torch " not in said.out
    assert said.err == ""  # it is no old word


def test_what_has_to_be_compiled_is_said_with_what_compiles_it(monkeypatch, capsys):
    monkeypatch.setattr(verb, "installed_version", lambda name: None if name == "robosuite" else "1.0")
    monkeypatch.setattr(verb.shutil, "which", lambda name: None)
    assert cli.main(["doctor", "for=robomimic"]) == 1
    assert "first: sudo apt-get install -y gcc" in capsys.readouterr().out


def test_every_purpose_is_one_that_can_be_asked_for():
    assert set(verb.NEEDS) == set(values_of(verb.Doctor, "purpose") or ())


@pytest.mark.parametrize(
    ("purpose", "absent", "said"),
    [
        ("deploy", {"onnxruntime", "websockets"}, "pip install onnxruntime websockets"),
        ("data", {"h5py", "pyarrow"}, "pip install 'isdt-policy[formats]'"),
        ("training", {"tensorboard", "torch"}, "pip install 'isdt-policy[tensorboard]'"),
        ("training", {"zarr"}, "pip install 'isdt-policy'"),
        ("robomimic", {"robosuite"}, "pip install 'isdt-policy[robosuite]'"),
    ],
)
def test_what_is_missing_is_named_with_what_installs_it(purpose, absent, said, monkeypatch, capsys):
    def pretended(name: str) -> str | None:
        return None if name in absent else "1.0"

    monkeypatch.setattr(verb, "installed_version", pretended)
    monkeypatch.setattr(registry, "installed_version", pretended)
    assert cli.main(["doctor", purpose]) == 1
    out = capsys.readouterr().out
    assert f"to install: {said}\n" in out
    for name in absent:
        assert f"{name} " in out


def test_a_simulator_that_breaks_is_named_and_the_report_goes_on(monkeypatch, capsys):
    def broken(task: str) -> None:
        raise RuntimeError("no display")

    monkeypatch.setattr(doctor, "make", broken)
    assert cli.main(["doctor", "pusht"]) == 1
    assert "task pusht does not run: RuntimeError: no display" in capsys.readouterr().out


@pytest.mark.parametrize("purpose", ["deploy", "everything"])
def test_a_robot_computer_without_torch_and_gymnasium_is_served(purpose):
    """A finder that knows only what such a machine has: the doctor reports, other verbs end in one line."""
    code = (
        "import sys, importlib.abc, importlib.metadata as m\n"
        "GONE = {'torch', 'gymnasium', 'zarr', 'hydra', 'numba'}\n"
        "class Gone(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in GONE: raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name in GONE: raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "from isdt_policy.cli import main\n"
        f"first = main(['doctor', '{purpose}'])\n"
        "print('codes', first, main(['eval', 'checkpoint=x']), main(['train', 'task=pusht']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == "codes 0 2 2"
    assert all("is not installed; isdt doctor" in line for line in done.stderr.splitlines()), done.stderr
    assert ("gymnasium  " in done.stdout) == (purpose == "everything")
