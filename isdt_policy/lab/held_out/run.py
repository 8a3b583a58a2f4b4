"""Load a policy and recordings, compare, and write held_out.json and the page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isdt_policy.datasets.own_task import with_action
from isdt_policy.datasets.store import DemoStore
from isdt_policy.datasets.windows import Store
from isdt_policy.envs import TaskSpec, task_spec
from isdt_policy.lab.diagnose.run import run_config
from isdt_policy.lab.held_out import figure
from isdt_policy.lab.held_out.measure import (
    Array,
    Rows,
    answers,
    disagreement,
    neighbours,
    over_scale,
    replayed,
    rms,
    rows_of,
    spaced,
)
from isdt_policy.lab.held_out.settings import Settings
from isdt_policy.method.device import device_to_act
from isdt_policy.method.policy import Policy, weights_sha256
from isdt_policy.shared import files, page, tables
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.provenance import commit
from isdt_policy.training.config import RunConfig
from isdt_policy.training.data import opened, split

SCHEMA = "isdt-held-out/1"
TEMPLATE = Path(__file__).parents[1] / "templates" / "held_out.html"
PLAINLY = "These numbers find a broken run; they do not rank good ones. Only rollouts on the robot say how often a policy succeeds."


@dataclass(frozen=True)
class Recordings:
    """What is compared with.

    Attributes:
        store: the recordings.
        spec: their task; None if all keys are stored.
        asked: episodes on which the policy is asked.
        others: episodes of the demonstrators that it is compared with.
        label: what they are, for people.
    """

    store: Store
    spec: TaskSpec | None
    asked: list[int]
    others: list[int]
    label: str


@dataclass(frozen=True)
class Compared:
    """Root mean squares, in units of the action.

    Attributes:
        error: per arm (steps, action_dim), over the chunk.
        consecutive: per arm (action_dim,), what consecutive chunks say of the same steps.
        demonstrators: (steps, action_dim) to the chunk of the most similar observation of another episode; None if there is none.
        hold: (steps, action_dim) of repeating the last action.
        spread: (action_dim,) standard deviation of the recorded actions.
        execute: steps of a chunk that are executed.
        n: recorded steps.
    """

    error: Mapping[str, Array]
    consecutive: Mapping[str, Array]
    demonstrators: Array | None
    hold: Array
    spread: Array
    execute: int
    n: int

    def executed(self, values: Array) -> Array:
        """Over the steps of a chunk that are executed, (action_dim,)."""
        part = values[: self.execute]
        known = part[~np.isnan(part).any(axis=1)]  # no episode is that long
        return np.sqrt((known**2).mean(axis=0)) if len(known) else np.full(part.shape[1], np.nan)


@dataclass(frozen=True)
class HeldOut:
    """The result.

    Attributes:
        info: the content of held_out.json.
        table: for a terminal.
        lines: the numbers in sentences.
        written: files.
    """

    info: Mapping[str, object]
    table: str
    lines: list[str]
    written: list[Path]


def held_out(settings: Settings, command: str = "") -> HeldOut:
    """Compare, and write held_out.json and held_out.html.

    Raises:
        InputError: nothing to load, no episode that the policy has not seen, or an arm that does not suit it.
    """
    device = device_to_act(settings.device)
    policy = Policy.from_pretrained(settings.checkpoint).to(device)
    arms = _arms(policy, settings.arms)
    recordings = _recordings(settings, policy)
    rows = rows_of(recordings.store, recordings.asked, policy, recordings.spec)
    if rows.chunk.shape[2] != policy.config.action_dim:
        raise InputError(
            f"the policy answers with {policy.config.action_dim} numbers per action, the recordings have {rows.chunk.shape[2]}."
        )
    compared = compare(
        policy, rows, rows_of(recordings.store, recordings.others, policy, recordings.spec), arms, settings
    )
    lines = read(compared)
    shown = recordings.asked[: settings.replays]
    replays = [
        (e, *_replay(policy, rows.some(np.flatnonzero(rows.episode == e)), arms[0], settings.seed)) for e in shown
    ]
    info = {
        "schema": SCHEMA, "command": command, "commit": commit(), "checkpoint": settings.checkpoint,
        "weights_sha256": weights_sha256(settings.checkpoint), "device": policy.computes_on,
        "data": recordings.label, "n_steps": compared.n,
        "seed": settings.seed, "execute": compared.execute,
        "error": {arm: value.tolist() for arm, value in compared.error.items()},
        "consecutive": {arm: value.tolist() for arm, value in compared.consecutive.items()},
        "demonstrators": None if compared.demonstrators is None else compared.demonstrators.tolist(),
        "hold": compared.hold.tolist(), "spread": compared.spread.tolist(), "reading": lines,
    }  # fmt: skip
    folder = settings.out or Path(settings.checkpoint) / "eval_data"
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "held_out.json", folder / "held_out.html"]
    files.write_text(written[0], json.dumps(_without_nan(info), indent=1) + "\n")
    html = page.render(
        TEMPLATE, title=f"isdt eval data: {Path(settings.checkpoint).resolve().name}",
        sub=f"{compared.n} steps, {recordings.label}", plainly=PLAINLY, lines=lines, header=_header(compared),
        rows=_rows(compared), error=figure.errors(compared.error, compared.demonstrators, compared.hold, compared.execute),
        replays=[(number, figure.replay(recorded, pieces)) for number, recorded, pieces in replays], arm=arms[0].title,
        facts={"command": command, "commit": info["commit"], "weights": info["weights_sha256"]},
    )  # fmt: skip
    files.write_text(written[1], html)
    table = tables.columns(_header(compared), _rows(compared), right=range(1, len(_header(compared))))
    return HeldOut(info, table, lines, written)


def compare(policy: Policy, rows: Rows, others: Rows, arms: list[Arm], settings: Settings) -> Compared:
    """All comparisons, on evenly spaced rows."""
    execute = policy.n_action_steps
    asked = rows.some(spaced(rows, settings.steps, execute))
    error, consecutive = {}, {}
    for arm in arms:
        predicted = answers(policy, asked, arm.value, settings.seed)
        error[arm.name] = rms(predicted - asked.chunk, asked.inside)
        consecutive[arm.name] = disagreement(asked, predicted, execute)
    near = neighbours(policy, asked, others)
    return Compared(
        error, consecutive,
        demonstrators=None if near is None else rms(*near),
        hold=rms(asked.before[:, None] - asked.chunk, asked.inside),
        spread=rows.chunk[:, 0].std(axis=0), execute=execute, n=asked.count,
    )  # fmt: skip


def read(c: Compared) -> list[str]:
    """The numbers in sentences; "BROKEN" where a run cannot be sound."""
    scale = c.spread if c.demonstrators is None else c.executed(c.demonstrators)
    whose = "of the spread of the actions" if c.demonstrators is None else "of the demonstrators' own spread"
    hold, lines = c.executed(c.hold), []
    for arm, error in c.error.items():
        size = over_scale(c.executed(error), scale)
        together = over_scale(c.consecutive[arm], scale)
        lines.append(
            f"{Arm.parse(arm).title}: error {size:.2f} {whose} over the {c.execute} steps that are executed; consecutive chunks "
            f"differ by {together:.2f}"
        )
        if not np.isfinite(error[: c.execute]).all() or over_scale(c.executed(error), c.spread) > 1:
            lines.append(f"BROKEN: {Arm.parse(arm).title} is no better than answering the mean of all recorded actions")
    if over_scale(hold, scale) < min(over_scale(c.executed(error), scale) for error in c.error.values()):
        lines.append(
            "note: repeating the last action is closer to the recordings than the policy is: demonstrations that often stand "
            "still, or a run that was too short"
        )
    return lines


def _arms(policy: Policy, arms: tuple[Arm, ...]) -> list[Arm]:
    """The arms; those that nobody asked for are left out where they do not suit the policy."""
    suited = []
    for arm in arms:
        try:
            policy.plan(arm.value)
            suited.append(arm)
        except InputError:
            if arms != Settings.arms:
                raise
    if not suited:
        raise InputError(
            f"none of the arms {', '.join(a.name for a in arms)} suits this policy; give arms=, such as arms=[ddim10]."
        )
    return suited


def _recordings(settings: Settings, policy: Policy) -> Recordings:
    config = run_config(Path(settings.checkpoint))
    if config is None:
        if settings.data is None or settings.episodes != "all":
            raise InputError(
                f"'{settings.checkpoint}' does not say which demonstrations it was trained on; give data=PATH episodes=all with "
                "recordings that it has not seen."
            )
        store: Store = with_action(DemoStore.open(settings.data), "")
        spec = task_spec(policy.task) if policy.task else None
        path = settings.data
    else:
        if settings.data is not None:
            config["data"]["path"] = settings.data
        run = RunConfig.read(config)
        spec, _, recorded = opened(run.data, run.task)
        store, path = recorded, run.data.path
        if settings.episodes == "held_out":
            train, asked = (chosen.tolist() for chosen in split(recorded, run.data))
            if not asked:
                raise InputError(
                    f"the run held out no episode of '{path}' (data.val_ratio={run.data.val_ratio:g}); give recordings that it has "
                    "not seen: data=PATH episodes=all."
                )
            return Recordings(store, spec, asked, train, f"{len(asked)} held-out episodes of {path}")
    everything = list(range(store.n_episodes))
    return Recordings(store, spec, everything, everything, f"all {store.n_episodes} episodes of {path}")


def _replay(policy: Policy, rows: Rows, arm: Arm, seed: int) -> tuple[Array, list[tuple[np.ndarray, Array]]]:
    return rows.chunk[:, 0], replayed(answers(policy, rows, arm.value, seed), policy.n_action_steps)


def _header(c: Compared) -> list[str]:
    others = [] if c.demonstrators is None else ["demonstrators"]
    return ["entry", *(Arm.parse(arm).title for arm in c.error), *others, "repeat last", "std of actions"]


def _rows(c: Compared) -> list[list[str]]:
    columns = [*(c.executed(error) for error in c.error.values())]
    columns += [] if c.demonstrators is None else [c.executed(c.demonstrators)]
    columns += [c.executed(c.hold), c.spread]
    return [[f"action[{i}]", *(f"{column[i]:.3g}" for column in columns)] for i in range(len(c.spread))]


def _without_nan(value: object) -> object:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
