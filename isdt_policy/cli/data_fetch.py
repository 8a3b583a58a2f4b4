"""`isdt data fetch`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from isdt_policy.datasets import fetch


@dataclass(frozen=True)
class Fetch:
    """Download published demonstrations into a cache, and print where they are.

    The cache is $ISDT_DATA, or ~/.cache/isdt-policy/data. A broken download goes on where it stopped; a file that is there is
    not downloaded again. The SHA-256 of a file is checked and remembered, and a file that changes later is refused.

    Examples:
        isdt data fetch pusht_human                      206 human demonstrations of PushT, with images
        isdt data fetch robomimic:lift/ph/low_dim
        isdt data fetch https://example.org/demos.zarr.zip out=demos.zarr.zip

    What is downloaded:
        name: pusht_human; robomimic:TASK/TYPE/KIND (needs robomimic, which knows the addresses); or an https address.
        out: a file outside the cache.
        sha256: what the file must have.
        timeout_s: silence after which the connection counts as broken.
    """

    name: str
    out: Path | None = None
    sha256: str | None = None
    timeout_s: float = 30.0

    positional: ClassVar = ("name",)

    def run(self, command: str) -> int:
        print(fetch.fetch(self.name, self.out, self.sha256, self.timeout_s))
        return 0
