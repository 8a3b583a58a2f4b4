"""Whether a GPU has room for a step, told before the first one: here with a CPU whose memory somebody made up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import isdt_train_ranks as ranks

from isdt_policy.shared.errors import InputError
from isdt_policy.training import memory, run
from isdt_policy.training.memory import Need, check_room, need_of
from isdt_policy.training.run import build_trainer, train


@pytest.mark.parametrize("name", ["times", "endpoint", "diffusion"])
def test_two_small_steps_tell_what_a_large_one_holds(tiny_store, tmp_path, name):
    trainer, _ = build_trainer(ranks.settings(tiny_store, tmp_path / "run", *ranks.OBJECTIVES[name]))
    before = [p.detach().clone() for p in trainer.parameters]
    need = need_of(trainer, trainer.parameters)
    moments = 2 * sum(p.nbytes for p in trainer.parameters)
    held = memory._peak(lambda: trainer.gradient_of_rows(256))
    assert need.of(256) - moments == pytest.approx(held, rel=0.02)
    assert trainer.step == 0
    assert all(p.grad is None for p in trainer.parameters)
    assert all(map(torch.equal, before, trainer.parameters))


def test_what_is_let_go_of_is_not_counted():
    def act():
        for _ in range(10):
            a = torch.ones(1000)
            b = a.view(10, 100) + 1
            del a, b

    assert memory._peak(act) == 8000


@pytest.mark.parametrize(
    ("free", "compiled", "expected"),
    [
        (5e9, False, "a step of 100 windows takes about 3.0 GB on cuda:0, of which 5.0 GB are free"),
        (2e9, True, "3.0 GB on cuda:0, of which 2.0 GB are free; compiled, it takes less"),
    ],
)
def test_where_there_is_room_it_is_said_how_much(free, compiled, expected):
    assert check_room(Need(1e9, 2e7), 100, int(free), "cuda:0", compiled).endswith(expected)


@pytest.mark.parametrize(
    ("free", "compiled", "expected"),
    [
        (2e9, False, "3.0 GB on cuda:0, of which 2.0 GB are free. At most 50 windows fit"),
        (5e8, True, "Weights, gradients and moments alone do not fit: take a smaller network"),
    ],
)
def test_where_there_is_none_it_is_one_line_that_helps(free, compiled, expected):
    with pytest.raises(InputError, match=expected) as refusal:
        check_room(Need(1e9, 2e7), 100, int(free), "cuda:0", compiled)
    assert "\n" not in str(refusal.value)


def test_a_run_that_does_not_fit_writes_nothing(tiny_store, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "free_bytes", lambda device: 1_000_000)
    with pytest.raises(InputError, match=r"windows fit|do not fit"):
        train(ranks.settings(tiny_store, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_memory_that_runs_out_in_a_step_is_one_line(tiny_store, tmp_path, monkeypatch):
    trainer, _ = build_trainer(ranks.settings(tiny_store, tmp_path / "run"))

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(trainer, "_train_step", full)
    with pytest.raises(InputError, match="step 0 does not fit into the memory of cpu"):
        trainer.advance()
