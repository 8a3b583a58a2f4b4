"""Published demonstrations, downloaded once, checked, resumed where a connection broke."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.progress import Progress

# A server that sends less than this in that time is given up.
_PATIENCE_S, _LEAST_BYTES = 60.0, 2**16


@dataclass(frozen=True)
class Source:
    """A published file: where it is, what it is called in the cache, and its digest if that is known."""

    url: str
    file: str
    sha256: str | None = None
    about: str = ""


SOURCES: dict[str, Source] = {
    "pusht_human": Source(
        "https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip", "pusht.zip",
        about="206 human PushT demonstrations of Diffusion Policy, with 96x96 images",
    ),
}  # fmt: skip


def fetch(name: str, out: Path | None = None, sha256: str | None = None, timeout_s: float = 30.0) -> Path:
    """Download and return the file; see `find` for what a name may be, and `download`."""
    source = find(name)
    target = out or cache() / source.file
    download(source.url, target, sha256 or source.sha256, timeout_s)
    return target


def cache() -> Path:
    """Folder of downloads: $ISDT_DATA, or one in the user's cache."""
    given = os.environ.get("ISDT_DATA")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else base / "isdt-policy" / "data"


def find(name: str) -> Source:
    """The source a name, a robomimic path or a URL stands for."""
    if name.startswith(("http://", "https://")):
        file = Path(urlsplit(name).path).name
        if not file:
            raise InputError(f"'{name}' names no file.")
        return Source(name, file)
    if name.startswith("robomimic:"):
        return _robomimic(name.removeprefix("robomimic:"))
    if name not in SOURCES:
        raise InputError(
            f"no published data named '{name}'.{nearest(name, SOURCES)} "
            f"There are: {', '.join(SOURCES)}, robomimic:TASK/TYPE/KIND, or a URL."
        )
    return SOURCES[name]


def _robomimic(path: str) -> Source:
    try:
        import robomimic
    except ImportError:
        raise InputError(
            "robomimic knows the addresses of its data: pip install --no-deps robomimic==0.3.0, or 'isdt-policy[robomimic]'"
        ) from None
    level: Any = robomimic.DATASET_REGISTRY
    for part in path.split("/"):
        if not isinstance(level, dict) or part not in level:
            known = list(level) if isinstance(level, dict) else []
            raise InputError(
                f"robomimic has no '{part}' in '{path}'.{nearest(part, known)} There are: {', '.join(known)}."
            )
        level = level[part]
    url = level.get("url") if isinstance(level, dict) else None
    if not isinstance(url, str):
        raise InputError(f"'robomimic:{path}' has no file to download; give TASK/TYPE/KIND, such as lift/ph/low_dim.")
    if not url.startswith("http"):  # newer releases give a path in a Hugging Face repository
        url = f"https://huggingface.co/datasets/{robomimic.HF_REPO_ID}/resolve/main/{url}"
    url = url.replace("http://", "https://", 1)  # their server answers both, and only one is trusted
    return Source(url, f"robomimic_{path.replace('/', '_')}.hdf5")


def download(url: str, target: Path, sha256: str | None = None, timeout_s: float = 30.0) -> str:
    """Bring `url` to `target`, unless it is there; returns its sha256.

    Raises:
        InputError: no connection, a broken one (the part is kept), or another digest than expected.
    """
    address = urlsplit(url)
    if address.scheme != "https" and not sha256 and address.hostname not in ("127.0.0.1", "localhost"):
        raise InputError(
            f"{url} is not encrypted: anybody on the way can change it. Give its https address, or sha256=."
        )
    remembered = target.with_name(target.name + ".sha256")
    expected = sha256 or (remembered.read_text().strip() if remembered.exists() else None)
    if target.exists():
        return _checked(target, expected, remembered, f"Delete it to download it again from {url}.")
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _receive(url, part, timeout_s)
    except urllib.error.HTTPError as error:
        raise InputError(f"{url} answered {error.code} {error.reason}; the address may have moved.") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        done = f" {part.stat().st_size} bytes are kept; give the command again to go on." if part.exists() else ""
        raise InputError(
            f"{url} cannot be reached ({getattr(error, 'reason', None) or error}).{done} "
            f"Without network: download it elsewhere and put it at {target}."
        ) from error
    except OSError as error:
        raise InputError(f"'{target}' cannot be written ({error}).") from error
    digest = _checked(
        part, expected, None, "Nothing is kept of it: download again, or ask who publishes it.", drop=True
    )
    os.replace(part, target)
    remembered.write_text(digest + "\n")
    print(f"sha256 {digest}")
    return digest


def _receive(url: str, part: Path, timeout_s: float) -> None:
    """Download into `part`, after what it holds already if the server can go on there."""
    if part.is_symlink():
        raise InputError(f"'{part}' is a link; delete it, and give the command again.")
    tag = part.with_name(part.name + ".etag")
    start = part.stat().st_size if part.exists() and tag.exists() else 0
    request = urllib.request.Request(url)
    if start:  # If-Range: the rest only if the file is still the same, else all of it
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", tag.read_text())
    with urllib.request.build_opener(_SameScheme).open(request, timeout=timeout_s) as answer:
        if answer.status != 206 or not (answer.headers.get("Content-Range") or f"bytes {start}-").startswith(
            f"bytes {start}-"
        ):
            start = 0
        if answer.status != 206:
            tag.unlink(missing_ok=True)
        if answer.headers.get("ETag"):
            tag.write_text(answer.headers["ETag"])
        total = start + int(answer.headers.get("Content-Length") or 0)
        room = shutil.disk_usage(part.parent).free
        if total - start > room:
            raise InputError(f"{url} has {total >> 20} MB, and there is room for {room >> 20} MB at '{part.parent}'.")
        with part.open("ab" if start else "wb") as file:
            received = start + _copy(
                answer, file, total - start, Progress(max(1, total >> 20), part.name, "MB", start >> 20)
            )
    if received < total:
        raise ConnectionError(f"the connection ended after {received} of {total} bytes")
    tag.unlink(missing_ok=True)


def _copy(answer: IO[bytes], file: IO[bytes], expected: int, progress: Progress) -> int:
    """Copy what a server sends, and return how many bytes; give up on one that sends more than it said, or next to nothing."""
    received, since, before = 0, time.monotonic(), 0
    while block := answer.read(2**18):
        file.write(block)
        progress.update(((received + len(block)) >> 20) - (received >> 20))
        received += len(block)
        if expected and received > expected:
            raise ConnectionError(f"the server sends more than the {expected} bytes it announced")
        if time.monotonic() - since > _PATIENCE_S:
            if received - before < _LEAST_BYTES:
                raise ConnectionError(f"only {received - before} bytes came in {_PATIENCE_S:g} s")
            since, before = time.monotonic(), received
    progress.close()
    return received


class _SameScheme(urllib.request.HTTPRedirectHandler):
    """Follows a redirection from https only to https."""

    def redirect_request(
        self, request: urllib.request.Request, fp: IO[bytes], code: int, message: str, headers: HTTPMessage, url: str
    ) -> urllib.request.Request | None:
        if not url.startswith(f"{request.type}:"):
            raise InputError(f"{request.full_url} points to {url}, which is not {request.type}; it is not followed.")
        return super().redirect_request(request, fp, code, message, headers, url)


def _checked(path: Path, expected: str | None, remember: Path | None, advice: str, drop: bool = False) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if expected and digest != expected.lower():
        if drop:
            path.unlink()
        raise InputError(f"'{path}' has sha256 {digest}, expected {expected}. {advice}")
    if remember is not None and not remember.exists():
        remember.write_text(digest + "\n")
    return digest
