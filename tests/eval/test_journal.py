"""What a journal holds after a kill, a power cut and a mutation."""

import json
from pathlib import Path

import pytest

from isdt_policy.eval.journal import Journal
from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.result import EpisodeRecord, Result
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError

PROTOCOL = Protocol("chaos")
OLD = Path(__file__).parents[1] / "fixtures/v0_1/eval"


@pytest.fixture
def journal(tmp_path):
    found = Journal(tmp_path / "out", "weights")
    found.open(PROTOCOL)
    for seed in range(3):
        found.append(EpisodeRecord(seed, Arm(), success=bool(seed % 2), max_reward=float(seed), length=5, digest="d"))
    found.close()
    return found


def test_a_record_is_in_the_file_when_append_returns_and_on_the_disk_within_a_second_and_at_the_end(
    tmp_path, monkeypatch
):
    calls, now = [], [100.0]
    monkeypatch.setattr("isdt_policy.eval.journal.os.fsync", calls.append)
    monkeypatch.setattr("isdt_policy.eval.journal.time.monotonic", lambda: now[0])
    journal = Journal(tmp_path)
    journal.open(PROTOCOL)
    calls.clear()
    seen = []
    for seed in range(6):
        journal.append(EpisodeRecord(seed, Arm(), success=True, max_reward=1.0))
        assert journal.path.read_text().count("\n") == seed + 1
        seen.append(len(calls))
        now[0] += 0.4
    assert seen[-1] - seen[0] == 1  # one of the seconds between; the first append waits too
    journal.close()
    assert len(calls) == seen[-1] + 1


@pytest.mark.parametrize("end", [b'{"seed": 3, "ar', b"\0" * 40])
def test_a_line_that_was_cut_is_dropped(journal, end):
    with journal.path.open("ab") as file:
        file.write(end)
    assert sorted(seed for seed, _ in Journal(journal.path.parent, "weights").open(PROTOCOL)) == [0, 1, 2]


WRONG = {
    "not JSON": lambda line: "{",
    "no object": lambda line: "[]",
    "a success that is a word": lambda line: line.replace('"success": false', '"success": "no"'),
    "a reward that is a word": lambda line: line.replace('"max_reward": 0.0', '"max_reward": "0.0"'),
    "no seed": lambda line: line.replace('"seed"', '"sed"'),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_damaged_line_is_refused_in_one_line(case, journal):
    lines = journal.path.read_text().splitlines()
    lines[0] = WRONG[case](lines[0])
    journal.path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"episodes.jsonl is damaged .*overwrite=true") as caught:
        Journal(journal.path.parent, "weights").open(PROTOCOL)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"protocol": 3, "policy": "weights"}', '{"policy": "weights"}'])
def test_a_damaged_head_is_refused_in_one_line(text, journal):
    (journal.path.parent / "protocol.json").write_text(text)
    with pytest.raises(InputError, match=r"protocol.json is damaged"):
        Journal(journal.path.parent, "weights").open(PROTOCOL)


def test_episodes_of_two_devices_are_not_mixed(journal):
    folder = journal.path.parent
    with pytest.raises(InputError, match="computed on cpu, now on NVIDIA H100"):
        Journal(folder, "weights").open(PROTOCOL, "NVIDIA H100")
    assert len(Journal(folder, "weights").open(PROTOCOL, "cpu")) == 3
    head = folder / "protocol.json"
    told = json.loads(head.read_text())
    assert told.pop("device") == "cpu"
    head.write_text(json.dumps(told))  # as earlier versions wrote it
    assert len(Journal(folder, "weights").open(PROTOCOL, "NVIDIA H100")) == 3


def test_a_result_is_on_the_disk_when_it_is_saved(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("isdt_policy.shared.files.sync", lambda path: synced.append(path.name))
    Result.load(OLD).save(tmp_path / "out")
    assert synced == ["eval_info.json.part", "out"]
