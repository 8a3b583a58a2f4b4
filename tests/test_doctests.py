"""Every example in a docstring is right, in every module that has one."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _modules() -> list[str]:
    found = []
    for top in ("isdt_policy", "envs", "datasets", "eval"):
        for path in sorted((ROOT / top).rglob("*.py")):
            if ">>> " in path.read_text():
                parts = path.relative_to(ROOT).with_suffix("").parts
                found.append(".".join(parts if top == "isdt_policy" else ("isdt_policy", *parts)))
    return found


@pytest.mark.parametrize("name", _modules())
def test_examples_of(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted, f"{name} holds '>>> ' where doctest finds no example"
    assert not result.failed


def test_there_are_examples() -> None:
    assert len(_modules()) > 10
