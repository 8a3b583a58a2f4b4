"""The Python in the README runs as printed, on a small policy in place of the demo's."""

import re
from pathlib import Path

import pytest

from isdt_policy.training.config import compose_config
from isdt_policy.training.run import train

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SMALL = [
    "network.down_dims=[8,16]", "network.embed_dim=16", "network.time_dim=8", "policy.cond_dim=8",
    "policy.encoder_hidden=[16]", "training.batch_size=16", "training.steps=2", "training.diagonal_steps=1",
    "training.loggers=[]", "training.compile=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme") / "run"
    return train(compose_config([f"data.path={tiny_store}", f"run_dir={folder}", *SMALL]))


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block(number, run, tiny_store, tmp_path, monkeypatch):
    code = BLOCKS[number].replace('outputs/pusht_demo"', f'{run}"').replace("100_100", "100_002")
    settings = [f"data.path={tiny_store}", *SMALL]
    code = code.replace('"training.seed=43"', f'"training.seed=43", *{settings!r}')
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(compile(code, f"README block {number}", "exec"), namespace)
    if "result" in namespace:
        assert [arm.name for arm in namespace["result"].arms] == ["1", "2", "euler10"]
    if "info" in namespace:
        assert 0 <= namespace["info"]["coverage"] <= 1


def test_there_are_three_blocks():
    assert len(BLOCKS) == 3
