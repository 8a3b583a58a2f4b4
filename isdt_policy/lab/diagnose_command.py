"""`isdt diagnose`: what a trained flow map got right and wrong, as numbers, one page of figures and a few sentences."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isdt_policy.shared.errors import InputError

if TYPE_CHECKING:
    from isdt_policy.method.policy import Policy
    from isdt_policy.training.trainer import Windows

SCHEMA = "isdt-diagnose/1"

HELP = """usage: isdt diagnose checkpoint=PATH [key=value ...]

Say what a trained flow map got right and wrong, without an environment: how heavy the tail of its gradients is, how far it
is from consistent, what two steps change against one, how far it lands from its own flow, whether its one-step samples
are as varied as the data, and whether the null branch drifted. Writes diagnostics.json and diagnostics.png; some minutes
on one core.

examples
  isdt diagnose checkpoint=outputs/pusht_demo
  isdt diagnose checkpoint=outputs/pusht_human data=/data/pusht_cchi_v7_replay.zarr    the demonstrations moved
  isdt diagnose checkpoint=outputs/pusht_demo/checkpoints/0005000 out=early            an earlier checkpoint of the run
  isdt diagnose checkpoint=outputs/pusht_demo batches=200                              a sharper 99 % of the gradients

keys
  checkpoint=PATH   run directory, checkpoint or folder written by save_pretrained
  data=PATH         demonstrations; default: those the run was trained on. Measured on its held-out episodes, or on all if
                    the folder does not say which were held out
  out=DIR           default: PATH/diagnostics
  batches=50        training batches whose gradient is taken; 0 leaves gradients out
  windows=256       held-out windows that everything else is measured on
  draws=64          chunks drawn per observation, for their spread
  grid=10           times of the (t, s) triangle
  seed=0            of every draw
  device=cpu        "cuda", ...
"""


@dataclasses.dataclass(frozen=True)
class Source:
    """What is measured on.

    Attributes:
        held_out: windows the policy has not seen, or all there are.
        note: says which.
        train, objective, batch_size, grad_clip, mask_padding: of the run; None where there is only a policy.
    """

    held_out: Windows
    note: str
    train: Windows | None = None
    objective: Any = None
    batch_size: int = 0
    grad_clip: float = 0.0
    mask_padding: bool = False


def main(args: Sequence[str]) -> int:
    """Entry of the verb."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    from isdt_policy.datasets.arguments import bind

    info = diagnose(**bind(diagnose, args))
    for line in info["reading"]:
        print(f"{_mark(line['good'])} {line['title']}: {line['text']}")
    for path in info["written"]:
        print(f"written: {path}")
    return 0


def diagnose(
    checkpoint: str,
    data: str | None = None,
    out: str | None = None,
    batches: int = 50,
    windows: int = 256,
    draws: int = 64,
    grid: int = 10,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure, write diagnostics.json and diagnostics.png, and return the numbers; `HELP` explains the arguments.

    Raises:
        InputError: nothing to load, a policy that is no flow map, or numbers out of range.
    """
    given = dict(locals())
    for name, value, least in (
        ("batches", batches, 0), ("windows", windows, 2), ("draws", draws, 2), ("grid", grid, 2),
    ):  # fmt: skip
        if value < least:
            raise InputError(f"{name}={value} is too small: at least {least}.")
    import torch

    from isdt_policy.eval.rollout import write_atomically
    from isdt_policy.lab.diagnostics import consistency_residual, diversity, flow_error, null_drift, semigroup_error
    from isdt_policy.lab.diagnostics_figure import draw_page
    from isdt_policy.method.policy import Policy, find_policy
    from isdt_policy.shared.provenance import commit

    policy = Policy.from_pretrained(checkpoint)
    if policy.sampling.kind != "flow_map":
        raise InputError(
            f"'{checkpoint}' is no flow map (sampling.kind='{policy.sampling.kind}'): it was not trained to jump from any time t "
            "to any time s, so consistency and semigroup error mean nothing for it. Compare it by rollouts: isdt eval."
        )
    try:
        policy.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device='{device}' cannot be used: {str(error).splitlines()[0]}") from error
    source = _source(Path(checkpoint), policy, data)
    started = time.monotonic()

    # Everything but the gradients is measured on the same held-out windows and the same noise.
    chosen = np.unique(np.linspace(0, source.held_out.n_windows - 1, windows).astype(np.int64))
    x, cond, _ = _read(policy, source.held_out, chosen)
    x, cond = x.detach(), cond.detach()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(x.shape, generator=generator).to(x)
    flow_map = policy.flow_map
    _say(f"{len(x)} windows ({source.note}): consistency over the (t, s) triangle")
    residual = consistency_residual(flow_map, x, cond, noise, grid)
    _say("semigroup error")
    semigroup = semigroup_error(flow_map, x, cond, noise, grid)
    _say("distance from the network's own flow")
    flow = flow_error(flow_map, x, cond, noise)
    executed = slice(policy.n_obs_steps - 1, policy.n_obs_steps - 1 + policy.n_action_steps)
    _say(f"diversity, {draws} draws per observation")
    spread = diversity(flow_map, x, cond, generator, draws)
    _say("null branch")
    drift = null_drift(flow_map, x, cond, policy.null.detach(), noise, grid)
    norms = _gradients(policy, source, batches, seed)

    name = Path(checkpoint).resolve().name
    info: dict[str, Any] = {
        "schema": SCHEMA,
        "command": _command(given),
        "commit": commit(),
        "checkpoint": checkpoint,
        "weights_sha256": json.loads((find_policy(checkpoint) / "config.json").read_text()).get("weights_sha256"),
        "data": source.note,
        "n_windows": len(x),
        "executed": [executed.start, executed.stop],
        "seed": seed,
        "consistency": {"overall": residual.overall, "one_step": residual.one_step, **_lists(residual)},
        "semigroup": {"overall": semigroup.overall, "one_step": semigroup.one_step, **_lists(semigroup)},
        "flow": {"relative": flow.relative(executed).tolist(), **_lists(flow)},
        "diversity": {"against_euler": spread.against_euler, "against_data": spread.against_data, **_lists(spread)},
        "null_drift": {"overall": drift.overall, **_lists(drift)},
        "gradient_norms": {
            term: {**gradient_summary(values), "values": values, "n": len(values)} for term, values in norms.items()
        },
        "seconds": round(time.monotonic() - started, 1),
    }
    info["reading"] = read_numbers(info, source.grad_clip)
    folder = Path(out) if out else Path(checkpoint) / "diagnostics"
    folder.mkdir(parents=True, exist_ok=True)
    info["written"] = [str(folder / "diagnostics.json"), str(folder / "diagnostics.png")]
    write_atomically(folder / "diagnostics.json", json.dumps(info, indent=1) + "\n")
    draw_page(info, folder / "diagnostics.png", title=f"Diagnostics of {name}")
    return info


# Reading.

# Where a number stops being good. The tail of a stable run's gradient norms is the project's own target; the others are
# judgement, and only decide the mark beside a sentence.
HEAVY_TAIL = 5.0
INCONSISTENT = 0.5
DISAGREEING = 0.1
NARROW, WIDE, COLLAPSED = 0.8, 1.25, 0.3
DRIFTED = 0.1


def gradient_summary(values: Sequence[float]) -> dict[str, float]:
    """Median, 99 % and largest of gradient norms, and 99 % over median."""
    median, high, largest = np.percentile(values, [50, 99, 100])
    return {"median": float(median), "p99": float(high), "max": float(largest), "tail": float(high / median)}


def read_numbers(info: dict[str, Any], grad_clip: float = 0.0) -> list[dict[str, Any]]:
    """The numbers in sentences: [{"key", "title", "text", "good"}], good None where nothing was measured."""
    residual, semigroup = info["consistency"], info["semigroup"]
    flow = info["flow"]
    spread, drift, norms = info["diversity"], info["null_drift"], info["gradient_norms"]
    lines = []

    def add(key: str, title: str, good: bool | None, text: str) -> None:
        lines.append({"key": key, "title": title, "good": good, "text": text})

    if norms:
        loss = norms["loss"]
        steady = loss["tail"] <= HEAVY_TAIL
        text = f"99 % of gradient norms are within {loss['tail']:.1f}x the median ({loss['median']:.2g}); " + (
            "no heavy tail" if steady else "a heavy tail: a few batches decide where training goes"
        )
        if "off_diagonal" in norms and "diagonal" in norms:
            balance = norms["off_diagonal"]["median"] / norms["diagonal"]["median"]
            text += f"; self-distillation pulls {balance:.2g}x as hard as flow matching"
        if grad_clip:
            clipped = float(np.mean(np.array(loss["values"]) > grad_clip))
            text += f"; the clip at {grad_clip:g} bites in {clipped:.0%} of batches"
        add("gradients", "Gradients", steady, text + ".")
    else:
        add("gradients", "Gradients", None, "not measured: the training run, or batches=0, gives none.")
    good = max(residual["overall"], residual["one_step"]) <= INCONSISTENT
    worst = int(np.argmax(np.array(residual["error"]) / residual["scale"]))
    advice = (
        "." if good
        else ": off its own velocity field, train longer or raise off_diagonal_weight." if residual["overall"] > INCONSISTENT
        else ". Training rarely draws that pair; objective.times=one_step_mix does."
    )  # fmt: skip
    add(
        "consistency", "Consistency", good,
        f"the map's residual is {residual['overall']:.0%} of its velocity over all pairs of times and {residual['one_step']:.0%} "
        f"at the pair one step uses; worst from t = {residual['t'][worst]:g} to s = {residual['s'][worst]:g}{advice}",
    )  # fmt: skip
    good = semigroup["one_step"] <= DISAGREEING
    add(
        "semigroup", "Two steps against one", good,
        f"going from noise to action in two steps moves it by {semigroup['one_step']:.1%} of the data's spread"
        + ("; more steps change little." if good else "; a second evaluation gives another action, compare them in rollouts."),
    )  # fmt: skip
    one, *_, last = flow["relative"]
    velocity = ", ".join(f"{flow['velocity'][i]:.3f} at {flow['t'][i]:g}" for i in (0, len(flow["t"]) // 2, -1))
    add(
        "flow", "Against its own flow", one <= DISAGREEING,
        f"one evaluation lands {one:.1%} of the data's spread beside 25 steps of Heun's method from the same noise, "
        f"{flow['evaluations'][-1]:g} evaluations {last:.1%}"
        + (": longer training, or more self-distillation, is what brings it closer" if one > DISAGREEING else "")
        + f". Squared error of the velocity: {velocity} (0 is data, 1 noise; compare runs on the same data).",
    )  # fmt: skip
    ratio, truth = spread["against_euler"], spread["against_data"]
    good = NARROW <= ratio <= WIDE and truth >= NARROW
    verdict = (
        "the map has collapsed, noise hardly matters" if ratio < COLLAPSED
        else "narrower than what it distils" if ratio < NARROW
        else "wider than what it distils" if ratio > WIDE
        else "as varied as what it distils"
    )  # fmt: skip
    add(
        "diversity", "Diversity", good,
        f"one-step samples of an observation spread {ratio:.2f}x as far as {spread['euler_steps']}-step Euler samples of the same "
        f"network ({verdict}) and {truth:.2f}x the demonstrations' distance from their mean"
        + ("." if truth >= NARROW else ": held-out actions lie further out than the samples."),
    )  # fmt: skip
    good = drift["overall"] <= DRIFTED
    effect = float(np.sqrt(np.square(drift["effect"]).mean() / np.square(drift["velocity"]).mean()))
    add(
        "null", "Null branch", good,
        (f"its mean is {drift['overall']:.1%} of the velocity away from the conditional average"
         if drift["overall"] else "its mean is no further from the conditional average than chance puts it")
        + ("" if good else " (expected where cond_drop=0: it was never trained)")
        + f"; the observation changes {effect:.0%} of the velocity.",
    )  # fmt: skip
    return lines


def _command(given: dict[str, Any]) -> str:
    """The command line of `diagnose` with these arguments."""
    defaults = {name: p.default for name, p in inspect.signature(diagnose).parameters.items()}
    return "isdt diagnose " + shlex.join(f"{k}={v}" for k, v in given.items() if v != defaults[k])


def _mark(good: bool | None) -> str:
    return {True: "ok  ", False: "look", None: "-   "}[good]


# Data.


def _source(checkpoint: Path, policy: Policy, data: str | None) -> Source:
    """The windows of the run that made the checkpoint, with its own split; or all of `data`."""
    config = _run_config(checkpoint)
    if config is None:
        if data is None:
            raise InputError(
                f"'{checkpoint}' holds a policy but not the run that trained it, so it does not say on which demonstrations; "
                "give data=PATH."
            )
        from isdt_policy.datasets.store import DemoStore
        from isdt_policy.datasets.windows import WindowDataset
        from isdt_policy.envs import task_spec

        store = DemoStore.open(data)
        c = policy.config
        everything = WindowDataset(
            store, policy.obs_keys, "action", c.horizon, c.n_obs_steps, c.n_action_steps, task=task_spec(policy.task)
        )
        return Source(everything, f"all {store.n_episodes} episodes of {data}")
    from isdt_policy.training.command import build_trainer

    if data is not None:
        config["data"]["path"] = data
    # Built here, on this machine, and never run.
    config["training"] |= {"device": "cpu", "threads": 0, "compile": False}
    trainer, _ = build_trainer(config)
    path, settings = config["data"]["path"], trainer.config
    note = f"held-out episodes of {path}" if trainer.validation is not None else f"training episodes of {path}"
    return Source(
        trainer.validation or trainer.train, note, trainer.train, trainer.objective, settings.batch_size,
        settings.grad_clip, settings.mask_padding,
    )  # fmt: skip


def _run_config(checkpoint: Path) -> dict[str, Any] | None:
    """Settings of the run directory at or above a checkpoint."""
    for folder in [checkpoint, *checkpoint.resolve().parents[:3]]:
        try:
            config = json.loads((folder / "config.json").read_text())
        except (OSError, json.JSONDecodeError):
            continue
        if {"data", "training", "objective"} <= set(config):
            return dict(config)
    return None


def _read(policy: Policy, windows: Windows, chosen: Any) -> tuple[Any, Any, Any]:
    """(x, embedding, is_pad) of windows by number, on the policy's device."""
    import torch

    batch = windows.batch(chosen)
    device = policy.null.device
    obs = {key: torch.as_tensor(batch["obs"][key]).to(device) for key in policy.obs_keys}
    action = torch.as_tensor(batch["action"]).to(device)
    return policy.normalizer.normalize_action(action, obs), policy.encode(obs), torch.as_tensor(batch["is_pad"])


def _gradients(policy: Policy, source: Source, batches: int, seed: int) -> dict[str, list[float]]:
    """Gradient norm per term on `batches` training batches, each with its own draws, in float32."""
    if source.train is None or not batches:
        return {}
    from isdt_policy.lab.diagnostics import gradient_norms, loss_terms
    from isdt_policy.shared.progress import Progress

    rng = np.random.default_rng(seed)
    norms: dict[str, list[float]] = {}
    bar = Progress(batches, "gradients", "norm")
    for i in range(batches):
        chosen = rng.integers(source.train.n_windows, size=source.batch_size)
        x, cond, is_pad = _read(policy, source.train, chosen)
        keep = ~is_pad.to(x.device) if source.mask_padding else None
        terms = loss_terms(source.objective, policy.flow_map, x, cond, policy.null, seed * 1_000_003 + i, keep=keep)
        for name, value in gradient_norms(terms, policy.parameters()).items():
            norms.setdefault(name, []).append(value)
        bar.update()
    bar.close()
    return norms


def _lists(measured: Any) -> dict[str, Any]:
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in dataclasses.asdict(measured).items()}


def _say(text: str) -> None:
    print(f"diagnose: {text}", file=sys.stderr, flush=True)
