"""The `isdt` command: `isdt <verb> [key=value ...]`.

Verbs are looked up here by name and imported only when used, so that `isdt --help` stays fast.
"""

from __future__ import annotations

import importlib
import os
import sys

from isdt_policy import __version__
from isdt_policy.shared.errors import InputError, nearest

# verb -> (module:function taking the remaining arguments and returning an exit code, one-line help)
VERBS: dict[str, tuple[str, str]] = {
    "train": ("isdt_policy.training.command:main", "train a policy on demonstrations, or resume a run"),
    "eval": (
        "isdt_policy.eval.command:main",
        "measure success of a checkpoint at one, two, n steps; writes an HTML report",
    ),
    "compare": (
        "isdt_policy.eval.compare:main",
        "compare evaluations on common seeds: differences, intervals, p-values",
    ),
    "diagnose": (
        "isdt_policy.lab.diagnose_command:main",
        "say what a trained flow map got right and wrong: numbers and a page of figures",
    ),
    "study": (
        "isdt_policy.lab.study.command:main",
        "compare objectives on one network, data and budget, over seeds; tables and figures",
    ),
    "tune": ("isdt_policy.lab.tune:main", "search settings with Optuna, judged by rollouts, bad runs stopped early"),
    "data": ("isdt_policy.datasets.command:main", "convert, inspect, check, view and generate demonstrations"),
    "export": ("isdt_policy.deploy.command:export_main", "write a policy as ONNX, pt2 or a Hugging Face Hub folder"),
    "deploy": (
        "isdt_policy.deploy.command:deploy_main",
        "drive a simulator in real time, with latency, limits and a report",
    ),
    "serve": (
        "isdt_policy.deploy.command:serve_main",
        "serve a policy over a websocket (openpi's clients can talk to it)",
    ),
    "bench": (
        "isdt_policy.lab.bench.command:main",
        "time training, inference, data and environments against baselines",
    ),
    "doctor": ("isdt_policy.envs.doctor:main", "report versions of Python, torch, simulators and rendering back ends"),
}

HELP = """usage: isdt <verb> [key=value ...]

Train one-step diffusion policies from scratch (iSD-T), and measure them with intervals.

verbs
{verbs}

examples
  isdt train experiment=pusht_demo                        train on the bundled PushT demonstrations
  isdt train experiment=pusht_demo training.seed=43       any setting can be overridden after the verb
  isdt train resume=outputs/pusht_demo                    go on where a killed run stopped
  isdt eval checkpoint=outputs/pusht_demo steps=[1,2]     success at one and two network evaluations
  isdt <verb> --help                                      every option of a verb, with examples
"""


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns 0 on success, 2 on bad input (one line on stderr), 130 when interrupted."""
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `isdt ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit shall not fail again
        return 0


def _run(argv: list[str] | None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP.format(verbs="\n".join(f"  {name:<9} {text}" for name, (_, text) in VERBS.items())))
        return 0
    if args[0] in ("-V", "--version"):
        print(f"isdt-policy {__version__}")
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        print(f"isdt: unknown verb '{verb}'.{nearest(verb, VERBS)} Verbs: {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    module, function = VERBS[verb][0].split(":")
    try:
        return int(getattr(importlib.import_module(module), function)(rest) or 0)
    except InputError as error:
        print(f"isdt {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nisdt {verb}: interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
