"""Search settings with Optuna, judged by rollouts; runs that fall behind are stopped early.

The squared error on held-out windows does not rank policies (docs/recipes.md), so a look on the way is what the end is, with
fewer episodes: rollouts of the averaged weights. The report says how well the looks ranked the runs that went to their end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

from isdt_policy.eval.journal import Journal
from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.rollout import EpisodeProgress, Workers, evaluate
from isdt_policy.eval.seeds import selection_seeds
from isdt_policy.lab.tune import report
from isdt_policy.lab.tune.settings import Tuning
from isdt_policy.method.device import find_device
from isdt_policy.method.policy import Policy
from isdt_policy.shared import files
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import require
from isdt_policy.training.config import compose_config
from isdt_policy.training.run import build_trainer, write_run
from isdt_policy.training.trainer import NonFiniteLoss

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage

    Space = Mapping[str, BaseDistribution]


def tune(tuning: Tuning, fixed: Sequence[str], space: Space) -> report.Report:
    """Run the trials that are missing; write the report after each.

    Args:
        tuning: how to search.
        fixed: Hydra overrides that all trials share.
        space: key -> Optuna distribution; see `read_space`.

    Raises:
        InputError: nothing to search, or a folder that holds another search.
    """
    if not space:
        raise InputError(
            "nothing to search: give at least one key=choice(...), range(...) or interval(...), in quotes, such as "
            "'training.lr=tag(log,interval(5e-4,5e-3))'."
        )
    some = {key: getattr(values, "choices", None) or [getattr(values, "low", None)] for key, values in space.items()}
    compose_config([*fixed, *report.overrides_of({key: values[0] for key, values in some.items()})])  # unknown keys
    states = _optuna().trial.TrialState
    find_device(tuning.device)
    with _study(tuning, fixed, space) as study, tuning.pool() as pool:
        for killed in [t for t in study.trials if t.state == states.RUNNING]:
            # Killed in mid-trial: the same settings again, and their run goes on from its checkpoint.
            study.tell(killed.number, state=states.FAIL)
            study.enqueue_trial(killed.params)
        running: dict[str, optuna.Trial] = {}

        def others_of(running: Mapping[str, optuna.Trial]) -> set[str]:
            return {_folder(fixed, report.overrides_of(trial.params)) for trial in running.values()}

        while (left := tuning.trials - _count(study, states.COMPLETE, states.PRUNED)) > 0:
            while len(running) < min(pool.room, left):
                trial = study.ask(dict(space))
                name, folder = f"trial {trial.number}", _folder(fixed, report.overrides_of(trial.params))
                if folder in others_of(running):  # two processes would train the same run
                    study.tell(trial, state=states.FAIL)
                    break
                running[name] = trial
                pool.submit(name, _run_by_number, tuning, fixed, trial._trial_id)
            name, told = pool.next()
            trial, score = running.pop(name), cast("float | None", told)
            best = max((t.value or 0.0 for t in study.trials if t.state == states.COMPLETE), default=float("-inf"))
            if score is None:
                study.tell(trial, state=states.PRUNED)
            else:
                study.tell(trial, score)
            if not tuning.keep:
                # Weights of a run that is not the best are of no further use; its numbers are in the journal.
                others = others_of(running)
                mine = _folder(fixed, report.overrides_of(trial.params))
                _forget(tuning, mine, is_best=score is not None and score > best, spare=others)
            found = report.Report(tuning, fixed, space, study.trials)
            found.write()
        found = report.Report(tuning, fixed, space, study.trials)
        found.write()
        return found


def read_space(args: Sequence[str]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """Split Hydra overrides into those that are fixed and an Optuna distribution for each that is a sweep."""
    distributions = _optuna().distributions
    fixed: list[str] = []
    space: dict[str, BaseDistribution] = {}
    for arg in args:
        try:
            override: Override = OverridesParser.create().parse_override(arg)
        except HydraException as error:
            raise InputError(f"'{arg}' cannot be read: {' '.join(str(error).split())}") from error
        if not override.is_sweep_override():
            fixed.append(arg)
            continue
        value = override.value()
        if isinstance(value, IntervalSweep):
            low, high = value.start, value.end
            kind = distributions.IntDistribution if isinstance(low, int) else distributions.FloatDistribution
            try:
                space[override.key_or_group] = kind(low, high, log="log" in value.tags)
            except ValueError as error:
                raise InputError(f"'{arg}': {error}") from error
        else:
            # Choices stay in the words of the command line, so that lists can be chosen as well.
            space[override.key_or_group] = distributions.CategoricalDistribution(
                [str(text).partition("=")[2] or text for text in override.sweep_string_iterator()]
            )
    return fixed, space


def _count(study: optuna.Study, *states: object) -> int:
    return sum(trial.state in states for trial in study.trials)


def _folder(fixed: Sequence[str], given: Sequence[str]) -> str:
    """Name of the run with these settings."""
    return hashlib.sha256(json.dumps([sorted(fixed), sorted(given)]).encode()).hexdigest()[:10]


def _run_by_number(tuning: Tuning, fixed: Sequence[str], number: int) -> float | None:
    """`_run` of a trial that the folder of the search knows, in this process or another."""
    optuna = _optuna()
    study = optuna.load_study(study_name="tune", storage=_storage(tuning), pruner=_pruner(tuning))
    return _run(tuning, fixed, optuna.Trial(study, number))


def _run(tuning: Tuning, fixed: Sequence[str], trial: optuna.Trial) -> float | None:
    """Train and roll out one trial; its score, or None if it was stopped. What was seen is kept in the trial."""
    given = report.overrides_of(trial.params)
    name = _folder(fixed, given)
    run = tuning.out / "trials" / name
    config = compose_config([*fixed, *given, f"name='{name}'"])  # a name of digits alone is a text too
    config["run_dir"], config["if_exists"] = str(run), "resume"
    print(f"trial {trial.number}: {' '.join(given)}")
    trial.set_user_attr("run", name)
    trainer, _ = build_trainer(config)
    write_run(config, trainer, "isdt tune")
    score = 0.0
    for share in [*sorted(tuning.looks), 1.0]:
        step = max(1, round(share * trainer.config.steps))
        try:
            trainer.fit(until=step)
        except NonFiniteLoss as error:
            trial.set_user_attr("stopped", str(error).split(". ")[0])
            return None
        n = tuning.episodes if share == 1 else tuning.look_episodes
        found = evaluate(
            Policy.from_pretrained(run).to(find_device(tuning.device)), Protocol(config["task"]), selection_seeds(n), [tuning.nfe],
            workers=Workers(tuning.n_envs), journal=Journal(run / f"eval_{step}"), listener=EpisodeProgress(),
        )[tuning.nfe]  # fmt: skip
        score = found.score.value
        summary = found.to_json()
        trial.set_user_attr(report.look(share), {key: summary[key] for key in ("n", "score", "success_rate")})
        print(f"trial {trial.number}: score {score:.3f} after {step} of {trainer.config.steps} steps, n = {n}")
        if share < 1:
            trial.report(score, step)
            if tuning.prune and trial.should_prune():
                trial.set_user_attr("stopped", f"below the median at step {step}")
                return None
    return score


def _forget(tuning: Tuning, run: str, is_best: bool, spare: Collection[str]) -> None:
    """Remove the run of a trial; if it is the best so far, all others but those that are not over."""
    for folder in (tuning.out / "trials").iterdir():
        if (folder.name == run) != is_best and folder.name not in spare:
            files.remove(folder)


def _storage(tuning: Tuning) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(tuning.out / "journal.log")))


def _pruner(tuning: Tuning) -> BasePruner:
    pruner: BasePruner = _optuna().pruners.MedianPruner(n_startup_trials=tuning.startup)
    return pruner


@contextlib.contextmanager
def _study(tuning: Tuning, fixed: Sequence[str], space: Space) -> Iterator[optuna.Study]:
    """The search of a folder, opened or begun; one process at a time."""
    optuna = _optuna()
    out = tuning.out
    files.check_writable(out / "journal.log")
    with files.claim(out / "lock") as mine:
        if not mine:
            raise InputError(f"another isdt tune is at work in '{out}'; choose another out=.")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal = out / "journal.log"
        # A sampler that starts afresh with every sitting must not draw the same settings again.
        drawn = journal.read_text().count("\n") if journal.exists() else 0
        study = optuna.create_study(
            storage=_storage(tuning), study_name="tune", load_if_exists=True,
            direction="maximize",
            sampler=optuna.samplers.TPESampler(n_startup_trials=tuning.startup, seed=tuning.seed + drawn),
            pruner=_pruner(tuning),
        )  # fmt: skip
        may_change = ("trials", "prune", "startup", "seed", "n_envs", "keep", "out", "device", "backend", "address")
        what: dict[str, object] = {key: v for key, v in tuning.to_json().items() if key not in may_change}
        what.update(fixed=sorted(fixed), space={key: str(value) for key, value in space.items()})
        before = study.user_attrs.get("what", what)
        for key, value in what.items():
            if before.get(key) != value:
                raise InputError(
                    f"'{out}' holds a search with {key}={before.get(key)}, now {key}={value}; their scores cannot be "
                    "compared. Choose another out=."
                )
        study.set_user_attr("what", what)
        yield study


def _optuna() -> ModuleType:
    return require("optuna", "tune", "isdt tune")
