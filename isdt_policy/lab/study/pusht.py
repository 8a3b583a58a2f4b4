"""PushT from states at a small fixed budget: cells that call the ordinary training and evaluation, one after another."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from isdt_policy.eval.journal import Journal
from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.rollout import EpisodeProgress, evaluate
from isdt_policy.eval.seeds import selection_seeds
from isdt_policy.lab.study.metrics import gradient_norms, gradient_trace
from isdt_policy.lab.study.rows import BASE, NFE, ROWS, Row, build_objective
from isdt_policy.lab.study.settings import PushtSettings
from isdt_policy.method.policy import Policy
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import JsonObject
from isdt_policy.training.config import Settings, compose_config
from isdt_policy.training.run import train
from isdt_policy.training.trainer import NonFiniteLoss

WARM = 0.5  # share of the steps on the diagonal alone, as in the shipped recipes, for every row that has such a phase


def _pusht_rows() -> dict[str, Row]:
    rows = {name: row for name, row in ROWS.items() if not name.startswith("fast_times") and name != "warm_start"}
    # Here every row that can has a warm start, and `cold_start` leaves it out; the toys do the reverse. In the same way the UNet's
    # time features are fast here and `slow_times` slows them; the toys' MLP has slow ones and `fast_times`.
    rows["slow_times"] = Row("time features of 1 period", "isd", dict(BASE), network={"time_periods": 1.0})
    warm = {
        name: replace(row, warm_start=WARM)
        for name, row in rows.items()
        if "off_diagonal_weight" in asdict(build_objective(row))
    }
    return rows | warm | {"cold_start": Row("no steps on the diagonal alone", "isd", dict(BASE))}


PUSHT_ROWS: dict[str, Row] = _pusht_rows()


def pusht_config(row: Row, seed: int, settings: PushtSettings, run: Path, threads: int) -> Settings:
    """The composed configuration of one cell's training run.

    Raises:
        InputError: the network has no such option as the row sets.
    """
    config = compose_config(
        [
            f"experiment={settings.experiment}",
            "data.hindsight=false",  # goals as recorded: the committed cells were made before the recipes moved them
            f"name={run.name}",
            f"training.seed={seed}",
            f"training.steps={settings.steps}",
            f"training.diagonal_steps={int(row.warm_start * settings.steps)}",
            f"training.batch_size={settings.batch_size}",
            f"policy.n_action_steps={settings.n_action_steps}",
            f"training.checkpoint_every={min(settings.steps, 500)}",
            "training.log_every=1",  # the distribution of gradient norms needs every step
            "training.loggers=[]",
            f"training.compile={str(settings.compile).lower()}",
            f"training.threads={threads}",
        ]
    )
    for option in row.network:
        if option not in config["network"]:
            raise InputError(f"row '{row.title}' sets network.{option}, which '{config['network']['name']}' has not.")
    objective = build_objective(row)
    config["run_dir"], config["if_exists"] = str(run), "resume"
    config["objective"] = {"name": row.objective, **asdict(objective)}
    config["network"].update(row.network)
    config["policy"].update(interpolant=row.interpolant, precondition=row.precondition)
    config["policy"]["sampling"] = asdict(objective.sampling)
    return json.loads(json.dumps(config))  # type: ignore[no-any-return]  # tuples as the run's own config.json holds them


def run_pusht(row: Row, seed: int, settings: PushtSettings, run: Path, threads: int) -> JsonObject:
    """Train and evaluate one cell; an interrupted one resumes from its checkpoint and its finished episodes.

    Args:
        run: run directory; removed when the cell is done, its numbers are what stays.

    Returns:
        "success" and "score" per entry of `NFE` as `evaluate` summarises them, "gradient", "trace", "diverged", "reason".
    """
    reason = ""
    try:
        train(pusht_config(row, seed, settings, run, threads), command="isdt study pusht")
    except NonFiniteLoss as error:
        reason = str(error).split(". ")[0]
    norms = _logged(run / "log.jsonl", "grad_norm")
    result: JsonObject = {
        "gradient": gradient_norms(norms),
        "trace": gradient_trace(norms),
        "diverged": bool(reason),
        "reason": reason,
        "steps_done": len(norms),
        "success": None,
        "score": None,
    }
    if not reason:
        found = evaluate(
            Policy.from_pretrained(run), Protocol("pusht"), selection_seeds(settings.episodes), NFE,
            journal=Journal(run / "eval"), listener=EpisodeProgress(),
        )  # fmt: skip
        summaries = [found[n].to_json() for n in NFE]
        result["success"] = [summary["success_rate"] for summary in summaries]
        result["score"] = [summary["score"] for summary in summaries]
    shutil.rmtree(run)
    return result


def _logged(path: Path, key: str) -> list[float]:
    """One number per step; where a killed run repeated steps, the last word counts."""
    values: dict[int, float] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if key in record:
                values[int(record["step"])] = float(record[key])
    return [values[step] for step in sorted(values)]
