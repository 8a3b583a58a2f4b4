"""The Python in README and quickstart runs as printed, on a small policy in place of the demo's."""

import re
from pathlib import Path

import pytest

from isdt_policy.training.config import compose_config
from isdt_policy.training.run import train

ROOT = Path(__file__).parents[2]
BLOCKS = {
    (page, number): block
    for page in ("README.md", "docs/quickstart.md")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL))
}
SMALL = [
    "network.down_dims=[8,16]", "network.embed_dim=16", "network.time_dim=8", "policy.cond_dim=8",
    "policy.encoder_hidden=[16]", "training.batch_size=16", "training.steps=2", "training.diagonal_steps=1",
    "training.loggers=[]", "training.compile=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme") / "run"
    return train(compose_config([f"data.path={tiny_store}", f"run_dir={folder}", *SMALL]))


@pytest.mark.parametrize("block", BLOCKS)
def test_block(block, run, tiny_store, tmp_path, monkeypatch):
    code = BLOCKS[block].replace('outputs/pusht_demo"', f'{run}"').replace("100_100", "100_002")
    settings = [f"data.path={tiny_store}", *SMALL]
    code = code.replace('"training.seed=43"', f'"training.seed=43", *{settings!r}')
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(compile(code, " block ".join(map(str, block)), "exec"), namespace)
    if "result" in namespace:
        assert [arm.name for arm in namespace["result"].arms] == ["1", "2", "euler10"]
    if "info" in namespace:
        assert 0 <= namespace["info"]["coverage"] <= 1
    if "actions" in namespace:
        assert namespace["actions"].shape == (6, 2)


def test_there_are_four_blocks():
    assert sorted(BLOCKS) == [("README.md", 0), *(("docs/quickstart.md", number) for number in range(3))]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) < 700
