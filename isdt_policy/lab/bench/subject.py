"""What is measured: an untrained policy of a stated size, and the demonstrations that it reads."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from isdt_policy.datasets.store import DemoStore
from isdt_policy.datasets.windows import WindowDataset
from isdt_policy.envs import task_spec
from isdt_policy.envs.protocol import ObsSpec
from isdt_policy.lab.bench.settings import BUNDLED, Size
from isdt_policy.method.device import find_device
from isdt_policy.method.networks.unet1d import UNet1dConfig
from isdt_policy.method.policy import Policy, PolicyConfig

DOWN_DIMS: dict[Size, tuple[int, ...]] = {"4m": (64, 128, 256), "16m": (128, 256, 512), "63m": (256, 512, 1024)}


@dataclass(frozen=True)
class Subject:
    """An untrained policy and its data.

    Attributes:
        policy: acts in PushT, with a 1D UNet.
        windows: windows of the demonstrations.
        down_dims: channels at each resolution of the UNet.
    """

    policy: Policy
    windows: WindowDataset
    down_dims: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """How many numbers the policy has learnt."""
        return sum(p.numel() for p in self.policy.parameters())

    @property
    def obs_width(self) -> int:
        """Entries of one flattened observation history."""
        return sum(value[0].size for value in self.first_obs().values())

    def first_obs(self) -> dict[str, NDArray[np.float32]]:
        """Observations of the first window, {key: (1, n_obs_steps, d)}."""
        return {key: value[:1] for key, value in self.windows.batch(np.arange(1))["obs"].items()}


def subject(size: Size, data: str = BUNDLED) -> Subject:
    """Build a policy of about `size` parameters on the demonstrations in `data`."""
    spec = task_spec("pusht")
    windows = WindowDataset(DemoStore.open(data), list(spec.default_obs_keys), task=spec)
    statistics = windows.statistics()
    torch.manual_seed(0)
    dims = {key: int(np.size(value["min"])) for key, value in statistics.items() if key != "action"}
    network = UNet1dConfig(tuple(DOWN_DIMS[size]))
    policy = Policy(
        PolicyConfig(
            task="pusht",
            observations={key: ObsSpec((size,)) for key, size in dims.items()},
            action_dim=2,
            network=network,
        )
    )
    policy.normalizer.fit(statistics)
    return Subject(policy, windows, DOWN_DIMS[size])


def prepare(threads: int, device: str = "cpu") -> str:
    """Set the number of CPU threads (0 leaves PyTorch's choice), and return the name of the device, "auto" resolved.

    Raises:
        InputError: PyTorch finds no such device.
    """
    found = str(find_device(device))
    if threads:
        torch.set_num_threads(threads)
    return found


def say(text: str) -> None:
    """Tell what happens next, on stderr."""
    print(f"isdt bench: {text}", file=sys.stderr, flush=True)
