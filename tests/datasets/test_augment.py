"""Demonstrations made from others: the mirror image of a PushT episode, and its scene placed so that its end is the goal."""

import numpy as np
import pytest

from isdt_policy.datasets.augment import with_goals_in_hindsight, with_mirror_images
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.envs import make, task_spec
from isdt_policy.shared.errors import InputError

PUSHT = task_spec("pusht")


def same_state(a, b, **tolerance):
    """States are equal when positions are, and angles up to whole turns."""
    np.testing.assert_allclose(a[..., :4], b[..., :4], **tolerance)
    turn = np.mod(a[..., 4] - b[..., 4] + np.pi, 2 * np.pi) - np.pi
    np.testing.assert_allclose(turn, 0, atol=1e-4)


def test_twice_mirrored_is_as_recorded(tiny_store):
    store = DemoStore.open(tiny_store)
    doubled = with_mirror_images(store, PUSHT)
    assert doubled.n_episodes == 2 * store.n_episodes
    assert doubled.episode_ends[-1] == 2 * store.n_steps
    again = with_mirror_images(doubled, PUSHT)
    ends = [0, *again.episode_ends]
    for episode in range(store.n_episodes):
        # Of the four images of an episode the first is the original, the last its mirror's mirror.
        pieces = [slice(ends[4 * episode + i], ends[4 * episode + i + 1]) for i in range(4)]
        recorded = store.episode(episode)
        np.testing.assert_array_equal(again.read("state")[pieces[0]], recorded["state"])
        same_state(again.read("state")[pieces[3]], recorded["state"], atol=1e-3)
        np.testing.assert_allclose(again.read("action")[pieces[3]], recorded["action"], atol=1e-3)
        assert np.abs(again.read("state")[pieces[1]] - recorded["state"]).max() > 1


def after_five_steps(state, action):
    env = make("pusht", obs_keys=["state"])
    env.reset(options={"reset_to_state": np.asarray(state, float)})
    for _ in range(5):
        observation = env.step(np.asarray(action, np.float32))[0]["state"]
    return observation


@pytest.mark.parametrize(
    ("state", "action", "tolerance"),
    [
        ([100, 400, 300, 200, 1.0], [150, 350], 1e-3),  # the agent alone moves
        ([180, 256, 256, 256, np.pi / 4], [300, 256], 0.5),  # it pushes the block; contacts are solved in some order
    ],
    ids=["free", "pushing"],
)
def test_the_simulator_moves_the_mirrored_scene_as_the_mirror_of_the_scene(state, action, tolerance):
    mirrored = PUSHT.mirror_fn({"state": np.array([state]), "action": np.array([action])})
    there = after_five_steps(state, action)
    here = after_five_steps(mirrored["state"][0], mirrored["action"][0])
    same_state(PUSHT.mirror_fn({"state": there[None], "action": np.array([action])})["state"][0], here, atol=tolerance)
    assert np.abs(there - state).max() > 5


def coverage(state):
    return make("pusht", obs_keys=["state"]).reset(options={"reset_to_state": np.asarray(state, float)})[1]["coverage"]


def test_in_hindsight_every_episode_ends_on_the_goal_and_looks_the_same_from_the_block(tiny_store):
    """The tiny store's block never rests, so every episode demonstrates itself alone."""
    store = DemoStore.open(tiny_store)
    moved = with_goals_in_hindsight(store, PUSHT)
    np.testing.assert_array_equal(moved.episode_ends, store.episode_ends)
    before = {key: store.read(key).astype(float) for key in ("state", "action")}
    after = {key: moved.read(key).astype(float) for key in ("state", "action")}
    for end in store.episode_ends:
        assert coverage(before["state"][end - 1]) < 0.9  # or there was nothing to do
        assert coverage(after["state"][end - 1]) == pytest.approx(1, abs=1e-4)
    # A rigid motion: agent and target stand where they stood as seen from the block, and only the goal has moved.
    for point in ("action", "state"):
        np.testing.assert_allclose(
            seen_from_block(after, after[point]), seen_from_block(before, before[point]), atol=1e-3
        )


def seen_from_block(scene, points):
    stored = {"state": np.concatenate([points[:, :2], scene["state"][:, 2:]], axis=1)}
    return PUSHT.derive(stored, ["agent_in_block"])["agent_in_block"]


def pushes(*lengths, rest=12, speed=4.0, start=(256.0, 256.0)):
    """Pushes to the right with rests between: the agent 50 px behind the block, which keeps its angle."""
    moves = np.concatenate([np.r_[np.full(n, speed), np.zeros(rest)] for n in lengths])
    x = start[0] + np.concatenate([[0.0], np.cumsum(moves)])
    state = np.stack([x - 50, np.full_like(x, start[1]), x, np.full_like(x, start[1]), np.full_like(x, 0.5)], axis=1)
    return {"state": state, "action": state[:, :2] + 5}


def test_every_push_that_ends_in_a_rest_is_a_demonstration_of_its_own():
    whole, *clips = PUSHT.hindsight_fn(pushes(10, 20))
    assert len(whole["state"]) == 1 + 10 + 12 + 20 + 12
    # The first push ends at step 10 and keeps all that was before; the second at step 42 and keeps 32 steps.
    assert [len(clip["state"]) for clip in clips] == [11, 32]
    for clip in (whole, *clips):
        np.testing.assert_allclose(clip["state"][-1, 2:], [256, 256, np.pi / 4], atol=1e-4)
    # 20 steps of 4 px before the end the second push began.
    np.testing.assert_allclose(np.hypot(*(clips[1]["state"][-21, 2:4] - 256)), 80, atol=1e-3)
    assert PUSHT.hindsight_fn(pushes(10, 20, speed=0.1))[1:] == []  # creeping is no push
    assert len(PUSHT.hindsight_fn(pushes(10, 20, rest=0))) == 1  # and where it never rests nothing ends
    # Where the goal's place would put the agent beyond a wall there is nothing to learn: 60 steps of 12 px are 720 px.
    assert len(PUSHT.hindsight_fn(pushes(60, speed=12.0))) == 1


def test_every_push_begins_with_nudges_from_a_block_that_rests():
    """A push of 4 px a step from rest: carried 1 px or more after one step, 5 px or more after two."""
    clips = PUSHT.nudges_fn(pushes(10, 20))
    # The first push starts with the recording, so nobody saw the block at rest before it; the second after step 22.
    assert [len(clip["state"]) for clip in clips] == [1 + 22 + 1, 1 + 22 + 2]
    for clip, left in zip(clips, (4, 8)):
        np.testing.assert_allclose(clip["state"][-1, 2:], [256, 256, np.pi / 4], atol=1e-4)
        resting = clip["state"][11:23, 2:4]
        np.testing.assert_allclose(np.hypot(*(resting - 256).T), left, atol=1e-3)
    assert PUSHT.nudges_fn(pushes(10, 20, speed=0.1)) == []  # creeping is no push


def test_what_was_made_of_an_episode_stays_with_it(tmp_path):
    with DemoWriter(tmp_path / "pushes.zarr", task="pusht") as writer:
        for lengths in ((10,), (10, 20), (12, 12, 12)):
            writer.append({key: value.astype(np.float32) for key, value in pushes(*lengths).items()})
    store = with_mirror_images(with_goals_in_hindsight(DemoStore.open(tmp_path / "pushes.zarr"), PUSHT), PUSHT)
    # 2, 3 and 4 episodes, each with its mirror image
    np.testing.assert_array_equal(store.origin, np.repeat([0, 1, 2], [4, 6, 8]))
    np.testing.assert_array_equal(store.made_from(np.array([2, 0])), [0, 1, 2, 3, *range(10, 18)])


def test_the_simulator_moves_the_moved_scene_as_the_scene():
    state, action = np.array([180.0, 256, 250, 262, 0.9]), np.array([300.0, 256])
    there = after_five_steps(state, action)
    assert np.abs(there - state)[2:4].max() > 5  # the block was pushed
    (moved,) = PUSHT.hindsight_fn({"state": np.stack([state, there]), "action": np.stack([action, action])})
    same_state(moved["state"][1], np.array([*moved["state"][1][:2], 256, 256, np.pi / 4]), atol=1e-3)
    same_state(after_five_steps(moved["state"][0], moved["action"][0]), moved["state"][1], atol=0.5)


def test_people_stopped_short_of_the_goal_and_in_hindsight_on_it(real_data):
    """What `data.hindsight` is for: none of the 206 human demonstrations ends where the task calls it a success."""
    store = DemoStore.open(next(real_data.rglob("pusht_cchi_v7_replay.zarr")))
    recorded = [coverage(state) for state in store.read("state")[store.episode_ends - 1]]
    assert (round(min(recorded), 2), round(float(np.median(recorded)), 2), round(max(recorded), 2)) == (
        0.77,
        0.85,
        0.90,
    )
    moved = with_goals_in_hindsight(store, PUSHT)
    assert moved.n_episodes > 3 * store.n_episodes
    assert min(coverage(state) for state in moved.read("state")[moved.episode_ends - 1]) == pytest.approx(1, abs=1e-3)


def test_a_task_whose_goals_cannot_be_moved_is_refused(tiny_store):
    with pytest.raises(InputError, match=r"data\.hindsight=false"):
        with_goals_in_hindsight(DemoStore.open(tiny_store), task_spec("lift_abs"))
