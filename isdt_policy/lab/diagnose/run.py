"""Load a policy and its data, measure, and write diagnostics.json and the page."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isdt_policy.datasets.pictures import with_pictures
from isdt_policy.datasets.store import DemoStore
from isdt_policy.datasets.windows import WindowDataset
from isdt_policy.envs import task_spec
from isdt_policy.lab.diagnose import figure, reading
from isdt_policy.lab.diagnose.gradients import gradient_norms, loss_terms
from isdt_policy.lab.diagnose.measure import (
    Measures,
    consistency_residual,
    diversity,
    flow_error,
    null_drift,
    semigroup_error,
)
from isdt_policy.lab.diagnose.settings import Settings
from isdt_policy.method import zoo
from isdt_policy.method.device import find_device
from isdt_policy.method.objectives.base import Objective
from isdt_policy.method.policy import Policy, find_policy
from isdt_policy.shared import files, page
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.progress import Progress
from isdt_policy.shared.provenance import commit
from isdt_policy.training.config import Settings as RunSettings
from isdt_policy.training.config import load_config
from isdt_policy.training.run import build_trainer
from isdt_policy.training.trainer import Windows

SCHEMA = "isdt-diagnose/1"
TEMPLATE = Path(__file__).parents[1] / "templates" / "diagnose.html"


@dataclass(frozen=True)
class Batches:
    """Training batches and the loss that is taken on them.

    Attributes:
        windows: windows of the training episodes.
        objective: the loss.
        size: windows in a batch.
        mask_padding: leave copies past an episode's end out of the loss.
        training: what the reading needs to know.
    """

    windows: Windows
    objective: Objective
    size: int
    mask_padding: bool
    training: reading.Training


@dataclass(frozen=True)
class Diagnosis:
    """The result.

    Attributes:
        info: the content of diagnostics.json.
        lines: the numbers in sentences.
        written: files.
    """

    info: Mapping[str, object]
    lines: list[reading.Line]
    written: list[Path]


def diagnose(settings: Settings, command: str = "") -> Diagnosis:
    """Measure, and write diagnostics.json and diagnostics.html.

    Args:
        settings: what is measured, on what.
        command: the line that asked for it, for the record.

    Raises:
        InputError: nothing to load, a policy that is no flow map, or a device that is not there.
    """
    checkpoint = Path(settings.checkpoint)
    policy = _policy(settings)
    held_out, note, batches = _data(checkpoint, policy, settings.data)
    started = time.monotonic()
    measures = _measure(policy, held_out, batches, settings)
    lines = reading.read(measures, batches.training if batches else None)
    n = min(settings.windows, held_out.n_windows)
    weights = json.loads((find_policy(settings.checkpoint) / "config.json").read_text()).get("weights_sha256")
    info = {
        "schema": SCHEMA, "command": command, "commit": commit(), "checkpoint": settings.checkpoint,
        "weights_sha256": weights,
        "data": note, "n_windows": n, "seed": settings.seed, **measures.to_json(),
        "seconds": round(time.monotonic() - started, 1), "reading": [asdict(line) for line in lines],
        "what_to_do": reading.what_to_do(lines),
    }  # fmt: skip
    folder = settings.out or zoo.beside(settings.checkpoint) / "diagnostics"
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "diagnostics.json", folder / "diagnostics.html"]
    files.write_text(written[0], json.dumps(info, indent=1) + "\n")
    facts = {"command": command, "commit": info["commit"], "weights": weights, "seconds": info["seconds"]}
    html = page.render(
        TEMPLATE,
        title=f"isdt diagnose: {checkpoint.resolve().name}", sub=f"{n} windows, {note}", facts=facts,
        todo=reading.what_to_do(lines),
        panels=figure.panels(measures, lines),
    )  # fmt: skip
    files.write_text(written[1], html)
    return Diagnosis(info, lines, written)


def _policy(settings: Settings) -> Policy:
    """The policy on its device. InputError if it is no flow map."""
    device = find_device(settings.device)
    policy = Policy.from_pretrained(settings.checkpoint)
    if policy.sampling.kind != "flow_map":
        raise InputError(
            f"'{settings.checkpoint}' is no flow map (sampling.kind='{policy.sampling.kind}'): it was not trained to jump from "
            "any time t to any time s, so consistency and semigroup error mean nothing for it. Compare it by rollouts: isdt eval."
        )
    return policy.to(device)


def _measure(policy: Policy, held_out: Windows, batches: Batches | None, settings: Settings) -> Measures:
    """Everything but the gradients is measured on the same held-out windows and the same noise."""
    chosen = np.unique(np.linspace(0, held_out.n_windows - 1, settings.windows).astype(np.int64))
    x, cond, _ = _read(policy, held_out, chosen)
    x, cond = x.detach(), cond.detach()
    generator = torch.Generator().manual_seed(settings.seed)
    noise = torch.randn(x.shape, generator=generator).to(x)
    flow_map, grid, null = policy.flow_map, settings.grid, policy.null.detach()
    _say(f"{len(x)} windows: consistency over the (t, s) triangle")
    residual = consistency_residual(flow_map, x, cond, noise, grid)
    _say("two steps against one")
    semigroup = semigroup_error(flow_map, x, cond, noise, grid)
    _say("distance from the network's own flow")
    flow = flow_error(flow_map, x, cond, noise)
    _say(f"diversity, {settings.draws} draws per observation")
    spread = diversity(flow_map, x, cond, generator, settings.draws)
    _say("null branch")
    drift = null_drift(flow_map, x, cond, null, noise, grid)
    norms = _gradients(policy, batches, settings) if batches and settings.batches else {}
    first = policy.n_obs_steps - 1
    return Measures(residual, semigroup, flow, spread, drift, norms, slice(first, first + policy.n_action_steps))


def _data(checkpoint: Path, policy: Policy, data: str | None) -> tuple[Windows, str, Batches | None]:
    """(windows to measure on, what they are, training batches) of the run that made the checkpoint; or all of `data`."""
    config = run_config(checkpoint)
    if config is None:
        if data is None:
            raise InputError(
                f"'{checkpoint}' holds a policy but not the run that trained it, so it does not say on which demonstrations; "
                "give data=PATH."
            )
        store, c = DemoStore.open(data), policy.config
        spec = task_spec(policy.task) if policy.task else None
        seen = store if spec is None else with_pictures(store, spec, policy.obs_keys)
        everything = WindowDataset(seen, policy.obs_keys, c.horizon, c.n_obs_steps, c.n_action_steps, task=spec)
        return everything, f"all {store.n_episodes} episodes of {data}", None
    if data is not None:
        config["data"]["path"] = data
    # Built here, on this machine, and never run.
    config["training"] |= {"device": "cpu", "threads": 0, "compile": False}
    trainer, _ = build_trainer(config)
    known = reading.Training(trainer.config.grad_clip, getattr(trainer.objective, "cond_drop", None))
    batches = Batches(
        trainer.train, trainer.objective, trainer.config.batch_size, trainer.config.mask_padding, known
    )  # fmt: skip
    side = "held-out" if trainer.validation is not None else "training"
    return trainer.validation or trainer.train, f"{side} episodes of {config['data']['path']}", batches


def run_config(checkpoint: Path) -> RunSettings | None:
    """Settings of the run directory at or above a checkpoint."""
    for folder in [checkpoint, *checkpoint.resolve().parents[:3]]:
        with suppress(InputError):  # a policy's config.json is none of a run
            return load_config(folder)
    return None


def _read(policy: Policy, windows: Windows, chosen: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """(x, embedding, is_pad) of windows by number, on the policy's device."""
    batch = windows.batch(chosen)
    device = policy.null.device
    obs = {key: torch.as_tensor(batch["obs"][key]).to(device) for key in policy.obs_keys}
    action = torch.as_tensor(batch["action"]).to(device)
    return policy.normalizer.normalize_action(action, obs), policy.encode(obs), torch.as_tensor(batch["is_pad"])


def _gradients(policy: Policy, batches: Batches, settings: Settings) -> dict[str, list[float]]:
    """Gradient norm per term on training batches, each with its own draws, in float32."""
    rng = np.random.default_rng(settings.seed)
    norms: dict[str, list[float]] = {}
    bar = Progress(settings.batches, "gradients", "norm")
    for i in range(settings.batches):
        chosen = rng.integers(batches.windows.n_windows, size=batches.size)
        x, cond, is_pad = _read(policy, batches.windows, chosen)
        keep = ~is_pad.to(x.device) if batches.mask_padding else None
        seed = settings.seed * 1_000_003 + i
        terms = loss_terms(batches.objective, policy.flow_map, x, cond, policy.null, seed, keep=keep)
        for name, value in gradient_norms(terms, policy.parameters()).items():
            norms.setdefault(name, []).append(value)
        bar.update()
    bar.close()
    return norms


def _say(text: str) -> None:
    print(f"diagnose: {text}", file=sys.stderr, flush=True)
