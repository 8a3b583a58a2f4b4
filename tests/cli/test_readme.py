"""The Python of README and of pages without a test of their own runs as printed, on a small policy in place of the demo's."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from isdt_policy.training.config import compose_config
from isdt_policy.training.run import train

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": 1,
    "docs/quickstart.md": 3,
    "docs/data.md": 2,
    "docs/evaluation.md": 1,
}  # the first blocks of each
FOUND = {page: re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL) for page in PAGES}
BLOCKS = {(page, number): FOUND[page][number] for page, count in PAGES.items() for number in range(count)}
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
    code = code.replace("final_seeds(50)", "final_seeds(2)").replace('"outputs/pusht_demo/quick"', '"quick"')
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    if "state, " in code and "DemoWriter" in code:  # what the reader's own recorder has
        namespace = {"state": np.full((30, 5), 200, np.float32), "action": np.full((30, 2), 200, np.float32)}
    elif '"demos.zarr"' in code:
        shutil.copytree(tiny_store, "demos.zarr")
    exec(compile(code, " block ".join(map(str, block)), "exec"), namespace)
    if "result" in namespace:
        asked = ["1", "2", "euler10"] if "euler10" in code else ["1", "2"]
        assert [arm.name for arm in namespace["result"].arms] == asked
    if "info" in namespace:
        assert 0 <= namespace["info"]["coverage"] <= 1
    if "batch" in namespace:
        assert namespace["batch"]["obs"]["keypoints"].shape[1:] == (2, 18)
    if "actions" in namespace:
        assert namespace["actions"].shape == (6, 2)


def test_no_block_of_these_pages_is_forgotten():
    assert {page: len(blocks) for page, blocks in FOUND.items()} == {**PAGES, "docs/evaluation.md": 2}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) < 700
