"""Every `isdt ...` line of README, docs and help is one that isdt takes, and one that bash and zsh hand over as it is printed.

Nothing is trained and no simulator is built: a verb's own dataclass reads the line, and Hydra composes the settings of a run.
"""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from isdt_policy import cli
from isdt_policy.cli import command
from isdt_policy.lab.tune.search import read_space
from isdt_policy.training.config import compose_config

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")), ROOT / "results/README.md"]
BEFORE = re.compile(r"^(\$ )?(\w+=\S+ )*(chrt -f 10 )?(\.venv/bin/)?(?=isdt\s|isdt$)")  # what may stand before isdt
AFTER = re.compile(r"\s+>\s.*$|\s*(\.\.\.)$")  # a file that takes the output, or words that are left out
OLD = ("Words of version 0.1", "### Words")  # sections that tell what was typed in the past


def text_of(page):
    """A page without the sections that tell old words."""
    parts = re.split(r"^(?=##+ )", page.read_text(), flags=re.MULTILINE)
    return "".join(part for part in parts if not part.lstrip("# ").startswith(tuple(word.lstrip("# ") for word in OLD)))


def printed():
    """{place: line} of every line in a block, without what stands before isdt."""
    found = {}
    for page in PAGES:
        for block in re.findall(r"^```(?:sh)?\n(.*?)^```", text_of(page), flags=re.DOTALL | re.MULTILINE):
            for line in block.splitlines():
                if BEFORE.match(line):
                    found[f"{page.relative_to(ROOT)}: {line}"] = BEFORE.sub("", line)
    return found


def mentioned():
    """{place: line} of every line in a sentence: `isdt eval n_action_steps=N` need not be complete."""
    found = {}
    for page in PAGES:
        outside = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
        for line in re.findall(r"`((?:chrt -f 10 )?isdt [^`]+)`", outside):
            line = AFTER.sub("", BEFORE.sub("", " ".join(line.split())))
            if not re.match(r"isdt ([a-z]+ )?[<.A-Z]", line):
                found[f"{page.relative_to(ROOT)}: {line}"] = line
    return found


def helped():
    """{place: line} of every example in a verb's help."""
    found = {}
    for name in cli.VERBS:
        verb = cli.load(name)
        if isinstance(verb, type):
            for example in command._docstring(verb)[1].get("Examples", "").splitlines():
                line = AFTER.sub("", BEFORE.sub("", re.split(r" {2,}", example.strip())[0]))
                if line.startswith("isdt "):
                    found[f"isdt {name} --help: {line}"] = line
    return found


LINES, MENTIONED, HELPED = printed(), mentioned(), helped()


def verb_and_words(line):
    words = shlex.split(line, comments=True)[1:]
    if not words or words[0] in ("--help", "--version"):
        return None, []
    name, rest = cli._split(words)
    if name in cli.GROUPS and rest in ([], ["--help"]):
        return None, []
    assert name in cli.VERBS, f"no verb '{name}'"
    return cli.load(name), rest


def check_words(verb, words):
    """Check that no word is an old one."""
    for word in words:
        assert word.partition("=")[0] not in getattr(verb, "renamed", {}), f"{word}: an old word"


def settings_of(verb, parsed):
    """Hydra's overrides of a line, as a run gets them."""
    overrides = list(getattr(parsed, "overrides", ()))
    if verb.__name__ == "Tune":
        return read_space(overrides)[0]
    experiments = getattr(parsed, "experiments", ())
    return [*(f"experiment={name}" for name in experiments[:1]), *overrides]


@pytest.mark.parametrize("place", [*LINES, *HELPED])
def test_a_line_is_one_that_isdt_takes(place):
    verb, words = verb_and_words({**LINES, **HELPED}[place])
    if not isinstance(verb, type):
        assert not words
        return
    check_words(verb, words)
    if "--help" in words:
        return
    words = [word.replace("...", "PATH") for word in words]
    parsed = command.parse(verb, words)
    overrides = settings_of(verb, parsed)
    if overrides:
        compose_config(overrides)


@pytest.mark.parametrize("place", MENTIONED)
def test_a_line_in_a_sentence_has_keys_that_isdt_knows(place):
    verb, words = verb_and_words(MENTIONED[place])
    if isinstance(verb, type) and "--help" not in words:
        check_words(verb, words)
        syntax, found = command.Syntax.of(verb), {}
        for word in words:
            found[syntax.split(word, found)[0]] = ()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_hands_over_what_is_printed(shell, tmp_path):
    """Brackets that are not quoted are a pattern to zsh, and parentheses a subshell to both."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = ["isdt() { printf '%s\\n' ok \"$@\"; }", "setopt interactive_comments 2>/dev/null"]
    expected = []
    for line in sorted({*LINES.values(), *MENTIONED.values(), *HELPED.values()}):
        words = shlex.split(line.replace("*", "x"), comments=True)[1:]
        for word in shlex.split(line, comments=True):
            if "*" in word:  # files that are there where a reader types it
                path = tmp_path / word.replace("*", "x")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.mkdir(exist_ok=True)
        script += [f"( eval {shlex.quote(line)} ) || echo FAILED", "echo --"]
        expected.append("\n".join(["ok", *words]))
    options = ["-f"] if shell == "zsh" else ["--norc"]
    done = subprocess.run([shell, *options], input="\n".join(script), cwd=tmp_path, capture_output=True, text=True)
    got = [part.strip("\n") for part in done.stdout.split("\n--\n")[:-1]]
    assert got == expected, done.stderr


def test_there_are_lines_to_check():
    assert len(LINES) > 50
    assert len(MENTIONED) > 20
    assert len(HELPED) > 60
