"""`isdt tune`: search settings with Optuna, judged by rollouts; runs that fall behind are stopped early.

The squared error on held-out windows does not rank policies (docs/recipes.md), so what is looked at on the way is the same
as at the end, with fewer episodes: rollouts of the averaged weights at a share of the steps. How well those ranked the runs
that went on to the end is part of the report.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isdt_policy.datasets.arguments import bind
from isdt_policy.shared.errors import InputError

if TYPE_CHECKING:
    import optuna

HELP = """usage: isdt tune [experiment=NAME] [key=value ...] key=choice(...)|interval(...) ...

Search settings of `isdt train` for the best score at one network evaluation. Every trial is an ordinary run; on its way it is
rolled out on a few selection seeds, and stopped there if it is below the median of the earlier ones. A killed search goes on
where it stopped, in mid-trial too, with the same command.

examples
  isdt tune experiment=pusht_demo training.steps=1500 'objective.bound=choice(0,0.3,1)' 'training.lr=tag(log,interval(5e-4,5e-3))'
  isdt tune experiment=can 'policy.encoder_octaves=range(0,7)' 'policy.action_reference=choice("",robot0_eef_pos)' trials=20
  isdt tune experiment=pusht_demo training.steps=1500 'objective.weight_power=choice(0,1)' prune=false   how well the proxy ranks

what is searched (Hydra's own words, in quotes for the shell)
  KEY=choice(a,b,c)              one of these
  KEY=range(0,7)                 whole numbers, 7 left out
  KEY=interval(0.1,1)            any number between; whole ones for int(interval(1,8))
  KEY=tag(log,interval(1e-4,1))  the same on a logarithmic scale
  every other KEY=value          a setting of `isdt train` that all trials share

keys
{settings}
written to out=: trials/ (runs), journal.log (Optuna's record), tune.json, tune.md (table, best settings, how well the proxy
ranked) and tune.png.
"""


@dataclass(frozen=True)
class Tuning:
    """How to search.

    Attributes:
        trials: runs in all, those of an earlier sitting included.
        looks: shares of a run's steps at which it is rolled out and may be stopped; besides the end.
        look_episodes: selection seeds of such a look: the first ones.
        episodes: selection seeds at the end.
        nfe: network evaluations per chunk, or a sampler such as euler10.
        prune: stop runs below the median of earlier ones at the same look; false lets every run go to its end.
        startup: trials before any is stopped, and before the sampler learns from what it saw.
        seed: of Optuna's sampler.
        n_envs: environments at a time.
        keep: checkpoints of every trial stay; false removes all but the best trial's.
        out: folder.
    """

    trials: int = 16
    looks: tuple[str, ...] = ("0.4",)
    look_episodes: int = 20
    episodes: int = 50
    nfe: str = "1"
    prune: bool = True
    startup: int = 4
    seed: int = 0
    n_envs: int = 16
    keep: bool = False
    out: str = "outputs/tune"


def main(args: list[str]) -> int:
    """Entry of the verb."""
    if not args or any(a in ("-h", "--help", "help") for a in args):
        print(HELP.format(settings=_settings_help()))
        return 0
    mine = {f.name for f in fields(Tuning)}
    ours = [a for a in args if a.partition("=")[0] in mine]
    tuning = Tuning(**bind(Tuning, ours))
    fixed, space = read_space([a for a in args if a not in ours])
    tune(tuning, fixed, space)
    return 0


def tune(tuning: Tuning, fixed: Sequence[str], space: Mapping[str, Any]) -> dict[str, Any]:
    """Run the trials that are missing and write the report; returns what tune.json holds.

    Args:
        fixed: Hydra overrides that all trials share.
        space: key -> Optuna distribution; see `read_space`.

    Raises:
        InputError: nothing to search, bad settings, or a folder that holds another search.
    """
    shares = _check(tuning, space)
    with _study(tuning, fixed, space) as study:
        out = Path(tuning.out)
        for broken in [t for t in study.trials if t.state.name == "RUNNING"]:
            # Killed in mid-trial: the same settings again, and their run goes on from its checkpoint.
            study.tell(broken.number, state=_state("FAIL"))
            study.enqueue_trial(broken.params)
        best = max((t.value or 0.0 for t in _complete(study)), default=float("-inf"))
        while sum(t.state.name in ("COMPLETE", "PRUNED") for t in study.trials) < tuning.trials:
            trial = study.ask(dict(space))
            result = _run(tuning, fixed, shares, trial, out)
            if result["stopped"] is None:
                study.tell(trial, result["score"])
            else:
                study.tell(trial, state=_state("PRUNED"))
            # Weights of a run that is not the best are of no further use; its numbers are in the journal.
            if not tuning.keep:
                if result["stopped"] is None and result["score"] > best:
                    best = result["score"]
                    _remove(out / "trials", keep=result["run"])
                else:
                    _remove(out / "trials" / result["run"])
            _report(tuning, fixed, space, study, out)
        return _report(tuning, fixed, space, study, out, say=True)


def read_space(args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Split Hydra overrides into those that are fixed and an Optuna distribution for each that is a sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep, Override
    from hydra.errors import HydraException

    distributions = _optuna().distributions
    fixed: list[str] = []
    space: dict[str, Any] = {}
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


def overrides_of(params: Mapping[str, Any]) -> list[str]:
    """A trial's settings as arguments of `isdt train`."""
    return [f"{key}={value}" for key, value in params.items()]


def _run(
    tuning: Tuning, fixed: Sequence[str], shares: Sequence[float], trial: optuna.Trial, out: Path
) -> dict[str, Any]:
    """Train and roll out one trial; {"score", "stopped": None or why, "run": folder}."""
    from isdt_policy.eval.rollout import Progress as Episodes
    from isdt_policy.eval.rollout import Protocol, evaluate
    from isdt_policy.eval.seeds import selection_seeds
    from isdt_policy.method.policy import Policy
    from isdt_policy.training.command import build_trainer, write_run
    from isdt_policy.training.config import compose_config
    from isdt_policy.training.trainer import NonFiniteLoss

    given = overrides_of(trial.params)
    name = hashlib.sha256(json.dumps([sorted(fixed), sorted(given)]).encode()).hexdigest()[:10]
    run = out / "trials" / name
    config = compose_config([*fixed, *given, f"name={name}"])
    config.update(run_dir=str(run), if_exists="resume")
    print(f"trial {trial.number}: {' '.join(given)}")
    trainer, _ = build_trainer(config)
    write_run(config, trainer, "isdt tune")
    arm = tuning.nfe if not tuning.nfe.isdigit() else int(tuning.nfe)
    score = 0.0
    trial.set_user_attr("run", name)
    for share in [*shares, 1.0]:
        step = max(1, round(share * trainer.config.steps))
        try:
            trainer.fit(until=step)
        except NonFiniteLoss as error:
            trial.set_user_attr("stopped", str(error).split(". ")[0])
            return {"score": 0.0, "stopped": str(error), "run": name}
        n = tuning.episodes if share == 1 else tuning.look_episodes
        summary = evaluate(
            Policy.from_pretrained(run), Protocol(config["task"]), selection_seeds(n), [arm], n_envs=tuning.n_envs,
            out=run / f"eval_{step}", listeners=[Episodes()],
        ).summary[str(arm)]  # fmt: skip
        score = float(summary["score"]["value"])
        trial.set_user_attr(f"look_{share:g}", {key: summary[key] for key in ("n", "score", "success_rate")})
        print(f"trial {trial.number}: score {score:.3f} after {step} of {trainer.config.steps} steps, n = {n}")
        if share < 1:
            trial.report(score, step)
            if tuning.prune and trial.should_prune():
                trial.set_user_attr("stopped", f"below the median at step {step}")
                return {"score": score, "stopped": "pruned", "run": name}
    return {"score": score, "stopped": None, "run": name}


@contextlib.contextmanager
def _study(tuning: Tuning, fixed: Sequence[str], space: Mapping[str, Any]) -> Iterator[optuna.Study]:
    """The search of a folder, opened or begun; one process at a time."""
    optuna = _optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    out = Path(tuning.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another isdt tune is at work in '{out}'; choose another out=.") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(out / "journal.log"))), study_name="tune", load_if_exists=True,
            direction="maximize",
            # A sampler that starts afresh with every sitting must not draw the same settings again.
            sampler=optuna.samplers.TPESampler(n_startup_trials=tuning.startup, seed=tuning.seed + _drawn(out)),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=tuning.startup),
        )  # fmt: skip
        may_change = ("trials", "prune", "startup", "seed", "n_envs", "keep", "out")
        what = {key: value for key, value in asdict(tuning).items() if key not in may_change}
        what.update(fixed=sorted(fixed), space={key: str(value) for key, value in space.items()})
        what = json.loads(json.dumps(what))
        if (before := study.user_attrs.get("what")) not in (None, what):
            key = next(k for k in what if before.get(k) != what[k])
            raise InputError(
                f"'{out}' holds a search with {key}={before.get(key)}, now {key}={what[key]}; their scores cannot be "
                "compared. Choose another out=."
            )
        study.set_user_attr("what", what)
        yield study


def _drawn(out: Path) -> int:
    journal = out / "journal.log"
    return journal.read_text().count("\n") if journal.exists() else 0


def _report(
    tuning: Tuning, fixed: Sequence[str], space: Mapping[str, Any], study: optuna.Study, out: Path, say: bool = False
) -> dict[str, Any]:
    """Write tune.json, tune.md and tune.png from the journal."""
    from isdt_policy.eval.rollout import write_atomically
    from isdt_policy.shared.provenance import commit

    done = sorted(_complete(study), key=lambda t: -(t.value or 0.0))
    stopped = [t for t in study.trials if t.state.name == "PRUNED"]
    shares = [float(share) for share in tuning.looks]
    ranking = {f"{share:g}": _spearman(done, share) for share in shares}
    rows = [
        {"trial": t.number, "settings": t.params, "state": t.state.name.lower(), **t.user_attrs}
        for t in [*done, *stopped]
    ]
    command = " ".join(["isdt train", *fixed, *(overrides_of(done[0].params) if done else [])])
    result: dict[str, Any] = {
        "schema": "isdt-tune/1", "settings": asdict(tuning), "fixed": list(fixed),
        "space": {key: str(value) for key, value in space.items()}, "commit": commit(), "best": command,
        "rank_correlation": ranking, "trials": rows,
    }  # fmt: skip
    write_atomically(out / "tune.json", json.dumps(result, indent=1) + "\n")
    text = _table(tuning, space, rows, shares, ranking, command)
    write_atomically(out / "tune.md", text)
    if say:
        print(text)
    if done:
        _draw(rows, shares, out / "tune.png")
    return result


def _table(
    tuning: Tuning, space: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], shares: Sequence[float],
    ranking: Mapping[str, Any], best: str,
) -> str:  # fmt: skip
    heads = [f"score at {share:.0%} (n = {tuning.look_episodes})" for share in shares]
    names = [*space, *heads, f"score (n = {tuning.episodes})", "success"]
    lines = ["| trial | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
    for row in rows:
        cells = [_short(row["settings"].get(key, "")) for key in space]
        for share in shares:
            look = row.get(f"look_{share:g}")
            cells.append(f"{look['score']['value']:.2f}" if look else "")
        end = row.get("look_1")
        if end:
            low, high = end["score"]["low"], end["score"]["high"]
            cells += [f"{end['score']['value']:.2f} [{low:.2f}, {high:.2f}]", f"{end['success_rate']['value']:.0%}"]
        else:
            cells += [f"stopped: {row.get('stopped', '')}", ""]
        lines.append(f"| {row['trial']} | " + " | ".join(cells) + " |")
    lines += ["", f"Best so far: `{best}`"]
    for name, found in ranking.items():
        if found is not None:
            lines.append(
                f"Rollouts at {float(name):.0%} of the steps ranked the {found['n']} finished runs with a Spearman correlation of "
                f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}] to their final scores."
            )
    return "\n".join(lines) + "\n"


def _spearman(done: Sequence[optuna.trial.FrozenTrial], share: float) -> dict[str, float] | None:
    """Rank correlation of a look with the end over finished runs, with its 95 % interval; None below four runs."""
    import math

    from scipy.stats import spearmanr

    pairs = [
        (t.user_attrs[f"look_{share:g}"]["score"]["value"], t.value) for t in done if f"look_{share:g}" in t.user_attrs
    ]
    if len(pairs) < 4 or any(len(set(side)) == 1 for side in zip(*pairs)):
        return None
    value = float(spearmanr(*zip(*pairs)).statistic)
    # Fisher's transformation with the variance of Bonett and Wright (2000).
    half = 1.96 * math.sqrt((1 + value**2 / 2) / (len(pairs) - 3))
    centre = math.atanh(max(-0.9999, min(0.9999, value)))
    return {"n": len(pairs), "value": value, "low": math.tanh(centre - half), "high": math.tanh(centre + half)}


def _draw(rows: Sequence[Mapping[str, Any]], shares: Sequence[float], path: Path) -> None:
    """Left: every trial's scores on its way. Right: the first look against the end."""
    from isdt_policy.lab.study.figures import INK, MUTED, new_figure, tidy

    figure = new_figure(9, 3.6)
    way, rank = figure.subplots(1, 2)
    marks = [*shares, 1.0]
    for row in rows:
        points = [(m, row[f"look_{m:g}"]["score"]["value"]) for m in marks if f"look_{m:g}" in row]
        complete = row["state"] == "complete"
        color = "#0b5fa5" if complete else "#c2334d"
        way.plot(*zip(*points), color=color, marker="o", markersize=4, linewidth=1, alpha=0.8) if points else None
        if complete and len(points) > 1:
            rank.plot(points[0][1], points[-1][1], "o", color="#0b5fa5", markersize=5)
            rank.annotate(
                str(row["trial"]), (points[0][1], points[-1][1]), fontsize=7, color=MUTED, xytext=(4, 3),
                textcoords="offset points",
            )  # fmt: skip
    way.set(xlabel="share of the steps", ylabel="score", ylim=(0, 1.03))
    way.set_title("Every trial (red: stopped)", fontsize=10, color=INK, loc="left")
    rank.set(xlabel=f"score at {marks[0]:.0%} of the steps", ylabel="score at the end")
    rank.set_title("Does the early look rank the runs?", fontsize=10, color=INK, loc="left")
    for axes in (way, rank):
        tidy(axes)
    figure.savefig(path, dpi=130)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value) or "(none)"


def _check(tuning: Tuning, space: Mapping[str, Any]) -> list[float]:
    if not space:
        raise InputError(
            "nothing to search: give at least one key=choice(...), range(...) or interval(...), in quotes, such as "
            "'training.lr=tag(log,interval(5e-4,5e-3))'."
        )
    for key in ("trials", "look_episodes", "episodes", "startup", "n_envs"):
        if getattr(tuning, key) < 1:
            raise InputError(f"{key}={getattr(tuning, key)} must be at least 1.")
    try:
        shares = sorted(float(share) for share in tuning.looks)
    except ValueError:
        raise InputError(f"looks={list(tuning.looks)} must be shares of the steps such as [0.3,0.6].") from None
    if any(not 0 < share < 1 for share in shares):
        raise InputError(f"looks={shares} must lie between 0 and 1; the end is always looked at.")
    return shares


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [t for t in study.trials if t.state.name == "COMPLETE"]


def _state(name: str) -> Any:
    return _optuna().trial.TrialState[name]


def _remove(path: Path, keep: str = "") -> None:
    """Remove a run, or every run of a folder but one."""
    import shutil

    for folder in [path] if not keep else [p for p in path.iterdir() if p.name != keep]:
        shutil.rmtree(folder)


def _settings_help() -> str:
    text = (Tuning.__doc__ or "").split("Attributes:")[1].strip().splitlines()
    lines = []
    for line in text:
        name, colon, rest = line.strip().partition(": ")
        default = getattr(Tuning, name, None) if colon else None
        if default is None:
            lines.append(f"{'':26}{line.strip()}")
        else:
            shown = f"[{','.join(default)}]" if isinstance(default, tuple) else str(default).lower()
            lines.append(f"  {name + '=' + shown:<24}{rest}")
    return "\n".join(lines) + "\n"


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InputError("isdt tune needs Optuna: pip install 'isdt-policy[tune]'.") from error
    return optuna
