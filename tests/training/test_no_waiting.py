"""Steps that do not wait for their own numbers, as on a GPU: here with the CPU in its place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import isdt_train_ranks as ranks

from isdt_policy.method.objectives.isd import ISD
from isdt_policy.training import readings
from isdt_policy.training.prefetch import Prefetch
from isdt_policy.training.run import build_trainer
from isdt_policy.training.trainer import NonFiniteLoss


def as_on_a_gpu(store, run, *more):
    """A trainer that reads its numbers two steps late, and its windows ahead."""
    trainer, _ = build_trainer(ranks.settings(store, run, *more))
    trainer.run.mkdir()
    trainer.readings = readings.Readings(readings.BEHIND)
    trainer.batches = Prefetch(trainer.batches._read, ahead=True, pin=False)
    return trainer


def test_numbers_that_come_late_and_windows_that_come_early_change_nothing(tiny_store, tmp_path):
    plain, _ = build_trainer(ranks.settings(tiny_store, tmp_path / "plain"))
    plain.run.mkdir()
    late = as_on_a_gpu(tiny_store, tmp_path / "late")
    plain.fit()
    late.fit()
    for mine, its in zip(plain.parameters, late.parameters, strict=True):
        assert torch.equal(mine, its)
    a, b = ([r["loss"] for r in _records(trainer.run) if "loss" in r] for trainer in (plain, late))
    assert len(a) == 5
    assert a == b


@pytest.mark.parametrize("every", [1, 4])
def test_a_bad_step_does_not_reach_the_weights_and_is_named(tiny_store, tmp_path, monkeypatch, every):
    """Its number is known two steps later, or before anything is written."""
    trainer = as_on_a_gpu(
        tiny_store, tmp_path / "run", "training.steps=9", "training.checkpoint_every=2",
        f"training.log_every={every}", "training.validate_every=9",
    )  # fmt: skip
    original = ISD.__call__

    def poisoned(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        if trainer.step == 4:
            loss.terms["diagonal"] = torch.tensor(float("nan"))
        if trainer.step == 5:
            poisoned.after = [p.detach().clone() for p in trainer.parameters]
        poisoned.before = [p.detach().clone() for p in trainer.parameters] if trainer.step == 4 else poisoned.before
        return loss

    poisoned.before = poisoned.after = []
    monkeypatch.setattr(ISD, "__call__", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"step 4: loss term 'diagonal' is nan"):
        trainer.fit()
    assert (trainer.run / "checkpoints/last").resolve().name == "0000004"
    if every == 4:  # step 5 began before anybody knew
        assert all(map(torch.equal, poisoned.before, poisoned.after))
    assert all(torch.isfinite(p).all() for p in trainer.parameters)


@pytest.mark.parametrize("name", ranks.OBJECTIVES)
def test_no_step_reads_a_number(tiny_store, tmp_path, name):
    trainer = as_on_a_gpu(tiny_store, tmp_path / "run", *ranks.OBJECTIVES[name])
    trainer.train_step()
    with ranks.NoNumberIsRead():
        assert trainer.advance() == []
        assert trainer.advance() == []
    assert len(trainer.readings.rest()) == 2


def test_an_error_in_reading_ahead_is_raised_where_its_windows_are_wanted():
    def read(step):
        if step == 2:
            raise OSError("the disk has gone")
        return {"obs": {}, "action": step, "is_pad": step}

    batches = Prefetch(read, ahead=True, pin=False)
    assert [batches(step)["action"] for step in (0, 1)] == [0, 1]
    with pytest.raises(OSError, match="gone"):
        batches(2)
    assert batches(7)["action"] == 7


def _records(run):
    import json

    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
