"""Demonstrations of robomimic's tasks: scripted experts, generated sets, raw states replayed, training on either."""

import json
from functools import partial

import h5py
import numpy as np
import pytest

from isdt_policy.datasets.convert import convert
from isdt_policy.datasets.generate import generate
from isdt_policy.datasets.store import DemoStore
from isdt_policy.deploy.record import initial_states
from isdt_policy.envs import make, robosuite_compat, task_spec
from isdt_policy.envs.experts import arm, expert, facts
from isdt_policy.envs.protocol import Policy
from isdt_policy.envs.robomimic_args import make_from_env_args
from isdt_policy.eval.episode import Episode, EpisodeRunner, Recipe
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError

pytestmark = pytest.mark.slow

needs_14 = pytest.mark.skipif(robosuite_compat.is_composite(), reason="robosuite 1.5 is installed: refused by design")


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    path = tmp_path_factory.mktemp("lift") / "lift.zarr"
    generate(out=str(path), task="lift", episodes=2, workers=1)
    return path


@pytest.mark.parametrize("task", ["lift", "lift_abs", "can", pytest.param("square", marks=needs_14)])
def test_experts_succeed_on_evaluation_seeds(task):
    env, policy, seed = make(task), expert(task), 100000
    assert isinstance(policy, Policy)
    obs, _ = env.reset(seed=seed)
    done, decision = False, 0
    while not done:
        history = {key: value[None, None] for key, value in obs.items()}
        action = policy.predict_action(history, noise_seeds=np.array([[seed, decision]]))["action"][0, 0]
        obs, _, terminated, truncated, info = env.step(action)
        done, decision = terminated or truncated, decision + 1
    assert info["is_success"]
    assert decision < 250


def test_styles_are_many_and_a_function_of_seed_and_index():
    styles = [facts("lift", 3, i)["style"] for i in range(60)]
    assert facts("lift", 3, 5)["style"] == styles[5]
    assert {s["grip"] for s in styles} == {0, 1}
    assert {np.sign(s["side"]) for s in styles} == {-1.0, 0.0, 1.0}
    assert 15 < sum(any(s["detour"]) for s in styles) < 45
    assert len({facts("lift", 3, i)["reset_seed"] for i in range(60)}) == 60


def test_an_absolute_command_has_the_target_of_the_delta_one():
    env = make("lift", end_on_success=False)
    obs, _ = env.reset(seed=0)
    view = arm.View.of(obs)
    delta = np.array([0.5, -0.3, -0.8, 0.2, -0.1, 0.4, 1.0])
    expected = env.absolute_actions(env.state()[None], delta[None])[0]
    assert np.allclose(arm.command(delta, view, absolute=True), expected, atol=1e-5)
    with pytest.raises(InputError, match="control='delta'"):
        make("lift_abs").absolute_actions(env.state()[None], delta[None])


def test_generated_demonstrations_replay_to_the_last_bit(generated):
    store = DemoStore.open(generated)
    assert store.n_episodes == 2
    assert store.attrs["action_space"]["type"] == "delta"
    env = make("lift", end_on_success=False)
    for index, info in enumerate(store.episode_info()):
        episode = store.episode(index)
        env.reset(seed=info["reset_seed"])
        for state, action in zip(episode["states"], episode["action"]):
            assert np.array_equal(env.state(), state)
            outcome = env.step(action)
        assert outcome[-1]["is_success"]
        assert task_spec("lift").action.space().contains(episode["action"].min(0))
        assert task_spec("lift").action.space().contains(episode["action"].max(0))


def test_evaluation_starts_where_demonstrations_did(generated, tmp_path):
    """Lift draws the size of its cube, which no state holds: from the seed that made the demonstration, or its model."""
    convert(str(generated), str(tmp_path / "lift.hdf5"), to="robomimic")
    with h5py.File(tmp_path / "lift.hdf5", "r+") as file:  # as recorded by others: a model, no seed of ours
        for i, info in enumerate(DemoStore.open(generated).episode_info()):
            env = make("lift")
            env.reset(seed=info["reset_seed"])
            file[f"data/demo_{i}"].attrs["model_file"] = env.model_xml()
            file[f"data/demo_{i}"].attrs.pop("reset_seed", None)
    convert(str(tmp_path / "lift.hdf5"), str(tmp_path / "lift.zarr"))
    imported = DemoStore.open(tmp_path / "lift.zarr")
    assert "reset_seed" not in imported.episode_info()[0]
    keys = ("object", "robot0_eef_pos", "robot0_gripper_qpos")
    runner = EpisodeRunner(Recipe(make_env=partial(make, "lift"), obs_keys=keys, n_obs_steps=1))
    sizes = set()
    for store in (generated, tmp_path / "lift.zarr"):
        demos = DemoStore.open(store)
        starts = initial_states(str(store), episodes=2)
        assert list(starts) == [0, 1]
        for i, first in zip(starts, (0, int(demos.episode_ends[0]))):
            history = runner.start(Episode(i, Arm.parse("expert"), starts[i])).history
            for key in keys:
                assert np.abs(history[key][0] - demos.read(key, first, first + 1)[0]).max() < 1e-5
            sim = runner.env.sim.sim
            sizes.add((i, tuple(sim.model.geom_size[sim.model.geom_name2id("cube_g0")].round(5))))
    assert len(sizes) == 2  # one per demonstration, whichever way it is known


def test_absolute_hdf5_holds_seven_numbers_and_replays(tmp_path):
    generate(out=str(tmp_path / "a.zarr"), task="lift_abs", episodes=1, workers=1)
    convert(str(tmp_path / "a.zarr"), str(tmp_path / "a.hdf5"), to="robomimic")
    convert(str(tmp_path / "a.hdf5"), str(tmp_path / "b.zarr"))
    ours, back = DemoStore.open(tmp_path / "a.zarr"), DemoStore.open(tmp_path / "b.zarr")
    assert back.task == "lift_abs"
    assert ours.read("action").shape[1] == back.read("action").shape[1] == 10
    assert np.abs(ours.read("action") - back.read("action")).max() < 1e-5
    with h5py.File(tmp_path / "a.hdf5") as file:
        actions, env_args = file["data/demo_0/actions"][()], file["data"].attrs["env_args"]
    assert actions.shape[1] == 7
    env = make_from_env_args(env_args, end_on_success=False)
    env.reset(seed=ours.episode_info()[0]["reset_seed"])
    assert any(env.step(action)[-1]["is_success"] for action in actions)


def test_generation_goes_on_where_it_stopped(generated, tmp_path):
    generate(out=str(tmp_path / "b.zarr"), task="lift", episodes=1, workers=1)
    generate(out=str(tmp_path / "b.zarr"), task="lift", episodes=2, workers=1)
    one, other = DemoStore.open(generated), DemoStore.open(tmp_path / "b.zarr")
    assert np.array_equal(one.read("action"), other.read("action"))
    assert one.episode_info() == other.episode_info()
    with pytest.raises(InputError, match="seed=0, now it is 1"):
        generate(out=str(tmp_path / "b.zarr"), task="lift", episodes=3, seed=1)
    with pytest.raises(InputError, match="format=robomimic"):
        generate(out=str(tmp_path / "b.hdf5"), task="lift")
    with pytest.raises(InputError, match="Did you mean 'robomimic'"):
        generate(out=str(tmp_path / "b.hdf5"), task="lift", format="robomimc")


def test_raw_states_become_the_observations_they_were_recorded_with(tmp_path):
    generate(out=str(tmp_path / "a.hdf5"), task="lift", episodes=1, workers=1, format="robomimic")
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        demo = file["data/demo_0"]
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "Lift"
        assert demo.attrs["model_file"].startswith("<mujoco")
        recorded = {key: value[()] for key, value in demo["obs"].items()}
        actions = demo["actions"][()]
        del demo["obs"], demo["next_obs"]  # as robomimic's raw files are
    convert(str(tmp_path / "a.hdf5"), str(tmp_path / "b.zarr"))
    episode = DemoStore.open(tmp_path / "b.zarr").episode(0)
    for key, value in recorded.items():
        assert np.abs(episode[key] - value).max() < 1e-5, key
    assert np.array_equal(episode["action"], actions)
    # The same episode in absolute actions.
    convert(str(tmp_path / "b.zarr"), str(tmp_path / "c.zarr"), task="lift_abs")
    store = DemoStore.open(tmp_path / "c.zarr")
    assert (store.task, store.shape("action"), store.attrs["action_space"]["type"]) == ("lift_abs", (10,), "absolute")
    with pytest.raises(InputError, match="absolute actions and task 'lift' takes delta"):
        convert(str(tmp_path / "c.zarr"), str(tmp_path / "d.zarr"), task="lift")


@needs_14
def test_real_raw_files_are_replayed(real_data, tmp_path):
    samples = real_data / "robomimic_samples"
    convert(str(samples / "lift_robosuite_raw_demo.hdf5"), str(tmp_path / "a.zarr"))
    store = DemoStore.open(tmp_path / "a.zarr")
    assert store.task == "lift"
    assert store.shape("object") == (10,)
    assert store.n_steps == 1384
    with pytest.raises(InputError, match="TwoArmHandover"):
        convert(str(samples / "two_arm_handover_raw_demo.hdf5"), str(tmp_path / "b.zarr"))


def test_generated_demonstrations_train(generated, tmp_path):
    from isdt_policy.training.config import compose_config
    from isdt_policy.training.run import train

    config = compose_config(
        [
            "task=lift", f"data.path={generated}", "training.steps=2", "training.batch_size=4", "network.down_dims=[8,16]",
            "network.embed_dim=16", "network.time_dim=8", f"run_dir={tmp_path}/run", "training.compile=false",
        ]
    )  # fmt: skip
    run = train(config)
    from isdt_policy.method.policy import Policy as Trained

    policy = Trained.from_pretrained(run)
    obs, _ = make("lift").reset(seed=0)
    history = {key: np.stack([obs[key]] * policy.n_obs_steps)[None] for key in policy.obs_keys}
    assert policy.predict_action(history, nfe=1)["action"].shape[2:] == (7,)


def test_robomimics_interfaces_run_our_environment_and_policy(generated):
    pytest.importorskip("robomimic")
    from robomimic.envs.env_base import EnvBase

    from isdt_policy.envs.robomimic_view import EnvView, RolloutPolicyView

    view = EnvView(make("lift", end_on_success=False))
    assert isinstance(view, EnvBase)
    policy = RolloutPolicyView(expert("lift"))
    ob = view.reset()
    policy.start_episode()
    state = view.get_state()
    first = view.reset_to(state)  # as robomimic's rollout does, to make playback deterministic
    assert np.allclose(first["object"], ob["object"], atol=1e-6)
    ob = first
    for _ in range(120):
        ob, reward, done, _ = view.step(policy(ob))
        assert not done
        if view.is_success()["task"]:
            break
    assert reward == 1.0
    assert view.serialize()["env_name"] == view.name == "Lift"
    kwargs = view.serialize()["env_kwargs"]
    made = EnvView.create_for_data_processing("Lift", [], 84, 84, kwargs.pop("reward_shaping"), **kwargs)
    stored = DemoStore.open(generated).episode(0)
    assert np.abs(made.reset_to({"states": stored["states"][9]})["object"] - stored["object"][9]).max() < 1e-5
