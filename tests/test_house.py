"""The plan of the house holds: floors, no circles, and the sizes that keep files readable."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("isdt_tests_house", Path(__file__).parent / "house.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules["isdt_tests_house"] = module
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


house = _house()


@pytest.fixture(scope="module")
def measured() -> dict[str, list[str] | int]:
    return house.figures(house.read())


@pytest.mark.parametrize("rule", house.LIMITS)
def test_the_house_keeps_its_limits(rule: str, measured: dict[str, list[str] | int]) -> None:
    found = measured[rule]
    limit = house.LIMITS[rule]
    count = found if isinstance(found, int) else len(found)
    assert count <= limit, f"{rule}: {count}, at most {limit}.\n" + ("" if isinstance(found, int) else "\n".join(found))


class TestTheMeasureItself:
    """Each fault is made in a small house, which the script has to find."""

    ROOMS = ("cli", "lab", "deploy", "training", "method", "datasets", "eval", "envs", "shared")

    @pytest.fixture
    def small(self, tmp_path: Path) -> Path:
        """A house in this one's layout whose rooms are empty: nothing to find."""
        packages = ["p", *(f"p.{room}" for room in self.ROOMS)]
        (tmp_path / "pyproject.toml").write_text(
            f'[tool.setuptools]\npackages = {packages}\n[tool.setuptools.package-dir]\n"p" = "p"\n"p.envs" = "envs"\n'
        )
        for package in packages:
            folder = tmp_path / ("envs" if package == "p.envs" else package.replace(".", "/"))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").write_text("")
        return tmp_path

    def found(self, root: Path, rule: str) -> list[str]:
        result: list[str] = house.figures(house.read(root))[rule]
        return result

    def test_an_empty_house_breaks_no_rule(self, small: Path) -> None:
        assert all(not value for value in house.figures(house.read(small)).values())

    @pytest.mark.parametrize(
        "text",
        ["from p.method import policy", "import p.method.policy", "def f():\n    from p.method.policy import x"],
    )
    def test_an_arrow_up_is_found_at_the_top_and_inside_a_function(self, small: Path, text: str) -> None:
        (small / "p/method/policy.py").write_text("x = 1\n")
        (small / "envs/task.py").write_text(f"{text}\n")
        (arrow,) = self.found(small, "arrows up")
        assert "p.envs.task" in arrow
        assert arrow.endswith("imports p.method.policy")

    def test_two_rooms_of_one_floor_do_not_know_each_other(self, small: Path) -> None:
        (small / "p/eval/a.py").write_text("from p import datasets\n")
        assert self.found(small, "arrows up") == ["p.eval.a:1 imports p.datasets"]

    def test_an_arrow_down_and_an_import_for_types_alone_are_allowed(self, small: Path) -> None:
        (small / "p/eval/a.py").write_text(
            "from typing import TYPE_CHECKING\nfrom p import envs\nif TYPE_CHECKING:\n    from p import cli\n"
        )
        assert self.found(small, "arrows up") == []

    def test_a_circle_of_three_is_found_through_functions_and_relative_imports(self, small: Path) -> None:
        (small / "p/lab/a.py").write_text("from . import b\n")
        (small / "p/lab/b.py").write_text("def f():\n    from p.lab import c\n")
        (small / "p/lab/c.py").write_text("from .a import x\n")
        assert self.found(small, "cycles") == ["p.lab.a <-> p.lab.b <-> p.lab.c"]

    def test_an_import_inside_a_function_is_found(self, small: Path) -> None:
        (small / "p/lab/a.py").write_text("import p.shared\n\ndef f():\n    import p.envs\n")
        assert self.found(small, "internal imports inside functions") == ["p.lab.a:4 p.envs"]

    def test_long_functions_wide_functions_long_files_and_any_are_counted(self, small: Path) -> None:
        wide = ", ".join("abcdefghi")
        body = "\n".join("    a = 1" for _ in range(60))
        (small / "p/lab/a.py").write_text(f"def f(self, {wide}):\n    pass\n\ndef g():\n{body}\n")
        (small / "p/lab/b.py").write_text("x: Any = [1]\n" * 401)
        assert self.found(small, "functions with more than 8 parameters") == ["p.lab.a:f 9"]
        assert self.found(small, "functions over 60 lines") == ["p.lab.a:g 61"]
        assert self.found(small, "files over 400 lines") == ["p.lab.b 401"]
        assert self.found(small, "Any") == 401

    def test_help_by_hand_is_counted(self, small: Path) -> None:
        (small / "p/lab/a.py").write_text('HELP = """one\ntwo\n"""\n')
        assert self.found(small, "lines of help by hand") == 3
