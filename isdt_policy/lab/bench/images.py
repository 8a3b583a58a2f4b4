"""A policy that sees: a training step against one of Diffusion Policy's image network, and one call on one thread."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from isdt_policy.deploy.export import FileFormat, export
from isdt_policy.deploy.runner import OnnxPolicy
from isdt_policy.lab.bench.baseline import How, ddpm_step, matched
from isdt_policy.lab.bench.measure import Timing, interleaved, ratio
from isdt_policy.lab.bench.ranks import generated_store
from isdt_policy.lab.bench.report import Measured
from isdt_policy.lab.bench.settings import Images
from isdt_policy.lab.bench.subject import prepare, say
from isdt_policy.method.networks.image_encoder import Cameras, ImageEncoderConfig
from isdt_policy.method.policy import Policy
from isdt_policy.training.config import compose_config
from isdt_policy.training.run import build_trainer
from isdt_policy.training.trainer import Trainer

SAME, RECOMMENDED, SHIPPED = "iSD-T step, ResNet18", "iSD-T step, conv", "iSD-T step, conv, two draws"
DDPM = "DDPM step, ResNet18"
ONNX = "one call, ONNX Runtime"


def measure(what: Images) -> Measured:
    """Time whole steps, then one call of the recommended policy."""
    prepare(what.threads)
    with tempfile.TemporaryDirectory() as folder:
        store = generated_store(Path(folder) / "seen.zarr")
        trainers = {
            SAME: _trainer(what, store, "images.trunk=resnet", "training.draws_per_obs=1"),
            RECOMMENDED: _trainer(what, store, "training.draws_per_obs=1"),
            SHIPPED: _trainer(what, store),
        }
        ours = trainers[SAME]
        policy = ours.policy
        assert policy.cameras is not None
        torch.manual_seed(0)
        cameras = Cameras(policy.config.images, policy.n_obs_steps, ImageEncoderConfig("resnet"))
        width = policy.n_obs_steps * sum(policy.config.obs_dims.values()) + cameras.n_features
        rest = sum(p.numel() for p in policy.parameters()) - sum(p.numel() for p in policy.cameras.parameters())
        network = matched(policy.config.action_dim, width, (32, 64, 128), rest)
        how = How("cpu", ours.amp == "bf16", ours.compile_note == "on")
        say("training steps, some seconds each")
        ways: dict[str, Callable[[], object]] = {name: trainer.advance for name, trainer in trainers.items()}
        ways[DDPM] = ddpm_step(network.train(), policy, ours.train, what.batch, how, cameras)
        timings = interleaved(ways, rounds=what.rounds, calls=what.calls, warmup=1)
        batches = iter([ours.indices(i) for i in range(200)])
        fetch = interleaved({"data": lambda: ours.train.batch(next(batches))}, rounds=1, calls=100)["data"]
        acting = trainers[RECOMMENDED].ema.module.eval()
        timings |= _calls(acting, Path(folder), what)
    count = {"iSD-T": policy, "iSD-T, conv": acting}
    facts = {
        "experiment": "pusht_image, generated pictures of 96 px cropped to 84, 2 frames", "batch": what.batch,
        "parameters": {name: sum(p.numel() for p in module.parameters()) for name, module in count.items()}
        | {"DDPM": sum(p.numel() for module in (network, cameras) for p in module.parameters())},
        "both steps": str(how), "threads": what.threads,
        "share of a step in which data are waited for": {
            name: fetch.median / timings[name].median for name in (SAME, RECOMMENDED, SHIPPED)
        },
        "one call, of which, ms": _split(timings),
    }  # fmt: skip
    ratios = {f"{name} / {DDPM}": ratio(timings[name], timings[DDPM]) for name in (SAME, RECOMMENDED, SHIPPED)}
    return Measured("images", timings, ratios, facts)


def _trainer(what: Images, store: Path, *more: str) -> Trainer:
    config = compose_config([
        "experiment=pusht_image", "data.hindsight=false", f"data.path={store}", f"training.batch_size={what.batch}",
        f"training.threads={what.threads}", "training.device=cpu", f"training.compile={str(what.compile).lower()}",
        "training.diagonal_steps=0", "training.loggers=[]", *more,
    ])  # fmt: skip
    return build_trainer(config)[0]


def _calls(policy: Policy, folder: Path, what: Images) -> dict[str, Timing]:
    """One row, one and two evaluations of the network: their difference is one evaluation, and the rest is the encoder."""
    say("exporting the recommended policy")
    rng = np.random.default_rng(0)
    obs = {
        key: rng.integers(0, 256, (1, policy.n_obs_steps, *spec.shape), np.uint8) if spec.kind == "image"
        else np.full((1, policy.n_obs_steps, spec.size), 256, np.float32)
        for key, spec in policy.config.observations.items()
    }  # fmt: skip
    ways: dict[str, Callable[[], object]] = {}
    for nfe, name in ((1, ONNX), (2, f"{ONNX}, two evaluations")):
        file = export(policy, folder / f"{nfe}.onnx", FileFormat(nfe=nfe))
        ways[name] = partial(OnnxPolicy(file, threads=what.threads).predict_action, obs)
    ways["one call, PyTorch"] = partial(policy.freeze(1).predict_action, obs)
    return interleaved(ways, rounds=what.rounds, calls=20 * what.calls, warmup=10)


def _split(timings: dict[str, Timing]) -> dict[str, float]:
    one, two = timings[ONNX].median, timings[f"{ONNX}, two evaluations"].median
    return {"encoder and all around it": 2 * one - two, "network": two - one}
