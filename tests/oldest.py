"""Constraints that install the oldest version of everything that pyproject.toml allows: `python tests/oldest.py EXTRAS`.

PyTorch is that of constraints.txt: an old one comes with CUDA or not at all.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def oldest(extras: list[str]) -> list[str]:
    """A line `name==version` for every requirement of the core and of some extras that has a lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    found = {}
    for line in needed:
        bound = re.match(r"([\w-]+)>=([\d.]+)", line)
        if bound:
            found[bound[1]] = bound[2]
    found["torch"] = re.findall(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)[0]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    print("\n".join(oldest(sys.argv[1].split(","))))
