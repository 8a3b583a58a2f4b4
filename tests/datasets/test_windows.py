"""Windows against brute force: which there are, what they hold, what is padding; splits and orders as functions of a seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isdt_policy.datasets.augment import MemoryStore
from isdt_policy.datasets.store import DemoStore
from isdt_policy.datasets.windows import (
    WindowBatches,
    WindowDataset,
    batch_indices,
    epoch_order,
    train_val_split,
    window_indices,
)
from isdt_policy.shared.errors import InputError


def brute_force(lengths, horizon, pad_before, pad_after, chosen):
    """Slide a window over each chosen episode, and write down what of it lies inside."""
    rows, first = [], 0
    for length, take in zip(lengths, chosen):
        for start in range(-horizon, length + horizon):
            steps = list(range(start, start + horizon))
            reaches_too_far = steps[0] < -pad_before or steps[-1] > length - 1 + pad_after
            inside = [step for step in steps if 0 <= step < length]
            if take and not reaches_too_far:
                sample = steps.index(inside[0])
                rows.append([first + inside[0], first + inside[-1] + 1, sample, sample + len(inside)])
        first += length
    return np.array(rows, np.int64).reshape(-1, 4)


@settings(max_examples=200, deadline=None)
@given(
    episodes=st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=5),
    horizon=st.integers(1, 8),
    pads=st.tuples(st.integers(0, 7), st.integers(0, 7)),
)
def test_indices_are_those_of_brute_force(episodes, horizon, pads):
    lengths, chosen = zip(*episodes)
    before, after = (min(pad, horizon - 1) for pad in pads)
    got = window_indices(np.cumsum(lengths), horizon, *pads, np.array(chosen))
    np.testing.assert_array_equal(got, brute_force(lengths, horizon, before, after, chosen))


def memory_store(lengths):
    """Step s of the store holds s, so that a window tells where it was cut."""
    steps = np.arange(sum(lengths), dtype=np.float32)[:, None]
    return MemoryStore({"state": steps, "action": -steps}, np.cumsum(lengths), np.arange(len(lengths)))


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    horizon=st.integers(1, 8),
    data=st.data(),
)
def test_a_batch_holds_its_windows_with_edges_repeated(lengths, horizon, data):
    n_obs = data.draw(st.integers(1, horizon))
    n_action = data.draw(st.integers(1, horizon))
    ends = np.cumsum(lengths)
    indices = window_indices(ends, horizon, n_obs - 1, n_action - 1)
    windows = WindowDataset(memory_store(lengths), ["state"], horizon, n_obs, n_action)
    assert windows.n_windows == len(indices)
    if not len(indices):
        return
    batch = windows.batch(np.arange(windows.n_windows))
    for row, (begin, end, sample_start, sample_end) in enumerate(indices):
        steps = np.empty(horizon)
        steps[sample_start:sample_end] = np.arange(begin, end)
        steps[:sample_start], steps[sample_end:] = begin, end - 1
        padding = np.ones(horizon, bool)
        padding[sample_start:sample_end] = False
        np.testing.assert_array_equal(batch["action"][row, :, 0], -steps)
        np.testing.assert_array_equal(batch["obs"]["state"][row, :, 0], steps[:n_obs])
        np.testing.assert_array_equal(batch["is_pad"][row], padding)
    assert batch["obs"]["state"].shape == (len(indices), n_obs, 1)
    assert batch["action"].dtype == np.float32


def test_only_chosen_episodes_are_read_and_counted():
    windows = WindowDataset(
        memory_store([5, 7, 4]), ["state"], horizon=3, n_obs_steps=1, n_action_steps=1, episodes=[1]
    )
    assert windows.n_windows == 5
    assert set(windows.batch(np.arange(5))["obs"]["state"].ravel()) <= set(range(5, 12))
    statistics = windows.statistics()["state"]
    assert (statistics["min"], statistics["max"], statistics["mean"]) == (5, 11, 8)
    with pytest.raises(InputError, match="no episodes"):
        WindowDataset(memory_store([5]), ["state"], episodes=[])


def test_a_value_that_is_not_finite_is_named_with_its_place():
    store = memory_store([5, 5])
    store._arrays["state"][7] = np.nan
    with pytest.raises(InputError, match=r"'state' is not finite at step 7 \(episode 1\)"):
        WindowDataset(store, ["state"])


@given(n=st.integers(1, 300), ratio=st.floats(0, 0.99), seed=st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_a_split_is_a_partition_that_keeps_something_to_train_on(n, ratio, seed):
    train, validation = train_val_split(n, ratio, seed)
    assert sorted([*train, *validation]) == list(range(n))
    assert len(train) >= 1
    assert (len(validation) > 0) == (ratio > 0 and n > 1)
    again = train_val_split(n, ratio, seed)
    np.testing.assert_array_equal(train, again[0])


def test_splits_differ_between_seeds_and_refuse_impossible_ratios():
    assert train_val_split(100, 0.1, 0)[1].tolist() != train_val_split(100, 0.1, 1)[1].tolist()
    with pytest.raises(InputError, match=r"data\.val_ratio must be in \[0, 1\)"):
        train_val_split(10, 1.0, 0)


def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch():
    order = epoch_order(50, 3, 7)
    assert sorted(order) == list(range(50))
    np.testing.assert_array_equal(order, epoch_order(50, 3, 7))
    assert not np.array_equal(order, epoch_order(50, 3, 8))
    assert not np.array_equal(order, epoch_order(50, 4, 7))


def test_the_sampler_that_speed_is_compared_with_gives_the_same_batches():
    from isdt_policy.lab.bench.data import HORIZON, N_ACTION, N_OBS, PerItemSampler

    store = memory_store([1, 20, 3, 40])
    ours = WindowDataset(store, ["state"], horizon=HORIZON, n_obs_steps=N_OBS, n_action_steps=N_ACTION)
    plain = PerItemSampler({k: store.read(k) for k in ("state", "action")}, store.episode_ends)
    order = np.random.default_rng(0).permutation(ours.n_windows)
    batch, other = ours.batch(order), plain.batch(order)
    np.testing.assert_array_equal(batch["obs"]["state"], other["state"])
    np.testing.assert_array_equal(batch["action"], other["action"])


def test_the_sampler_also_reads_images_from_the_store(tmp_path):
    from isdt_policy.lab.bench.data import HORIZON, N_ACTION, N_OBS, PerItemSampler, _image_store, _InStore

    store = DemoStore.open(_image_store(tmp_path / "a.zarr", "noise", 130))
    ours = WindowDataset(store, ["image"], horizon=HORIZON, n_obs_steps=N_OBS, n_action_steps=N_ACTION)
    plain = PerItemSampler({key: _InStore(store, key) for key in ("image", "action")}, store.episode_ends)
    order = np.random.default_rng(0).permutation(ours.n_windows)
    batch, other = ours.batch(order), plain.batch(order)
    np.testing.assert_array_equal(batch["obs"]["image"], other["image"])
    np.testing.assert_array_equal(batch["action"], other["action"])


@given(n=st.integers(1, 60), size=st.integers(1, 9), world=st.integers(1, 4), seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_ranks_share_every_epoch_without_repeating_or_dropping_a_window(n, size, world, seed):
    steps = -(-3 * n // (size * world))
    dealt = [batch_indices(n, size, seed, step, rank, world) for step in range(steps) for rank in range(world)]
    assert all(len(part) == size for part in dealt)
    stream = np.concatenate(dealt)
    for epoch in range(3):
        np.testing.assert_array_equal(stream[epoch * n : (epoch + 1) * n], epoch_order(n, seed, epoch))


def test_workers_and_an_interruption_change_no_batch():
    from torch.utils.data import DataLoader

    windows = WindowDataset(memory_store([9, 14]), ["state"], horizon=4, n_obs_steps=2, n_action_steps=2)
    plain = [windows.batch(batch_indices(windows.n_windows, 3, 5, step))["action"] for step in range(12)]
    for workers, first in ((0, 0), (2, 0), (2, 7)):
        batches = WindowBatches(windows, 3, 12 - first, seed=5, first_step=first)
        loaded = list(DataLoader(batches, batch_size=None, num_workers=workers))
        assert len(loaded) == 12 - first
        for batch, expected in zip(loaded, plain[first:]):
            np.testing.assert_array_equal(batch["action"], expected)


def test_a_window_or_rank_that_does_not_exist_is_refused():
    windows = WindowDataset(memory_store([9]), ["state"], horizon=4)
    for number in (-1, windows.n_windows):
        with pytest.raises(IndexError, match="windows are numbered"):
            windows.batch(np.array([0, number]))
    with pytest.raises(InputError, match="rank=2, world_size=2"):
        WindowBatches(windows, 3, 1, rank=2, world_size=2)
