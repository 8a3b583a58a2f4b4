"""The `isdt` command: `isdt <verb> [key=value ...]`.

Verbs are looked up here by name and imported only when used, so that `isdt --help` answers at once. A verb is a dataclass, see
command.py; nothing else in the house imports from this folder.
"""

from __future__ import annotations

import ast
import errno
import importlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from isdt_policy import __version__
from isdt_policy.shared import terminal
from isdt_policy.shared.cores import wait_briefly
from isdt_policy.shared.errors import InputError, nearest, printable
from isdt_policy.shared.files import NO_ROOM

# verb -> module:class in this folder. The one-line help is the first sentence of the class's docstring.
VERBS: dict[str, str] = {
    "train": "isdt_policy.cli.train:Train",
    "eval": "isdt_policy.cli.eval:Eval",
    "eval repeat": "isdt_policy.cli.eval:EvalRepeat",
    "eval curve": "isdt_policy.cli.eval:EvalCurve",
    "eval data": "isdt_policy.cli.eval_data:EvalData",
    "compare": "isdt_policy.cli.compare:Compare",
    "diagnose": "isdt_policy.cli.diagnose:Diagnose",
    "study toys": "isdt_policy.cli.study:Toys",
    "study pusht": "isdt_policy.cli.study:Pusht",
    "study tasks": "isdt_policy.cli.study:Tasks",
    "study report": "isdt_policy.cli.study:Report",
    "tune": "isdt_policy.cli.tune:Tune",
    "data fetch": "isdt_policy.cli.data_fetch:Fetch",
    "data convert": "isdt_policy.cli.data_convert:Convert",
    "data generate": "isdt_policy.cli.data_generate:Generate",
    "data record": "isdt_policy.cli.data_record:Record",
    "data describe": "isdt_policy.cli.data_describe:Describe",
    "data inspect": "isdt_policy.cli.data_inspect:Inspect",
    "data doctor": "isdt_policy.cli.data_doctor:Doctor",
    "data view": "isdt_policy.cli.data_view:View",
    "data split": "isdt_policy.cli.data_split:Split",
    "data merge": "isdt_policy.cli.data_merge:Merge",
    "data bench": "isdt_policy.cli.bench:Data",
    "export": "isdt_policy.cli.export:Export",
    "deploy": "isdt_policy.cli.deploy:Deploy",
    "deploy table": "isdt_policy.cli.deploy_table:DeployTable",
    "serve": "isdt_policy.cli.serve:Serve",
    "bench train": "isdt_policy.cli.bench:Train",
    "bench ranks": "isdt_policy.cli.bench:Ranks",
    "bench images": "isdt_policy.cli.bench:Images",
    "bench infer": "isdt_policy.cli.bench:Infer",
    "bench eval": "isdt_policy.cli.bench:Eval",
    "bench data": "isdt_policy.cli.bench:Data",
    "bench serve": "isdt_policy.cli.bench:Serve",
    "bench env": "isdt_policy.cli.bench:Env",
    "completion": "isdt_policy.cli.completion:Completion",
    "doctor": "isdt_policy.cli.doctor:Doctor",
}

# A first word that is no verb by itself: what its verbs are for.
GROUPS: dict[str, str] = {
    "data": "Bring demonstrations in, look at them, check them, make new ones.",
    "study": "Compare objectives on the same network, data and steps, over training seeds.",
    "bench": "Time our parts against stated baselines: ratios with their range over turns, in one process.",
}

ABOUT = "Train one-step diffusion policies from scratch (iSD-T), and measure them with intervals."

EXAMPLES = """
  isdt train experiment=pusht_demo                        train on the bundled PushT demonstrations
  isdt train experiment=pusht_demo training.seed=43       any setting can be overridden after the verb
  isdt train resume=outputs/pusht_demo                    go on where a killed run stopped
  isdt eval checkpoint=outputs/pusht_demo 'arms=[1,2]'    success at one and two network evaluations
  isdt <verb> --help                                      every option of a verb, with examples
""".strip("\n")


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns 0 on success, 2 on bad input (one line on stderr), 130 when interrupted."""
    wait_briefly()  # before a verb loads torch
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `isdt ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit shall not fail again
        return 0


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"isdt-policy {__version__}")
        return 0
    name, rest = _split(args)
    try:
        if name in GROUPS:
            return _group(name, rest)
        if name not in VERBS:
            words = [*VERBS, *GROUPS]
            known = sorted({word.split(" ")[0] for word in words})
            print(f"isdt: unknown verb '{name}'.{nearest(name, known)} Verbs: {', '.join(known)}.", file=sys.stderr)
            return 2
        return _verb(name, rest)
    except InputError as error:
        print(terminal.fitted(f"isdt {name}: {error}", sys.stderr, indent=2), file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "isdt_policy").startswith("isdt_policy"):
            raise
        print(
            f"isdt {name}: the package '{error.name}' is not installed; isdt doctor says what is missing for which purpose.",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        if error.errno not in (*NO_ROOM, errno.EACCES, errno.EPERM):
            raise
        file = f"'{printable(str(error.filename))}'" if error.filename else "a file"
        print(
            f"isdt {name}: {file} cannot be written ({error.strerror}). What was finished before is safe; make room, and give the "
            "same command again.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"\nisdt {name}: interrupted.", file=sys.stderr)
        return 130


def _split(args: list[str]) -> tuple[str, list[str]]:
    """The verb, of one word or two, and its arguments."""
    two = " ".join(args[:2])
    return (two, args[2:]) if two in VERBS else (args[0], args[1:])


def _verb(name: str, args: list[str]) -> int:
    found = load(name)
    if not isinstance(found, type):  # a function of the remaining arguments
        return int(found(args) or 0)
    from isdt_policy.cli import command

    if not args and not getattr(found, "bare", False):
        args = ["--help"]
    try:
        return int(command.parse(found, args).run(shlex.join(["isdt", *name.split(), *args])) or 0)
    except command.HelpWanted:
        print(command.help_text(name, found))
        return 0


def _group(name: str, rest: list[str]) -> int:
    verbs = {verb.split(" ")[1]: verb for verb in VERBS if verb.startswith(f"{name} ")}
    if rest and rest[0] not in ("-h", "--help", "help"):
        raise InputError(f"unknown verb '{name} {rest[0]}'.{nearest(rest[0], verbs)} Verbs: {', '.join(verbs)}.")
    print(f"usage: isdt {name} <verb> [key=value ...]\n\n{GROUPS[name]}\n\nverbs")
    print("\n".join(f"  {short:<10} {one_line(verb)}" for short, verb in verbs.items()))
    print(f"\n  isdt {name} <verb> --help   every option of a verb, with examples")
    return 0


def load(name: str) -> Any:
    """The class (or function) behind a verb."""
    module, attribute = VERBS[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def overview() -> str:
    """What `isdt --help` prints."""
    lines = [f"  {verb:<10} {one_line(verb)}" for verb in VERBS if " " not in verb]
    lines += [f"  {name:<10} {text[0].lower()}{text[1:].rstrip('.')}" for name, text in GROUPS.items()]
    verbs = "\n".join(lines)
    return f"usage: isdt <verb> [key=value ...]\n\n{ABOUT}\n\nverbs\n{verbs}\n\nexamples\n{EXAMPLES}"


def one_line(verb: str) -> str:
    """First sentence of a verb's docstring, read from its source: importing every verb would take seconds."""
    module, attribute = VERBS[verb].split(":")
    if not module.startswith(f"{__name__}."):
        return ""
    source = Path(__file__).parent.joinpath(*module.split(".")[2:]).with_suffix(".py")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    node = next((n for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name == attribute), None)
    text = (ast.get_docstring(node) or "") if node else ""
    sentence = " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
    return sentence[:1].lower() + sentence[1:]
