"""HTML pages: one design, one file each, nothing loaded from elsewhere.

A page is a jinja2 template that begins with `{% extends "page.html" %}` and fills the block `body`; it lies in the folder
`templates` beside the module that renders it. What is inserted is escaped, unless it is `Markup`.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BASE = Path(__file__).parent / "templates"


def render(template: Path, **values: object) -> str:
    """Fill in a template.

    Args:
        template: the file; what it extends or includes is looked for beside it, then among the shared templates.
        **values: names that the template uses; a missing one is an error.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, _BASE]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template.name).render(**values)


def svg(figure: Figure) -> Markup:
    """A Matplotlib figure as an element of a page; the same figure gives the same text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])


def data_url(content: bytes, kind: str) -> str:
    """A file inside the page, for `src`; kind is its MIME type, such as "video/mp4"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
