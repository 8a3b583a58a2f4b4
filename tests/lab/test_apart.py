"""The lab makes our own tables. Nobody needs it to train, evaluate or deploy."""

import subprocess
import sys
from importlib import import_module

import pytest

from isdt_policy import cli

CODE = """
import importlib, pkgutil, sys

class NoLab:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[:2] == ["isdt_policy", "lab"]:
            raise ModuleNotFoundError(f"the lab is away: {name}")

sys.meta_path.insert(0, NoLab())
import isdt_policy
missing = []
for room in ("training", "eval", "deploy", "method", "datasets", "envs", "shared"):
    package = importlib.import_module(f"isdt_policy.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            if "the lab is away" in str(error):
                missing.append(module.name)
from isdt_policy import cli
for verb in ("train", "eval", "compare", "export", "deploy", "serve", "data inspect", "data convert"):
    assert cli.main([*verb.split(), "--help"]) == 0
print("need the lab:", missing)
"""


def test_training_evaluation_and_deployment_work_without_the_lab():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "need the lab: []"


@pytest.mark.parametrize(
    "verb", [v for v in cli.VERBS if v.split()[0] in ("bench", "study", "tune", "diagnose", "completion")]
)
def test_help_of_the_labs_verbs_loads_nothing_heavy(verb):
    code = (
        f"import sys; from isdt_policy import cli; cli.main([*{verb.split()}, '--help']); "
        "print([m for m in ('torch', 'matplotlib', 'scipy', 'optuna', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", ["bench", "study", "tune", "diagnose", "completion"])
def test_every_key_of_the_labs_verbs_is_explained(module):
    import dataclasses

    from isdt_policy.cli.command import options_of

    found = import_module(f"isdt_policy.cli.{module}")
    verbs = [getattr(found, path.split(":")[1]) for path in cli.VERBS.values() if path.startswith(f"{found.__name__}:")]
    assert verbs
    for verb in verbs:
        assert {f.name for f in dataclasses.fields(verb)} == set(options_of(verb)), verb
