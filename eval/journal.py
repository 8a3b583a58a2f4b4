"""Records on disk while an evaluation runs: what is there is not run again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TextIO

from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.result import EpisodeRecord
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.files import write_text


class Journal:
    """A folder with one line of JSON per finished episode, appended and flushed at once.

    A killed evaluation loses at most the episodes that were running. A line that the kill cut in half is dropped when the
    journal is opened again.

    Args:
        folder: holds episodes.jsonl and protocol.json.
        fingerprint: identifies the policy's weights; an evaluation that goes on must have the same.
    """

    def __init__(self, folder: str | Path, fingerprint: str | None = None) -> None:
        self.path, self.fingerprint = Path(folder) / "episodes.jsonl", fingerprint
        self._file: TextIO | None = None

    def open(self, protocol: Protocol) -> dict[tuple[int, Arm], EpisodeRecord]:
        """The records already there, without those that ended in an error: these episodes get another chance.

        Raises:
            InputError: the folder holds episodes of another policy or protocol.
        """
        head = self.path.with_name("protocol.json")
        if not (head.exists() and self.path.exists()):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(head, json.dumps({"protocol": protocol.to_json(), "policy": self.fingerprint}, indent=1))
            return {}
        found = json.loads(head.read_text())
        difference = Protocol.from_json(found["protocol"]).difference(protocol)
        if found["policy"] != self.fingerprint:
            difference = f"policy {found['policy']}, now {self.fingerprint}"
        if difference:
            raise InputError(
                f"{self.path.parent} holds episodes of another evaluation ({difference}); mixing them would be wrong. "
                "Give another out=, or overwrite=true to start anew."
            )
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        records = [EpisodeRecord.from_json(json.loads(line)) for line in whole.splitlines()]
        return {record.key: record for record in records if record.ok}

    def append(self, record: EpisodeRecord) -> None:
        """Write one record."""
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(record.to_json()) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def clear(self) -> None:
        """Forget every episode."""
        self.path.unlink(missing_ok=True)
        self.path.with_name("protocol.json").unlink(missing_ok=True)
