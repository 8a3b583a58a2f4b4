"""`isdt data <verb>`: demonstrations brought in, looked at, checked and made."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from isdt_policy.datasets.arguments import bind
from isdt_policy.shared.errors import InputError, nearest

# verb -> (module:function with the verb's options as parameters, one-line help)
VERBS: dict[str, tuple[str, str]] = {
    "convert": ("isdt_policy.datasets.convert:convert", "from one format to another; finds the source's by itself"),
    "generate": ("isdt_policy.datasets.generate:generate", "let a task's scripted expert make demonstrations"),
    "record": ("isdt_policy.datasets.record:record", "keep what a policy or an expert does"),
    "inspect": ("isdt_policy.datasets.summary:show", "what a store holds: a table, or JSON"),
    "doctor": ("isdt_policy.datasets.doctor:report", "find what is wrong with demonstrations before training does"),
    "view": ("isdt_policy.datasets.view:view", "plots and frames of every episode in one HTML file"),
    "split": ("isdt_policy.datasets.split:split", "some episodes, or a training and a validation part"),
    "merge": ("isdt_policy.datasets.merge:merge", "several sets in one"),
    "bench": (
        "isdt_policy.datasets.bench:bench",
        "windows, images, memory and import, against the straightforward way",
    ),
    "fetch": ("isdt_policy.datasets.fetch:fetch", "download published demonstrations: resumable, checked, cached"),
}

HELP = """usage: isdt data <verb> [key=value ...]

Bring demonstrations in, look at them, check them, make new ones.

verbs
{verbs}

examples
  isdt data convert lift_ph_low_dim.hdf5 lift.zarr
  isdt data generate task=pusht episodes=200 out=demos.zarr
  isdt data record out=rollouts.zarr checkpoint=outputs/pusht_demo
  isdt data inspect demos.zarr
  isdt data doctor demos.zarr
  isdt data view demos.zarr out=demos.html
  isdt data <verb> --help             every option of a verb, with examples
"""


def main(args: list[str]) -> int:
    """Run one verb. Returns its exit code: 0, or 1 when the doctor finds an error."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP.format(verbs="\n".join(f"  {verb:<9} {text}" for verb, (_, text) in VERBS.items())))
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        raise InputError(f"unknown verb 'data {verb}'.{nearest(verb, VERBS)} Verbs: {', '.join(VERBS)}.")
    module = importlib.import_module(VERBS[verb][0].split(":")[0])
    if any(a in ("-h", "--help") for a in rest):
        print(module.HELP.strip())
        return 0
    function: Callable[..., Any] = getattr(module, VERBS[verb][0].split(":")[1])
    return int(function(**bind(function, rest)) or 0)


def command_line() -> str:
    """The command as it was typed, for provenance; empty when called from Python."""
    import shlex

    return f"isdt {shlex.join(sys.argv[1:])}" if sys.argv[1:2] == ["data"] else ""
