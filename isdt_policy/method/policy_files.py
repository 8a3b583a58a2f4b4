"""Where a saved policy lies, and what it is: its two files, read as they belong together."""

from __future__ import annotations

import hashlib
from pathlib import Path

from isdt_policy.method import from_hub, zoo
from isdt_policy.shared.errors import InputError


def weights_sha256(path: str | Path) -> str:
    """SHA-256 of weights and configuration: the one identity of what acts, in results, exports and pages.

    Args:
        path: run directory, checkpoint, or a folder written by `save_pretrained`.

    Raises:
        InputError: no policy there.
    """
    return sha256(*read_policy(path)[1:])


def sha256(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def read_policy(path: str | Path) -> tuple[Path, bytes, bytes]:
    """The folder of a policy, its config.json and its weights, of one checkpoint also while training writes the next."""
    for attempt in range(20):
        folder = find_policy(path)
        real = folder.resolve()  # `last` may point elsewhere between two reads, and what it pointed to be deleted
        try:
            return folder, (real / "config.json").read_bytes(), (real / "model.safetensors").read_bytes()
        except OSError as error:
            moved = not real.exists() or find_policy(path).resolve() != real
            if not moved or attempt == 19:
                name = Path(error.filename or "model.safetensors").name
                raise InputError(f"{folder / name} cannot be read: {error}") from error
    raise AssertionError


def find_policy(path: str | Path) -> Path:
    """The directory that holds config.json: `path` itself, the policy of the last checkpoint below it, or that of `zoo:NAME`
    or `hub:USER/NAME`."""
    if zoo.is_name(path):
        return zoo.folder(path)
    if from_hub.is_name(path):
        path = from_hub.folder(str(path))
    path = Path(path)
    candidates = [path, path / "policy", path / "checkpoints" / "last" / "policy"]
    for folder in candidates:
        if (folder / "model.safetensors").is_file():
            return folder
    if not path.exists():
        hub = f"; from the hub: {from_hub.PREFIX}{path}" if from_hub.is_repository(str(path)) else ""
        raise InputError(
            f"no policy at '{path}': the path does not exist. Train one: isdt train experiment=pusht_demo; "
            f"or take a trained one: checkpoint=zoo:pusht_human{hub}"
        )
    raise InputError(
        f"no policy at '{path}': looked for model.safetensors in {', '.join(str(c) for c in candidates)}. "
        "Give a run directory, one of its checkpoints, or a folder written by save_pretrained."
    )
