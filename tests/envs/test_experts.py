"""The PushT expert: success, clean demonstrations, symmetry, determinism."""

import numpy as np
import pytest

from isdt_policy.envs import make, task_spec
from isdt_policy.envs.experts import expert, generate_episodes
from isdt_policy.envs.experts import pusht as pusht_expert
from isdt_policy.envs.experts import pusht_model as model
from isdt_policy.envs.protocol import Policy
from isdt_policy.shared.errors import InputError


@pytest.fixture(scope="module")
def episodes():
    return list(generate_episodes("pusht", 6, seed=3))


def run(policy, seed):
    env = make("pusht", obs_keys=["state"])
    obs, info = env.reset(seed=seed)
    done, decision = False, 0
    while not done:
        history = {"state": obs["state"][None, None]}
        action = policy.predict_action(history, noise_seeds=np.array([[seed, decision]]))["action"][0, 0]
        obs, _, terminated, truncated, info = env.step(action)
        done, decision = terminated or truncated, decision + 1
    return info["is_success"], decision


def test_expert_succeeds_on_evaluation_seeds():
    results = [run(expert("pusht"), seed) for seed in range(100000, 100012)]
    assert np.mean([success for success, _ in results]) >= 0.9
    assert np.median([steps for _, steps in results]) < 200


def test_other_styles_succeed_too_and_move_differently():
    policies = [expert("pusht", seed) for seed in (0, 1, 2)]
    results = [run(policy, 100002) for policy in policies]
    assert all(success for success, _ in results)
    assert len({steps for _, steps in results}) > 1


def test_expert_is_a_policy_whose_rows_do_not_depend_on_their_neighbours():
    policy = expert("pusht")
    assert isinstance(policy, Policy)
    env = make("pusht", obs_keys=["state"])
    states = np.stack([env.reset(seed=seed)[0]["state"] for seed in range(4)])[:, None]
    names = np.array([[seed, 0] for seed in range(4)])
    together = policy.predict_action({"state": states}, noise_seeds=names)["action"]
    assert together.shape == (4, 1, 2)
    for row in range(4):
        alone = expert("pusht").predict_action({"state": states[row : row + 1]}, noise_seeds=names[row : row + 1])
        assert np.array_equal(alone["action"][0], together[row])


def test_demonstrations_are_successful_clean_and_inside_the_action_space(episodes):
    for arrays, info in episodes:
        assert info["success"]
        assert arrays["coverage"].max() > 0.95
        assert arrays["state"].shape == (info["steps"], 5)
        assert arrays["action"].shape == (info["steps"], 2)
        assert task_spec("pusht").action.space().contains(arrays["action"].min(0))
        assert task_spec("pusht").action.space().contains(arrays["action"].max(0))
        jumps = np.linalg.norm(np.diff(arrays["action"], axis=0), axis=1)
        assert jumps.max() < 80
        assert np.quantile(jumps, 0.9) < 25


def test_replayed_demonstrations_give_the_recorded_states(episodes):
    for arrays, _ in episodes:
        env = make("pusht", obs_keys=["state"], end_on_success=False)
        env.reset(options={"reset_to_state": arrays["state"][0]})
        for t in range(len(arrays["action"]) - 1):
            obs, *_ = env.step(arrays["action"][t])
            error = obs["state"] - arrays["state"][t + 1]
            error[4] = (error[4] + np.pi) % (2 * np.pi) - np.pi
            # The first state is stored in float32; contact amplifies its rounding a little.
            assert np.abs(error).max() < 0.05


def test_block_rests_while_the_agent_walks(episodes):
    for arrays, _ in episodes:
        state = arrays["state"].astype(float)
        cos, sin = np.cos(state[:, 4]), np.sin(state[:, 4])
        dx, dy = state[:, 0] - state[:, 2], state[:, 1] - state[:, 3]
        gap = np.array([model.distance_to_block(x, y) for x, y in zip(cos * dx + sin * dy, cos * dy - sin * dx)])
        away = (gap[:-1] > 17) & (gap[1:] > 17)
        moved = np.abs(np.diff(state[:, 2:4], axis=0)).max(1)
        # Agents move up to 18 px a step, so one may touch the block and leave it between two recorded states.
        assert np.mean(moved[away] < 0.01) > 0.95


def test_episode_depends_on_seed_and_index_only(episodes):
    resumed = list(generate_episodes("pusht", 2, seed=3, first=episodes[3][1]["index"]))
    for (again, again_info), (before, info) in zip(resumed, episodes[3:5]):
        assert again_info == info
        assert np.array_equal(again["action"], before["action"])
    parallel = list(generate_episodes("pusht", 3, seed=3, workers=2))
    for (again, _), (before, _) in zip(parallel, episodes):
        assert np.array_equal(again["action"], before["action"])
    other = next(generate_episodes("pusht", 1, seed=4))[0]
    assert not np.array_equal(other["state"][0], episodes[0][0]["state"][0])


def test_mirrored_state_gets_the_mirrored_action(episodes):
    mirror = task_spec("pusht").mirror_fn
    errors = []
    for arrays, _ in episodes:
        for t in range(0, len(arrays["state"]), 7):
            state = arrays["state"][t].astype(float)
            action = pusht_expert.PushTExpert().act(state)
            reflected = mirror({"state": state[None], "action": action[None]})
            other = pusht_expert.PushTExpert().act(reflected["state"][0].astype(float))
            errors.append(np.abs(other - reflected["action"][0]).max())
    # Exact but for ties, and for the two pixels by which the walls differ.
    assert np.mean(np.array(errors) < 0.1) > 0.9


def test_start_states_do_not_overlap_and_near_ones_are_near():
    rng = np.random.default_rng(0)
    for kind in pusht_expert.KINDS:
        env = make("pusht", obs_keys=["state"])
        coverages = []
        for _ in range(20):
            state = pusht_expert.start_state(rng, kind)
            _, info = env.reset(options={"reset_to_state": state})
            coverages.append(info["coverage"])
            moved, *_ = env.step(state[:2])
            assert np.abs(moved["state"][:4] - state[:4]).max() < 0.5
        assert (min(coverages) > 0.1) == (kind == "near")


@pytest.mark.parametrize(
    ("start", "heading"), [((-50.0, -40.0), np.pi / 2), ((45.0, 100.0), np.pi), ((0.0, 160.0), -np.pi / 2)]
)
def test_model_predicts_what_the_simulator_does(start, heading):
    block, angle, length = np.array([250.0, 240.0]), 0.7, 60.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    agent = turn @ start + block
    direction = turn @ [np.cos(heading), np.sin(heading)]
    env = make("pusht", obs_keys=["state"])
    env.reset(options={"reset_to_state": [*agent, *block, angle]})
    for _ in range(30):
        obs, *_ = env.step(agent + length * direction)
    pose = np.array([*(block + turn @ [0.0, model.CENTRE_OF_MASS]), angle])
    for k in range(1, 61):
        model.resolve_contact(pose, *(agent + k * direction))
    final = obs["state"].astype(float)
    cos, sin = np.cos(final[4]), np.sin(final[4])
    centre = final[2:4] + model.CENTRE_OF_MASS * np.array([-sin, cos])
    travelled = np.linalg.norm(centre - (block + turn @ [0.0, model.CENTRE_OF_MASS]))
    assert travelled > 10
    assert np.linalg.norm(centre - pose[:2]) < 0.15 * travelled
    assert abs((final[4] - pose[2] + np.pi) % (2 * np.pi) - np.pi) < 0.1


def test_pose_error_is_zero_at_the_goal_only():
    angle = model.GOAL_ANGLE
    goal = np.array([256 - 45 * np.sin(angle), 256 + 45 * np.cos(angle), angle])
    assert model.pose_error(*goal, 4.0) == pytest.approx(0.0, abs=1e-6)
    assert model.pose_error(*(goal + np.array([3.0, 4.0, 0.0])), 4.0) == pytest.approx(5.0)
    assert model.pose_error(*(goal + np.array([0.0, 0.0, 2 * np.pi])), 4.0) == pytest.approx(0.0, abs=1e-4)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="Did you mean 'pusht'"):
        expert("pushtt")
    with pytest.raises(InputError, match="workers"):
        next(generate_episodes("pusht", 1, workers=0))
