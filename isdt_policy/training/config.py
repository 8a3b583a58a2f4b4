"""From `experiment=... key=value` to checked settings.

Hydra composes; the dataclasses validate. A default lives in one place, the dataclass that uses it: the `schema` that Hydra
sees is read from there.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import TypedDict, TypeVar, cast

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isdt_policy.datasets.store import DemoStore
from isdt_policy.envs import task_spec
from isdt_policy.method.networks import NETWORKS, read_network, write_network
from isdt_policy.method.networks.image_encoder import ImageEncoderConfig
from isdt_policy.method.networks.pretrained import check_installed
from isdt_policy.method.objectives import OBJECTIVES
from isdt_policy.method.objectives.base import Objective
from isdt_policy.method.policy_config import PolicyConfig
from isdt_policy.method.samplers import FLOW_MAP, Sampling
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.values import parse_json
from isdt_policy.training.hydra_says import explain
from isdt_policy.training.loggers import meant
from isdt_policy.training.phases import follow_steps
from isdt_policy.training.settings import DataConfig, TrainingConfig

Section = dict[str, object]
T = TypeVar("T")

GROUPS = ("experiment", "objective", "network", "size")
OWN_ROBOT = "own_robot"  # the experiment for recordings without a registered task
IF_EXISTS = ("error", "resume", "overwrite")
_SECTIONS = ("data", "policy", "network", "images", "objective", "training")

# Fields of PolicyConfig that follow from the data or the objective, or stand in a section of their own.
_DERIVED = {
    "task", "observations", "action_dim", "network", "action_type", "sampling", "recorded", "image_encoder",
}  # fmt: skip
_UNKNOWN: Section = {"task": "", "observations": {}, "action_dim": 0}  # until the data are read


class Settings(TypedDict):
    """The settings of a run as config.json holds them; `RunConfig` is what they mean.

    Attributes:
        name: of the run.
        run_dir: where the run goes.
        if_exists: what to do if a run is there already: "error", "resume" or "overwrite".
        task: id of the task; empty: a task is made from the data.
        data, policy, network, images, objective, training: sections; see the dataclasses in `SECTIONS`.
    """

    name: str
    run_dir: str
    if_exists: str
    task: str
    data: Section
    policy: Section
    network: Section
    images: Section
    objective: Section
    training: Section


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The checked settings of a run.

    Attributes:
        run: its directory.
        if_exists: "error", "resume" or "overwrite".
        task: id of the task.
        data: which demonstrations.
        policy: what is chosen; observations and action are empty until the data are read.
        sigma_data: standard deviation of the normalised actions; None measures it.
        objective: the loss.
        training: how long and how.
    """

    run: Path
    if_exists: str
    task: str
    data: DataConfig
    policy: PolicyConfig
    sigma_data: float | None
    objective: Objective
    training: TrainingConfig

    @classmethod
    def read(cls, settings: Mapping[str, object]) -> RunConfig:
        """Check settings and give them their types.

        Raises:
            InputError: a missing section, an unknown key (with the nearest name), or a value that is not allowed.
        """
        s = _complete(settings)
        if s["if_exists"] not in IF_EXISTS:
            raise InputError(
                f"if_exists={s['if_exists']} is not one of {', '.join(IF_EXISTS)}.{nearest(s['if_exists'], IF_EXISTS)}"
            )
        policy = dict(s["policy"])
        sigma = policy.pop("sigma_data", None)
        if sigma is not None and not (isinstance(sigma, (int, float)) and sigma > 0):
            raise InputError(f"policy.sigma_data must be a number above 0, or null to measure it; got {sigma}.")
        sampling = Sampling.read(cast(Section, policy.pop("sampling", {})))
        encoder = build("images", ImageEncoderConfig, s["images"])
        parts = {"network": read_network(s["network"]), "image_encoder": encoder, "sampling": sampling}
        check_installed(encoder.trunk)
        training = build("training", TrainingConfig, s["training"])
        meant(training.loggers)  # refuses what is none
        return cls(
            run=Path(s["run_dir"]),
            if_exists=s["if_exists"],
            task=s["task"],
            data=build("data", DataConfig, s["data"]),
            policy=build("policy", PolicyConfig, {**policy, **_UNKNOWN, **parts}),
            sigma_data=None if sigma is None else float(sigma),
            objective=read_objective(s["objective"]),
            training=training,
        )


def compose_config(overrides: Sequence[str], config_name: str = "train") -> Settings:
    """Compose the settings of a run.

    Args:
        overrides: Hydra overrides as on the command line, e.g. ["experiment=pusht_demo", "training.seed=43"]. With data.path=
            but neither task= nor experiment=, the task is the one that the store names; if none of that name is registered,
            experiment=own_robot is taken.

    Raises:
        InputError: an unknown key or group option (with the nearest name), or a value that cannot be parsed.
    """
    overrides = [_in_todays_words(override) for override in overrides]
    _register()
    GlobalHydra.instance().clear()
    with initialize_config_module("isdt_policy.configs", version_base="1.3"):
        try:
            config = compose(config_name, overrides=list(overrides), return_hydra_config=True)
            if not {override.split("=")[0] for override in overrides} & {"task", "experiment"}:
                overrides = [*_task_of(config.data.path), *overrides]
                config = compose(config_name, overrides=overrides, return_hydra_config=True)
            chosen = {**config.hydra.runtime.choices}
            given = {override.split("=")[0].lstrip("+"): override for override in overrides}
            others = [override for key, override in given.items() if key != "training.steps"]
            planned = compose(config_name, overrides=others).training if "training.steps" in given else None
            OmegaConf.set_struct(config, False)
            del config["hydra"]
            config.name = config.name or run_name(config.task or _stem(config.data.path), config.training.seed, chosen)
            config.run_dir = config.run_dir or f"outputs/{config.name}"
            composed = OmegaConf.to_container(config, resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(explain(error, overrides, GROUPS)) from error
    settings = _complete(cast(Section, composed))
    follow_steps(settings["training"], planned, set(given))
    _follow_objective(settings, set(given))
    return settings


def run_name(task: str, seed: int, chosen: Mapping[str, str | None]) -> str:
    """The name of a run that was given none: <experiment or task>-<objective>-s<seed>, such as lift-isd_t-s42.

    Args:
        task: its id.
        seed: of the training.
        chosen: the file that was chosen of each group of configurations.
    """
    experiment = chosen.get("experiment")
    return f"{task if experiment in (None, OWN_ROBOT) else experiment}-{chosen.get('objective')}-s{seed}"


def _task_of(path: str) -> list[str]:
    """What to choose for demonstrations of which no task was said: theirs, or the experiment for a robot of one's own."""
    if path == DataConfig.path:
        return []
    try:
        named = DemoStore.open(path).task
    except InputError:
        return []  # said when the data are read, with all that is wrong
    with suppress(InputError):
        return [f"task={task_spec(named).id}"] if named else [f"experiment={OWN_ROBOT}"]
    return [f"experiment={OWN_ROBOT}"]


def _stem(path: str) -> str:
    """A name for a run on demonstrations without a task."""
    return re.sub(r"\W+", "_", Path(path).name.split(".")[0]) or "demonstrations"


def load_config(run: str | Path) -> Settings:
    """The settings that a run was started with.

    Raises:
        InputError: not a run directory.
    """
    try:
        saved = parse_json((Path(run) / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"'{run}' is not a run directory: config.json cannot be read ({error}).") from error
    if isinstance(saved, dict) and isinstance(given := saved.get("images", {}), dict):
        saved["images"] = {**_values(ImageEncoderConfig()), **given}  # of before policies saw so much
    if not isinstance(saved, dict) or not set(_SECTIONS) <= set(saved):
        raise InputError(f"'{run}' is not a run directory: its config.json does not hold the settings of a run.")
    training = saved["training"]
    if isinstance(training, dict) and "tensorboard" in training:  # of version 0.1.0
        training["loggers"] = ["auto"] if training.pop("tensorboard") else []
    return _complete(saved)


def _in_todays_words(override: str) -> str:
    """An override of version 0.1.0 as it is called now, with a hint."""
    key, _, value = override.partition("=")
    if key != "training.tensorboard":
        return override
    now = f"training.loggers={'[auto]' if value.lower() == 'true' else '[]'}"
    print(f"note: {override} is now {now}", file=sys.stderr)
    return now


def kinds(settings: Settings) -> dict[str, type]:
    """The dataclass behind each section; its docstring explains the settings."""
    c = RunConfig.read(settings)
    return {
        "data": DataConfig, "policy": PolicyConfig, "network": type(c.policy.network), "images": ImageEncoderConfig,
        "objective": type(c.objective), "training": TrainingConfig,
    }  # fmt: skip


def options(group: str) -> dict[str, str]:
    """What a group offers, such as the files of "experiment", each with the sentence that it begins with."""
    if group == "network":
        return {name: (network.__doc__ or "").split("\n")[0] for name, network in NETWORKS.items()}
    folder = resources.files("isdt_policy.configs") / group
    texts = {f.name: f.read_text(encoding="utf-8") for f in folder.iterdir() if f.name.endswith(".yaml")}
    return {name.removesuffix(".yaml"): _first_sentence(texts[name]) for name in sorted(texts)}


def _first_sentence(yaml: str) -> str:
    lines = itertools.takewhile(lambda line: line.startswith("#"), yaml.splitlines())
    comment = " ".join(line.removeprefix("#").strip() for line in lines if not line.startswith("# @package"))
    return re.split(r"[.:;](?: |$)", comment)[0]


def read_objective(values: Mapping[str, object]) -> Objective:
    """From {"name": ..., settings}, as configurations and config.json hold it.

    Raises:
        InputError: an unknown objective or setting, with the nearest name.
    """
    name = str(values.get("name", ""))
    if name not in OBJECTIVES:
        raise InputError(f"objective.name='{name}' is not one of {', '.join(OBJECTIVES)}.{nearest(name, OBJECTIVES)}")
    kind: type[Objective] = OBJECTIVES[name]
    return build("objective", kind, {key: value for key, value in values.items() if key != "name"})


def build(section: str, cls: type[T], values: Mapping[str, object]) -> T:
    """Construct dataclass `cls` from a section; lists become tuples; errors name the section.

    Raises:
        InputError: an unknown key (with the nearest name), or a value of another type than the default's.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise InputError(f"unknown key '{section}.{unknown[0]}'.{nearest(unknown[0], fields)}")
    converted: Section = {}
    for name, value in values.items():
        default, words = fields[name].default, fields[name].metadata.get("or", ())
        if isinstance(default, (bool, int, float, str, tuple)) and not (_fits(value, default) or value in words):
            kind = " or ".join(["list" if isinstance(default, tuple) else type(default).__name__, *words])
            raise InputError(f"{section}.{name}={value!r} is not of type {kind} (default: {_plain(default)!r}).")
        if isinstance(default, float) and isinstance(value, int):  # weight_power=0
            value = float(value)
        converted[name] = tuple(value) if isinstance(value, list) else value
    return cls(**converted)


def _fits(value: object, default: object) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, int):
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, (list, tuple) if isinstance(default, tuple) else str)


def _complete(values: Mapping[str, object]) -> Settings:
    """Refuse settings without a name or a section, as `task=null` or `training=null` leaves them."""
    for key in ("name", "run_dir", "if_exists", "task"):
        if not isinstance(values.get(key), str) or not (values[key] or key == "task"):
            raise InputError(f"{key}={_shown(values.get(key))} must be a text, such as {key}={_EXAMPLES[key]}.")
    for key in _SECTIONS:
        if not isinstance(values.get(key), Mapping):
            raise InputError(
                f"{key}={_shown(values.get(key))} must be a section of settings; leave it out, or set its keys."
            )
        _refuse_endless(key, values[key])
    return cast(Settings, values)


def _refuse_endless(name: str, value: object) -> None:
    """NaN is neither below nor above any bound, so that no check of a range would notice it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_endless(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_endless(name, inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} must be a finite number, got {value}.")


_EXAMPLES = {"name": "first_run", "run_dir": "outputs/first_run", "if_exists": "error", "task": "pusht"}


def _shown(value: object) -> str:
    return "null" if value is None else json.dumps(value, default=str)


# What Hydra sees.


def _register() -> None:
    store = ConfigStore.instance()
    store.store(name="schema", node=_schema())
    for name, cls in OBJECTIVES.items():
        store.store(group="objective/schema", name=name, node={"name": name, **_values(cls())}, package="objective")
    for name, network in NETWORKS.items():
        sizes = {key: _plain(value) for key, value in write_network(network()).items()}
        store.store(group="network", name=name, node=sizes)


def _schema() -> Section:
    policy = {f.name: _plain(f.default) for f in dataclasses.fields(PolicyConfig) if f.name not in _DERIVED}
    return {
        "name": "",  # see `run_name`
        "run_dir": "",  # outputs/<name>
        "if_exists": "error",
        "task": "pusht",
        "data": _values(DataConfig()),
        "policy": {**policy, "sigma_data": None},  # None: measured on the normalised training actions
        "images": _values(ImageEncoderConfig()),
        "training": _values(TrainingConfig()),
    }


def _values(section: object) -> Section:
    return {f.name: _plain(getattr(section, f.name)) for f in dataclasses.fields(section)}  # type: ignore[arg-type]


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _follow_objective(settings: Settings, given: Set[str]) -> None:
    """Write down what the chosen objective decides: how its policy is sampled, and whether a warm start makes sense."""
    objective = read_objective(settings["objective"])
    scale, drop = getattr(objective, "guidance_scale", 1.0), getattr(objective, "cond_drop", 0.0)
    if scale != 1 and drop <= 0:
        raise InputError(
            f"objective.guidance_scale={scale:g} leads away from the null branch, which nothing trains at "
            "objective.cond_drop=0. Add objective.cond_drop=0.1."
        )
    if objective.sampling != FLOW_MAP:
        default, chosen = dataclasses.asdict(FLOW_MAP), dataclasses.asdict(objective.sampling)
        schedule = ("prediction", "train_steps", "beta_schedule") if chosen["kind"] == "diffusion" else ()
        settings["policy"]["sampling"] = {
            k: v for k, v in chosen.items() if k == "kind" or k in schedule or v != default[k]
        }
    warm_start_given = "training.diagonal_steps" in given
    if not hasattr(objective, "off_diagonal_weight") and not warm_start_given:
        # An experiment's warm start is for objectives that have a term to leave out.
        settings["training"]["diagonal_steps"] = 0
    training = build("training", TrainingConfig, settings["training"])
    if not getattr(objective, "endpoint_weight", 0.0) and "training.endpoint_steps" not in given:
        # An objective without an endpoint to teach has these steps for its finish: as many as the others.
        settings["training"].update(finish_steps=training.finish_steps + training.endpoint_steps, endpoint_steps=0)
        training = build("training", TrainingConfig, settings["training"])
    training.check_parts(warm_start_given)
