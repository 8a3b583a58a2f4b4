"""What is built and handed out is complete, and imports where Linux's own modules are missing."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
TOOL = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = set(TOOL["package-dir"].values())  # at the top of the repository


def build(source, target, what):
    code = f"from setuptools import build_meta; print(build_meta.build_{what}({str(target)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what git has, but for tests and results."""
    copy = tmp_path_factory.mktemp("source") / "tree"
    unwanted = shutil.ignore_patterns(
        ".git", ".venv", "build", "outputs", "results", "tests", "__pycache__", "*.egg-info", ".*_cache"
    )
    shutil.copytree(ROOT, copy, ignore=unwanted)
    return copy


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Built from the source archive, as an installer does where there is no wheel."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build(next(folder.iterdir()), tmp_path_factory.mktemp("wheel"), "wheel")


def files_of(source):
    """Every file of code or data of the package, by its name once it is installed."""
    found = set()
    for folder in FOLDERS:
        for path in (source / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".pyc", ".md"):
                name = path.relative_to(source).as_posix()
                found.add(name if folder == "isdt_policy" else f"isdt_policy/{name}")
    return found


def test_the_wheel_has_every_file(source, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert files_of(source) - names == set()
    outside = {name for name in names if not name.startswith("isdt_policy") and ".dist-info/" not in name}
    assert outside == set()
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_page_of_an_index_leads_nowhere_that_is_not_there(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    head, _, page = archive.read(name).decode().partition("\n\n")
    assert "Description-Content-Type: text/markdown" in head
    assert "Classifier: Programming Language :: Python :: 3.11" in head
    assert "# isdt-policy" in page
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert links
    assert all(link.startswith("https://") for link in links)
    assert "tasks.gif" not in page
    assert "[Your robot" not in page
    assert "| Your robot, environment, data, pictures |" in page


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < 12e6  # 4 MB of it are a trained policy


def test_the_source_archive_has_what_people_look_for(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "constraints.txt", "docs/quickstart.md"} <= names
    assert not [name for name in names if name.startswith(("tests/", "results/"))]


ELSEWHERE = ("fcntl", "resource", "termios", "pty", "tty", "pwd", "grp", "syslog")  # not on Windows


def modules():
    """Every module of the package, as the lists of pyproject.toml have them."""
    for package in TOOL["packages"]:
        top, _, below = package.removeprefix("isdt_policy.").partition(".")
        folder = ROOT / TOOL["package-dir"].get(f"isdt_policy.{top}", f"isdt_policy/{top}") / below.replace(".", "/")
        for file in (ROOT / "isdt_policy" if package == "isdt_policy" else folder).glob("*.py"):
            if file.stem != "__main__":
                yield package if file.stem == "__init__" else f"{package}.{file.stem}"


@pytest.mark.slow  # imports everything
def test_every_module_imports_where_linux_modules_are_missing():
    names = sorted(modules())
    assert len(names) > 150
    code = f"""
import sys
sys.modules.update(dict.fromkeys({ELSEWHERE!r}))  # None: an import of it fails
import importlib
for name in {names!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr


def test_memory_is_not_counted_where_it_cannot_be(monkeypatch):
    from isdt_policy.training import memory

    assert memory.peak_memory(torch.device("cpu"))["peak_rss_mb"] > 10
    monkeypatch.setattr(memory, "resource", None)
    assert memory.peak_memory(torch.device("cpu")) == {}


def test_the_image_is_made_of_the_whole_package():
    copied = re.findall(r"^COPY (.*) \S+$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    words = {word for line in copied for word in line.split()}
    assert words >= FOLDERS | {"pyproject.toml", "setup.py", "README.md", "LICENSE", "constraints.txt"}
    assert all((ROOT / word).exists() for word in words)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not words & set(ignored)


def test_everything_bundled_has_its_licence_on_the_page():
    page = (ROOT / "docs/licences.md").read_text()
    bundled = [path for path in (ROOT / "datasets/bundled").iterdir() if path.suffix == ".zip"]
    assert all(path.name in page for path in bundled)
    assert all(f"zoo:{card.parent.name}" in page for card in (ROOT / "isdt_policy/method/zoo").glob("*/card.json"))


def test_versions_agree():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()


def test_the_oldest_versions_are_asked_for_one_by_one(script):
    """`make test-oldest` tries the lower bounds; what has none could not be tried. Exact versions have theirs already."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[0].split(",")
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    lines = [line for line in lines if "==" not in line and not line.startswith("isdt-policy")]
    oldest = dict(line.split("==") for line in script("tests/oldest.py").oldest(extras))
    assert set(oldest) == {re.split(r"[^\w-]", line)[0] for line in lines}
    assert oldest["torch"] in (ROOT / "constraints.txt").read_text()
    assert all(f">={version}" in " ".join(lines) for name, version in oldest.items() if name != "torch")
