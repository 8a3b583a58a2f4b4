"""The mirror image of a PushT demonstration: twice is identity, and the simulator agrees that it is one."""

import numpy as np
import pytest

from isdt_policy.datasets.augment import with_mirror_images
from isdt_policy.datasets.store import DemoStore
from isdt_policy.envs import make, task_spec

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


@pytest.mark.parametrize(
    ("state", "action", "tolerance"),
    [
        ([100, 400, 300, 200, 1.0], [150, 350], 1e-3),  # the agent alone moves
        ([180, 256, 256, 256, np.pi / 4], [300, 256], 0.5),  # it pushes the block; contacts are solved in some order
    ],
    ids=["free", "pushing"],
)
def test_the_simulator_moves_the_mirrored_scene_as_the_mirror_of_the_scene(state, action, tolerance):
    env = make("pusht", obs_keys=["state"])

    def step(state, action):
        env.reset(options={"reset_to_state": np.asarray(state, float)})
        for _ in range(5):
            observation = env.step(np.asarray(action, np.float32))[0]["state"]
        return observation

    mirrored = PUSHT.mirror_fn({"state": np.array([state]), "action": np.array([action])})
    there = step(state, action)
    here = step(mirrored["state"][0], mirrored["action"][0])
    same_state(PUSHT.mirror_fn({"state": there[None], "action": np.array([action])})["state"][0], here, atol=tolerance)
    assert np.abs(there - state).max() > 5
