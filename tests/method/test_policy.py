"""The policy as users hold it: saving, refusing bad input, noise per row."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from isdt_policy.envs.protocol import ObsSpec
from isdt_policy.envs.protocol import Policy as PolicyProtocol
from isdt_policy.method.networks import read_network
from isdt_policy.method.networks.obs_encoder import StateEncoder
from isdt_policy.method.networks.unet1d import UNet1dConfig
from isdt_policy.method.normalization import Affine, Normalizer, action_statistics
from isdt_policy.method.policy import Policy, PolicyConfig, weights_sha256
from isdt_policy.shared.errors import InputError

OLD = Path(__file__).parents[1] / "fixtures" / "v0_1"


@pytest.fixture
def policy():
    torch.manual_seed(0)
    config = PolicyConfig(
        task="pusht", observations={"agent_pos": ObsSpec((2,)), "keypoints": ObsSpec((18,))},
        action_dim=2, cond_dim=16, encoder_hidden=(32,),
        network=UNet1dConfig((16, 32), embed_dim=32, time_dim=16),
    )  # fmt: skip
    policy = Policy(config)
    torch.nn.init.normal_(policy.network.network.out.weight, std=0.5)
    limits = {"min": np.zeros(1), "max": np.full(1, 512.0), "mean": np.full(1, 256.0), "std": np.ones(1)}
    stats = {k: {m: np.repeat(v, d) for m, v in limits.items()} for k, d in {**config.obs_dims, "action": 2}.items()}
    policy.normalizer.fit(stats)
    return policy.eval()


def observations(batch, seed=0):
    rng = np.random.default_rng(seed)
    return {"agent_pos": rng.uniform(0, 512, (batch, 2, 2)), "keypoints": rng.uniform(0, 512, (batch, 2, 18))}


def test_it_satisfies_the_protocol(policy):
    assert isinstance(policy, PolicyProtocol)


def test_the_executed_chunk_starts_at_the_newest_observation(policy):
    """The timeline of the module docstring: To = 2, T = 16, Ta = 8 executes predictions 1 .. 8."""
    result = policy.predict_action(observations(3))
    assert result["action_pred"].shape == (3, 16, 2)
    assert np.array_equal(result["action"], result["action_pred"][:, 1:9])


def test_a_rows_action_does_not_depend_on_its_neighbours(policy):
    """Bit for bit, at every position and for every batch size: what makes evaluation independent of n_envs."""
    obs = observations(37)
    seeds = np.stack([np.arange(37), np.arange(37) % 5], axis=1)
    together = policy.predict_action(obs, nfe=2, noise_seeds=seeds)["action_pred"]
    for rows in ([0], [36], [20, 3], list(range(5, 30)), list(range(36, -1, -1))):
        part = policy.predict_action({k: v[rows] for k, v in obs.items()}, nfe=2, noise_seeds=seeds[rows])
        assert np.array_equal(part["action_pred"], together[rows])


def test_alone_it_is_the_same_policy_with_one_row_a_call(policy):
    rows = []
    policy.network.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    alone, seeds = policy.alone(), np.array([[1, 0], [2, 0]])
    action = policy.predict_action(observations(2), noise_seeds=seeds)["action"]
    assert rows == [16]
    np.testing.assert_allclose(
        alone.predict_action(observations(2), noise_seeds=seeds)["action"], action, rtol=0, atol=1e-2
    )
    assert rows == [16, 1, 1]
    assert (alone.inference_rows, policy.inference_rows) == (1, 16)
    with torch.no_grad():  # the same weights, not a copy of them
        policy.network.network.out.bias += 1
    assert all(a is b for a, b in zip(policy.parameters(), alone.parameters(), strict=True))


@pytest.mark.parametrize("rows", [1, 5, 16])
def test_a_frozen_policy_gives_the_bits_of_one_with_as_many_rows(policy, rows, tmp_path):
    """In the memory of the last call, whose answer stays what it was; as asked for, and otherwise."""
    policy.save_pretrained(tmp_path)
    plain, ways = Policy.from_pretrained(tmp_path, rows), (1, 2, "euler3", "restart2")
    frozen = policy.freeze(*ways, rows=rows)
    assert list(frozen._replays) == ["1", "2", "euler3"]  # restart2 draws on the way
    asked = [(observations(7, seed), np.array([[seed, i] for i in range(7)])) for seed in (1, 2)]
    for nfe in (*ways, 3):
        answers = [frozen.predict_action(obs, nfe=nfe, noise_seeds=seeds)["action_pred"] for obs, seeds in asked]
        for answer, (obs, seeds) in zip(answers, asked):
            assert np.array_equal(answer, plain.predict_action(obs, nfe=nfe, noise_seeds=seeds)["action_pred"])
    with pytest.raises(InputError, match="nfe='euler'"):
        policy.freeze("euler")
    with pytest.raises(InputError, match="rows=0 must be at least 1"):
        policy.freeze(1, rows=0)


def test_a_frozen_policy_sees_weights_that_change_and_another_way_of_acting(policy):
    frozen, obs, seeds = policy.freeze(1), observations(1), np.array([[1, 2]])
    before = frozen.predict_action(obs, noise_seeds=seeds)["action_pred"]
    still = frozen.acting(noise_scale=0.0).predict_action(obs, noise_seeds=seeds)["action_pred"]
    expected = policy.freeze().acting(noise_scale=0.0).predict_action(obs, noise_seeds=seeds)["action_pred"]
    assert np.array_equal(still, expected)
    assert not np.array_equal(still, before)
    with torch.no_grad():
        policy.network.network.out.bias += 1
    assert not np.array_equal(frozen.predict_action(obs, noise_seeds=seeds)["action_pred"], before)


def test_the_rows_of_a_call_are_chosen_once(policy, tmp_path):
    with pytest.raises(AttributeError):
        policy.inference_rows = 1
    with pytest.raises(InputError, match="inference_rows=0 must be at least 1"):
        Policy(policy.config, inference_rows=0)
    policy.save_pretrained(tmp_path)
    assert Policy.from_pretrained(tmp_path, inference_rows=4).inference_rows == 4


def test_the_identity_of_weights_is_that_of_their_files(policy, tmp_path):
    """Results of version 0.1.0 hold it: it must not change."""
    policy.save_pretrained(tmp_path / "policy")
    files = [tmp_path / "policy" / name for name in ("config.json", "model.safetensors")]
    expected = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert weights_sha256(tmp_path) == weights_sha256(tmp_path / "policy") == expected
    info = json.loads((OLD / "eval" / "eval_info.json").read_text())
    assert weights_sha256(OLD / "run_isd_t") == info["policy"]["fingerprint"]
    with pytest.raises(InputError, match="no policy at"):
        weights_sha256(tmp_path / "absent")


def test_noise_is_a_function_of_episode_and_decision(policy):
    obs = {k: np.repeat(v, 3, axis=0) for k, v in observations(1).items()}
    same_same_other = policy.predict_action(obs, noise_seeds=np.array([[7, 0], [7, 0], [7, 1]]))["action"]
    assert np.array_equal(same_same_other[0], same_same_other[1])
    assert not np.array_equal(same_same_other[0], same_same_other[2])


def at_scale(policy, scale):
    scaled = Policy(dataclasses.replace(policy.config, noise_scale=scale))
    scaled.load_state_dict(policy.state_dict())
    return scaled.eval()


@pytest.mark.parametrize("steps", [1, 2, "euler3"])
def test_the_noise_scale_scales_the_initial_noise_and_nothing_else(policy, steps):
    obs, seeds = observations(16), np.stack([np.arange(16), np.zeros(16, int)], 1)
    z = np.stack([np.random.default_rng(row.tolist()).standard_normal((16, 2), dtype=np.float32) for row in seeds])
    with torch.no_grad():
        given = {k: torch.as_tensor(v, dtype=torch.float32) for k, v in obs.items()}
        normalised = policy.sample(0.25 * torch.from_numpy(z), policy.encode(given), steps)
        expected = policy.normalizer.unnormalize_action(normalised, given).numpy()
    found = at_scale(policy, 0.25).predict_action(obs, nfe=steps, noise_seeds=seeds)["action_pred"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)  # px
    assert np.abs(found - policy.predict_action(obs, nfe=steps, noise_seeds=seeds)["action_pred"]).max() > 1


def test_at_a_noise_scale_of_0_every_draw_is_the_same(policy):
    obs = {k: np.repeat(v, 2, axis=0) for k, v in observations(1).items()}
    one, other = at_scale(policy, 0.0).predict_action(obs, noise_seeds=np.array([[7, 0], [8, 0]]))["action"]
    assert np.array_equal(one, other)


@pytest.mark.parametrize("scale", [-0.1, 1.5, float("nan")])
def test_a_noise_scale_out_of_range_is_refused(policy, scale):
    with pytest.raises(InputError, match=r"noise_scale must be in \[0, 1\]"):
        dataclasses.replace(policy.config, noise_scale=scale)


def test_saving_and_loading_gives_the_same_actions(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    loaded = Policy.from_pretrained(tmp_path)
    assert loaded.config == policy.config
    seeds = np.zeros((4, 2), np.int64)
    a, b = (p.predict_action(observations(4), nfe=2, noise_seeds=seeds)["action"] for p in (policy, loaded))
    assert np.array_equal(a, b)


@pytest.mark.filterwarnings("error")
def test_observations_that_cannot_be_written_to_are_read_without_a_warning(policy):
    obs = {key: np.broadcast_to(np.float32(value[:1]), value.shape) for key, value in observations(3).items()}
    assert not any(value.flags.writeable for value in obs.values())
    policy.predict_action(obs)


def test_the_callers_observations_are_not_written_to(policy):
    obs = observations(3)
    before = {k: v.copy() for k, v in obs.items()}
    policy.predict_action(obs, nfe=2)
    assert all(np.array_equal(obs[k], before[k]) for k in obs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.pop("keypoints"), "reads observation 'keypoints'"),
        (lambda o: o.update(agent_pos=np.zeros((3, 1, 2))), r"\(3, 1, 2\), expected \(batch, n_obs_steps=2, 2\)"),
        (lambda o: o.update(agent_pos=np.zeros((2, 2, 2))), r"'keypoints' has shape \(3, 2, 18\)"),
        (lambda o: o["agent_pos"].__setitem__((1, 0, 0), np.nan), "'agent_pos' holds NaN"),
    ],
)
def test_bad_observations_are_refused(policy, change, message):
    obs = observations(3)
    change(obs)
    with pytest.raises(InputError, match=message):
        policy.predict_action(obs)


@pytest.mark.parametrize("steps", [0, -1, "euller10", "euler", "ten", 1.5])
def test_unknown_steps_are_refused(policy, steps):
    with pytest.raises(InputError, match=r"euler"):
        policy.predict_action(observations(1), nfe=steps)


class TestLoading:
    def test_a_missing_path_says_how_to_train(self, tmp_path):
        with pytest.raises(InputError, match=r"does not exist. Train one: isdt train"):
            Policy.from_pretrained(tmp_path / "nothing")

    def test_truncated_weights_are_refused(self, policy, tmp_path):
        policy.save_pretrained(tmp_path)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(InputError, match="is damaged"):
            Policy.from_pretrained(tmp_path)

    def test_one_flipped_bit_in_the_weights_is_found(self, policy, tmp_path):
        policy.save_pretrained(tmp_path)
        data = bytearray((tmp_path / "model.safetensors").read_bytes())
        data[-2] ^= 1
        (tmp_path / "model.safetensors").write_bytes(data)
        with pytest.raises(InputError, match="is damaged or belongs to another policy"):
            Policy.from_pretrained(tmp_path)

    def test_weights_of_another_action_size_are_refused(self, policy, tmp_path):
        policy.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "action_dim": 7}))
        with pytest.raises(InputError, match=r"weights do not fit config.json"):
            Policy.from_pretrained(tmp_path)

    def test_an_unknown_key_names_the_nearest(self, policy, tmp_path):
        policy.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "horizn": 16}))
        with pytest.raises(InputError, match=r"unknown key 'horizn'. Did you mean 'horizon'"):
            Policy.from_pretrained(tmp_path)

    def test_missing_statistics_are_refused(self, policy, tmp_path):
        policy.normalizer.action.scale.fill_(float("nan"))
        policy.save_pretrained(tmp_path)
        with pytest.raises(InputError, match=r"no value for 'action.scale'"):
            Policy.from_pretrained(tmp_path)


def test_a_chunk_that_does_not_fit_the_window_is_refused():
    with pytest.raises(InputError, match="holds 15 actions from now on"):
        PolicyConfig(task="pusht", observations={"agent_pos": ObsSpec((2,))}, action_dim=2, n_action_steps=16)


def test_octaves_read_sines_and_cosines_that_double_in_frequency():
    encoder = StateEncoder({"x": 2}, n_obs_steps=1, cond_dim=10, hidden=(), octaves=2)
    with torch.no_grad():
        encoder.layers[0].weight.copy_(torch.eye(10))
        encoder.layers[0].bias.zero_()
        read = encoder({"x": torch.tensor([[[0.5, -1.0]]])})[0]
    half = 2**-0.5
    # x; sin(pi x / 2), sin(pi x); the cosines
    expected = torch.tensor([0.5, -1.0, half, -1.0, 1.0, 0.0, half, 0.0, 0.0, -1.0])
    torch.testing.assert_close(read, expected, rtol=0, atol=1e-6)


class TestNormalization:
    STATS = {"min": [-1.0, 3.0], "max": [5.0, 3.0], "mean": [1.0, 3.0], "std": [2.0, 0.0]}  # noqa: RUF012

    def test_limits_map_to_minus_one_and_one_and_back(self):
        affine = Affine(2)
        affine.fit(self.STATS, "limits")
        x = torch.tensor([[-1.0, 3.0], [5.0, 3.0], [2.0, 3.5]])
        torch.testing.assert_close(affine(x)[:, 0], torch.tensor([-1.0, 1.0, 0.0]))
        torch.testing.assert_close(affine.inverse(affine(x)), x)

    def test_a_constant_feature_is_not_amplified(self):
        for mode in ("limits", "gaussian"):
            affine = Affine(2)
            affine.fit(self.STATS, mode)
            assert affine(torch.tensor([[0.0, 3.5]]))[0, 1] == pytest.approx(0.5)

    @pytest.fixture
    def batch(self):
        """Chunks whose spread grows along the window, far from the origin, following the agent."""
        rng = np.random.default_rng(0)
        agent = rng.uniform(0, 500, (5000, 2, 3)).astype(np.float32)
        drift = rng.normal(1.0, 2.0, (5000, 4, 3)) * np.arange(1, 5)[:, None]
        return {"obs": {"agent": agent}, "action": (agent[:, -1:] + drift).astype(np.float32)}

    def test_vectors_of_an_action_share_one_scale_each(self):
        """A tilt of 0.01 keeps a hundredth of the weight of a turn of 1, and a metre along x that of one along z."""
        std = np.array(
            [[0.3, 0.1, 0.2, 1.0, 0.01, 0.5, 0.5, 1.0, 0.01, 0.8]] * 2 + [[0.6, 0.2, 0.4, *[0.5] * 6, 0.4]] * 2
        )
        statistics = {"min": -std, "max": std, "mean": np.zeros_like(std), "std": std}
        normalizer = Normalizer({"p": 3}, 4, 10)
        normalizer.fit(
            {"p": {k: v[0, :3] for k, v in statistics.items()}, "action": statistics},
            "limits",
            "gaussian_vectors",
            (3, 6, 1),
        )
        scale = normalizer.action.scale.numpy()
        assert np.allclose(scale[0, :3], (0.14 / 3) ** -0.5)
        assert np.allclose(scale[0, 3:9], (2.5002 / 6) ** -0.5)
        assert np.allclose(scale[:, 9], [1.25, 1.25, 2.5, 2.5])
        assert np.allclose(scale[2], [*[(0.56 / 3) ** -0.5] * 3, *[2.0] * 6, 2.5])
        chunk = torch.from_numpy(std).float()[None]
        there = normalizer.normalize_action(chunk, {})
        assert torch.allclose(normalizer.unnormalize_action(there, {}), chunk, atol=1e-6)
        with pytest.raises(InputError, match=r"the parts of an action of 10 entries, got \[3, 3, 1\]"):
            normalizer.fit(
                {"p": {k: v[0, :3] for k, v in statistics.items()}, "action": statistics},
                "limits",
                "gaussian_vectors",
                (3, 3, 1),
            )
        with pytest.raises(InputError, match="Did you mean 'gaussian_vectors'"):
            normalizer.fit(
                {"p": {k: v[0, :3] for k, v in statistics.items()}, "action": statistics}, "limits", "gaussian_vector"
            )

    @pytest.mark.parametrize(("mode", "pooled"), [("gaussian", True), ("gaussian_per_step", False)])
    def test_relative_chunks_have_unit_variance_and_come_back(self, batch, mode, pooled):
        normalizer = Normalizer({"agent": 3}, 4, 3, action_reference="agent")
        agent_stats = {"min": np.zeros(3), "max": np.full(3, 500.0), "mean": np.full(3, 250.0), "std": np.ones(3)}
        # Two blocks of unequal size: the streaming statistics must not depend on how the windows are cut.
        blocks = [
            {"obs": {"agent": batch["obs"]["agent"][a]}, "action": batch["action"][a]}
            for a in (slice(700), slice(700, None))
        ]
        statistics = {"agent": agent_stats, "action": action_statistics(blocks, "agent")}
        normalizer.fit(statistics, "limits", mode)
        obs = {"agent": torch.from_numpy(batch["obs"]["agent"])}
        x = normalizer.normalize_action(torch.from_numpy(batch["action"]), obs)
        axes = (0, 1) if pooled else 0
        torch.testing.assert_close(x.mean(axes), torch.zeros_like(x.mean(axes)), rtol=0, atol=1e-4)
        torch.testing.assert_close(x.std(axes, correction=0), torch.ones_like(x.mean(axes)), rtol=1e-3, atol=0)
        assert normalizer.action_spread(statistics["action"]) == pytest.approx(1.0, rel=1e-3)
        back = normalizer.unnormalize_action(x, obs)
        torch.testing.assert_close(back, torch.from_numpy(batch["action"]), rtol=0, atol=1e-3)

    def test_a_planar_frame_turns_the_axes(self):
        """A frame at (10, 20), its x axis along the world's y: a target 5 ahead on the world's y axis is 5 on its x axis."""
        normalizer = Normalizer({"frame": 4}, 1, 2, action_reference="frame")
        unit = {"min": -np.ones((1, 2)), "max": np.ones((1, 2)), "mean": np.zeros((1, 2)), "std": np.ones((1, 2))}
        of_frame = {key: np.full(4, float(i)) for i, key in enumerate(("min", "max", "mean", "std"))}
        normalizer.fit({"frame": of_frame, "action": unit}, "limits", "gaussian_per_step")
        obs = {"frame": torch.tensor([[[0.0, 0.0, 1.0, 0.0], [10.0, 20.0, 0.0, 1.0]]])}
        action = torch.tensor([[[10.0, 25.0]]])
        x = normalizer.normalize_action(action, obs)
        torch.testing.assert_close(x, torch.tensor([[[5.0, 0.0]]]))
        torch.testing.assert_close(normalizer.unnormalize_action(x, obs), action)
        statistics = action_statistics([{"obs": {"frame": obs["frame"].numpy()}, "action": action.numpy()}], "frame")
        np.testing.assert_allclose(statistics["mean"], [[5.0, 0.0]], atol=1e-12)

    @pytest.mark.parametrize("arms", [1, 2])
    def test_an_arms_targets_become_displacements_of_its_hand(self, arms):
        """Ten entries per arm: three of position move with that arm's hand, the rotation and the gripper do not."""
        hands = [f"robot{i}_eef_pos" for i in range(arms)]
        reference, size = ",".join(hands), 10 * arms
        normalizer = Normalizer(dict.fromkeys(hands, 3), 2, size, action_reference=reference)
        unit = {"min": -np.ones(size), "max": np.ones(size), "mean": np.zeros(size), "std": np.ones(size)}
        of_hand = {key: np.full(3, float(i)) for i, key in enumerate(("min", "max", "mean", "std"))}
        normalizer.fit({**dict.fromkeys(hands, of_hand), "action": unit}, "limits", "gaussian_per_step")
        obs = {key: torch.tensor([[[9.0, 9, 9], [0.1 + i, 0.2, 0.3]]]) for i, key in enumerate(hands)}
        action = torch.arange(2.0 * size).reshape(1, 2, size)
        x = normalizer.normalize_action(action, obs)
        expected = action.clone()
        for i in range(arms):
            expected[..., 10 * i : 10 * i + 3] -= torch.tensor([0.1 + i, 0.2, 0.3])
        torch.testing.assert_close(x, expected)
        torch.testing.assert_close(normalizer.unnormalize_action(x, obs), action)
        block = {"obs": {key: value.numpy() for key, value in obs.items()}, "action": action.numpy()}
        np.testing.assert_allclose(action_statistics([block], reference)["mean"], expected[0].numpy(), atol=1e-6)

    def test_a_reference_of_another_size_is_refused(self):
        with pytest.raises(
            InputError, match="action_reference='agent' must be an observation of the action's 2 entries"
        ):
            Normalizer({"agent": 3}, 4, 2, action_reference="agent")


@pytest.mark.parametrize("deleted", [False, True])
def test_a_reader_gets_one_checkpoint_and_its_fingerprint_while_training_writes_the_next(
    deleted, policy, tmp_path, monkeypatch
):
    checkpoints = tmp_path / "run/checkpoints"
    policy.save_pretrained(checkpoints / "1/policy")
    torch.nn.init.normal_(policy.network.network.out.weight, std=0.1)
    policy.save_pretrained(checkpoints / "2/policy")
    known = {weights_sha256(checkpoints / step): Policy.from_pretrained(checkpoints / step) for step in "12"}
    (checkpoints / "last").symlink_to("1")
    read, moved = Path.read_bytes, []

    def and_then_training_goes_on(path):
        data = read(path)
        if not moved:
            moved.append(path)
            (checkpoints / "last").unlink()
            (checkpoints / "last").symlink_to("2")
            if deleted:
                shutil.rmtree(checkpoints / "1")
        return data

    monkeypatch.setattr(Path, "read_bytes", and_then_training_goes_on)
    loaded = Policy.from_pretrained(tmp_path / "run")
    assert moved
    expected = known[loaded.fingerprint].state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    assert loaded.fingerprint == weights_sha256(checkpoints / ("2" if deleted else "1"))
    assert policy.fingerprint == ""  # what was not loaded has none


@pytest.mark.parametrize(("key", "value"), [
    ("horizon", "16"), ("horizon", {"a": 1}), ("n_obs_steps", 2**70), ("noise_scale", "x"), ("sigma_data", None),
    ("interpolant", {}), ("interpolant", 3), ("action_reference", 1.5), ("precondition", 0), ("n_action_steps", 8.0),
    ("cond_dim", True), ("sigma_data", 1e300), ("obs_dims", {"agent_pos": "x"}), ("obs_dims", {"agent_pos": -1}),
    ("sigma_data", "0.5"), ("encoder_hidden", [16, "x"]), ("encoder_hidden", [2**20]),
])  # fmt: skip
def test_a_value_of_another_kind_in_config_json_is_refused_in_one_line(key, value, policy, tmp_path):
    policy.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(
        InputError, match=rf"config.json is damaged .*{key}|encoder_hidden=.*widths are whole"
    ) as caught:
        Policy.from_pretrained(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("sizes", [
    {"groups": 0}, {"groups": {}}, {"down_dims": []}, {"down_dims": [8, -16]}, {"down_dims": 3.5}, {"time_dim": "x"},
    {"kernel_size": -1}, {"embed_dim": None}, {"time_periods": 1e300}, {"down_dims": [8, "16"]},
])  # fmt: skip
def test_a_network_of_impossible_sizes_is_refused_in_one_line(sizes):
    with pytest.raises(InputError, match=f"network.{next(iter(sizes))}") as caught:
        read_network({"name": "unet1d", **sizes})
    assert len(str(caught.value).splitlines()) == 1
