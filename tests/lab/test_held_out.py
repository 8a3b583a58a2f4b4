"""Held-out recordings beside a policy's chunks: rows are the recording's own, and a broken run is called one."""

import json

import numpy as np
import pytest
import torch

from isdt_policy import cli
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.envs.protocol import ObsSpec
from isdt_policy.lab.held_out.measure import disagreement, neighbours, replayed, rms, rows_of
from isdt_policy.lab.held_out.run import Compared, read
from isdt_policy.method.networks.mlp import MLPConfig
from isdt_policy.method.policy import Policy
from isdt_policy.method.policy_config import PolicyConfig

NETWORK = MLPConfig(width=16, depth=1, time_dim=8)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("held_out") / "arm.zarr", np.random.default_rng(0)
    with DemoWriter(path) as writer:
        for steps in (12, 30, 25):
            action = np.cumsum(rng.normal(size=(steps, 2)), axis=0).astype(np.float32)
            writer.append({"q": action - 0.5, "action": action})
    return DemoStore.open(path)


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    config = PolicyConfig("", {"q": ObsSpec((2,))}, 2, n_obs_steps=2, horizon=8, n_action_steps=4, network=NETWORK)
    made, one = Policy(config), {"min": -np.ones(2), "max": np.ones(2), "mean": np.zeros(2), "std": np.ones(2)}
    made.normalizer.fit({"q": one, "action": {k: np.tile(v, (8, 1)) for k, v in one.items()}}, "limits", "limits")
    return made.eval()


def test_a_row_is_a_step_with_what_was_done_from_then_on(store, policy):
    rows, episode = rows_of(store, [1], policy, None), store.episode(1)
    assert rows.count == 30
    assert rows.chunk.shape == (30, 7, 2)
    for t in (0, 5, 28):
        done = episode["action"][t : t + 7]
        assert rows.inside[t].sum() == len(done)
        assert rows.chunk[t, : len(done)] == pytest.approx(done)
        assert rows.obs["q"][t] == pytest.approx(episode["q"][[max(t - 1, 0), t]])
        assert rows.before[t] == pytest.approx(episode["action"][max(t - 1, 0)])
    assert (rows.episode == 1).all()
    both = rows_of(store, [0, 2], policy, None)
    assert (both.episode == np.repeat([0, 2], [12, 25])).all()
    assert both.before[12] == pytest.approx(store.episode(2)["action"][0])


def test_only_steps_within_an_episode_count(store, policy):
    rows = rows_of(store, [0], policy, None)
    assert rms(np.ones_like(rows.chunk), rows.inside) == pytest.approx(np.ones((7, 2)))
    beyond = np.where(rows.inside[..., None], 0.0, 9.0) * np.ones(2)
    assert (rms(beyond, rows.inside) == 0).all()


def test_consecutive_chunks_of_one_plan_agree(store, policy):
    """Chunks that are the recording's own say the same of the same steps; a constant shift between them is found."""
    rows = rows_of(store, [1], policy, None)
    assert disagreement(rows, rows.chunk, 4) == pytest.approx([0, 0])
    shifted = rows.chunk + (rows.step // 4 % 2)[:, None, None] * 3.0
    assert disagreement(rows, shifted, 4) == pytest.approx([3, 3])


def test_the_nearest_demonstrator_is_of_another_episode(store, policy):
    rows = rows_of(store, [0, 1, 2], policy, None)
    difference, inside = neighbours(policy, rows, rows)
    assert rms(difference, inside).min() > 0  # of its own episode it would be 0
    assert neighbours(policy, rows_of(store, [1], policy, None), rows_of(store, [1], policy, None)) is None


def test_an_open_loop_executes_the_beginnings_of_chunks():
    pieces = replayed(np.arange(10)[:, None, None] + np.arange(7)[None, :, None] * 100.0, 4)
    assert [steps.tolist() for steps, _ in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert pieces[1][1][:, 0].tolist() == [4, 104, 204, 304]


def compared(error, demonstrators=1.0, hold=3.0):
    each = {"1": np.full((7, 2), error)}
    return Compared(
        each, {"1": np.full(2, 0.1)}, np.full((7, 2), demonstrators), np.full((7, 2), hold), np.full(2, 2.0), 4, 9
    )


def test_a_sound_run_is_measured_in_the_demonstrators_spread_and_a_broken_one_is_named():
    (line,) = read(compared(0.5))
    assert "error 0.50 of the demonstrators' own spread over the 4 steps" in line
    assert "differ by 0.10" in line
    assert any(line.startswith("BROKEN") for line in read(compared(2.5)))
    assert any(line.startswith("BROKEN") for line in read(compared(np.nan)))
    assert any("repeating the last action" in line for line in read(compared(1.5, hold=1.0)))


def test_the_verb_writes_numbers_and_a_page(store, policy, tmp_path, capsys):
    policy.save_pretrained(tmp_path / "policy")
    line = ["eval", "data", f"checkpoint={tmp_path / 'policy'}", f"data={store.path}"]
    assert cli.main(line) == 2
    assert "give data=PATH episodes=all" in capsys.readouterr().err
    assert cli.main([*line, "episodes=all", f"out={tmp_path}", "replays=1"]) == 0
    printed = capsys.readouterr().out
    assert "they do not rank good ones" in printed
    assert len(printed.splitlines()[0]) <= 100
    info = json.loads((tmp_path / "held_out.json").read_text())
    assert np.shape(info["error"]["euler10"]) == (7, 2)
    assert info["device"] == "cpu"
    page = (tmp_path / "held_out.html").read_text()
    assert "Episode 0, replayed" in page
    assert "do not rank good ones" in page


def test_an_arm_that_does_not_suit_is_refused_if_it_was_asked_for(store, policy, tmp_path, capsys):
    policy.save_pretrained(tmp_path / "policy")
    line = ["eval", "data", f"checkpoint={tmp_path / 'policy'}", f"data={store.path}", "episodes=all", "arms=[ddim10]"]
    assert cli.main(line) == 2
    assert "does not suit this policy" in capsys.readouterr().err
    assert not (tmp_path / "policy/eval_data").exists()
