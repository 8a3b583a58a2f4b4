"""`isdt deploy`: a policy drives a simulator in wall-clock time."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from isdt_policy.cli.command import PathText
from isdt_policy.deploy.controller import Control, control, replay
from isdt_policy.deploy.latency import parse_latency
from isdt_policy.deploy.loading import find_limits, load_policy, nfe_of, task_of
from isdt_policy.deploy.report import Episode, Report, percentiles
from isdt_policy.deploy.runtime import Mode
from isdt_policy.deploy.safety import OnFault, Safety
from isdt_policy.deploy.window import Window
from isdt_policy.envs import make
from isdt_policy.eval.film import write_mp4
from isdt_policy.eval.statistics import wilson
from isdt_policy.shared import terminal
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.files import check_writable, write_text
from isdt_policy.shared.progress import Progress
from isdt_policy.shared.values import JsonObject


@dataclass(frozen=True)
class Deploy:
    """Drive a simulator in wall-clock time with a policy.

    The simulator moves at a fixed rate while the policy computes in a thread of its own. Every action passes the safety
    limits. At the end isdt prints whether the rate was kept, how old actions were, and where limits intervened.

    Examples:
        isdt deploy checkpoint=outputs/pusht_demo                  20 seconds at the task's rate
        isdt deploy checkpoint=policy.onnx                         an exported policy, without torch
        isdt deploy checkpoint=ws://127.0.0.1:8000                 a policy server
        isdt deploy checkpoint=outputs/pusht_demo 'latency=lognormal(30ms)' drop_obs=0.05 mode=async video=out.mp4
        isdt deploy checkpoint=outputs/pusht_demo clock=virtual episodes=100 latency=200ms mode=rtc

    What acts:
        checkpoint: a run, a checkpoint, a folder of save_pretrained, zoo:NAME, a .onnx file, or ws://HOST:PORT of `isdt serve`.
        nfe: network evaluations per chunk; default: 1, or the number that an exported policy or a server is fixed to.
        mode: sync: asks for a chunk when the last one is used up, and holds until it is there. async: executes the old chunk
            meanwhile. rtc: like async, and the new chunk continues the actions that are executed meanwhile.
        execute: how many actions of a chunk are executed before the next is asked for; default: the checkpoint's
            n_action_steps.
        device: where a checkpoint computes: cpu, cuda, cuda:1, mps, or auto for a GPU if there is one.
        ensemble: average the chunks that overlap, with weights exp(-X i) from the oldest; for example 0.01 with execute=1.

    Where:
        task: where it acts; default: the task that the checkpoint was trained on.
        rate: control steps per second; default: the task's.
        seconds: stop after so many seconds; default: 20, or never if episodes= is given.
        episodes: stop after so many episodes, or after seconds= if that comes first.
        seed: the first episode starts from this seed, the others from the seeds that follow.
        clock: wall: time passes as it does. virtual: an inference takes the time in latency= and nothing else takes time, so a
            run is fast and repeatable.
        latency: add this to every inference: 30ms, 'uniform(10ms,50ms)', 'normal(30ms,5ms)', 'lognormal(30ms,0.5)'.
        drop_obs: lose this share of the observations.

    Safety:
        limits: JSON file with low, high, step, velocity, acceleration, jerk, position, neutral. limits.json beside the weights
            and the task's bounds hold too.
        loosen: only the limits= file holds, even where it allows more than the others.
        on_fault: what happens if an action is missing, not finite or too old. hold: the robot moves no further until a good
            action comes. stop: the run ends.
        max_age: an action is too old if its observation is older than so many seconds; default: no action is too old.

    What is written:
        out: write the numbers into this JSON file.
        window: show the simulator. Drawing takes time in every period; closing the window stops the run.
        video: write the last episode into this MP4 file. It is replayed afterwards, so that drawing takes no time in the run.
    """

    checkpoint: PathText
    nfe: Arm | None = None
    mode: Mode = "sync"
    execute: int | None = None
    ensemble: float | None = None
    task: str | None = None
    rate: float | None = None
    seconds: float | None = None
    episodes: int | None = None
    seed: int = 100_000
    clock: Literal["wall", "virtual"] = "wall"
    latency: str = "none"
    drop_obs: float = 0.0
    limits: Annotated[str, "JSON"] | None = None
    loosen: bool = False
    on_fault: OnFault = "hold"
    max_age: float | None = None
    out: Annotated[str, "JSON"] | None = None
    window: bool = False
    video: Annotated[str, "MP4"] | None = None
    device: str = "cpu"

    positional: ClassVar = ("checkpoint",)
    renamed: ClassVar = {"steps": "nfe"}

    def __post_init__(self) -> None:
        for name in ("rate", "seconds", "episodes", "max_age"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name}={value} must be above 0.")
        if not 0 <= self.drop_obs < 1:
            raise InputError(f"drop_obs={self.drop_obs} must be a share from 0 to below 1.")
        parse_latency(self.latency)

    def run(self, command: str) -> int:
        """Return 0, or 1 if safety stopped the run."""
        for path in filter(None, (self.out, self.video)):
            check_writable(Path(path))
        policy = load_policy(self.checkpoint, self.mode, self.device)
        spec = task_of(policy, self.task)
        settings = Control(
            rate_hz=float(self.rate or spec.rate_hz),
            mode=self.mode,
            nfe=nfe_of(policy, self.nfe.name if self.nfe else None),
            execute=self.execute,
            ensemble=self.ensemble,
            seed=self.seed,
            episodes=self.episodes,
            seconds=20.0 if self.seconds is None and self.episodes is None else self.seconds,
            virtual=self.clock == "virtual",
            latency=parse_latency(self.latency),
            drop_obs=self.drop_obs,
            max_steps=spec.max_episode_steps,
        )
        allowed = find_limits(self.checkpoint, policy, spec, self.limits, loosen=self.loosen)
        safety = Safety(
            allowed, action_dim=spec.action.shape[0], rate_hz=settings.rate_hz, on_fault=self.on_fault,
            max_age_s=self.max_age, positions=True,
        )  # fmt: skip
        keys = tuple(dict.fromkeys([*policy.obs_keys, *([allowed.position] if allowed.position else [])]))
        env = make(spec.id, keys, render_mode="rgb_array" if self.window else None)
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        pane = Window(env, f"isdt deploy: {spec.id}") if self.window else None
        shown = _display(settings)

        def on_period(report: Report) -> None:
            shown(report)
            if pane is not None and not pane.show():
                safety.stop("the window was closed")

        report = control(policy, env, safety, settings, on_period)
        if pane is not None:
            pane.close()
        print(describe(report))
        if self.out:
            options = {"checkpoint": self.checkpoint, "task": spec.id, "mode": self.mode, "nfe": str(settings.nfe),
                       "latency": self.latency, "drop_obs": self.drop_obs, "clock": self.clock, "seed": self.seed,
                       "device": getattr(policy, "computes_on", None), "limits": allowed.as_dict(),
                       "rows": getattr(policy, "inference_rows", None) if settings.virtual else 1}  # fmt: skip
            write_text(Path(self.out), json.dumps({"options": options, **report.summary()}, indent=1) + "\n")
            print(f"numbers: {self.out}")
        if self.video:
            _film(spec.id, report.episodes[-1], Path(self.video), settings.rate_hz)
            print(f"video: {self.video}")
        if not self.checkpoint.endswith((".onnx", ".pt2")) and "://" not in self.checkpoint:
            terminal.suggest(f"isdt export {shlex.quote(f'checkpoint={self.checkpoint}')} out=policy.onnx")
        return 0 if report.stopped is None else 1


def describe(report: Report) -> str:
    """What was measured, as a few lines."""
    stolen = f" ({report.missed_stolen} while the hypervisor held a core)" if report.missed_stolen else ""
    most = max(report.work_s, default=0.0) * 1e3
    lines = [
        f"rate         {report.rate_kept:.2f} Hz kept of {report.rate_hz:g}, {report.periods} periods, "
        f"{report.missed} deadline misses{stolen}, {report.held} held",
        f"work         {_line(report.work_s)}  max {most:.1f} ms of {1e3 / report.rate_hz:.0f}",
        f"inference    {_line(report.inference_s)}   (computing {_line(report.compute_s)})",
        f"action age   {_line(report.age_s)}",
        f"observations {report.lost_observations} lost",
        "safety       " + (", ".join(f"{kind} {n}" for kind, n in report.interventions.items()) or "no interventions"),
    ]
    done = report.finished
    if done:
        successes = sum(episode.success for episode in done)
        rate = wilson(successes, len(done), 0.95)
        lines.append(
            f"episodes     {successes} of {len(done)} succeeded: {100 * rate.value:.0f} % "
            f"[{100 * rate.low:.0f}, {100 * rate.high:.0f}], score {report.score:.3f}"
        )
    if report.stopped:
        lines.append(f"STOPPED      {report.stopped}")
    return "\n".join(lines)


def _line(seconds: list[float]) -> str:
    p = percentiles(seconds)
    return "none" if p is None else f"p50 {p['p50']:.1f}  p95 {p['p95']:.1f}  p99 {p['p99']:.1f} ms"


def _display(settings: Control) -> Callable[[Report], None]:
    """Progress of the loop: a bar on a terminal, a line every few seconds elsewhere."""
    by_time = settings.seconds is not None
    total = round((settings.seconds or 0) * settings.rate_hz) if by_time else settings.episodes or 0
    bar = Progress(total, "deploy", "period" if by_time else "episode", every_s=5)

    def show(report: Report) -> None:
        done = report.periods if by_time else len(report.finished)
        if done > bar.count:
            recent = percentiles(report.inference_s[-50:])
            p95 = "-" if recent is None else f"{recent['p95']:.1f} ms"
            bar.update(done - bar.count, missed=str(report.missed), held=str(report.held), p95=p95)
        if done >= total:
            bar.close()

    return show


def _film(task: str, episode: Episode, path: Path, rate_hz: float) -> None:
    size: JsonObject = {"render_size": 256} if task == "pusht" else {}
    env = make(task, None, render_mode="rgb_array", **size)
    write_mp4(path, replay(env, episode), max(1, round(rate_hz)))
