"""All else is in pyproject.toml. The description that an index shows is README.md without the links and pictures that lead into
the repository: there they would lead nowhere."""

import re
from pathlib import Path

from setuptools import setup

readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
readme = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n\n.*\n\n", "", readme)  # with the line below the picture
readme = re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", readme)
setup(
    long_description=f"{readme}\nPages are in `docs/` of the source archive.\n",
    long_description_content_type="text/markdown",
)
