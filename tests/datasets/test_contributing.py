"""The dataset format of CONTRIBUTING.md runs as it is printed."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from isdt_policy.cli import main
from isdt_policy.datasets.formats import FORMATS, detect
from isdt_policy.datasets.store import DemoStore


@pytest.fixture
def registered(monkeypatch):
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    section = text[text.index("## Add a dataset format") :]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    name = re.search(r'"npz_folder": "([\w.]+)"', section)[1]
    module = types.ModuleType(name)
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(FORMATS, "npz_folder", name)


def test_the_format_in_the_worked_example_works(registered, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("recordings").mkdir()
    episodes = [
        {"state": np.full((n, 3), n), "actions": np.full((n, 2), -n), "junk": np.zeros(1)} for n in range(1, 12)
    ]
    for number, episode in enumerate(episodes):
        np.savez(f"recordings/episode_{number}.npz", **episode)
    assert detect("recordings") == "npz_folder"
    assert main(["data", "inspect", "recordings"]) == 2
    assert "'npz_folder'; a store is needed here. Convert them: isdt data convert" in capsys.readouterr().err
    assert main(["data", "convert", "recordings", "a.zarr", "keys=state", "rename=actions:action"]) == 0
    store = DemoStore.open("a.zarr")
    assert store.keys == ("action", "state")
    assert [info["name"] for info in store.episode_info()] == [f"episode_{i}" for i in range(11)]  # 10 after 9
    for number, episode in enumerate(episodes):
        np.testing.assert_array_equal(store.episode(number)["action"], episode["actions"])
        np.testing.assert_array_equal(store.episode(number)["state"], episode["state"])
    capsys.readouterr()
    assert main(["data", "convert", "a.zarr", "b", "to=npz_folder"]) == 2
    assert "is read, not written" in capsys.readouterr().err
    assert main(["data", "convert", "a.zarr", "b", "to=npz_foldr"]) == 2
    assert "Did you mean 'npz_folder'?" in capsys.readouterr().err
