"""Where a run's numbers go."""

import json

import pytest

from isdt_policy.shared.errors import InputError
from isdt_policy.training.config import compose_config, load_config
from isdt_policy.training.loggers import LOGGERS, Log, meant


class Memory:
    """A logger of somebody else's."""

    seen: list = []  # noqa: RUF012

    def __init__(self, run, step):
        self.seen.append(("begin", step))

    def write(self, step, values):
        self.seen.append((step, dict(values)))

    def close(self):
        self.seen.append("close")


def test_a_logger_gets_what_the_log_gets(tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGERS, "memory", Memory)
    log = Log(tmp_path, 5, ["memory"])
    log.write(6, {"loss": 0.5})
    log.close()
    assert Memory.seen == [("begin", 5), (6, {"loss": 0.5}), "close"]
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 6, "loss": 0.5}


def test_tensorboard_writes_events(tmp_path):
    log = Log(tmp_path, 0, ["tensorboard"])
    log.write(1, {"loss": 0.5})
    log.close()
    assert [p.name for p in (tmp_path / "tensorboard").iterdir() if "tfevents" in p.name]


def test_records_behind_the_step_are_cut(tmp_path):
    log = Log(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": 0.5})
    log.close()
    Log(tmp_path, 2).close()
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]


def test_an_unknown_logger_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="Did you mean 'tensorboard'"):
        meant(["tensorbord"])


def test_the_word_of_an_earlier_version_still_works(tmp_path, capsys):
    config = compose_config(["training.tensorboard=false"])
    assert config["training"]["loggers"] == []
    assert "training.loggers=[]" in capsys.readouterr().err
    del config["training"]["loggers"]
    config["training"]["tensorboard"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_config(tmp_path)["training"]["loggers"] == ["auto"]
