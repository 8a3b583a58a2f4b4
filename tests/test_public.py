"""What `import isdt_policy` promises: its public names, and nothing heavy before they are used."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import isdt_policy

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "hydra", "matplotlib", "mujoco", "pymunk")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", ["DemoStore", "Policy", "Protocol", "compose_config", "evaluate", "make_env", "train"])
def test_every_public_name_is_there(name):
    assert callable(getattr(isdt_policy, name))
    assert name in isdt_policy.__all__
    assert name in dir(isdt_policy)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'polcy'"):
        _ = isdt_policy.polcy


@pytest.mark.parametrize("module", ["isdt_policy", "isdt_policy.envs", "isdt_policy.datasets", "isdt_policy.eval"])
def test_a_package_that_does_not_compute_does_not_load_torch(module):
    assert python(f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_the_package_itself_is_imported_in_no_time():
    """0.05 s; the best of five, because other programs run beside the tests."""
    code = "import time; a = time.process_time(); import isdt_policy; print(time.process_time() - a)"
    assert min(float(python(code)) for _ in range(5)) < 0.05


@pytest.fixture(scope="module")
def make_api(script):
    return script("docs/make_api.py")


def test_the_page_of_the_api_is_made_from_the_docstrings(make_api):
    assert (ROOT / "docs/api.md").read_text() == make_api.page(), "run: python docs/make_api.py"


def test_the_page_has_every_public_name(make_api):
    shown = {name for names in make_api.PUBLIC.values() for name, *_ in names}
    assert shown == set(isdt_policy.__all__) - {"__version__"}


def test_names_stand_where_the_page_says(make_api):
    lines = re.findall(r"^`from (\S+) import (\w+)`$", make_api.page(), flags=re.MULTILINE)
    assert len(lines) == sum(map(len, make_api.NEEDED.values()))
    for module, name in lines:
        assert hasattr(importlib.import_module(module), name)


def test_links_between_pages_lead_somewhere():
    """Every relative link and anchor of README, docs and the pages beside them."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "results/README.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
            if "://" in target or target.startswith("mailto:"):
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in anchors, f"{page.name}: {target}"
