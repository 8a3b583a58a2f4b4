"""`isdt train`: compose, check, build, fit."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

HELP = """usage: isdt train [experiment=NAME] [key=value ...]

Train a policy from scratch on demonstrations. Everything is written to one run directory (outputs/<name>): config.json,
log.jsonl, TensorBoard events and checkpoints that hold all that is needed to act and to resume.

examples
  isdt train experiment=pusht_demo                        ten minutes on two cores, bundled demonstrations
  isdt train experiment=pusht_demo training.seed=43 name=pusht_demo_43
  isdt train experiment=pusht_human data.path=/data/pusht_cchi_v7_replay.zarr
  isdt train experiment=pusht_demo objective.weight_power=0 objective.derivative=jvp name=ablation
  isdt train resume=outputs/pusht_demo                    go on after a kill; the result is bit-identical on a CPU
  isdt train experiment=pusht_demo --cfg                  print the composed settings and stop

keys
  experiment=...       {experiments}
  objective=...        {objectives}
  size=full            the published network and schedule, for a GPU, on top of any experiment
  name, run_dir        name of the run and where it goes (outputs/<name>)
  if_exists=...        error (default), resume or overwrite, when run_dir already holds a run
  data.*               path, obs_keys, max_train_episodes, mask, val_mask, val_ratio, split_seed, mirror, hindsight
  policy.*             n_obs_steps, horizon, n_action_steps, interpolant, cond_dim, encoder_hidden, precondition, ...
  network.*            down_dims, kernel_size, groups, time_dim, embed_dim
  objective.*          the parts of the objective, each on its own switch
  training.*           seed, steps, batch_size, lr, amp, compile, threads, device, checkpoint_every, ...
"""


def main(args: list[str]) -> int:
    """Entry of the verb. Returns 0 when the run is complete."""
    if "--help" in args or "-h" in args:
        print(HELP.format(experiments=", ".join(_names("experiment")), objectives=", ".join(_names("objective"))))
        return 0
    from isdt_policy.shared.errors import InputError
    from isdt_policy.training.config import compose_config

    show = "--cfg" in args
    overrides = [a for a in args if a != "--cfg"]
    resume = next((a.split("=", 1)[1] for a in overrides if a.startswith("resume=")), None)
    if resume and len(overrides) > 1:
        raise InputError(
            "resume= takes the run's own settings; give no others (a changed run would not be the same run)."
        )
    if resume:
        config = _load_config(Path(resume))
        config.update(run_dir=resume, if_exists="resume")
    else:
        config = compose_config(overrides)
    if show:
        print(json.dumps(config, indent=2))
        return 0
    train(config, command="isdt train " + " ".join(args))
    return 0


def train(config: dict[str, Any], command: str = "") -> Path:
    """Train from a composed configuration and return the run directory."""
    from isdt_policy.shared.errors import InputError, nearest
    from isdt_policy.shared.progress import duration

    run = Path(config["run_dir"])
    if config["if_exists"] not in ("error", "resume", "overwrite"):
        raise InputError(
            f"if_exists={config['if_exists']} is not one of error, resume, overwrite."
            f"{nearest(str(config['if_exists']), ('error', 'resume', 'overwrite'))}"
        )
    trainer, report = build_trainer(config)  # everything is checked before anything is written
    exists = (run / "config.json").exists()
    if exists and config["if_exists"] == "error":
        raise InputError(
            f"'{run}' already holds a run. Go on with it: isdt train resume={run}; start another: name=...; "
            "replace it: if_exists=overwrite."
        )
    if exists and config["if_exists"] == "overwrite":
        from isdt_policy.shared import files

        files.remove(run)
    write_run(config, trainer, command)
    goal = trainer.config.steps
    if trainer.step >= goal:
        print(f"{run}: complete, {trainer.step} of {goal} steps. Evaluate: isdt eval checkpoint={run} steps=[1,2]")
        return run
    for line in report:
        print(line, file=sys.stderr)
    if trainer.step:
        print(f"resuming at step {trainer.step}", file=sys.stderr)
    import time

    start = time.monotonic()
    trainer.fit()
    print(
        f"{run}: {goal} steps in {duration(time.monotonic() - start)}. Evaluate: isdt eval checkpoint={run} steps=[1,2]"
    )
    return run


def write_run(config: dict[str, Any], trainer: Any, command: str) -> None:
    """Begin the run directory of a trainer, or resume from the one that is there with the same settings."""
    run = Path(config["run_dir"])
    run.mkdir(parents=True, exist_ok=True)
    if (run / "config.json").exists():
        _same_settings(_load_config(run), config, run)
        if (run / "checkpoints" / "last").exists():
            trainer.resume()
    else:
        _write_json(run / "config.json", config)
        _write_json(run / "provenance.json", _provenance(command))


def build_trainer(config: dict[str, Any]) -> tuple[Any, list[str]]:
    """Open the data, build policy and objective, and return (Trainer, lines that say what will be trained)."""
    import numpy as np
    import torch

    from isdt_policy.datasets.augment import MemoryStore, with_goals_in_hindsight, with_mirror_images
    from isdt_policy.datasets.store import DemoStore
    from isdt_policy.datasets.windows import WindowDataset, train_val_split
    from isdt_policy.envs import task_spec
    from isdt_policy.envs.protocol import ObsSpec
    from isdt_policy.envs.registry import check_recorded
    from isdt_policy.method.networks import read_network
    from isdt_policy.method.normalization import Normalizer, action_statistics
    from isdt_policy.method.objectives import OBJECTIVES
    from isdt_policy.method.policy import Policy
    from isdt_policy.method.policy_config import PolicyConfig
    from isdt_policy.method.samplers import Sampling
    from isdt_policy.shared.errors import InputError
    from isdt_policy.training.config import DataConfig, build
    from isdt_policy.training.trainer import Trainer, TrainingConfig

    training = build("training", TrainingConfig, config["training"])
    data = build("data", DataConfig, config["data"])
    objective = build(
        "objective",
        OBJECTIVES[config["objective"]["name"]],
        {k: v for k, v in config["objective"].items() if k != "name"},
    )
    spec = task_spec(config["task"])
    policy_values = dict(config["policy"])
    sigma = policy_values.pop("sigma_data")
    shape = {key: policy_values[key] for key in ("n_obs_steps", "horizon", "n_action_steps")}
    recorded = DemoStore.open(data.path)
    check_recorded(spec, recorded.attrs, data.path)
    episodes, held_out = train_val_split(recorded.n_episodes, data.val_ratio, data.split_seed)
    if data.val_mask:
        held_out = _masked(recorded, data.val_mask)
        episodes = np.setdiff1d(np.arange(recorded.n_episodes), held_out)
    if data.mask:
        named = _masked(recorded, data.mask)
        episodes = np.intersect1d(episodes, named)
        held_out = held_out if data.val_mask else np.intersect1d(held_out, named)
    if data.max_train_episodes:
        episodes = episodes[: data.max_train_episodes]
    store: DemoStore | MemoryStore = recorded
    if data.hindsight:
        store = with_goals_in_hindsight(store, spec)
    if data.mirror:
        store = with_mirror_images(store, spec)
    if isinstance(store, MemoryStore):  # what was made of one recording stays on the same side of the split
        episodes, held_out = store.made_from(episodes), store.made_from(held_out)
    keys = list(data.obs_keys) or list(spec.default_obs_keys)
    reference = policy_values["action_reference"]
    if reference and (absent := [key for key in reference.split(",") if key not in keys]):
        raise InputError(
            f"policy.action_reference='{','.join(absent)}' is not among the observations the policy reads ({', '.join(keys)}); "
            "add it to data.obs_keys."
        )

    def windows(chosen: Any) -> WindowDataset:
        return WindowDataset(store, keys, "action", episodes=chosen, task=spec, **shape)

    train_windows = windows(episodes)
    validation = windows(held_out) if len(held_out) else None
    statistics = train_windows.statistics()
    observations = {key: ObsSpec(np.shape(statistics[key]["min"])) for key in keys}
    action_dim = int(np.prod(np.shape(statistics["action"]["min"])))
    expected = int(np.prod(spec.action.shape))
    if action_dim != expected:
        raise InputError(f"'{data.path}' has actions of {action_dim} entries, task '{spec.id}' takes {expected}.")

    n = train_windows.n_windows
    blocks = (train_windows.batch(np.arange(i, min(i + 4096, n))) for i in range(0, n, 4096))
    statistics["action"] = action_statistics(blocks, reference)
    torch.manual_seed(training.seed)
    normalizer = Normalizer({key: o.size for key, o in observations.items()}, shape["horizon"], action_dim, reference)
    normalizer.fit(statistics, policy_values["obs_normalization"], policy_values["action_normalization"])
    settings = {
        **policy_values, "task": spec.id, "observations": observations, "action_dim": action_dim,
        "network": read_network(config["network"]), "action_type": spec.action_type,
        "sampling": Sampling.read(policy_values.get("sampling", {})),
        "sigma_data": normalizer.action_spread(statistics["action"]) if sigma is None else sigma,
    }  # fmt: skip
    policy = Policy(build("policy", PolicyConfig, settings), normalizer=normalizer)
    trainer = Trainer(policy, objective, train_windows, validation, training, Path(config["run_dir"]))
    count = sum(p.numel() for p in policy.parameters()) / 1e6
    report = [
        f"data      {data.path}: {len(episodes)} episodes, {train_windows.n_windows} windows"
        + (" (mirror images included)" if data.mirror else "")
        + (", goals in hindsight" if data.hindsight else ""),
        f"policy    {config['network']['name']}, {count:.2f} M parameters, reads {', '.join(keys)}",
        f"training  {training.steps} steps of {training.batch_size} on {training.device}, "
        f"{torch.get_num_threads()} threads, amp {trainer.amp}, compile {trainer.compile_note}",
        f"run       {config['run_dir']}",
    ]
    return trainer, report


def _masked(store: Any, name: str) -> Any:
    from isdt_policy.shared.errors import InputError, nearest

    if name not in store.masks:
        known = ", ".join(store.masks) or "none"
        raise InputError(f"'{store.path}' has no episode mask '{name}'.{nearest(name, store.masks)} Masks: {known}.")
    return store.masks[name]


def _names(group: str) -> list[str]:
    from importlib import resources

    folder = resources.files("isdt_policy.configs") / group
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def _load_config(run: Path) -> dict[str, Any]:
    from isdt_policy.shared.errors import InputError

    try:
        return json.loads((run / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"'{run}' is not a run directory: config.json cannot be read ({error}).") from error


def _same_settings(old: dict[str, Any], new: dict[str, Any], run: Path) -> None:
    from isdt_policy.method.objectives import completed
    from isdt_policy.shared.errors import InputError

    old = {**old, "objective": completed(old["objective"], new["objective"])}
    # Training does not read how a policy draws when it acts.
    ignored = ("if_exists", "resume", "run_dir", "policy.noise_scale")

    def flat(node: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix: node}
        return {k: v for name, child in node.items() for k, v in flat(child, f"{prefix}.{name}".strip(".")).items()}

    a, b = ({k: v for k, v in flat(c).items() if k not in ignored} for c in (old, new))
    for key in sorted(set(a) | set(b)):
        if a.get(key) != b.get(key):
            raise InputError(
                f"'{run}' was started with {key}={a.get(key)}, now {key}={b.get(key)}; resume with the same settings, or "
                "choose another name=."
            )


def _provenance(command: str) -> dict[str, Any]:
    import platform

    import numpy as np
    import torch

    from isdt_policy import __version__
    from isdt_policy.shared.provenance import commit

    return {
        "command": command, "isdt_policy": __version__, "commit": commit(), "python": platform.python_version(),
        "torch": torch.__version__, "numpy": np.__version__, "cpu_count": os.cpu_count(), "machine": platform.platform(),
    }  # fmt: skip


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)
