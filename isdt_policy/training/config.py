"""From `experiment=... key=value` to checked settings.

Hydra composes; the dataclasses validate. A default lives in one place, the dataclass or constructor that uses it: the
`schema` that Hydra sees is read from there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isdt_policy.method.networks import NETWORKS, write_network
from isdt_policy.method.objectives import OBJECTIVES
from isdt_policy.method.policy_config import PolicyConfig
from isdt_policy.method.samplers import FLOW_MAP
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.training.trainer import TrainingConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which demonstrations and which of their keys.

    Attributes:
        path: a store (directory or .zip), or "bundled:pusht_expert".
        obs_keys: observations the policy reads; empty takes the task's default.
        max_train_episodes: use at most this many training episodes; 0 uses all.
        mask: train on the episodes of this named mask alone, such as robomimic's "train"; empty takes all.
        val_mask: hold out the episodes of this mask, such as "valid", instead of a share drawn by val_ratio.
        val_ratio: share of episodes held out for the validation error.
        split_seed: of the draw of those episodes.
        mirror: also train on the mirror image of every episode, for tasks that have that symmetry.
        hindsight: name goals in hindsight, for tasks where that can be done: every episode, and every push in it, in a scene placed
            so that where it ended is the goal. Whoever stopped near the goal then demonstrates how to reach it.
    """

    path: str = "bundled:pusht_expert"
    obs_keys: tuple[str, ...] = ()
    max_train_episodes: int = 0
    mask: str = ""
    val_mask: str = ""
    val_ratio: float = 0.02
    split_seed: int = 42
    mirror: bool = False
    hindsight: bool = False


_GROUPS = ("experiment", "objective", "network", "size")

# Fields of PolicyConfig that follow from the data or the objective, or stand in a section of their own.
_DERIVED = {"task", "observations", "action_dim", "network", "action_type", "sampling"}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _schema() -> dict[str, Any]:
    policy = {f.name: _plain(f.default) for f in dataclasses.fields(PolicyConfig) if f.name not in _DERIVED}
    return {
        "name": "run",
        "run_dir": "outputs/${name}",
        "if_exists": "error",
        "resume": None,
        "task": "pusht",
        "data": {k: _plain(v) for k, v in dataclasses.asdict(DataConfig()).items()},
        # None: measured on the normalised training actions.
        "policy": {**policy, "sigma_data": None},
        "training": {k: _plain(v) for k, v in dataclasses.asdict(TrainingConfig()).items()},
    }


def _register() -> None:
    store = ConfigStore.instance()
    store.store(name="schema", node=_schema())
    for name, cls in OBJECTIVES.items():
        node = {"name": name, **{k: _plain(v) for k, v in dataclasses.asdict(cls()).items()}}
        store.store(group="objective/schema", name=name, node=node, package="objective")
    for name, network in NETWORKS.items():
        sizes = {k: _plain(v) for k, v in write_network(network()).items()}
        store.store(group="network", name=name, node=sizes)


def _flat_keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    return [key for name, child in node.items() for key in _flat_keys(child, f"{prefix}.{name}" if prefix else name)]


def compose_config(overrides: Sequence[str], config_name: str = "train") -> dict[str, Any]:
    """Compose the configuration of a run.

    Args:
        overrides: Hydra overrides as on the command line, e.g. ["experiment=pusht_demo", "training.seed=43"].

    Raises:
        InputError: an unknown key or group option (with the nearest name), or a value that cannot be parsed.
    """
    _register()
    GlobalHydra.instance().clear()
    with initialize_config_module("isdt_policy.configs", version_base="1.3"):
        try:
            config = compose(config_name, overrides=list(overrides))
            composed: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(_explain(error, overrides)) from error
    _follow_objective(composed, overrides)
    return composed


def _follow_objective(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """Write down what the chosen objective decides: how its policy is sampled, and whether a warm start makes sense."""
    values = dict(config["objective"])
    objective = build("objective", OBJECTIVES[values.pop("name")], values)
    if getattr(objective, "guidance_scale", 1.0) != 1 and objective.cond_drop <= 0:
        raise InputError(
            f"objective.guidance_scale={objective.guidance_scale:g} leads away from the null branch, which nothing trains at "
            "objective.cond_drop=0. Add objective.cond_drop=0.1."
        )
    if objective.sampling != FLOW_MAP:
        default = dataclasses.asdict(FLOW_MAP)
        chosen = dataclasses.asdict(objective.sampling)
        schedule = ("prediction", "train_steps", "beta_schedule") if chosen["kind"] == "diffusion" else ()
        config["policy"]["sampling"] = {
            k: v for k, v in chosen.items() if k == "kind" or k in schedule or v != default[k]
        }
    given = any(override.split("=")[0].lstrip("+") == "training.diagonal_steps" for override in overrides)
    if not hasattr(objective, "off_diagonal_weight") and not given:
        # An experiment's warm start is for objectives that have a term to leave out.
        config["training"]["diagonal_steps"] = 0


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    text = " ".join(str(error).split())
    allowed = [*_flat_keys(OmegaConf.to_container(compose("train"), resolve=False)), *_GROUPS]
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if "=" not in override:
            return f"'{override}' is not key=value, e.g. training.seed=43."
        if f"Could not override '{key}'" in text:
            if key in _GROUPS:
                break
            return f"unknown key '{key}'.{nearest(key, allowed)} See isdt train --help."
    group = re.search(r"Could not find '([^']+)' Available options in '([^']+)': (.*?)(?: Config search path|$)", text)
    if group:
        options = [o for o in group[3].split() if o != "schema"]
        given = group[1].split("/")[-1]
        return f"no {group[2]} named '{given}'; there are: {', '.join(options)}.{nearest(given, options)}"
    return text


def build(section: str, cls: type, values: dict[str, Any]) -> Any:
    """Construct dataclass `cls` from a config section; lists become tuples; errors name the section."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise InputError(f"unknown key '{section}.{unknown[0]}'.{nearest(unknown[0], fields)}")
    converted = {}
    for name, value in values.items():
        default = getattr(cls(), name, None) if section != "policy" else fields[name].default
        if isinstance(default, (bool, int, float, str)) and not _fits(value, default):
            raise InputError(
                f"{section}.{name}={value!r} is not of type {type(default).__name__} (default: {default!r})."
            )
        converted[name] = tuple(value) if isinstance(value, list) else value
    return cls(**converted)


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, int):
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str)
