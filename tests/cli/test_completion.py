"""`isdt completion`: the scripts know every verb and key, and shells complete by them."""

import dataclasses
import shutil
import subprocess

import pytest

from isdt_policy import cli
from isdt_policy.cli.completion import script

pytestmark = pytest.mark.slow

VERBS = {name: cli.load(name) for name in cli.VERBS if dataclasses.is_dataclass(cli.load(name))}


def bash(line, breaks=True):
    """What bash offers at the end of a line."""
    text = f"""{script("bash")}
{"" if breaks else "COMP_WORDBREAKS=' '"}
COMP_LINE={line!r} COMP_POINT={len(line)}
_isdt
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "--norc", "-c", text], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("isdt tu", ["tune"]),
        ("isdt bench tr", ["train"]),
        ("isdt bench train gui", ["guidance_scale="]),
        ("isdt bench train size=1", ["16m"]),
        ("isdt bench train size=4m compile=", ["true", "false"]),
        ("isdt bench data parts=[im", ["[images]", "[import]"]),
        ("isdt tune look_ep", ["look_episodes="]),
        ("isdt tune experiment=pusht_d", ["pusht_demo"]),
        ("isdt tune objective=isd_t_q", ["isd_t_quarter"]),
        ("isdt bench train nothing_like_this", []),
        ("isdt completion z", ["zsh"]),
    ],
)
def test_bash_completes(line, offered):
    assert bash(line) == offered


def test_bash_completes_paths_and_words_that_do_not_break_at_an_equals_sign(tmp_path):
    (tmp_path / "numbers.json").touch()
    assert bash(f"isdt bench infer out={tmp_path}/num") == [f"{tmp_path}/numbers.json"]
    assert bash("isdt bench train size=1", breaks=False) == ["size=16m"]


@pytest.mark.parametrize("name", VERBS)
def test_every_key_of_a_verb_is_offered(name):
    keys = {f"{f.name}=" for f in dataclasses.fields(VERBS[name]) if f.name != getattr(VERBS[name], "rest", None)}
    assert keys <= set(bash(f"isdt {name} "))


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
@pytest.mark.parametrize(
    ("line", "offered"),
    [("isdt bench tr", ["train"]), ("isdt bench train gui", ["guidance_scale="]), ("isdt bench train size=1", ["size=16m"])],
)  # fmt: skip
def test_fish_completes(line, offered):
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"{script('fish')}\ncomplete -C {line!r}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == offered


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_reads_its_script():
    text = "compdef() { print registered; }\n" + script("zsh") + "\n_isdt_values 'bench train size'"
    done = subprocess.run(["zsh", "-f", "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["registered", "4m", "16m", "63m"]
