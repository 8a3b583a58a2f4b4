"""PushT: Gymnasium's contract, seeds, observation keys, recorded episodes, bad input."""

import warnings

import gymnasium
import numpy as np
import pytest
import zarr
from gymnasium.utils.env_checker import check_env

from isdt_policy.envs import make, task_spec
from isdt_policy.envs.pusht_scene import KEYPOINTS, legacy_state
from isdt_policy.shared.errors import InputError

STATE = np.array([120.0, 400.0, 300.0, 200.0, 1.0])
LOW_DIM_KEYS = ("state", "agent_pos", "block_pose", "keypoints", "agent_in_block", "goal_in_block", "agent_frame")


@pytest.fixture
def human_data(real_data):
    group = zarr.open_group(str(real_data / "pusht_human" / "pusht_cchi_v7_replay.zarr"), mode="r")
    return {key: group[f"data/{key}"] for key in ("state", "action", "keypoint")}, np.r_[
        0, group["meta/episode_ends"][:]
    ]


@pytest.mark.parametrize("protocol", ["pusht", "pusht-legacy"])
def test_gymnasium_contract_holds_with_warnings_as_errors(protocol):
    env = make("pusht", obs_keys=[*LOW_DIM_KEYS, "pixels"], seed_protocol=protocol, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Actions are pixels on purpose: the data sets' own unit.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space")
        check_env(env)


def test_gymnasium_make_gives_the_same_environment():
    env = gymnasium.make("isdt_policy.envs:isdt/pusht-v0", obs_keys=["state"])
    expected, _ = make("pusht").reset(seed=3)
    assert np.array_equal(env.reset(seed=3)[0]["state"], expected["state"])
    assert env.spec.max_episode_steps == task_spec("pusht").max_episode_steps


def test_seed_means_gym_pushts_own_episode():
    import gym_pusht  # noqa: F401 - registers the environment

    theirs, _ = gymnasium.make("gym_pusht/PushT-v0").reset(seed=100000)
    ours, _ = make("pusht").reset(seed=100000)
    assert np.allclose(ours["state"], theirs, atol=1e-4)


def test_legacy_seed_means_diffusion_policys_episode():
    assert np.allclose(legacy_state(100000), [235, 124, 335, 128, -0.905], atol=1e-3)
    obs, _ = make("pusht", seed_protocol="pusht-legacy").reset(seed=100000)
    # That code sets position before angle, which turns the block about its centre of mass.
    centre = np.array([0.0, 45.0])
    angle = legacy_state(100000)[4]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert np.allclose(obs["state"][2:4], np.array([335, 128]) + centre - turn @ centre, atol=1e-3)


def test_reset_without_seed_continues_one_stream():
    for protocol in ("pusht", "pusht-legacy"):
        env = make("pusht", obs_keys=["state"], seed_protocol=protocol)
        runs = []
        for _ in range(2):
            env.reset(seed=5)
            runs.append([env.reset()[0]["state"] for _ in range(3)])
        assert np.array_equal(runs[0], runs[1])
        assert not np.array_equal(runs[0][0], runs[0][1])


def test_reset_to_state_is_exact_and_at_rest():
    env = make("pusht")
    obs, _ = env.reset(options={"reset_to_state": STATE})
    assert np.allclose(obs["state"], STATE, atol=1e-4)
    moved, *_ = env.step(STATE[:2])
    assert np.allclose(moved["state"], STATE, atol=1e-4)


def test_same_actions_from_a_saved_state_give_the_same_future():
    env = make("pusht", obs_keys=["state"])
    targets = np.linspace([120, 400], [320, 150], 12).astype(np.float32)
    obs, _ = env.reset(options={"reset_to_state": [110, 410, 300, 200, 1.0]})
    first = [env.step(target)[0]["state"] for target in targets]
    env.reset(seed=1)
    env.reset(options={"reset_to_state": obs["state"]})
    second = [env.step(target)[0]["state"] for target in targets]
    assert np.abs(np.array(first) - np.array(second)).max() < 1e-3
    assert np.abs(first[-1][2:] - obs["state"][2:]).max() > 5  # it did push


def replay_error(env, state, action):
    """Replay recorded actions open loop from the first recorded state; return the worst error in px or rad."""
    env.reset(options={"reset_to_state": state[0]})
    worst = 0.0
    for t in range(len(state) - 1):
        obs, _, terminated, truncated, _ = env.step(action[t])
        error = obs["state"] - state[t + 1]
        error[4] = (error[4] + np.pi) % (2 * np.pi) - np.pi
        worst = max(worst, float(np.abs(error).max()))
        if terminated or truncated:
            break
    return worst


def test_recorded_human_episodes_replay(human_data):
    data, bounds = human_data
    env = make("pusht", obs_keys=["state"])
    errors = []
    for episode in range(0, 200, 25):
        span = slice(bounds[episode], bounds[episode + 1])
        errors.append(replay_error(env, data["state"][span], data["action"][span]))
    # A few recordings begin in contact, where the solver's memory of earlier steps is not part of the state.
    assert np.mean(np.array(errors) < 1e-3) >= 0.75, errors


def test_keypoints_equal_the_recorded_ones(human_data):
    data, _ = human_data
    state, recorded = data["state"][:5000], data["keypoint"][:5000]
    ours = task_spec("pusht").derive({"state": state}, ["keypoints"])["keypoints"].reshape(-1, 9, 2)
    worst = np.abs(ours - recorded).max((1, 2))
    # The recording's keypoints and state are of slightly different moments while the block moves.
    assert np.mean(worst < 5e-5) > 0.7
    # So there, and everywhere, the shape must agree: distances between keypoints.
    distances = [np.linalg.norm(k[:, :, None] - k[:, None], axis=-1) for k in (ours, recorded)]
    assert np.abs(distances[0] - distances[1]).max() < 2e-4


def test_derived_keys_equal_the_environments_and_keep_leading_axes():
    env = make("pusht")
    obs, _ = env.reset(seed=8)
    stored = np.broadcast_to(obs["state"], (4, 3, 5))
    derived = task_spec("pusht").derive({"state": stored}, LOW_DIM_KEYS)
    for key in LOW_DIM_KEYS:
        assert derived[key].shape == (4, 3, *task_spec("pusht").observations[key].shape)
        assert derived[key].dtype == np.float32
        assert np.allclose(derived[key][2, 1], obs[key], atol=1e-3)


def test_block_frame_is_invariant_and_keypoints_rigid():
    derive = task_spec("pusht").derive
    state = np.array([[200.0, 100.0, 300.0, 250.0, 0.3]])
    for turn in (0.5, 2.0):
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        turned = np.concatenate([state[:, :2] @ matrix.T, state[:, 2:4] @ matrix.T, state[:, 4:] + turn], axis=1)
        a, b = (derive({"state": s}, ["agent_in_block", "keypoints"]) for s in (state, turned))
        assert np.allclose(a["agent_in_block"], b["agent_in_block"], atol=1e-3)
        assert np.allclose(a["keypoints"].reshape(9, 2) @ matrix.T, b["keypoints"].reshape(9, 2), atol=1e-3)
    assert KEYPOINTS.shape == (9, 2)


def test_goal_in_block_is_zero_at_the_goal_and_carries_block_points_to_the_goal():
    derive = task_spec("pusht").derive
    at_goal = derive({"state": np.array([10.0, 20.0, 256.0, 256.0, np.pi / 4])}, ["goal_in_block"])["goal_in_block"]
    assert np.allclose(at_goal, [0, 0, 1, 0], atol=1e-5)
    state = np.array([200.0, 100.0, 300.0, 250.0, 0.3])
    values = derive({"state": state}, ["goal_in_block", "block_pose"])
    (x, y, turn_cos, turn_sin), (block_x, block_y, cos, sin) = values["goal_in_block"], values["block_pose"]
    assert np.allclose([block_x + cos * x - sin * y, block_y + sin * x + cos * y], [256, 256], atol=1e-3)
    assert np.isclose(0.3 + np.arctan2(turn_sin, turn_cos), np.pi / 4, atol=1e-5)


def test_derive_passes_stored_keys_through_in_the_observations_shape():
    derived = task_spec("pusht").derive({"keypoints": np.zeros((7, 9, 2))}, ["keypoints"])
    assert derived["keypoints"].shape == (7, 18)


def test_success_ends_the_episode_and_stepping_on_is_an_error():
    env = make("pusht")
    env.reset(options={"reset_to_state": [50, 50, 256, 256, np.pi / 4]})
    _, reward, terminated, truncated, info = env.step(np.array([60, 60]))
    assert terminated
    assert not truncated
    assert info["is_success"]
    assert reward == 1.0
    assert info["coverage"] > 0.999
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.array([60, 60]))


def test_truncated_after_300_steps_and_not_before():
    env = make("pusht", obs_keys=["agent_pos"])
    env.reset(seed=0)
    flags = [env.step(np.array([20.0, 20.0]))[3] for _ in range(300)]
    assert flags.index(True) == 299


@pytest.mark.parametrize("action", [[np.nan, 1.0], [np.inf, 1.0], [1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], ["a", "b"]])
def test_bad_actions_are_refused_and_change_nothing(action):
    env = make("pusht")
    env.reset(seed=0)
    before = env.unwrapped.state()
    with pytest.raises(InputError, match="action must"):
        env.step(action)
    assert np.array_equal(before, env.unwrapped.state())


def test_render_sizes():
    for size in (96, 384):
        env = make("pusht", render_mode="rgb_array", render_size=size)
        env.reset(seed=0)
        image = env.render()
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 4
    assert make("pusht").render() is None


def test_a_restored_state_is_drawn_where_it_is():
    """The picture of a state at rest is that after a step in which nothing moves."""
    here = [100.0, 120.0, 380.0, 150.0, 0.3]
    env = make("pusht", obs_keys=["pixels", "state"])
    for _ in range(2):
        first = env.reset(options={"reset_to_state": here})[0]
        then = env.step(np.array(here[:2], np.float32))[0]
        np.testing.assert_allclose(first["state"], then["state"], atol=1e-5)
        np.testing.assert_array_equal(first["pixels"], then["pixels"])
        env.reset(options={"reset_to_state": [400.0, 380.0, 150.0, 350.0, 2.0]})


def test_success_without_a_simulator_is_the_simulators():
    """Poses around the goal, on both sides of 95 %."""
    env = make("pusht", obs_keys=["state"])
    rng = np.random.default_rng(0)
    states = np.array([[50, 50, 256, 256, np.pi / 4]] * 200) + rng.normal(0, 1, (200, 5)) * [0, 0, 2, 2, 0.02]
    states[:, 4] += 2 * np.pi * (np.arange(200) % 2)
    judged = [env.reset(options={"reset_to_state": state})[1] for state in states]
    assert 50 < sum(info["is_success"] for info in judged) < 150
    clear = [i for i, info in enumerate(judged) if abs(info["coverage"] - 0.95) > 1e-6]
    good = task_spec("pusht").success_fn({"state": states})
    np.testing.assert_array_equal(good[clear], [judged[i]["is_success"] for i in clear])
