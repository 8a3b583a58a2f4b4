"""Policies on the Hugging Face Hub, by name: hub:USER/NAME, hub:USER/NAME@REVISION."""

from __future__ import annotations

import re
from pathlib import Path

from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import require

PREFIX = "hub:"
FILES = ("config.json", "model.safetensors", "limits.json", "eval_info.json")  # nothing that runs


def is_name(path: str | Path) -> bool:
    """Whether this names a repository on the hub."""
    return isinstance(path, str) and path.startswith(PREFIX)


def is_repository(name: str) -> bool:
    """Whether a repository on the hub could be called so: USER/NAME.

    >>> is_repository("me/pusht"), is_repository("outputs/runs/pusht")
    (True, False)
    """
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def named(repo: str | Path, revision: str) -> str:
    """The name of a repository, with or without `hub:`, at a revision.

    >>> named("me/pusht", "v1")
    'hub:me/pusht@v1'
    """
    return f"{PREFIX}{str(repo).removeprefix(PREFIX)}@{revision}"


def folder(name: str) -> Path:
    """Download a policy, or take it from the cache; returns the folder.

    Args:
        name: hub:USER/NAME, with @REVISION (a branch, a tag or a commit) for another than the newest.

    Raises:
        InputError: no name of a repository, or it cannot be downloaded.
    """
    repo, _, revision = name.removeprefix(PREFIX).partition("@")
    if not is_repository(repo):
        raise InputError(f"'{name}' must be hub:USER/NAME or hub:USER/NAME@REVISION.")
    hub = require("huggingface_hub", "hub", "The Hugging Face Hub")
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The first base is the HTTP library's own error.
    failures: tuple[type[Exception], ...] = (HfHubHTTPError.__bases__[0], HFValidationError, OSError, ValueError)
    try:
        found = hub.snapshot_download(repo, revision=revision or None, allow_patterns=list(FILES))
    except failures as error:
        raise InputError(f"'{name}' cannot be loaded from the hub: {str(error).splitlines()[0]}") from error
    return Path(found)
