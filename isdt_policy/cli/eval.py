"""`isdt eval`: a policy on listed seeds; the same again; every checkpoint of a run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, ClassVar

from isdt_policy.cli.acting import Acting, Actor, Scripted, Stepping
from isdt_policy.deploy.record import Rollouts, initial_states, record
from isdt_policy.eval.comparison import Group
from isdt_policy.eval.curves import draw_curves
from isdt_policy.eval.episode import Start
from isdt_policy.eval.film import Video, film
from isdt_policy.eval.journal import Journal
from isdt_policy.eval.origin import Origin, describe_policy, versions
from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.report import write_report
from isdt_policy.eval.result import FILE, Result
from isdt_policy.eval.rollout import EpisodeProgress, Scene, evaluate
from isdt_policy.eval.seeds import FINAL_START, SELECTION_START, check_seeds, consecutive
from isdt_policy.eval.tables import summary
from isdt_policy.method import zoo
from isdt_policy.shared import terminal
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError, at_least
from isdt_policy.shared.extras import require
from isdt_policy.shared.files import check_writable
from isdt_policy.shared.provenance import differences
from isdt_policy.training.cost import training_of


@dataclass(frozen=True)
class Eval(Acting, Stepping):
    """Run a policy on listed seeds and report its rate of success with 95 % intervals.

    It writes eval_info.json with all numbers and every episode, and report.html with figures and videos. The same command
    continues an interrupted evaluation.

    Examples:
        isdt eval checkpoint=zoo:pusht_human episodes=10                       a trained policy that comes with isdt
        isdt eval checkpoint=outputs/pusht_demo                                one network evaluation, 100 final seeds
        isdt eval checkpoint=outputs/pusht_demo 'arms=[1,2,euler10]' episodes=200
        isdt eval checkpoint=outputs/pusht_demo seed_start=200000 episodes=50  selection seeds, to choose a checkpoint
        isdt eval policy=expert task=pusht episodes=50                         the scripted expert of a task
        isdt eval repeat results/pusht_demo                                    run a result again and compare
        isdt eval curve checkpoint=outputs/pusht_demo                          every checkpoint of a run

    How it is asked:
        arms: what is compared: numbers of network evaluations per action chunk, and samplers. eulerN, heunN and restartN take
            N steps, euler@0.6@0.3 visits these times; a diffusion policy has ddimN and ddpmN.
        n_latency_steps: inference takes so many control steps (simulated).
        inference_batch: an inference call has at most so many rows. It belongs to the conditions, because the last bits depend
            on it.

    On which episodes:
        episodes: how many seeds; every arm runs one episode on each.
        seed_start: first seed. Report on 100000 to 199999, choose checkpoints on 200000 to 299999; 0 to 99999 are for training.
            A checkpoint that is chosen on the seeds it is reported on looks too good.
        seeds: exactly these seeds; then episodes and seed_start do not count.
        max_steps: end episodes after so many steps; default: the task's limit.
        seed_protocol: how a seed becomes an initial state; pusht has pusht, and pusht-legacy as in Diffusion Policy.
        init: train:STORE starts where the demonstrations in STORE start; a seed is then the number of a demonstration.

    What is written:
        out: folder; default: CHECKPOINT/eval.
        overwrite: start anew, also if out= holds episodes of an earlier evaluation.
        videos: film so many failures and so many successes for the report.
        report: write report.html.
        record: write the episodes of the first arm into this .zarr folder too, as demonstrations.
    """

    arms: tuple[Arm, ...] = (Arm(),)
    n_latency_steps: int = 0
    inference_batch: int = 16
    episodes: int = 100
    seed_start: int = FINAL_START
    seeds: tuple[int, ...] = ()
    max_steps: int | None = None
    seed_protocol: str | None = None
    init: str = "seed"
    out: Annotated[Path, "FOLDER"] | None = None
    overwrite: bool = False
    videos: int = 4
    report: bool = True
    record: Annotated[Path, "STORE.zarr"] | None = None

    renamed: ClassVar = {"steps": "arms", "baselines": "+arms"}

    def __post_init__(self) -> None:
        self.check_acting()
        self.workers()
        at_least(0, videos=self.videos)
        if self.max_steps is not None:  # before a folder is made
            at_least(1, max_steps=self.max_steps)
        if self.init == "seed":
            check_seeds(self.seed_list())
        elif not self.init.startswith("train:") or not self.init.removeprefix("train:"):
            raise InputError(f"init='{self.init}' is unknown; allowed: seed, train:STORE.")
        if self.record is not None and self.record.exists():
            raise InputError(f"{self.record} exists; recording into it would mix two sets. Give another record=.")

    def run(self, command: str) -> int:
        self.evaluated(self.folder(), command)
        if self.checkpoint:
            terminal.suggest(f"isdt deploy {shlex.quote(f'checkpoint={self.checkpoint}')}")
        return 0

    def evaluated(self, out: Path, command: str) -> Result:
        """Evaluate, print the numbers, and write what was asked for."""
        if self.report:  # what the end needs is looked for at the beginning
            require("matplotlib", "report", "The report (or report=false)")
        if self.report and self.videos:
            require("av", "report", "Videos (or videos=0)")
        actor, starts = self.actor(), self.starts()
        result = self.measure(actor, starts, out, command)
        print(summary(result))
        if self.record:
            first, _ = result.first
            rollouts = Rollouts(result.protocol, result.seeds, first, starts)
            source = {"source": "rollouts", "steps": first.name, "command": command}
            print(record(actor.policy, rollouts, self.record, source, workers=self.workers()))
        if self.report:
            videos: list[Video] = []
            try:
                videos = film(actor.policy, result, self.videos, starts, out) if self.videos else []
            except InputError as error:
                print(f"note: nothing was filmed: {error}", file=sys.stderr)
            print(f"report: {write_report(result, out / 'report.html', videos)}")
        print(f"numbers: {out / FILE}")
        return result

    def measure(self, actor: Actor, starts: Mapping[int, Start] | None, out: Path, command: str) -> Result:
        """Evaluate and write eval_info.json."""
        check_writable(out / FILE)
        protocol = self.protocol(actor)
        seeds = list(starts) if starts else self.seed_list()
        arms = self.asked(self.arms)
        journal = Journal(out, actor.fingerprint)
        if self.overwrite:
            journal.clear()
        elif (out / FILE).exists():
            _check_larger(Result.load(out), {(seed, arm) for seed in seeds for arm in arms}, out)
        result = evaluate(
            actor.policy, protocol, seeds, arms, workers=self.workers(), scene=Scene(init_states=starts), journal=journal,
            listener=EpisodeProgress(),
        )  # fmt: skip
        about = describe_policy(
            actor.policy, checkpoint=actor.checkpoint, name=actor.name, fingerprint=actor.fingerprint,
            training=training_of(actor.checkpoint) if actor.checkpoint else None,
        )  # fmt: skip
        result = replace(result, origin=Origin.now(command, self.options(), about, protocol.task))
        result.save(out)
        return result

    def protocol(self, actor: Actor) -> Protocol:
        """The conditions, with the rule for seeds resolved."""
        return Protocol(
            task=actor.spec.id,
            seed_protocol=self.seed_protocol or actor.spec.seed_protocols[0],
            n_latency_steps=self.n_latency_steps,
            n_action_steps=self.n_action_steps,
            noise_scale=self.noise_scale,
            inference_batch=self.inference_batch,
            max_steps=self.max_steps,
            init=self.init,
        )

    def seed_list(self) -> list[int]:
        """The seeds, if they do not come from a store."""
        return list(self.seeds) or consecutive(self.seed_start, self.episodes)

    def starts(self) -> dict[int, Start] | None:
        """Where the episodes begin, if a store says so."""
        if self.init == "seed":
            return None
        return initial_states(self.init.removeprefix("train:"), self.episodes, self.seeds)

    def folder(self) -> Path:
        """Where the result is written."""
        if self.out is not None:
            return self.out
        if self.checkpoint is None:
            return Path("outputs") / f"eval_{self.policy}_{self.task}"
        path = zoo.beside(self.checkpoint)
        return (path.parent if path.is_file() else path) / "eval"

    def options(self) -> dict[str, object]:
        """Every option as a JSON value."""
        found: dict[str, object] = {field.name: getattr(self, field.name) for field in fields(self)}
        found["arms"] = [arm.name for arm in self.arms]
        return {key: str(value) if isinstance(value, Path) else value for key, value in found.items()}


def _check_larger(before: Result, wanted: set[tuple[int, Arm]], out: Path) -> None:
    """Check that a result in a folder is not replaced by one that lacks some of its episodes."""
    lost = [record for record in before.episodes if record.key not in wanted]
    if lost:
        raise InputError(
            f"{out} holds a result of {len(before.seeds)} seeds and arms {', '.join(arm.name for arm in before.arms)}; this "
            f"evaluation lacks {len(lost)} of its {len(before.episodes)} episodes and would replace it. Give another out=, or "
            "overwrite=true."
        )


@dataclass(frozen=True, kw_only=True)
class EvalRepeat(Stepping):
    """Run a result again and compare it episode by episode.

    The exit code is 0 if every action and reward is the same, and 1 if an episode differs.

    Examples:
        isdt eval repeat results/pusht_demo                              all of it
        isdt eval repeat outputs/a/eval checkpoint=PATH episodes=20      its first 20 seeds; the weights were moved

    What is repeated:
        result: an eval_info.json, or its folder.
        checkpoint: where the weights are now; default: where they were.
        episodes: run only so many of its seeds, from the first; default: all.
    """

    result: Annotated[str, "RESULT"]
    checkpoint: Annotated[str, "FOLDER"] | None = None
    episodes: int | None = None

    positional: ClassVar = ("result",)

    def __post_init__(self) -> None:
        if self.episodes is not None:
            at_least(1, episodes=self.episodes)

    def run(self, command: str) -> int:
        before = Result.load(self.result)
        protocol, policy = before.protocol, before.origin.policy
        name: Scripted | None = None if policy.checkpoint or self.checkpoint else "expert"
        acting = Acting(
            self.checkpoint or policy.checkpoint, name, protocol.task, protocol.n_action_steps, protocol.noise_scale,
            str(before.origin.options.get("device", "cpu")),
        )  # fmt: skip
        acting.check_acting()
        actor = acting.actor()
        if actor.fingerprint != policy.fingerprint:
            raise InputError(
                f"the weights at '{actor.checkpoint}' are not the ones of {self.result} (sha256 {actor.fingerprint[:12]}, expected "
                f"{str(policy.fingerprint)[:12]}). Give the right ones: isdt eval repeat {self.result} checkpoint=PATH"
            )
        here = versions(protocol.task)
        for package, was in before.origin.versions.items():
            if here.get(package) != was:
                print(f"note: {package} was {was}, is {here.get(package)} here", file=sys.stderr)
        now = describe_policy(actor.policy)
        for what, then, is_ in (("device", policy.device, now.device), ("rows of a call", policy.rows, now.rows)):
            if then not in (None, is_):
                print(f"note: the {what} was {then}, is {is_} here; last bits depend on it", file=sys.stderr)
        for told in differences(before.origin.hardware):
            print(f"note: {told}; the same bits are promised where that is the same", file=sys.stderr)
        seeds = before.seeds[: self.episodes]
        starts = None
        if protocol.init != "seed":
            starts = initial_states(protocol.init.removeprefix("train:"), len(seeds), seeds)
        again = evaluate(
            actor.policy, protocol, seeds, list(before.arms), workers=self.workers(), scene=Scene(init_states=starts),
            listener=EpisodeProgress(),
        )  # fmt: skip
        return 0 if report_differences(before, again) == 0 else 1


def report_differences(before: Result, again: Result) -> int:
    """Print how a repeated evaluation compares with the stored one; returns how many episodes differ."""
    stored = {record.key: record for record in before.episodes}
    same = outcome = 0
    for new in again.episodes:
        was = stored[new.key]
        same += was.digest == new.digest
        outcome += was.success == new.success
        if was.digest != new.digest:
            print(
                f"differs: seed {new.seed}, arm {new.arm}: success {was.success} -> {new.success}, "
                f"max reward {was.max_reward:.4f} -> {new.max_reward:.4f}"
            )
    n = len(again.episodes)
    print(f"{same} of {n} episodes identical in every action and reward; {outcome} of {n} with the same outcome.")
    return n - same


@dataclass(frozen=True)
class EvalCurve(Eval):
    """Evaluate every checkpoint that a run has kept, and draw success against training.

    Train with training.keep_checkpoints=N to keep checkpoints. The figure shows success against training windows and
    minutes. Seeds are selection seeds, because people choose a checkpoint from such a curve. The same command continues an
    interrupted curve.

    Examples:
        isdt train experiment=pusht_demo training.keep_checkpoints=12 name=curve
        isdt eval curve checkpoint=outputs/curve 'arms=[1,2,euler10]'
        isdt compare curves=learning.png outputs/a/curve/*/ outputs/b/curve/*/          several runs in one figure

    What acts:
        checkpoint: a run.

    What is written:
        out: folder; default: RUN/curve. It gets a folder per checkpoint, and curve.png.
    """

    episodes: int = 50
    seed_start: int = SELECTION_START
    videos: int = 0
    report: bool = False

    def __post_init__(self) -> None:
        if self.checkpoint is None:
            raise InputError("which run? For example: isdt eval curve checkpoint=outputs/pusht_demo")
        super().__post_init__()

    def run(self, command: str) -> int:
        run = Path(str(self.checkpoint))
        folders, out = checkpoints(run), self.out or run / "curve"
        groups = []
        for number, folder in enumerate(folders, start=1):
            print(f"checkpoint {number} of {len(folders)}: {folder}")
            result = replace(self, checkpoint=str(folder)).evaluated(out / folder.name, command)
            groups.append(Group(folder.name, (result,)))
        draw_curves(groups, None, out / "curve.png")
        print(f"curve: {out / 'curve.png'}")
        return 0


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints that a run has kept, oldest first.

    Raises:
        InputError: no run there, or none kept.
    """
    found = sorted(p for p in (run / "checkpoints").glob("*") if p.name.isdigit() and (p / "policy").is_dir())
    if not found:
        raise InputError(
            f"'{run}' holds no checkpoints/STEP; give the directory of a run, such as outputs/pusht_demo, trained with "
            "training.keep_checkpoints=N."
        )
    return found
