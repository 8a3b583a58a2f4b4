"""What README and docs say about installing works, and a clone is usable wherever Python is started."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINES = sorted({line for page in PAGES for line in re.findall(r"pip install [^`#\n]*[^`#\n ]", page.read_text())})


@pytest.mark.parametrize("line", LINES)
def test_an_install_line_is_one_that_pip_takes(line):
    words = shlex.split(line)[2:]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_there_are_install_lines():
    assert any(".[all]" in line for line in LINES)


def test_a_python_in_the_clone_finds_every_package():
    # Without what an editable install adds: only the folder that Python puts first, the current one.
    code = (
        "import isdt_policy.envs, isdt_policy.datasets, isdt_policy.eval, isdt_policy.configs as c; print(c.__file__)"
    )
    script = f"import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; {code}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).samefile(ROOT / "configs" / "__init__.py")
