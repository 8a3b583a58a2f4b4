"""docs/own_env.md runs as printed, with a smaller network; tasks of one's own are known to workers and refused when malformed."""

import os
import re
import sys
from pathlib import Path

import pytest

from isdt_policy.envs import make, register, registry, task_spec
from isdt_policy.eval import Workers
from isdt_policy.shared.errors import InputError

PAGE = (Path(__file__).parents[2] / "docs" / "own_env.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
SMALL = '''"network.embed_dim=16", "network.time_dim=8", "policy.cond_dim=8", "policy.encoder_hidden=[16]",
"training.batch_size=16", "training.loggers=[]", "training.compile=false", "training.threads=1"'''


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A folder with reach.py in it, on the path; everything registered there is forgotten afterwards."""
    (tmp_path / "reach.py").write_text(BLOCKS[0])
    (tmp_path / "watch.py").write_text(BLOCKS[5])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "TASKS", dict(registry.TASKS))
    monkeypatch.setenv("ISDT_TASKS", "")
    yield tmp_path
    for name in ("reach", "watch"):
        sys.modules.pop(name, None)


def test_the_page_from_environment_to_evaluation(workshop, monkeypatch):
    known = dict(registry.TASKS)
    for blocks in (
        BLOCKS[1:3],
        BLOCKS[3:5],
    ):  # a script that makes demonstrations, and a new one that trains and evaluates
        monkeypatch.setattr(registry, "TASKS", dict(known))
        monkeypatch.setenv("ISDT_TASKS", "")
        code = "\n".join(blocks).replace("training.steps=2000", "training.steps=2").replace("[32,64]", "[8,16]")
        code = code.replace("settings = [", f"settings = [{SMALL}, ").replace("100_050", "100_002")
        namespace: dict = {}
        exec(compile(code, "own_env.md", "exec"), namespace)
    assert [arm.name for arm in namespace["result"].arms] == ["1", "2"]
    # Spawned processes know the task too, and the numbers do not depend on them.
    again = namespace["evaluate"](
        namespace["policy"],
        namespace["Protocol"](task="reach"),
        range(100_000, 100_002),
        [1],
        workers=Workers(n_workers=1),
    )
    assert [r.digest for r in again.of(1)] == [r.digest for r in namespace["result"].of(1)]


def test_the_page_with_a_camera(workshop, monkeypatch):
    """The same sections for the task that is seen."""
    code = (
        "\n".join([BLOCKS[1], *BLOCKS[3:5]])
        .replace("reach", "watch")
        .replace("training.steps=2000", "training.steps=2")
    )
    code = code.replace("[32,64]", "[8,16]").replace("100_050", "100_002").replace("range(30)", "range(3)")
    code = code.replace("settings = [", f'settings = [{SMALL}, "images.width=0.1", "data.val_ratio=0", ')
    namespace: dict = {}
    exec(compile(code, "own_env.md", "exec"), namespace)
    policy = namespace["policy"]
    assert policy.obs_keys == ("position", "camera")
    assert policy.config.images["camera"].shape == (32, 32, 3)
    assert [len(namespace["result"].of(arm)) for arm in (1, 2)] == [2, 2]
    drawn = make("watch").reset(seed=3)[0]["camera"]
    assert {tuple(colour) for colour in drawn.reshape(-1, 3)} == {(0, 0, 0), (0, 200, 0), (200, 0, 0)}


def test_the_environment_variable_is_enough(workshop, monkeypatch):
    with pytest.raises(InputError, match="unknown task 'reach'"):
        task_spec("reach")
    monkeypatch.setenv("ISDT_TASKS", "reach")
    assert task_spec("reach").rate_hz == 10
    assert make("reach").reset(seed=1)[0]["target"].shape == (2,)


def test_modules_that_cannot_serve_are_refused(workshop):
    with pytest.raises(InputError, match="cannot be imported"):
        register("reech")
    with pytest.raises(InputError, match="no 'SPECS'"):
        register("json")
    taken = BLOCKS[0].replace('"reach": TaskSpec', '"pusht": TaskSpec').replace('id="reach"', 'id="pusht"')
    taken = taken.replace('SPECS["reach"]', 'SPECS["pusht"]')
    (workshop / "reach.py").write_text(taken)
    with pytest.raises(InputError, match="which there is already"):
        register("reach")
    assert "reach" not in os.environ["ISDT_TASKS"]
