"""`isdt eval`: measure a policy, write the numbers and a report; repeat a result from its JSON."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from isdt_policy.envs.protocol import Policy
from isdt_policy.eval.episode import Start
from isdt_policy.eval.journal import Journal
from isdt_policy.eval.origin import Origin, describe_policy, versions
from isdt_policy.eval.progress import EpisodeProgress
from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.result import Result
from isdt_policy.eval.rollout import Scene, Workers, evaluate
from isdt_policy.eval.seeds import FINAL_START, purpose
from isdt_policy.eval.tables import summary
from isdt_policy.eval.training_cost import training_of
from isdt_policy.shared.errors import InputError, nearest

HELP = """usage: isdt eval checkpoint=PATH [key=value ...]
       isdt eval repeat RESULT.json [key=value ...]
       isdt eval curve checkpoint=RUN [key=value ...]

Run a policy on listed seeds and report success rates with 95 % intervals: eval_info.json, report.html, videos.

examples
  isdt eval checkpoint=outputs/pusht_demo                                one step, 100 final-evaluation seeds
  isdt eval checkpoint=outputs/pusht_demo steps=[1,2] baselines=[euler10] episodes=200
  isdt eval checkpoint=outputs/pusht_demo seed_start=200000 episodes=50  selection seeds, to choose between checkpoints
  isdt eval policy=expert task=pusht episodes=50                         the scripted expert of a task
  isdt eval repeat results/pusht.json                               run a result again, compare seed by seed
  isdt eval repeat results/pusht.json checkpoint=PATH episodes=20   ... its first 20 seeds, weights found elsewhere
  isdt eval curve checkpoint=outputs/pusht_demo                          every checkpoint kept: success against time and windows

what is evaluated
  checkpoint=PATH        run directory, checkpoint or folder written by save_pretrained
  policy=expert          the task's scripted expert instead of a checkpoint
  task=NAME              default: the task the checkpoint was trained on
  steps=[1,2]            network evaluations per action chunk, one arm each (default [1])
  baselines=[euler10]    further arms by sampler name: eulerN, heunN, restartN; euler@0.6@0.3 chooses the times; ddimN and
                         ddpmN of a diffusion policy

on which episodes
  episodes=100           number of seeds, one episode each per arm
  seed_start=100000      first seed. 100000..199999 final evaluation, 200000..299999 selection, 0..99999 training:
                         disjoint ranges, so that no checkpoint is chosen on the seeds it is reported on
  seeds=[100000,100007]  these seeds instead
  max_steps=N            shorter episodes than the task's own limit
  seed_protocol=NAME     rule from seed to initial state (pusht: "pusht", or "pusht-legacy" as in Diffusion Policy)
  init=train:STORE       start from the first states of the demonstrations in STORE instead (seed = episode number)
  n_latency_steps=0      simulated inference latency, in control steps
  n_action_steps=N       actions executed of each chunk before the next is asked for (default: the checkpoint's)
  noise_scale=S          of the initial noise, 0 to 1 (default: the checkpoint's); less draws nearer to the middle
  inference_batch=16     most rows in an inference call (a fixed number: last bits depend on it)

how (none of these changes a result)
  n_envs=16              environments at a time
  n_workers=0            processes that step them; 0: in this one (best for PushT)
  backend=ray            step environments on a Ray cluster (n_workers actors, or one per CPU); address=HOST:PORT to join
                         a running one
  timeout_s=120          a worker silent for longer is replaced; its episode is retried once, then recorded as an error

what is written
  out=DIR                default: PATH/eval. An interrupted evaluation resumes from the episodes found there
  overwrite=false        true: forget what out= holds, instead of resuming from it
  videos=4               episodes per kind (failures, successes) to film for the report; 0 for none
  report=true            write report.html
  record=STORE           also save the rollouts as a dataset
"""


@dataclass(frozen=True)
class Options:
    """Arguments of `isdt eval`; `HELP` says what they mean."""

    checkpoint: str | None = None
    policy: str | None = None
    task: str | None = None
    steps: tuple[int | str, ...] = (1,)
    baselines: tuple[str, ...] = ()
    episodes: int = 100
    seed_start: int = FINAL_START
    seeds: tuple[int, ...] | None = None
    seed_protocol: str | None = None
    init: str = "seed"
    n_latency_steps: int = 0
    n_action_steps: int | None = None
    noise_scale: float | None = None
    inference_batch: int = 16
    max_steps: int | None = None
    n_envs: int = 16
    n_workers: int = 0
    backend: str = "local"
    address: str | None = None
    timeout_s: float = 120.0
    out: str | None = None
    overwrite: bool = False
    videos: int = 4
    report: bool = True
    record: str | None = None

    @property
    def arms(self) -> list[int | str]:
        """Steps first, then baselines; an expert is one arm."""
        return [self.policy] if self.policy else [*self.steps, *self.baselines]


def main(args: list[str]) -> int:
    """Run `isdt eval`; returns 0, or 1 if a repeated result differs."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if args[0] == "repeat":
        return repeat(args[1:])
    if args[0] == "curve":
        from isdt_policy.eval import curve

        return curve.main(args[1:])
    options = parse_options(args)
    run(options, command="isdt eval " + shlex.join(args))
    return 0


def parse_options(args: Sequence[str]) -> Options:
    """Read `key=value` arguments.

    >>> parse_options(["checkpoint=x", "steps=[1,2]", "baselines=[euler10]"]).arms
    [1, 2, 'euler10']

    Raises:
        InputError: for an unknown key, or a value of the wrong kind.
    """
    types = {f.name: str(f.type) for f in fields(Options)}
    values: dict[str, Any] = {}
    for arg in args:
        key, separator, text = arg.partition("=")
        if not separator:
            raise InputError(
                f"'{arg}' is not key=value. For example: isdt eval checkpoint=outputs/pusht_demo steps=[1,2]"
            )
        if key not in types:
            raise InputError(f"unknown option '{key}'.{nearest(key, types)} Options: {', '.join(types)}.")
        values[key] = _convert(key, text, types[key])
    return Options(**values)


def run(options: Options, command: str, policy: Policy | None = None) -> Result:
    """Evaluate, write eval_info.json and the report, print the summary.

    Args:
        options: what to do.
        command: recorded, to be repeated.
        policy: already loaded; None loads `options.checkpoint`.
    """
    if policy is None:
        policy = load_policy(options)
    task = check_task(options, policy)
    seeds, init_states = episode_list(options)
    fingerprint = fingerprint_of(options)
    out = Path(options.out) if options.out else default_out(options)
    protocol = protocol_of(options, task)
    journal = Journal(out, fingerprint)
    if options.overwrite:
        journal.clear()
    result = evaluate(
        policy, protocol, seeds, options.arms, workers=workers_of(options), scene=Scene(init_states=init_states),
        journal=journal, listener=EpisodeProgress(),
    )  # fmt: skip
    about = describe_policy(
        policy, checkpoint=options.checkpoint, name=options.policy, fingerprint=fingerprint,
        training=training_of(options.checkpoint) if options.checkpoint else None,
    )  # fmt: skip
    result = replace(result, origin=Origin.now(command, asdict(options), about, protocol.task))
    info = result.to_json()
    result.save(out)
    print(summary(result))
    if options.record:
        from isdt_policy.eval.record import record_rollouts

        print(f"rollouts saved as a dataset: {record_rollouts(policy, result, options.record, init_states)}")
    if options.report:
        from isdt_policy.eval.report import film, write_report

        videos = film(policy, result, options.videos, init_states, out) if options.videos else []
        print(f"report: {write_report(info, out / 'report.html', videos)}")
    print(f"numbers: {out / 'eval_info.json'}")
    return result


def repeat(args: Sequence[str]) -> int:
    """Run a result again and compare it seed by seed; returns 0 if every episode is the same."""
    if not args or "=" in args[0]:
        raise InputError("which result? For example: isdt eval repeat outputs/pusht_demo/eval/eval_info.json")
    path = Path(args[0])
    stored = Result.load(path)
    known = {f.name for f in fields(Options)}
    before: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in stored.origin.options.items() if k in known
    }
    changes = asdict(parse_options(args[1:]))
    given = {arg.partition("=")[0] for arg in args[1:]}
    seeds = stored.seeds[: changes["episodes"]] if "episodes" in given else stored.seeds
    options = replace(Options(**before), **{k: changes[k] for k in given})
    options = replace(options, seeds=seeds, episodes=len(seeds))
    policy = load_policy(options)
    fingerprint = fingerprint_of(options)
    if fingerprint != stored.origin.policy.fingerprint:
        raise InputError(
            f"the weights at '{options.checkpoint}' are not the ones of {path} (sha256 {fingerprint[:12]}, expected "
            f"{str(stored.origin.policy.fingerprint)[:12]}). Give the right ones: isdt eval repeat {path} checkpoint=PATH"
        )
    here = versions(stored.protocol.task)
    for name, was in stored.origin.versions.items():
        if here.get(name) != was:
            print(f"note: {name} was {was}, is {here.get(name)} here", file=sys.stderr)
    _, init_states = episode_list(options)
    result = evaluate(
        policy, stored.protocol, seeds, options.arms, workers=workers_of(options),
        scene=Scene(init_states=init_states), listener=EpisodeProgress(),
    )  # fmt: skip
    return report_differences(stored, result)


def report_differences(stored: Result, result: Result) -> int:
    """Print how a repeated evaluation compares with the stored one; 0 if all episodes are the same."""
    old = {record.key: record for record in stored.episodes}
    same = outcome = 0
    for new in result.episodes:
        was = old[new.key]
        same += was.digest == new.digest
        outcome += was.success == new.success
        if was.digest != new.digest:
            print(
                f"differs: seed {new.seed}, arm {new.arm}: success {was.success} -> {new.success}, "
                f"max reward {was.max_reward:.4f} -> {new.max_reward:.4f}"
            )
    n = len(result.episodes)
    print(f"{same} of {n} episodes identical in every action and reward; {outcome} of {n} with the same outcome.")
    return 0 if same == n else 1


def load_policy(options: Options) -> Policy:
    """Load a checkpoint, or build the task's expert."""
    if (options.checkpoint is None) == (options.policy is None):
        raise InputError("give either checkpoint=PATH or policy=expert (with task=NAME).")
    if options.checkpoint is not None:
        from isdt_policy.method.policy import Policy as TrainedPolicy

        trained: Any = TrainedPolicy.from_pretrained(options.checkpoint)
        for name in ("n_action_steps", "noise_scale"):
            if getattr(options, name) is not None:
                trained.config = replace(trained.config, **{name: getattr(options, name)})
        return trained  # type: ignore[no-any-return]
    if options.n_action_steps is not None:
        raise InputError("n_action_steps= is for checkpoints; an expert decides at every step.")
    if options.noise_scale is not None:
        raise InputError("noise_scale= is for checkpoints; an expert draws nothing.")
    if options.policy != "expert":
        raise InputError(f"policy='{options.policy}' is unknown; allowed: expert. A trained one: checkpoint=PATH.")
    if options.task is None:
        raise InputError("policy=expert needs task=NAME, for example task=pusht.")
    from isdt_policy.envs.experts import expert

    return expert(options.task)


def fingerprint_of(options: Options) -> str:
    """Identity of what acts: of its weights, or the name of a scripted policy."""
    from isdt_policy.method.policy import weights_sha256

    return weights_sha256(options.checkpoint) if options.checkpoint else f"{options.policy}"


def workers_of(options: Options) -> Workers:
    """Where the environments are stepped."""
    if options.backend not in ("local", "ray"):
        raise InputError(f"backend='{options.backend}' is unknown; allowed: local, ray.")
    backend = None
    if options.backend == "ray":
        from isdt_policy.eval.ray_backend import RaySlots

        n_workers = options.n_workers or None
        backend = partial(RaySlots, n_workers=n_workers, address=options.address, timeout_s=options.timeout_s)
    return Workers(options.n_envs, options.n_workers, options.timeout_s, backend)


def check_task(options: Options, policy: Policy) -> str:
    """Return the task, after checking that policy and environment fit."""
    from isdt_policy.envs import task_spec

    task = options.task or getattr(policy, "task", None)
    if not task:
        raise InputError("the checkpoint names no task; give task=NAME, for example task=pusht.")
    spec = task_spec(task)
    for key in policy.obs_keys:
        if key not in spec.observations:
            raise InputError(
                f"the policy reads observation '{key}', which task '{task}' does not give."
                f"{nearest(key, spec.observations)} It gives: {', '.join(spec.observations)}."
            )
    config = getattr(policy, "config", None)
    for key, dim in (getattr(config, "obs_dims", None) or {}).items():
        shape = spec.observations[key].shape
        if (dim,) != shape:
            raise InputError(f"the policy reads '{key}' with {dim} features; task '{task}' gives shape {shape}.")
    dim = getattr(config, "action_dim", None)
    if dim is not None and (dim,) != spec.action.shape:
        raise InputError(
            f"the policy answers with {dim} numbers per action; task '{task}' takes shape {spec.action.shape}."
        )
    return str(task)


def episode_list(options: Options) -> tuple[list[int], dict[int, Start] | None]:
    """Return the seeds, and the initial states if they come from a dataset."""
    if options.init == "seed":
        seeds = (
            list(options.seeds)
            if options.seeds is not None
            else list(range(options.seed_start, options.seed_start + options.episodes))
        )
        purpose(seeds)
        return seeds, None
    kind, _, store = options.init.partition(":")
    if kind != "train" or not store:
        raise InputError(f"init='{options.init}' is unknown; allowed: seed, train:STORE.")
    from isdt_policy.datasets.store import DemoStore

    demos = DemoStore.open(store)
    key = next((key for key in ("state", "states") if key in demos.keys), None)  # PushT's; the simulator's
    if key is None:
        raise InputError(
            f"{store} has neither 'state' nor 'states', so its initial states are unknown; it has {', '.join(demos.keys)}."
        )
    ends = [int(end) for end in demos.episode_ends]
    starts = [0, *ends[:-1]]
    seeds = list(options.seeds) if options.seeds is not None else list(range(min(options.episodes, len(starts))))
    info = demos.episode_info()
    states = {i: tuple(float(v) for v in demos.read(key, starts[i], starts[i] + 1)[0]) for i in seeds}
    return seeds, {i: Start(s, info[i].get("reset_seed"), info[i].get("model_file")) for i, s in states.items()}


def protocol_of(options: Options, task: str) -> Protocol:
    """Return the conditions of the evaluation, with defaults resolved."""
    from isdt_policy.envs import task_spec

    seed_protocol = options.seed_protocol or task_spec(task).seed_protocols[0]
    return Protocol(
        task=task,
        seed_protocol=seed_protocol,
        n_latency_steps=options.n_latency_steps,
        n_action_steps=options.n_action_steps,
        noise_scale=options.noise_scale,
        inference_batch=options.inference_batch,
        max_steps=options.max_steps,
        init=options.init,
    )


def default_out(options: Options) -> Path:
    """Return <checkpoint>/eval, or outputs/eval_<policy>_<task>."""
    if options.checkpoint:
        path = Path(options.checkpoint)
        return (path if path.is_dir() else path.parent) / "eval"
    return Path("outputs") / f"eval_{options.policy}_{options.task}"


def _convert(key: str, text: str, kind: str) -> Any:
    if text in ("null", "none", "None") and "None" in kind:
        return None
    try:
        if kind.startswith("tuple"):
            return _convert_list(key, text, kind)
        if kind.startswith("int"):
            return int(text)
        if kind.startswith("float"):
            return float(text)
    except ValueError:
        raise InputError(f"{key}={text} is not {'a list of numbers' if 'tuple' in kind else 'a number'}.") from None
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise InputError(f"{key}={text} is neither true nor false.")
        return text.lower() == "true"
    return text


def _convert_list(key: str, text: str, kind: str) -> tuple[Any, ...]:
    items = [item.strip().strip("'\"") for item in text.strip("[]()").split(",") if item.strip()]
    if kind.startswith("tuple[int, ...]"):
        return tuple(int(item) for item in items)
    return tuple(int(item) if item.lstrip("-").isdigit() else item for item in items)
