"""Numbers that no program takes: one line, whatever the verb."""

import pytest

from isdt_policy import cli

ZOO = "checkpoint=zoo:pusht_human"


@pytest.mark.parametrize(("words", "expected"), [
    (["eval", ZOO, "episodes=1000000"], "episodes=1000000 are more than the 100000 seeds of a range"),
    (["eval", ZOO, f"episodes={10**30}"], "episodes must be below 2**63"),
    (["eval", ZOO, f"seed_start={10**30}"], "seed_start must be below 2**63"),
    (["eval", ZOO, "episodes=1", "videos=-1"], "videos=-1 must be at least 0"),
    (["eval", ZOO, "episodes=1", "max_steps=0"], "max_steps=0 must be at least 1"),
    (["eval", ZOO, "noise_scale=nan"], "noise_scale must be a finite number"),
    (["deploy", ZOO, "seconds=inf"], "seconds must be a finite number"),
    (["deploy", ZOO, "seed=-1"], "seed must be from 0 on"),
    (["eval", ZOO, f"arms=[euler{10**30}]"], "at most 10000 network evaluations"),
    (["export", ZOO, f"nfe={10**5}"], "at most 10000 network evaluations"),
    (["serve", ZOO, "port=70000"], "port=70000 must be from 0"),
    (["tune", "experiment=pusht_demo", "seed=-1"], "seed must be from 0 on"),
])  # fmt: skip
def test_a_number_that_cannot_be_used_is_one_line(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())
