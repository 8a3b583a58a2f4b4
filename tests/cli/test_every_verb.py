"""Every verb against the usual mistakes: one line on stderr, exit code 2, nothing written; and its help, everywhere.

The verbs are those of `cli.VERBS` and the options those of their dataclasses: a new one is tried here without a word.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isdt_policy import cli
from isdt_policy.cli import command
from isdt_policy.envs.protocol import ObsSpec
from isdt_policy.method.networks.unet1d import UNet1dConfig
from isdt_policy.method.policy import Policy, PolicyConfig

# What a verb needs beside the option that is tried. {store} and the like are files that exist.
NEEDS: dict[str, list[str]] = {
    "eval": ["checkpoint=nowhere"],
    "eval repeat": ["nowhere"],
    "eval curve": ["checkpoint=nowhere"],
    "eval data": ["checkpoint={policy}", "episodes=all"],
    "compare": ["nowhere"],
    "diagnose": ["checkpoint={policy}"],
    "study tasks": ["experiments=[pusht_demo]"],
    "tune": ["training.lr=choice(1e-4,1e-3)"],
    "data fetch": ["pusht_human"],
    "data convert": ["{store}", "out.zarr"],
    "data generate": ["out=out.zarr"],
    "data record": ["out=out.zarr", "checkpoint=nowhere"],
    "data inspect": ["{store}"],
    "data doctor": ["{store}"],
    "data view": ["{store}"],
    "data split": ["{store}", "out.zarr", "val_ratio=0.5"],
    "data merge": ["{store}", "{store}", "out=out.zarr"],
    "export": ["nowhere"],
    "deploy": ["nowhere"],
    "deploy table": ["checkpoint=nowhere"],
    "serve": ["nowhere"],
    "completion": ["bash"],
}
OUTPUTS = {
    "out",
    "video",
    "report",
    "curves",
    "pairs",
    "target",
    "work",
}  # options that name a file or folder to be written


def run(verb: str, args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    code = cli.main([*verb.split(), *args])
    said = capsys.readouterr()
    return code, said.out, said.err


def refused(verb: str, args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused."""
    before = {path for path in Path().rglob("*")}
    code, _, err = run(verb, args, capsys)
    line = f"isdt {verb} {' '.join(args)}: {err}"
    assert code == 2, line
    assert len(err.strip().splitlines()) == 1, line
    assert err.startswith(f"isdt {verb}: "), line
    assert {path for path in Path().rglob("*")} == before, f"{line} wrote something"
    return err


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory):
    """An untrained policy for PushT, saved."""
    policy = Policy(
        PolicyConfig(task="pusht", observations={"state": ObsSpec((5,))}, action_dim=2, network=UNet1dConfig((8, 8)))
    )
    numbers = np.zeros(5), np.ones(5)
    state = dict(zip(("min", "max", "mean", "std"), (-numbers[1], numbers[1], *numbers)))
    policy.normalizer.fit({"state": state, "action": {name: value[:2] for name, value in state.items()}})
    folder = tmp_path_factory.mktemp("policy")
    policy.save_pretrained(folder)
    return folder


@pytest.fixture
def needs(tiny_store, tiny_policy):
    return {verb: [arg.format(store=tiny_store, policy=tiny_policy) for arg in args] for verb, args in NEEDS.items()}


def options(verb: str) -> dict[str, command.Option]:
    return dict(command.Syntax.of(cli.load(verb)).options)


class TestHelp:
    @pytest.mark.parametrize("verb", cli.VERBS)
    @pytest.mark.parametrize(
        "args", [["--help"], ["-h"], ["nonsense", "--help"], ["--help", "nonsense=1"], ["a=1", "b", "-h"]]
    )
    def test_stands_behind_any_argument(self, verb, args, capsys):
        code, out, err = run(verb, args, capsys)
        assert code == 0
        assert out.startswith(f"usage: isdt {verb}")
        assert err == ""

    @pytest.mark.parametrize("verb", cli.VERBS)
    def test_fits_eighty_columns(self, verb, capsys):
        _, out, _ = run(verb, ["--help"], capsys)
        assert [line for line in out.splitlines() if len(line) > 80] == []

    @pytest.mark.parametrize("verb", cli.VERBS)
    def test_explains_every_option_and_no_other(self, verb):
        told = command.options_of(cli.load(verb))
        assert set(told) == {field.name for field in dataclasses.fields(cli.load(verb))}
        assert all(len(text) > 3 for text in told.values())

    @pytest.mark.parametrize("verb", cli.VERBS)
    def test_examples_are_commands_that_it_understands(self, verb):
        """Apart from the files they name."""
        _, sections = command._docstring(cli.load(verb))
        lines = [line for line in sections["Examples"].splitlines() if line.strip().startswith("isdt ")]
        for line in lines:
            words = shlex.split(line.split("   ")[0].split("  ")[0].split(" > ")[0])[1:]
            name, rest = cli._split(words)
            if name == verb:
                command.parse(cli.load(verb), rest)

    def test_is_quick_and_no_verb_loads_torch_for_it(self):
        code = f"import sys; from isdt_policy import cli; [cli.load(v) for v in {list(cli.VERBS)}]; " + (
            "print([m for m in ('torch', 'matplotlib', 'mujoco', 'pymunk', 'onnxruntime') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_of_everything_takes_less_than_a_sixth_of_a_second(self):
        taken = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-m", "isdt_policy", "--help"], capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert min(taken) < 0.15


class TestMistakes:
    @pytest.mark.parametrize("verb", cli.VERBS)
    def test_an_unknown_key(self, verb, needs, capsys):
        err = refused(verb, [*needs.get(verb, []), "nonsense_key=1"], capsys)
        assert "nonsense_key" in err

    @pytest.mark.parametrize("verb", cli.VERBS)
    def test_a_value_of_another_kind(self, verb, needs, capsys):
        tried = 0
        for name, option in options(verb).items():
            typed = option.kind in (int, float, bool) or option.choices
            if typed and not option.many:
                err = refused(verb, [f"{name}=sevenish", *needs.get(verb, [])], capsys)
                assert "sevenish" in err, err
                tried += 1
            if option.kind is int and not option.many:
                assert "1.5" in refused(verb, [f"{name}=1.5", *needs.get(verb, [])], capsys)
        assert tried or verb in UNTYPED

    @pytest.mark.parametrize("verb", cli.VERBS)
    def test_a_file_that_is_not_there(self, verb, needs, capsys):
        for name, args in self.with_path(verb, needs, "nowhere/at_all.zarr"):
            assert "nowhere/at_all" in self.said(verb, args, capsys), name

    @pytest.mark.parametrize("content", ["text", "json", "folder"])
    @pytest.mark.parametrize("verb", cli.VERBS)
    def test_a_file_of_another_format(self, verb, content, needs, capsys):
        other = Path("other.zarr")
        if content == "folder":
            (other / "pictures").mkdir(parents=True)
        else:
            other.write_text("two words" if content == "text" else json.dumps({"format": "something else"}))
        for name, args in self.with_path(verb, needs, "other.zarr"):
            assert "other.zarr" in self.said(verb, args, capsys), name

    def said(self, verb, args, capsys):
        """What refuses a file; for the doctor it is a finding, and its answer."""
        if verb != "data doctor":
            return refused(verb, args, capsys)
        code, out, err = run(verb, args, capsys)
        assert (code, err) == (1, "")
        return out

    def with_path(self, verb, needs, path):
        """(option, arguments) with each option that names an input in turn set to a path."""
        for name, option in options(verb).items():
            if name in OUTPUTS or not option.word.strip("[],.").startswith(("PATH", "RESULT", "FILE")):
                continue
            positional = list(getattr(cli.load(verb), "positional", ()))
            args = list(needs.get(verb, []))
            if name in positional:
                index = positional.index(name)
                args = [a for a in args if not a.startswith(f"{name}=")]
                unnamed = [i for i, a in enumerate(args) if "=" not in a]
                if index < len(unnamed):
                    args[unnamed[index]] = path
                else:
                    args.append(path)
            else:
                args = [*(a for a in args if not a.startswith(f"{name}=")), f"{name}={path}"]
            yield name, args


# Verbs whose options are all words, paths or lists.
UNTYPED = {"study report"}
