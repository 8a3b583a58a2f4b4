"""Build the site: `python docs/make_site.py`, which `make docs` calls. It ends with an error at the first broken link.

The pages are laid out as the repository has them, so that a link means the same on the site and in the clone.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from pathlib import Path

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).parents[1]
NOTEBOOK = re.compile(r"(\]\([\w/.]*tutorials/\w+)\.ipynb\)")
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "LICENSE")


def lay_out(target: Path) -> None:
    """Copy every page, and what pages show, below a folder."""
    shutil.rmtree(target, ignore_errors=True)
    files = [ROOT / name for name in PAGES]
    files += [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".png", ".gif", ".svg")]
    files += [path for path in (ROOT / "results").rglob("*") if path.suffix in (".md", ".png")]
    files += (ROOT / "examples").glob("*.py")
    for file in files:
        copy = target / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
        if file.suffix == ".md":  # GitHub shows a notebook, the site its page
            copy.write_text(NOTEBOOK.sub(r"\1.md)", file.read_text(encoding="utf-8")), encoding="utf-8")
    for notebook in (ROOT / "docs" / "tutorials").glob("*.ipynb"):
        lay_out_tutorial(notebook, target / "docs" / "tutorials")


def lay_out_tutorial(notebook: Path, target: Path) -> None:
    """Write a notebook as a page beside its pictures, and the notebook itself to be taken along."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(notebook, target)
    page, pictures = [], 0
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            page.append(source)
            continue
        page.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                page.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            elif "image/png" in output["data"]:
                pictures += 1
                name = f"{notebook.stem}_{pictures}.png"
                (target / name).write_bytes(base64.b64decode(output["data"]["image/png"]))
                page.append(f"![what this cell draws]({name})")
    page.append(f"[This page as a notebook]({notebook.name}); its script is `examples/tutorials/{notebook.stem}.py`.")
    (target / f"{notebook.stem}.md").write_text("\n\n".join(page), encoding="utf-8")


def make(out: Path) -> None:
    """Lay out and build below a folder.

    Raises:
        Abort: a link, an anchor or an entry of the navigation that leads nowhere, or a page that is in none.
    """
    lay_out(out / "pages")
    config = load_config(str(ROOT / "mkdocs.yml"), docs_dir=str(out / "pages"), site_dir=str(out / "html"), strict=True)
    build(config)


if __name__ == "__main__":
    try:
        make(ROOT / "build" / "site")
    except Abort as error:
        sys.exit(f"the site was not built: {error}")
    print("Open build/site/html/index.html")
