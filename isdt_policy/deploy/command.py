"""`isdt deploy`, `isdt serve`, `isdt export`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isdt_policy.datasets.arguments import bind
from isdt_policy.deploy.controller import EpisodeRecord, Report, control, percentiles, replay
from isdt_policy.deploy.latency import parse_latency
from isdt_policy.deploy.safety import FILE, Limits, Safety
from isdt_policy.shared.errors import InputError, nearest

if TYPE_CHECKING:
    from isdt_policy.envs.registry import TaskSpec

DEPLOY_HELP = """usage: isdt deploy checkpoint=PATH [key=value ...]
       isdt deploy table checkpoint=PATH [key=value ...]       success against latency, all modes; see isdt deploy table --help

Drive a simulator in wall-clock time with the policy in its own thread, limits in between, and measure what was kept.

examples
  isdt deploy checkpoint=outputs/pusht_demo                                    20 s at the task's own rate
  isdt deploy checkpoint=policy.onnx                                           an exported policy, without torch
  isdt deploy checkpoint=ws://127.0.0.1:8000                                   a policy server
  isdt deploy checkpoint=outputs/pusht_demo latency=lognormal(30ms) drop_obs=0.05 mode=async video=out.mp4
  isdt deploy checkpoint=outputs/pusht_demo clock=virtual episodes=100 latency=200ms mode=rtc    success, not seconds

what acts
  checkpoint=PATH        run directory, checkpoint, folder of save_pretrained; a .onnx file; ws://HOST:PORT of isdt serve
  steps=1                network evaluations per chunk (fixed in an exported policy and on a server)
  mode=sync              sync: ask when the chunk is used up, hold until the answer is there
                         async: the old chunk goes on meanwhile
                         rtc: async, and the new chunk continues the actions that are already due
  execute=N              actions of a chunk before the next question (default: the checkpoint's n_action_steps)
  ensemble=0.01          temporal ensembling; use with execute=1

where
  task=NAME              default: the task the checkpoint was trained on
  rate=HZ                control rate (default: the task's)
  seconds=20             of control
  episodes=N             until N episodes are finished; with seconds= until the first of the two
  seed=100000            of the first episode; the next ones count on
  clock=wall             virtual: inference takes the injected latency, nothing else takes time (repeatable, fast)
  latency=none           added to every inference: 30ms, uniform(10ms,50ms), normal(30ms,5ms), lognormal(30ms,0.5)
  drop_obs=0             share of observations that get lost

safety
  limits=FILE            JSON: low, high, step, velocity, acceleration, jerk, position; default: limits.json beside the
                         weights, or the bounds of the task's actions
  on_fault=hold          or stop, when an action is missing, not finite or too old
  max_age=SECONDS        of the observation behind an action; default: any

what is written
  out=FILE.json          the numbers
  window=true            show the simulator meanwhile; drawing takes time of every period. Closing it stops the run
  video=FILE.mp4         the last episode, replayed from its commands afterwards so that drawing costs no beat
"""

SERVE_HELP = """usage: isdt serve checkpoint=PATH [key=value ...]

Serve a policy over a websocket (msgpack; openpi's clients can talk to it). Ctrl-C ends it gracefully.

examples
  isdt serve checkpoint=outputs/pusht_demo                        on 127.0.0.1:8000
  isdt serve checkpoint=policy.onnx port=9000                     an exported policy, without torch
  ISDT_API_KEY=secret isdt serve checkpoint=... host=0.0.0.0      reachable from other machines, which need the key

options
  checkpoint=PATH        run directory, checkpoint, folder of save_pretrained, or a .onnx file
  steps=1                network evaluations per chunk
  rtc=false              let clients send frozen actions to be continued (two evaluations); a .onnx file says so itself
  host=127.0.0.1         address to listen on
  port=8000              0 takes a free one
  max_bytes=1048576      of one message
  max_rate=500           messages per second and connection
  max_connections=64
  message_timeout=10     seconds for a message to arrive in full, and for a ping to be answered
The API key comes from the environment variable ISDT_API_KEY: an argument would show in the list of processes.
"""

EXPORT_HELP = """usage: isdt export checkpoint=PATH [key=value ...]

Write a policy as one file that runs without this package's training code, or as a folder for the Hugging Face Hub.

examples
  isdt export checkpoint=outputs/pusht_demo out=policy.onnx                     one network evaluation, for onnxruntime
  isdt export checkpoint=outputs/pusht_demo format=pt2 steps=2 out=policy.pt2   for torch.export.load
  isdt export checkpoint=outputs/pusht_demo prefix=true steps=2 out=rtc.onnx    can continue chunks (mode=rtc)
  isdt export checkpoint=outputs/pusht_demo format=hub out=hub_folder           weights, config, limits, model card
  isdt export checkpoint=outputs/pusht_demo format=hub out=hub_folder repo=me/pusht     ... and upload it

options
  checkpoint=PATH        run directory, checkpoint or folder of save_pretrained
  format=onnx            onnx, pt2, hub
  steps=1                network evaluations in the graph, or a sampler such as euler10 (onnx, pt2)
  prefix=false           inputs for real-time chunking (onnx, pt2)
  weights=float32        int8: the network's convolutions in 8-bit integers (onnx); the check prints what that costs
  limits=FILE            embedded; default: limits.json beside the weights, or the bounds of the task's actions
  check=1000             compare that many random inputs with the policy and refuse a file that differs; 0 for none
  out=PATH               default: policy.onnx, policy.pt2 or hub_folder
  results=FILE           eval_info.json for the model card (format=hub); default: eval/eval_info.json of the run
  repo=NAME/REPO         upload there (format=hub)
"""


def deploy_main(args: list[str]) -> int:
    """Run `isdt deploy`; returns 0, or 1 if safety stopped it."""
    if _asks_for_help(args):
        print(DEPLOY_HELP)
        return 0
    if args[0] == "table":
        from isdt_policy.deploy.table import main

        return main(args[1:])
    return deploy(**bind(deploy, args))


def serve_main(args: list[str]) -> int:
    """Run `isdt serve` until interrupted; returns 0."""
    if _asks_for_help(args):
        print(SERVE_HELP)
        return 0
    return serve(**bind(serve, args))


def export_main(args: list[str]) -> int:
    """Run `isdt export`; returns 0."""
    if _asks_for_help(args):
        print(EXPORT_HELP)
        return 0
    return export_policy(**bind(export_policy, args))


def deploy(
    checkpoint: str,
    task: str | None = None,
    steps: str | None = None,
    mode: str = "sync",
    execute: int | None = None,
    ensemble: float | None = None,
    rate: float | None = None,
    seconds: float | None = None,
    episodes: int | None = None,
    seed: int = 100_000,
    clock: str = "wall",
    latency: str = "none",
    drop_obs: float = 0.0,
    limits: str | None = None,
    on_fault: str = "hold",
    max_age: float | None = None,
    out: str | None = None,
    window: bool = False,
    video: str | None = None,
) -> int:
    """See DEPLOY_HELP."""
    from isdt_policy.envs import make, task_spec

    if clock not in ("wall", "virtual"):
        raise InputError(f"clock='{clock}' must be wall or virtual.{nearest(clock, ('wall', 'virtual'))}")
    if not 0 <= drop_obs < 1:
        raise InputError(f"drop_obs={drop_obs} must be a share from 0 to below 1.")
    if seconds is None and episodes is None:
        seconds = 20.0
    for name, value in (("rate", rate), ("seconds", seconds), ("episodes", episodes), ("max_age", max_age)):
        if value is not None and not value > 0:
            raise InputError(f"{name}={value} must be above 0.")
    draw = parse_latency(latency)
    policy = load_policy(checkpoint, mode)
    if clock == "wall" and hasattr(policy, "inference_rows"):
        # Evaluation computes 16 rows whatever is asked, so that last bits do not depend on neighbours; a robot has none.
        policy.inference_rows = 1
    chosen_task = str(task or getattr(policy, "task", "") or "")
    if not chosen_task:
        raise InputError("the checkpoint names no task; give task=NAME, for example task=pusht.")
    spec = task_spec(chosen_task)
    rate_hz = float(rate or spec.rate_hz)
    allowed = find_limits(checkpoint, policy, spec, limits)
    safety = Safety(allowed, action_dim=spec.action.shape[0], rate_hz=rate_hz, on_fault=on_fault, max_age_s=max_age)
    keys = dict.fromkeys([*policy.obs_keys, *([allowed.position] if allowed.position else [])])
    env = make(chosen_task, tuple(keys), render_mode="rgb_array" if window else None)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    shown = _Display(rate_hz, seconds, episodes)
    pane = None
    if window:
        from isdt_policy.deploy.window import Window

        pane = Window(env, f"isdt deploy: {chosen_task}")

    def on_period(report: Report) -> None:
        shown(report)
        if pane is not None and not pane.show():
            safety.stop("the window was closed")

    report = control(
        policy,
        env,
        safety,
        rate_hz=rate_hz,
        first_seed=seed,
        episodes=episodes,
        seconds=seconds,
        mode=mode,
        nfe=fixed_steps(policy, steps),
        execute=execute,
        ensemble=ensemble,
        latency=draw,
        drop_obs=drop_obs,
        virtual=clock == "virtual",
        on_period=on_period,
    )
    shown.close()
    if pane is not None:
        pane.close()
    summary = report.summary()
    print(describe(report))
    if out:
        options = {"checkpoint": checkpoint, "task": chosen_task, "mode": mode, "steps": str(fixed_steps(policy, steps)),
                   "latency": latency, "drop_obs": drop_obs, "clock": clock, "seed": seed, "limits": allowed.as_dict()}  # fmt: skip
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps({"options": options, **summary}, indent=1) + "\n")
        print(f"numbers: {out}")
    if video:
        print(f"video: {_film(chosen_task, report.episodes, video, rate_hz)}")
    return 0 if report.stopped is None else 1


def describe(report: Report) -> str:
    """Return what was measured as a few lines."""
    s = report.summary()
    lines = [
        f"rate         {s['rate_kept_hz']:.2f} Hz kept of {s['rate_hz']:g}, {s['periods']} periods, "
        f"{s['deadline_misses']} deadline misses"
        + (f" ({report.missed_stolen} while the hypervisor held a core)" if report.missed_stolen else "")
        + f", {s['held']} held",
        f"work         {_line(s['work_ms'])}  max {s['work_ms']['max']:.1f} ms of {1e3 / s['rate_hz']:.0f}",
        f"inference    {_line(s['inference_ms'])}   (computing {_line(s['compute_ms'])})",
        f"action age   {_line(s['action_age_ms'])}",
        f"observations {s['lost_observations']} lost",
        "safety       " + (", ".join(f"{kind} {n}" for kind, n in s["interventions"].items()) or "no interventions"),
    ]
    if s["episodes"]:
        from isdt_policy.eval.statistics import wilson

        rate = wilson(s["successes"], s["episodes"], 0.95)
        lines.append(
            f"episodes     {s['successes']} of {s['episodes']} succeeded: {100 * rate.value:.0f} % "
            f"[{100 * rate.low:.0f}, {100 * rate.high:.0f}], score {s['score']:.3f}"
        )
    if s["stopped"]:
        lines.append(f"STOPPED      {s['stopped']}")
    return "\n".join(lines)


def _line(p: dict[str, float] | None) -> str:
    return "none" if p is None else f"p50 {p['p50']:.1f}  p95 {p['p95']:.1f}  p99 {p['p99']:.1f} ms"


class _Display:
    """Progress of the loop: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, rate_hz: float, seconds: float | None, episodes: int | None) -> None:
        from isdt_policy.shared.progress import Progress

        self._episodes, self._done = episodes, 0
        total = episodes if seconds is None else round(seconds * rate_hz)
        self._bar = Progress(total or 0, "deploy", "episode" if seconds is None else "period", every_s=5)

    def __call__(self, report: Report) -> None:
        done = sum(e.finished for e in report.episodes) if self._bar.unit == "episode" else report.periods
        if self._bar.unit == "episode" and done == self._done:
            return
        recent = percentiles(report.inference_s[-50:])
        p95 = "-" if recent is None else f"{recent['p95']:.1f} ms"
        self._bar.update(done - self._done, missed=str(report.missed), held=str(report.held), p95=p95)
        self._done = done

    def close(self) -> None:
        self._bar.close()


def _film(task: str, episodes: list[EpisodeRecord], path: str, rate_hz: float) -> Path:
    from isdt_policy.envs import make
    from isdt_policy.eval.report import write_mp4

    size: dict[str, Any] = {"render_size": 256} if task == "pusht" else {}
    env = make(task, None, render_mode="rgb_array", **size)
    write_mp4(Path(path), replay(env, episodes[-1]), max(1, round(rate_hz)))
    return Path(path)


def serve(
    checkpoint: str,
    steps: str | None = None,
    rtc: bool = False,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_bytes: int = 1 << 20,
    max_rate: float = 500.0,
    max_connections: int = 64,
    message_timeout: float = 10.0,
) -> int:
    """See SERVE_HELP."""
    from isdt_policy.deploy.server import PolicyServer

    if checkpoint.startswith(("ws://", "wss://")):
        raise InputError("a server serves a policy, not another server: give checkpoint=PATH.")
    policy = load_policy(checkpoint, "rtc" if rtc else "sync")
    if rtc and not hasattr(policy, "continue_action"):
        raise InputError(f"rtc=true: {checkpoint} cannot continue chunks; export it with prefix=true steps=2.")
    api_key = os.environ.get("ISDT_API_KEY")
    if host not in ("127.0.0.1", "localhost", "::1") and api_key is None:
        print(
            f"warning: {host} may be reached by others, and ISDT_API_KEY is not set: anyone may ask.", file=sys.stderr
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("websockets").setLevel(logging.ERROR)

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows; not the main thread
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
        server = PolicyServer(
            policy,
            host=host,
            port=port,
            nfe=fixed_steps(policy, steps),
            api_key=api_key,
            max_bytes=max_bytes,
            max_rate=max_rate,
            max_connections=max_connections,
            message_timeout_s=message_timeout,
        )
        async with server:
            print(f"serving {checkpoint} on ws://{host}:{server.port} (Ctrl-C ends)", flush=True)
            await stop.wait()
        print(f"served {server.requests} requests in {server.batches} batches, refused {server.refused}.", flush=True)

    asyncio.run(run())
    return 0


def export_policy(
    checkpoint: str,
    format: str = "onnx",
    steps: str = "1",
    prefix: bool = False,
    weights: str = "float32",
    out: str | None = None,
    limits: str | None = None,
    check: int = 1000,
    results: str | None = None,
    repo: str | None = None,
) -> int:
    """See EXPORT_HELP."""
    from isdt_policy.deploy.export import FORMATS, export, parity
    from isdt_policy.method.policy import Policy

    if format not in (*FORMATS, "hub"):
        raise InputError(f"format='{format}' is not one of onnx, pt2, hub.{nearest(format, (*FORMATS, 'hub'))}")
    if format != "hub" and (results or repo):
        raise InputError("results= and repo= belong to format=hub.")
    policy = Policy.from_pretrained(checkpoint)
    allowed = find_limits(checkpoint, policy, None, limits)
    if format == "hub":
        from isdt_policy.deploy.hub import HubPolicy

        shared = HubPolicy.from_run(checkpoint, limits=allowed, results=results)
        shared.repo = repo
        folder = Path(out or "hub_folder")
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty; give a new folder: out=PATH.")
        shared.save_pretrained(folder)
        print(f"folder: {folder} ({', '.join(sorted(p.name for p in folder.iterdir()))})")
        if repo:
            print(f"uploaded: {shared.push_to_hub(repo)}")
        return 0
    path = export(
        policy, out or f"policy.{format}", format=format, nfe=steps, prefix=prefix, weights=weights, limits=allowed,
        source=checkpoint,
    )  # fmt: skip
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB, steps={steps})")
    if check:
        difference = parity(policy, path, nfe=steps, prefix=prefix, inputs=check)
        print(f"parity: largest difference {difference:.1e} in normalised units over {check} random inputs")
        if weights == "float32" and not difference <= 1e-4:
            raise InputError(f"{path} differs from the policy by {difference:.1e}, more than 1e-4: do not use it.")
    return 0


def load_policy(checkpoint: str, mode: str = "sync") -> Any:
    """Load what acts: a server's address, a .onnx file, or a checkpoint; ready for the runtime's mode."""
    if checkpoint.startswith(("ws://", "wss://")):
        from isdt_policy.deploy.client import PolicyClient

        return PolicyClient(checkpoint, api_key=os.environ.get("ISDT_API_KEY"))
    if checkpoint.endswith(".onnx"):
        from isdt_policy.deploy.runner import OnnxPolicy

        return OnnxPolicy(checkpoint)
    from isdt_policy.method.policy import Policy

    policy = Policy.from_pretrained(checkpoint)
    if mode != "rtc":
        return policy
    from isdt_policy.deploy.freezing import PrefixPolicy

    return PrefixPolicy(policy)


def fixed_steps(policy: Any, steps: str | None) -> int | str:
    """Return the number of evaluations: what was asked for, or what the policy is fixed to, or 1."""
    fixed = getattr(policy, "nfe", None)
    if steps is not None and fixed is not None and steps != str(fixed):
        raise InputError(f"steps={steps}: this policy runs nfe={fixed} and cannot change it.")
    chosen = str(fixed if steps is None and fixed is not None else steps or 1)
    return int(chosen) if chosen.isdigit() else chosen


def find_limits(checkpoint: str, policy: Any, spec: TaskSpec | None, path: str | None) -> Limits:
    """Return the limits named, or those that travel with the policy, or the bounds of the task's actions."""
    if path is not None:
        return Limits.load(path)
    embedded = getattr(policy, "metadata", {}).get("limits")
    if embedded:
        return Limits.from_dict(embedded)
    if Path(checkpoint).is_dir():
        from isdt_policy.method.policy import find_policy

        beside = find_policy(checkpoint) / FILE
        if beside.is_file():
            return Limits.load(beside)
    if spec is None:
        from isdt_policy.envs import task_ids, task_spec

        if policy.task not in task_ids():
            return Limits()
        spec = task_spec(policy.task)
    low, high = (np.broadcast_to(bound, spec.action.shape).tolist() for bound in (spec.action.low, spec.action.high))
    return Limits(low=low, high=high)


def _asks_for_help(args: list[str]) -> bool:
    return not args or args[0] in ("-h", "--help", "help")
