"""A small untrained policy with statistics, and observations for it."""

import contextlib
import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import torch

from isdt_policy.cli.command import parse
from isdt_policy.envs.protocol import ObsSpec
from isdt_policy.method.networks.mlp import MLPConfig
from isdt_policy.method.networks.unet1d import UNet1dConfig
from isdt_policy.method.policy import Policy, PolicyConfig

OBS_DIMS = {"agent_pos": 2, "keypoints": 18}


UNET = UNet1dConfig((16, 32), embed_dim=32, time_dim=16)
MLP = MLPConfig(width=64, depth=2, time_dim=16)


def tiny_policy(reference="", interpolant="linear", seed=0, network=UNET):
    torch.manual_seed(seed)
    config = PolicyConfig(
        task="pusht", observations={key: ObsSpec((size,)) for key, size in OBS_DIMS.items()},
        action_dim=2, cond_dim=16, encoder_hidden=(32,), interpolant=interpolant,
        network=network, action_reference=reference,
        action_normalization="gaussian_per_step", action_type="absolute position target, px",
    )  # fmt: skip
    policy = Policy(config)
    torch.nn.init.normal_(policy.network.network.out.weight, std=0.5)
    limits = {"min": np.zeros(1), "max": np.full(1, 512.0), "mean": np.full(1, 256.0), "std": np.full(1, 100.0)}
    stats = {k: {m: np.repeat(v, d) for m, v in limits.items()} for k, d in OBS_DIMS.items()}
    spread = np.linspace(30, 60, 16)[:, None] * np.ones(2)
    middle = np.zeros((16, 2)) if reference else np.full((16, 2), 256.0)
    stats["action"] = {"min": middle - spread, "max": middle + spread, "mean": middle, "std": spread}
    policy.normalizer.fit(stats, "limits", "gaussian_per_step")
    return policy.eval()


def observations(batch, seed=0):
    rng = np.random.default_rng(seed)
    return {key: rng.uniform(0, 512, (batch, 2, size)).astype(np.float32) for key, size in OBS_DIMS.items()}


def run(verb, *args):
    """A verb with its arguments, as the command line calls it; bad input raises."""
    return parse(verb, args).run(shlex.join(["isdt", *args]))


@contextlib.contextmanager
def served(folder):
    """`isdt serve` as a process of its own: (process, its address, the policy). It has to end well when it is asked to."""
    policy = tiny_policy(network=MLP)
    policy.save_pretrained(folder / "policy")
    command = [sys.executable, "-m", "isdt_policy", "serve", f"checkpoint={folder / 'policy'}", "port=0"]
    command += ["max_rate=100000", "max_bytes=100000", "message_timeout=1"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield process, re.search(r"ws://\S+", process.stdout.readline())[0], policy
        finally:
            process.send_signal(signal.SIGTERM)
            rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.search(r"served \d+ requests in \d+ batches, refused \d+", rest)
