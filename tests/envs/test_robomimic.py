"""robomimic's tasks: the Gymnasium contract, seeds, replay of recordings, action spaces, datasets' env_args, refusals."""

import ctypes.util
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from isdt_policy.envs import make, registry, robosuite_compat, rotations, task_ids, task_spec
from isdt_policy.envs.experts.arm import HAND_TO_SITE
from isdt_policy.envs.registry import check_recorded
from isdt_policy.envs.robomimic_args import env_args, make_from_env_args, task_of
from isdt_policy.envs.robomimic_specs import SPECS
from isdt_policy.shared.errors import InputError

pytestmark = pytest.mark.slow

# Recordings of 1.4 and tasks that are tested with it alone are refused by robosuite 1.5; run there, the rest must pass.
COMPOSITE = robosuite_compat.is_composite()
needs_14 = pytest.mark.skipif(COMPOSITE, reason="robosuite 1.5 is installed: refused by design")
TASKS = [task for task in task_ids() if task in SPECS and (not COMPOSITE or task.startswith(("lift", "can")))]

LIFT_FILES = {
    "lift_ph_low_dim": ("demo_0", "demo_1"),
    "lift_ph_test": ("demo_2",),
    "lift_mh_image": ("demo_0",),
}


@pytest.fixture(scope="module")
def lift():
    return make("lift", end_on_success=False)


@pytest.fixture(scope="module")
def lift_abs():
    return make("lift_abs", end_on_success=False)


@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_contract(task):
    env = make(task)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Absolute actions are metres on purpose: the data sets' own unit.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space")
        check_env(env, skip_render_check=True)
    spec = task_spec(task)
    obs, _ = env.reset(seed=0)
    assert {key: value.shape for key, value in obs.items()} == {key: spec.observations[key].shape for key in obs}
    assert set(spec.observations) - set(obs) == {key for key in spec.observations if key.endswith("_image")}
    assert env.action_space.shape == spec.action.shape
    env.close()


def test_a_seed_is_an_episode_in_any_process(lift):
    for seed in (5, 6):  # whatever happened before must not show
        lift.reset(seed=seed)
        lift.step(np.ones(7, np.float32))
    obs, _ = lift.reset(seed=3)
    action = np.array([0.3, -0.2, -0.8, 0.1, 0, 0.2, 1], np.float32)
    after = [lift.step(action)[0] for _ in range(3)][-1]
    code = (
        "import numpy as np; from isdt_policy.envs import make; env = make('lift'); o, _ = env.reset(seed=3);"
        "a = np.array([0.3, -0.2, -0.8, 0.1, 0, 0.2, 1], np.float32); p = [env.step(a)[0] for _ in range(3)][-1];"
        "print(o['object'].tobytes().hex(), p['robot0_joint_pos'].tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""  # robosuite's advice about macro files stays away from users' terminals
    assert done.stdout.split() == [obs["object"].tobytes().hex(), after["robot0_joint_pos"].tobytes().hex()]
    assert not np.array_equal(lift.reset(seed=4)[0]["object"], obs["object"])


def test_the_global_generator_is_left_alone_and_unseeded_resets_differ(lift):
    np.random.seed(1)  # noqa: NPY002
    expected = np.random.get_state()[1].copy()  # noqa: NPY002
    first = lift.reset(seed=8)[0]["object"]
    second, third = (lift.reset()[0]["object"] for _ in range(2))
    assert np.array_equal(np.random.get_state()[1], expected)  # noqa: NPY002
    assert len({x.tobytes() for x in (first, second, third)}) == 3


@needs_14
def test_a_soft_reset_is_as_good_as_a_hard_one():
    env = make("square")
    action = np.array([0.5, 0.2, -0.6, 0.1, 0.2, 0.3, 1], np.float32)
    ends = []
    for hard in (False, True):
        env._model_is_usual = not hard
        env.reset(seed=7)
        for _ in range(4):
            env.step(action)
        ends.append(env.state())
    assert np.array_equal(*ends)


@needs_14
@pytest.mark.parametrize("task", ["lift", "can_abs", "transport_abs"])
def test_a_control_step_gives_the_bits_of_robosuites_own(task):
    """Arms that push, grip and turn; two resets, so that new controllers are noticed."""

    def theirs(env, action):
        robosuite_compat.step_as_robosuite(env, action)
        env.sim.forward()

    def trace(step):
        env, states = make(task), []
        down = np.array([-0.35 if i % 10 == 2 else 0.0 for i in range(env.action_space.shape[0])])
        for seed in (1, 2):
            obs, _ = env.reset(seed=seed)
            rng = np.random.default_rng(seed)
            for k in range(25):
                action = rng.uniform(-1, 1, env.action_space.shape) + down
                if task.endswith("abs"):
                    hands = [obs[f"robot{i}_eef_pos"] - [0, 0, 0.03] for i in range(len(action) // 10)]
                    tail = [1, 0, 0, 0, -1, 0.1 * rng.normal(), 1 if k % 8 < 4 else -1]
                    action = np.concatenate([[*hand, *tail] for hand in hands])
                step(env.sim, env._command(action.astype(np.float32)))
                obs = env.observe()
                states.append(env.state())
                states.append(np.concatenate([v.ravel() for v in obs.values()]))
        return states, env.sim.sim.data._data.ncon

    (ours, contacts), (expected, _) = trace(robosuite_compat.step), trace(theirs)
    assert contacts > 0
    for a, b in zip(ours, expected, strict=True):
        assert np.array_equal(a, b)


@needs_14
@pytest.mark.parametrize("name", LIFT_FILES)
def test_real_demonstrations_replay(name, real_data, lift, lift_abs):
    import h5py

    with h5py.File(real_data / "robomimic_samples" / f"{name}.hdf5") as file:
        for demo in (file["data"][d] for d in LIFT_FILES[name]):
            states, actions, model = demo["states"][()], demo["actions"][()], demo.attrs.get("model_file")
            observed = lift.observations_of(states, model)
            for key, value in observed.items():
                assert np.abs(value - demo["obs"][key][()]).max() < 1e-5, key
            absolute = lift.absolute_actions(states, actions, model)
            assert succeeds(lift, states[0], actions, model)
            assert succeeds(lift_abs, states[0], absolute, model)


@needs_14
def test_real_can_recordings_are_observed_alike(real_data):
    import h5py

    env = make("can")
    with h5py.File(real_data / "robomimic_samples" / "can_mg_low_dim.hdf5") as file:
        demo = file["data"]["demo_10"]
        observed = env.observations_of(demo["states"][:60], demo.attrs["model_file"])
        for key, value in observed.items():
            assert np.abs(value - demo["obs"][key][:60]).max() < 1e-5, key


def succeeds(env, state, actions, model):
    env.reset_to(state, model)
    return any([env.step(action)[-1]["is_success"] for action in actions])


def test_state_and_observation_survive_a_reset_to(lift):
    lift.reset(seed=2)
    for _ in range(5):
        obs, *_ = lift.step(np.array([0.2, 0.5, -0.9, 0, 0, 0.4, -1], np.float32))
    state, xml = lift.state(), lift.model_xml()
    lift.reset(seed=9)
    again, _ = lift.reset_to(state, xml)
    assert np.array_equal(lift.state(), state)
    for key, value in obs.items():
        assert np.allclose(again[key], value, atol=1e-6), key
    sizes = [robosuite_compat.geometry_of(lift.sim, text)["cube_g0"]["size"] for text in (xml, lift.model_xml())]
    assert np.allclose(*(np.array(size.split(), float) for size in sizes))


def test_absolute_actions_are_poses_of_the_grip_site(lift_abs):
    obs, _ = lift_abs.reset(seed=1)
    start = obs["robot0_eef_pos"].astype(float)
    matrix = rotations.quaternion_to_matrix(obs["robot0_eef_quat"]) @ HAND_TO_SITE
    turn = rotations.axis_angle_to_matrix([0, 0, 0.4])
    target = np.concatenate([start + np.array([0.05, -0.06, 0.02]), rotations.matrix_to_six(turn @ matrix), [-1]])
    for _ in range(40):
        obs, *_ = lift_abs.step(target.astype(np.float32))
    assert np.abs(obs["robot0_eef_pos"] - target[:3]).max() < 0.004
    reached = rotations.quaternion_to_matrix(obs["robot0_eef_quat"]) @ HAND_TO_SITE
    assert np.linalg.norm(rotations.matrix_to_axis_angle(reached @ (turn @ matrix).T)) < 0.03


def test_six_numbers_and_axis_angle_command_the_same(lift_abs):
    env = make("lift", control="absolute", rotation="axis-angle", end_on_success=False)
    assert env.action_space.shape == (7,)
    vector, position = np.array([2.2, 2.1, 0.1]), [0.0, 0.05, 0.95]
    six = rotations.matrix_to_six(rotations.axis_angle_to_matrix(vector))
    ends = []
    for one, action in ((env, [*position, *vector, 1]), (lift_abs, [*position, *six, 1])):
        one.reset(seed=4)
        for _ in range(3):
            one.step(np.array(action, np.float32))
        ends.append(one.state())
    assert np.allclose(*ends, atol=1e-5)


def test_a_delta_turn_in_six_numbers_is_the_turn_itself(lift):
    env = make("lift", rotation="6d", end_on_success=False)
    turn = np.array([0.1, -0.2, 0.3])  # rad
    six = rotations.matrix_to_six(rotations.axis_angle_to_matrix(turn))
    ends = []
    for one, action in ((lift, [0, 0, 0.2, *(turn / 0.5), 1]), (env, [0, 0, 0.2, *six, 1])):
        one.reset(seed=4)
        for _ in range(2):
            one.step(np.array(action, np.float32))
        ends.append(one.state())
    assert np.allclose(*ends, atol=1e-5)


def test_two_arms_take_twenty_numbers():
    assert task_spec("transport").action.shape == (14,)
    assert task_spec("transport_abs").action.shape == (20,)
    assert task_spec("lift_abs").action.shape == (10,)


def test_bad_actions_and_states_are_refused(lift, lift_abs):
    lift.reset(seed=0)
    with pytest.raises(InputError, match=r"shape \(7,\), got \(10,\)"):
        lift.step(np.zeros(10, np.float32))
    with pytest.raises(InputError, match="finite"):
        lift.step(np.full(7, np.nan, np.float32))
    with pytest.raises(InputError, match=r"shape \(32,\)"):
        lift.reset_to(np.zeros(5))
    lift_abs.reset(seed=0)
    with pytest.raises(InputError, match="parallel"):
        lift_abs.step(np.zeros(10, np.float32))
    with pytest.raises(InputError, match="Did you mean 'absolute'"):
        make("lift", control="absolut")
    with pytest.raises(InputError, match="not XML"):
        lift.reset(options={"model_file": "<mujoco"})
    with pytest.raises(InputError, match="has to be recorded"):
        task_spec("lift").derive({"action": np.zeros((2, 7))}, ["object"])


def test_stepping_after_the_end_is_refused():
    env = make("lift")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(7, np.float32))
    env.reset(seed=0)
    env.reset_to(lifted(env))
    *_, terminated, truncated, info = env.step(np.zeros(7, np.float32))
    assert (terminated, truncated, info["is_success"]) == (True, False, True)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(7, np.float32))


def lifted(env):
    """The present state with the cube half a metre above the table."""
    state = env.state()
    address = env.sim.sim.model.get_joint_qpos_addr("cube_joint0")[0]
    state[1 + address + 2] = 1.3
    return state


def test_episodes_are_cut_at_robomimics_horizon(lift):
    lift.reset(seed=0)
    lift._steps = task_spec("lift").max_episode_steps - 1
    assert lift.step(np.zeros(7, np.float32))[3]


@pytest.mark.parametrize(
    ("package", "version", "said"),
    [
        ("mujoco", "4.0.0", "3.1.6 to 3.8"),
        ("mujoco", "3.1.5", "3.1.6 to 3.8"),
        ("mujoco", "3.17.0", "3.1.6 to 3.8"),
        ("robosuite", "1.5.0", "only 1.4.1, 1.5.1, 1.5.2"),
        ("robosuite", None, r"isdt-policy\[robosuite\]"),
    ],
)
def test_versions_that_were_not_tested_are_refused_before_anything_is_imported(monkeypatch, package, version, said):
    real = registry.installed_version

    def pretended(name):
        return version if name == package else real(name)

    monkeypatch.setattr(registry, "installed_version", pretended)
    monkeypatch.setattr(robosuite_compat, "installed_version", pretended)
    with pytest.raises(InputError, match=said):
        make("lift")


def test_env_args_name_the_task_both_ways():
    for task in SPECS:
        assert task_of(env_args(task)) == task
    env = make_from_env_args(env_args("lift_abs"))
    assert env.action_space.shape == (7,)  # robomimic's own absolute actions
    assert (
        robosuite_compat._controller(env.sim.robots[0]).input_type == "absolute"
        if COMPOSITE
        else not env.sim.robots[0].controller.use_delta
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"env_name": "Lft"}, "Did you mean 'Lift'"),
        (
            {"env_version": "1.4.1" if COMPOSITE else "1.5.0"},
            r"robosuite 1\.[45]\.\d, the environment is robosuite 1\.[45]\.[12]",
        ),
        ({"control_freq": 10}, "10 Hz, the environment runs at 20 Hz"),
        ({"robots": ["Sawyer"]}, "Sawyer.*Panda"),
        ({"type": "JOINT_POSITION"}, "type=JOINT_POSITION, the environment's has type=OSC_POSE"),
        ({"output_max": [0.1] * 6}, "output_max=.*0.1.*0.05"),
        ({"impedance_mode": "variable"}, "variable, ours is fixed"),
    ],
)
def test_env_args_that_do_not_fit_are_refused_with_both_named(change, said):
    args = env_args("lift")
    for key, value in change.items():
        where = args
        if key in ("control_freq", "robots"):
            where = args["env_kwargs"]
        elif key in ("type", "output_max", "impedance_mode"):
            where = args["env_kwargs"]["controller_configs"]
            where = where["body_parts"]["right"] if COMPOSITE else where
        where[key] = value
    with pytest.raises(InputError, match=said):
        task_of(args)


def test_demonstrations_with_another_action_space_are_refused():
    check_recorded(task_spec("lift"), {"action_space": {"type": "delta", "rotation": "axis-angle"}}, "a.zarr")
    check_recorded(task_spec("lift"), {}, "a.zarr")
    for key, value in (("type", "absolute"), ("controller", "JOINT_POSITION"), ("rotation", "6d"), ("rate_hz", 10)):
        with pytest.raises(InputError, match=f"{key}={value}.*{key}="):
            check_recorded(task_spec("lift"), {"action_space": {key: value}}, "a.zarr")


def test_cameras_see_the_scene_or_say_what_to_install():
    drawing = any(ctypes.util.find_library(name) for name in ("EGL", "OSMesa"))
    if not drawing:
        with pytest.raises(InputError, match="apt-get install"):
            make("lift", obs_keys=["agentview_image"])
        return
    env = make("lift", obs_keys=["agentview_image", "object"], render_mode="rgb_array", render_size=64)
    obs, _ = env.reset(seed=0)
    image = obs["agentview_image"]
    assert image.shape == (84, 84, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10
    red = (image[..., 0] > image[..., 1].astype(int) + 60).sum()  # the cube
    assert red > 5
    assert env.render().shape == (64, 64, 3)
    env.close()


@pytest.mark.skipif(not ctypes.util.find_library("EGL"), reason="needs EGL to draw")
def test_two_models_in_one_process_are_each_drawn_as_if_alone():
    lift = make("lift", obs_keys=["agentview_image"])
    alone = lift.reset(seed=0)[0]["agentview_image"]
    can = make("can", obs_keys=["agentview_image"])
    can.reset(seed=0)
    again = lift.unwrapped.observe()["agentview_image"]
    np.testing.assert_array_equal(again, alone)
    lift.close()
    can.close()
