"""Results of a task: the shipped recipe and its baselines on the same network, data and steps, over training seeds.

A cell is an ordinary run of `isdt train` and an ordinary `isdt eval` of it; both resume. What is left of a cell is its
eval_info.json and the configuration it was trained with, so every number of the table can be traced to its episodes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from isdt_policy.envs import task_spec
from isdt_policy.eval.journal import Journal
from isdt_policy.eval.origin import Origin, describe_policy
from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.result import Result
from isdt_policy.eval.rollout import EpisodeProgress, Workers, evaluate
from isdt_policy.eval.seeds import final_seeds
from isdt_policy.eval.tables import summary
from isdt_policy.lab.study import tasks_report
from isdt_policy.lab.study.settings import RECIPE, Tasks
from isdt_policy.method.objectives import completed
from isdt_policy.method.policy import Policy
from isdt_policy.method.samplers import Sampling, plan
from isdt_policy.shared import files
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import JsonObject
from isdt_policy.training.config import compose_config
from isdt_policy.training.cost import training_of
from isdt_policy.training.run import LATER, train

# How a policy of each kind is asked: as its users run it, and at the few evaluations that it is compared at.
ARMS: dict[str, tuple[str, ...]] = {
    "flow_map": ("1", "2"),
    "velocity": ("1", "2", "euler10"),
    "consistency": ("1", "2"),
    "regression": ("1",),
    "diffusion": ("ddim2", "ddim10", "ddpm100"),
}
RECIPE_ARMS = ("1", "2", "4", "euler10")


def study(tasks: Tasks) -> str:
    """Run what is missing, write tables and figure, as `tasks.report` says; returns what to print."""
    if tasks.report != "only":
        run_tasks(tasks)
    if tasks.report == "false":
        return ""
    text = tasks_report.write(tasks.out)
    return f"{text}\nwritten: {tasks.out / 'tables.md'}, {tasks.out / 'success.png'}"


def run_tasks(tasks: Tasks) -> None:
    """Run every cell that is missing and that no other process is running, one training seed of all before the next.

    Raises:
        InputError: a bad setting, or a cell made with other settings.
    """
    cells = [
        (experiment, objective, seed)
        for seed in tasks.seeds
        for objective in tasks.objectives
        for experiment in tasks.experiments
    ]
    configs = {cell: cell_config(*cell, tasks) for cell in cells}  # all are checked before anything runs
    arms = {cell: arms_of(cell[1], config, [arm.name for arm in tasks.arms]) for cell, config in configs.items()}
    with tasks.pool(tasks.threads) as pool:
        todo = 0
        for number, (cell, config) in enumerate(configs.items(), start=1):
            if not finished(cell_folder(tasks.out, *cell), config, arms[cell]):
                label = f"cell {number} of {len(cells)}: {'_'.join(map(str, cell))}"
                pool.submit(label, _claimed_cell, label, cell, config, arms[cell], tasks)
                todo += 1
        for _ in range(todo):
            label, told = pool.next()
            print(f"{label}{told}", flush=True)


def _claimed_cell(label: str, cell: tuple[str, str, int], config: JsonObject, arms: Sequence[str], tasks: Tasks) -> str:
    """Run a cell, unless somebody else does or did; returns what to tell at its end."""
    folder = cell_folder(tasks.out, *cell)
    with files.claim(tasks.work / f"{'_'.join(map(str, cell))}.lock") as mine:
        if not mine:
            return " is being run by another process"
        if finished(folder, config, arms):
            return " was finished by another process"
        print(label, flush=True)
        run_cell(config, arms, folder, tasks)
    return " is done"


def cell_folder(out: Path, experiment: str, objective: str, seed: int) -> Path:
    """Where the result of a cell stays."""
    return out / experiment / f"{objective}_{seed}"


def cell_config(experiment: str, objective: str, seed: int, tasks: Tasks) -> JsonObject:
    """The configuration of a cell's training run, as `isdt train` composes it."""
    name = f"{experiment}_{objective}_{seed}"
    # Baselines draw standard normal noise, as their papers have it.
    chosen = [] if objective == RECIPE else [f"objective={objective}", "policy.noise_scale=1.0"]
    config = compose_config([
        f"experiment={experiment}", *chosen, f"name={name}", f"run_dir={tasks.work / name}", "if_exists=resume",
        f"training.seed={seed}", f"training.threads={tasks.threads}", *tasks.overrides,
    ])  # fmt: skip
    return json.loads(json.dumps(config))  # type: ignore[no-any-return]  # tuples as config.json holds them


def finished(folder: Path, config: JsonObject, arms: Sequence[str]) -> bool:
    """Whether the result of a cell is there, with these arms; InputError if it was trained with other settings."""
    if not (folder / "eval_info.json").exists():
        return False
    was, result = json.loads((folder / "train_config.json").read_text()), Result.load(folder)
    # Training does not read it, so it is the evaluation's that counts; cells from before it was a setting have 1.
    was["policy"]["noise_scale"] = (result.origin.policy.config or {}).get("noise_scale", 1.0)
    was["objective"] = completed(was["objective"], config["objective"])
    for section in ("data", "network", "objective", "policy", "training"):
        before, now = was[section], config[section]
        for key in sorted({*before, *now} - OF_THE_MACHINE):
            later = LATER.get(f"{section}.{key}")
            if before.get(key, later) != now.get(key, later):
                raise InputError(
                    f"{folder} was made with {section}.{key}={before.get(key)}, now {now.get(key)}. Ask for the same settings, "
                    "delete the folder, or choose another out=."
                )
    return set(map(Arm.parse, arms)) <= set(result.arms)


# Where the data lie, how many threads learn from them and until when, in which precision: no part of what a cell is.
OF_THE_MACHINE = {"path", "threads", "max_minutes", "device", "amp", "tensorboard", "loggers", "keep_checkpoints"}


def arms_of(objective: str, config: JsonObject, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Arms of a cell's evaluation: those wanted that its policy can be asked, or else the usual ones."""
    sampling = Sampling.read(config["policy"].get("sampling", {}))
    if not wanted:
        return RECIPE_ARMS if objective == RECIPE else ARMS[sampling.kind]
    able = tuple(arm for arm in wanted if _answers(arm, sampling))
    if not able:
        raise InputError(
            f"no entry of arms=[{','.join(wanted)}] suits '{objective}', which is asked {', '.join(ARMS[sampling.kind])}."
        )
    return able


def _answers(arm: str, sampling: Sampling) -> bool:
    try:
        plan(arm, sampling)
    except InputError:
        return False
    return True


def run_cell(config: JsonObject, arms: Sequence[str], folder: Path, tasks: Tasks) -> None:
    """Train, evaluate, and put the result into `folder`."""
    run = train(config, command="isdt study tasks")
    scale = config["policy"]["noise_scale"]
    policy = Policy.from_pretrained(run)
    changed = None if scale == policy.noise_scale else scale
    command = f"isdt eval checkpoint={run} 'arms=[{','.join(arms)}]' episodes={tasks.episodes}"
    command += "" if changed is None else f" noise_scale={scale}"
    fingerprint, spec = policy.fingerprint, task_spec(policy.task)
    policy = policy.acting(noise_scale=changed)
    result = evaluate(
        policy, Protocol(spec.id, spec.seed_protocols[0], noise_scale=changed), final_seeds(tasks.episodes), arms,
        workers=Workers(tasks.n_envs, tasks.n_workers), journal=Journal(run / "eval", fingerprint),
        listener=EpisodeProgress(),
    )  # fmt: skip
    about = describe_policy(policy, checkpoint=str(run), fingerprint=fingerprint, training=training_of(run))
    options = {"checkpoint": str(run), "arms": list(arms), "episodes": tasks.episodes, "noise_scale": changed}
    result = replace(result, origin=Origin.now(command, options, about, spec.id))
    print(summary(result))
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "config.json", folder / "train_config.json")
    for place in (run / "eval", folder):
        result.save(place)
