"""Shared fixtures: small demonstrations that look like PushT's, and where real ones are if they are at hand."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from jaxtyping import install_import_hook

# Every signature of these modules is checked in every call: that tensors have the shapes it names (isdt_policy/method/shapes.py),
# and that all else has its type. Networks are left out: torch.compile reads them, and it cannot read the check.
install_import_hook(
    [f"isdt_policy.method.{name}" for name in (
        "closed_forms", "flow_map", "interpolants", "normalization", "objectives", "policy", "samplers",
    )],
    "beartype.beartype",
)  # fmt: skip


def synthetic_episodes(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Smooth wanderings of agent and block in PushT's units: right shapes and ranges, no physics."""
    rng = np.random.default_rng(seed)
    episodes = []
    for _ in range(count):
        steps = int(rng.integers(20, 60))
        time = np.linspace(0, 1, steps)[:, None]
        state = 256 + 150 * np.sin(6 * time * rng.uniform(0.3, 1, 5) + rng.uniform(0, 6, 5))
        state[:, 4] = np.pi + 2 * np.sin(3 * time[:, 0])
        action = np.clip(state[:, :2] + 20 * np.cos(5 * time), 0, 512)
        episodes.append({"state": state.astype(np.float32), "action": action.astype(np.float32)})
    return episodes


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Import a script by its path in the repository, such as docs/make_api.py."""

    def load(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(Path(path).stem, Path(__file__).parents[1] / path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve synthetic episodes in our layout."""
    from isdt_policy.datasets.store import DemoWriter

    path = tmp_path_factory.mktemp("demos") / "tiny.zarr"
    with DemoWriter(path, task="pusht") as writer:
        for episode in synthetic_episodes(12):
            writer.append(episode)
    return path


def _recordings() -> Path | None:
    for folder in (os.environ.get("ISDT_DATA"), Path(__file__).parents[2] / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    return None


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of recordings made by people, named by ISDT_DATA."""
    folder = _recordings()
    assert folder is not None
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Recordings are not part of the repository, and every test that reads them has a twin on generated data."""
    if _recordings() is None:
        absent = [item for item in items if "real_data" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=absent)
        items[:] = [item for item in items if item not in absent]
    if "gpu" not in str(config.getoption("markexpr")):  # make test-gpu asks for them
        on_gpu = [item for item in items if item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=on_gpu)
        items[:] = [item for item in items if item not in on_gpu]
