"""Records on disk while an evaluation runs: what is there is not run again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TextIO

from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.result import EpisodeRecord
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.files import named, sync, write_text
from isdt_policy.shared.values import parse_json

_SYNC_EVERY_S = 1.0


class Journal:
    """A folder with one line of JSON per finished episode, appended at once.

    A killed evaluation loses the episodes that were running, and no other. Once a second the lines are brought to the disk: a
    power cut loses those of the last second, too. A line that was cut in half is dropped when the journal is opened again.

    Args:
        folder: holds episodes.jsonl and protocol.json.
        fingerprint: identifies the policy's weights; an evaluation that goes on must have the same.
    """

    def __init__(self, folder: str | Path, fingerprint: str | None = None) -> None:
        self.path, self.fingerprint = Path(folder) / "episodes.jsonl", fingerprint
        self._file: TextIO | None = None
        self._synced = 0.0

    def open(self, protocol: Protocol, device: str = "cpu") -> dict[tuple[int, Arm], EpisodeRecord]:
        """The records already there, without those that ended in an error: these episodes get another chance.

        Args:
            protocol: the conditions.
            device: where the policy computes; episodes of two devices would be no result that can be repeated on one.

        Raises:
            InputError: the folder holds episodes of another policy, protocol or device.
        """
        head = self.path.with_name("protocol.json")
        if not (head.exists() and self.path.exists()):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            told = {"protocol": protocol.to_json(), "policy": self.fingerprint, "device": device}
            write_text(head, json.dumps(told, indent=1), durable=True)
            return {}
        try:
            found = parse_json(head.read_bytes())
            policy, difference = found["policy"], Protocol.from_json(found["protocol"]).difference(protocol)
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(head.name, error) from error
        if policy != self.fingerprint:
            difference = f"policy {policy}, now {self.fingerprint}"
        if found.get("device", device) != device:  # absent in journals of earlier versions
            difference = f"computed on {found['device']}, now on {device}"
        if difference:
            raise InputError(
                f"{self.path.parent} holds episodes of another evaluation ({difference}); mixing them would be wrong. "
                "Give another out=, or overwrite=true to start anew."
            )
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        try:
            records = [EpisodeRecord.from_json(parse_json(line)) for line in whole.splitlines()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(self.path.name, error) from error
        return {record.key: record for record in records if record.ok}

    def append(self, record: EpisodeRecord) -> None:
        """Write one record."""
        with named(self.path):
            if self._file is None:
                self._file = self.path.open("a", encoding="utf-8")
                sync(self.path.parent)
            self._file.write(json.dumps(record.to_json()) + "\n")
            self._file.flush()
            if time.monotonic() - self._synced >= _SYNC_EVERY_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def close(self) -> None:
        """Bring every line to the disk and close the file."""
        if self._file is not None:
            with named(self.path):
                os.fsync(self._file.fileno())
                self._file.close()
            self._file = None

    def _damaged(self, name: str, error: Exception) -> InputError:
        what = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
        return InputError(
            f"{self.path.with_name(name)} is damaged ({what}). Give another out=, or overwrite=true to start anew."
        )

    def clear(self) -> None:
        """Forget every episode."""
        self.path.unlink(missing_ok=True)
        self.path.with_name("protocol.json").unlink(missing_ok=True)
