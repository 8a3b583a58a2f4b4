"""`isdt deploy table`: success against latency for the three ways to live with it, on common seeds.

On the virtual clock: inference takes the stated latency and nothing else takes time, so a table is a function of the weights
and the seeds. A finished cell is kept in the JSON file; the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from isdt_policy.deploy.controller import control
from isdt_policy.deploy.latency import parse_latency
from isdt_policy.deploy.runtime import MODES
from isdt_policy.shared.errors import InputError, nearest

HELP = """usage: isdt deploy table checkpoint=PATH [key=value ...]

Success against inference latency for sync, async and rtc, in simulated time, on the same seeds. Resumable.

examples
  isdt deploy table checkpoint=outputs/pusht_demo
  isdt deploy table checkpoint=outputs/lift latencies=[0ms,100ms,200ms] episodes=50 out=results/deploy_lift

options
  checkpoint=PATH        run directory, checkpoint or folder of save_pretrained
  task=NAME              default: the task the checkpoint was trained on
  latencies=[0ms,...]    constant delays; default: 0, 1, 2, 3, 4, 6 control steps of the task's rate
  modes=[sync,async,rtc]
  episodes=50            per cell, all cells on the same seeds
  seed=100000            of the first episode
  steps=2                network evaluations per chunk, the same in all modes (rtc takes at least two)
  rate=HZ                control rate (default: the task's)
  out=deploy_latency     writes deploy_latency.json (all episodes), .md (the table), .png (the figure)
"""


def main(args: list[str]) -> int:
    """Run `isdt deploy table`."""
    from isdt_policy.datasets.arguments import bind

    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    command = shlex.join(["isdt", "deploy", "table", *args])
    return table(**{**bind(table, args), "command": command})


def table(
    checkpoint: str,
    task: str | None = None,
    latencies: tuple[str, ...] = (),
    modes: tuple[str, ...] = MODES,
    episodes: int = 50,
    seed: int = 100_000,
    steps: int = 2,
    rate: float | None = None,
    out: str = "deploy_latency",
    command: str = "",
) -> int:
    """See HELP."""
    from isdt_policy.deploy.command import find_limits, load_policy
    from isdt_policy.deploy.safety import Safety
    from isdt_policy.envs import make, task_spec
    from isdt_policy.eval.command import checkpoint_hash, versions
    from isdt_policy.eval.rollout import write_atomically
    from isdt_policy.shared.progress import Progress
    from isdt_policy.shared.provenance import commit

    for mode in modes:
        if mode not in MODES:
            raise InputError(f"mode '{mode}' is not one of {', '.join(MODES)}.{nearest(mode, MODES)}")
    if episodes < 1 or steps < 1 or (rate is not None and not rate > 0):
        raise InputError("episodes, steps and rate must be above 0.")
    if checkpoint.endswith(".onnx") or "://" in checkpoint:
        raise InputError("the table needs a checkpoint: give a run directory or a folder of save_pretrained.")
    policies = {mode: load_policy(checkpoint, mode) for mode in modes}
    chosen = str(task or next(iter(policies.values())).task or "")
    if not chosen:
        raise InputError("the checkpoint names no task; give task=NAME, for example task=pusht.")
    spec = task_spec(chosen)
    rate_hz = float(rate or spec.rate_hz)
    delays = latencies or tuple(f"{1e3 * k / rate_hz:g}ms" for k in (0, 1, 2, 3, 4, 6))
    draws = {text: parse_latency("none" if text in ("0ms", "0s") else text) for text in delays}
    said = {"task": chosen, "weights": checkpoint_hash(checkpoint), "episodes": episodes, "seed": seed, "steps": steps,
            "rate_hz": rate_hz}  # fmt: skip

    file = Path(f"{out}.json")
    result: dict[str, Any] = {**said, "cells": {}}
    if file.is_file():
        result = json.loads(file.read_text())
        if changed := [key for key, value in said.items() if result.get(key) != value]:
            raise InputError(f"{file} holds a table with another {', '.join(changed)}; give another out=.")
    result |= {"command": command, "versions": versions(chosen)}
    file.parent.mkdir(parents=True, exist_ok=True)
    bar = Progress(len(delays) * len(modes), "table", "cell", every_s=5)
    for text in delays:
        for mode in modes:
            name = f"{mode} {text}"
            if name not in result["cells"]:
                policy = policies[mode]
                limits = find_limits(checkpoint, policy, spec, None)
                env = make(chosen, tuple(dict.fromkeys([*policy.obs_keys, *filter(None, [limits.position])])))
                safety = Safety(limits, action_dim=spec.action.shape[0], rate_hz=rate_hz)
                report = control(
                    policy, env, safety, rate_hz=rate_hz, first_seed=seed, episodes=episodes, mode=mode, nfe=steps,
                    latency=draws[text], virtual=True,
                )  # fmt: skip
                env.close()
                s = report.summary()
                kept = ("periods", "held", "interventions", "records")
                result["cells"][name] = {
                    "mode": mode,
                    "latency": text,
                    "commit": commit(),
                    **{key: s[key] for key in kept},
                }
                write_atomically(file, json.dumps(result, indent=1) + "\n")
            bar.update(1)
    bar.close()
    text_out = markdown(result, delays, modes)
    file.with_suffix(".md").write_text(text_out)
    figure(result, delays, modes, file.with_suffix(".png"))
    print(text_out)
    print(f"table: {file.with_suffix('.md')}  figure: {file.with_suffix('.png')}  episodes: {file}")
    return 0


def markdown(result: dict[str, Any], delays: tuple[str, ...], modes: tuple[str, ...]) -> str:
    """Return the table: success with its Wilson interval, and the share of control steps that were held."""
    from isdt_policy.eval.statistics import wilson

    lines = [
        f"# Success against inference latency: {result['task']} at {result['rate_hz']:g} Hz",
        "",
        "| latency | " + " | ".join(modes) + " |",
        "|---|" + "---|" * len(modes),
    ]
    for delay in delays:
        row = [delay]
        for mode in modes:
            cell = result["cells"][f"{mode} {delay}"]
            done = cell["records"]
            r = wilson(sum(e["success"] for e in done), len(done), 0.95)
            score = sum(e["max_reward"] for e in done) / len(done)
            row.append(
                f"{100 * r.value:.0f} % [{100 * r.low:.0f}, {100 * r.high:.0f}], score {score:.3f}, "
                f"held {100 * cell['held'] / cell['periods']:.0f} %"
            )
        lines.append("| " + " | ".join(row) + " |")
    commits = sorted({str(cell["commit"]) for cell in result["cells"].values()})
    first, n = result["seed"], result["episodes"]
    lines += [
        "",
        f"Success with Wilson 95 % interval, n = {n} per cell, seeds {first} to {first + n - 1} in every cell, "
        f"{result['steps']} network evaluations per chunk in every mode. Held: share of control steps without a fresh action.",
        "Simulated time: inference takes the stated latency, nothing else takes time. One training seed.",
        "",
        f"Weights {result['weights']}, commit {' and '.join(commits)}, "
        + ", ".join(f"{k} {v}" for k, v in result["versions"].items())
        + ". Every episode is in the JSON file beside this one.",
        "",
        "```sh",
        result["command"],
        "```",
        "",
    ]
    return "\n".join(lines)


def figure(result: dict[str, Any], delays: tuple[str, ...], modes: tuple[str, ...], path: Path) -> None:
    """Draw success against latency, one line per mode, with intervals.

    Raises:
        InputError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("the figure needs matplotlib: pip install 'isdt-policy[report]'") from error
    import numpy as np

    from isdt_policy.eval.statistics import wilson

    axes = (page := Figure(figsize=(5, 3.2), layout="constrained")).subplots()
    x = np.arange(len(delays), dtype=float)
    for i, mode in enumerate(modes):
        records = [result["cells"][f"{mode} {delay}"]["records"] for delay in delays]
        rates = [wilson(sum(e["success"] for e in done), len(done), 0.95) for done in records]
        y = 100 * np.array([r.value for r in rates])
        spread = [y - 100 * np.array([r.low for r in rates]), 100 * np.array([r.high for r in rates]) - y]
        axes.errorbar(
            x + 0.06 * (i - (len(modes) - 1) / 2), y, np.maximum(spread, 0), marker="o", capsize=2, label=mode
        )
    axes.set(
        xlabel="inference latency",
        ylabel="success, %",
        ylim=(-3, 103),
        title=f"{result['task']}, {result['episodes']} seeds",
    )
    axes.set_xticks(x, delays)
    axes.legend(frameon=False)
    page.savefig(path, dpi=150)
