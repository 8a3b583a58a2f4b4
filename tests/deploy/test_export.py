"""Exported files say what the policy says, run without torch, and are refused when a bit is wrong."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from isdt_deploy_toys import MLP, observations, run, tiny_policy

from isdt_policy.cli.export import Export
from isdt_policy.deploy.export import FileFormat, export, load_pt2, parity
from isdt_policy.deploy.freezing import candidate_noise
from isdt_policy.deploy.limits import Limits
from isdt_policy.deploy.runner import ZEROS, OnnxPolicy
from isdt_policy.shared.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """A UNet whose chunks are displacements of the agent, exported at one evaluation."""
    folder = tmp_path_factory.mktemp("export")
    policy = tiny_policy(reference="agent_pos", interpolant="trigonometric")
    limits = Limits(low=(0, 0), high=(512, 512), step=(90, 90))
    for format in ("onnx", "pt2"):
        export(policy, folder / f"p.{format}", FileFormat(format), limits=limits, source="here")
    return policy, folder


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_one_evaluation_agrees_over_a_thousand_inputs(unet, format):
    policy, folder = unet
    assert parity(policy, folder / f"p.{format}", inputs=1000) <= 1e-4


@pytest.mark.parametrize(("steps", "prefix"), [(2, False), ("euler3", False), (2, True)])
def test_more_evaluations_and_started_chunks_agree_too(tmp_path, steps, prefix):
    policy = tiny_policy(reference="agent_pos", network=MLP)
    path = export(policy, tmp_path / "p.onnx", FileFormat(nfe=steps, prefix=prefix))
    assert parity(policy, path, nfe=steps, prefix=prefix, inputs=1000) <= 1e-4
    if not prefix:  # the number of evaluations is in the graph: that of another number is another policy
        assert parity(policy, path, nfe=1, inputs=50) > 1e-2


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_the_noise_scale_is_in_the_graph(tmp_path, format):
    policy = tiny_policy(reference="agent_pos", network=MLP)
    policy.config = replace(policy.config, noise_scale=0.5)
    path = export(policy, tmp_path / f"p.{format}", FileFormat(format))
    assert parity(policy, path, inputs=100) <= 1e-4
    policy.config = replace(policy.config, noise_scale=1.0)
    assert parity(policy, path, inputs=100) > 1e-2


def test_the_parity_check_sees_a_wrong_statistic(unet):
    policy, folder = unet
    policy.normalizer.action.offset[3, 0] += 1.0  # px; the file keeps the old one
    try:
        assert parity(policy, folder / "p.onnx", inputs=20) > 1e-2
    finally:
        policy.normalizer.action.offset[3, 0] -= 1.0


def test_the_batch_is_free_and_metadata_travels(unet):
    policy, folder = unet
    runner = OnnxPolicy(folder / "p.onnx")
    for batch in (1, 3, 64):
        seeds = np.stack([np.arange(batch), np.zeros(batch)], 1).astype(np.int64)
        got = runner.predict_action(observations(batch), noise_seeds=seeds)
        assert got["action"].shape == (batch, 8, 2)
        assert np.array_equal(got["action"], got["action_pred"][:, 1:9])
    assert runner.obs_keys == policy.obs_keys
    assert (runner.n_obs_steps, runner.horizon, runner.task, runner.nfe) == (2, 16, "pusht", "1")
    m = runner.metadata
    assert m["limits"] == {"low": [0, 0], "high": [512, 512], "step": [90, 90]}
    assert m["source"] == "here"
    assert m == load_pt2(folder / "p.pt2")[1]


def test_the_lowest_seed_is_one_like_any_other(unet):
    """-2**63 has no absolute value in 64 bits: NumPy's is -2**63 again, which no generator takes."""
    policy, folder = unet
    obs, seeds = observations(1), np.array([[-(2**63), 0]])
    got = OnnxPolicy(folder / "p.onnx").predict_action(obs, noise_seeds=seeds)["action"]
    assert got == pytest.approx(policy.predict_action(obs, noise_seeds=seeds)["action"], abs=0.05)
    assert candidate_noise((1, 16, 2), 1, seeds).shape == (1, 1, 16, 2)


def test_the_runner_and_the_runtime_need_no_torch(unet):
    _, folder = unet
    code = f"""
import sys, numpy as np
from isdt_policy.deploy.runner import ZEROS, OnnxPolicy
from isdt_policy.deploy.runtime import Runtime
from isdt_policy.deploy.limits import Limits
from isdt_policy.deploy.safety import Safety
from isdt_policy.deploy import client, limits, motion, safety, watchdog, wire
policy = OnnxPolicy({str(folder / "p.onnx")!r})
stage = Safety(Limits.from_dict(policy.metadata["limits"]), action_dim=2, rate_hz=10, positions=True)
runtime = Runtime(policy)
runtime.reset(seed=3)
actions = [stage(runtime.act({{"agent_pos": np.full(2, 9.0), "keypoints": np.zeros(18)}})) for _ in range(9)]
rooms = [f"isdt_policy.{{room}}" for room in ("method", "training", "envs", "datasets")]
heavy = ["torch", "gymnasium", "zarr", "matplotlib", *rooms]
print([m for m in heavy if m in sys.modules], len(actions), np.isfinite(actions).all())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[] 9 True"


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.97])
def test_a_flipped_bit_anywhere_is_refused(unet, tmp_path, where):
    data = bytearray((unet[1] / "p.onnx").read_bytes())
    data[int(where * len(data))] ^= 4
    (tmp_path / "bad.onnx").write_bytes(data)
    with pytest.raises(InputError, match=r"damaged|no digest"):
        OnnxPolicy(tmp_path / "bad.onnx")


def test_foreign_and_truncated_files_are_refused(unet, tmp_path):
    data = (unet[1] / "p.onnx").read_bytes()
    for name, content in (("cut", data[:-50]), ("empty", b""), ("text", b"not a model")):
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(InputError, match=r"damaged|no digest"):
            OnnxPolicy(tmp_path / f"{name}.onnx")
        (tmp_path / f"{name}.pt2").write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as pt2"):
            load_pt2(tmp_path / f"{name}.pt2")
    with pytest.raises(InputError, match="cannot be read"):
        OnnxPolicy(tmp_path / "nothing.onnx")


@pytest.mark.parametrize(("said", "lie"), [(b'"horizon": 16', b'"horizon": 61'), (b'"action_dim"', b'"action_dym"')])
def test_a_file_that_says_of_itself_what_is_not_so_is_one_line(unet, tmp_path, said, lie):
    """With the digest that it would have: what is said is compared with what the graph takes."""
    data = (unet[1] / "p.onnx").read_bytes()
    assert said in data
    data = re.sub(rb"sha256:[0-9a-f]{64}", ZEROS.encode(), data.replace(said, lie))
    digest = b"sha256:" + hashlib.sha256(data).hexdigest().encode()
    (tmp_path / "p.onnx").write_bytes(data.replace(ZEROS.encode(), digest))
    with pytest.raises(InputError, match="is not what isdt export writes") as caught:
        OnnxPolicy(tmp_path / "p.onnx")
    assert len(str(caught.value).splitlines()) == 1


def test_the_file_names_no_path_of_the_machine_that_wrote_it(unet):
    assert b".py" not in (unet[1] / "p.onnx").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.pop("keypoints"), "reads observation 'keypoints'"),
        (lambda o: o.update(agent_pos=np.zeros((3, 1, 2))), r"\(3, 1, 2\), expected \(batch, n_obs_steps=2, 2\)"),
        (lambda o: o["agent_pos"].__setitem__((1, 0, 0), np.nan), "'agent_pos' holds NaN"),
    ],
)
def test_the_runner_refuses_bad_observations(unet, change, message):
    obs = observations(3)
    change(obs)
    with pytest.raises(InputError, match=message):
        OnnxPolicy(unet[1] / "p.onnx").predict_action(obs)


def test_the_runner_refuses_other_steps(unet):
    with pytest.raises(InputError, match="exported with nfe=1; export another for 2"):
        OnnxPolicy(unet[1] / "p.onnx").predict_action(observations(1), nfe=2)


class TestCommand:
    @pytest.fixture
    def checkpoint(self, tmp_path):
        torch.manual_seed(0)
        tiny_policy(network=MLP).save_pretrained(tmp_path / "policy")
        return tmp_path / "policy"

    def test_it_writes_checks_and_embeds_the_tasks_bounds(self, checkpoint, tmp_path, capsys):
        assert run(Export, f"checkpoint={checkpoint}", f"out={tmp_path / 'a.onnx'}", "check=50") == 0
        assert "parity: largest difference" in capsys.readouterr().out
        assert OnnxPolicy(tmp_path / "a.onnx").metadata["limits"] == {"low": [0.0, 0.0], "high": [512.0, 512.0]}

    def test_a_file_of_ones_own_task_carries_its_bounds_and_one_of_no_known_task_says_so(
        self, tmp_path, capsys, monkeypatch
    ):
        from isdt_policy.envs import registry

        (tmp_path / "reach_tasks.py").write_text(
            "from isdt_policy.envs import ArraySpec, TaskSpec\n"
            "A = ArraySpec((2,), 'float32', 'm', -0.1, 0.1, 'step')\n"
            "SPECS = {'reach': TaskSpec(id='reach', observations={}, action=A, action_type='displacement, m',\n"
            "    max_episode_steps=30, rate_hz=10, success='near', default_obs_keys=())}\n"
            "def make_env(task, **_): raise NotImplementedError\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("ISDT_TASKS", "reach_tasks")
        monkeypatch.setattr(registry, "TASKS", dict(registry.TASKS))
        policy = tiny_policy(network=MLP)
        for task, expected in (
            ("reach", {"low": [-0.1, -0.1], "high": [0.1, 0.1], "neutral": [0, 0]}),
            ("elsewhere", {}),
        ):
            policy.config = replace(policy.config, task=task)
            policy.save_pretrained(tmp_path / task)
            assert run(Export, f"checkpoint={tmp_path / task}", f"out={tmp_path / task}.onnx", "check=0") == 0
            assert OnnxPolicy(tmp_path / f"{task}.onnx").metadata["limits"] == expected
            assert ("limits: NONE" in capsys.readouterr().out) == (not expected)

    def test_limits_beside_the_weights_do_not_loosen_the_tasks_unless_told_to(self, checkpoint, tmp_path):
        wide = {"low": [-9000, -9000], "high": [9000, 100], "step": [90, 90]}
        (checkpoint / "limits.json").write_text(json.dumps(wide))
        (tmp_path / "mine.json").write_text(json.dumps({"low": [-50, 50]}))
        for more, expected in (
            ([], {"low": [0, 0], "high": [512, 100], "step": [90, 90]}),
            ([f"limits={tmp_path / 'mine.json'}"], {"low": [0, 50], "high": [512, 100], "step": [90, 90]}),
            ([f"limits={tmp_path / 'mine.json'}", "loosen=true"], {"low": [-50, 50]}),
        ):
            out = tmp_path / "p.pt2"
            assert run(Export, f"checkpoint={checkpoint}", f"out={out}", "format=pt2", "check=0", *more) == 0
            assert load_pt2(out)[1]["limits"] == expected

    def test_a_hub_folder_loads_again_and_has_a_card(self, checkpoint, tmp_path):
        from isdt_policy.deploy.hub import HubPolicy

        (checkpoint / "limits.json").write_text(json.dumps({"step": [90, 90]}))
        assert run(Export, f"checkpoint={checkpoint}", "format=hub", f"out={tmp_path / 'hub'}") == 0
        card = (tmp_path / "hub" / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: isdt-policy\n")
        assert "agent_pos (2), keypoints (18), 2 steps" in card
        assert "Not evaluated" in card
        assert Limits.load(tmp_path / "hub") == Limits(low=(0, 0), high=(512, 512), step=(90, 90))  # and the task's
        seeds = np.zeros((2, 2), np.int64)
        a, b = (
            HubPolicy.from_pretrained(p).predict_action(observations(2), noise_seeds=seeds)
            for p in (checkpoint, tmp_path / "hub")
        )
        assert np.array_equal(a["action"], b["action"])
        with pytest.raises(InputError, match="is not empty"):
            run(Export, f"checkpoint={checkpoint}", "format=hub", f"out={tmp_path / 'hub'}")

    def test_the_card_shows_results_of_these_weights_only(self, checkpoint, tmp_path):
        from isdt_policy.method.policy import weights_sha256

        interval = {"value": 0.87, "low": 0.79, "high": 0.92, "confidence": 0.95, "n": 100}
        rest = {"n_success": 87, "n_error": 0, "mean_sum_reward": 1.0, "mean_steps_to_success": 9.0, "mean_length": 9.0}
        rest |= {"final_coverage": None, "max_coverage": None, "latency": None}
        info = {
            "policy": {"fingerprint": weights_sha256(str(checkpoint))},
            "schema": "isdt-eval/1",
            "protocol": {"task": "pusht"},
            "arms": {"1": {"success_rate": interval, "score": interval, "n": 100, **rest}},
            "episodes": [],
            "seeds": [100000, 100099],
            "commit": "abc",
            "command": "isdt eval checkpoint=x",
        }
        results = tmp_path / "eval_info.json"
        results.write_text(json.dumps(info))
        given = [f"checkpoint={checkpoint}", "format=hub", f"results={results}"]
        assert run(Export, *given, f"out={tmp_path / 'a'}") == 0
        card = (tmp_path / "a" / "README.md").read_text()
        assert "| 1 | 87 % [79, 92] | 0.870 [0.790, 0.920] | 100 |" in card
        assert "isdt eval checkpoint=x" in card
        results.write_text(json.dumps({**info, "policy": {"fingerprint": "0" * 64}}))
        with pytest.raises(InputError, match="evaluation of other weights"):
            run(Export, *given, f"out={tmp_path / 'b'}")

    @pytest.mark.parametrize(
        ("arg", "message"),
        [
            ("format=onxn", "Did you mean 'onnx'"),
            ("nef=2", "Did you mean 'nfe'"),
            ("steps=euller3", "euler"),
            ("repo=a/b", "belong to format=hub"),
            ("out=/dev/null/p.onnx", "cannot be written"),
        ],
    )
    def test_bad_arguments_are_refused(self, checkpoint, arg, message):
        with pytest.raises(InputError, match=message):
            run(Export, f"checkpoint={checkpoint}", arg)


def test_int8_weights_are_smaller_and_cost_little(tmp_path):
    """The actions move by a few hundredths of their spread, and by something: the products really are in integers."""
    import onnx

    policy = tiny_policy(reference="agent_pos")
    files = {
        weights: export(policy, tmp_path / f"{weights}.onnx", FileFormat(weights=weights))
        for weights in ("float32", "int8")
    }
    graph = onnx.load(str(files["int8"])).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMulInteger") >= 10
    # Two products of 255 x 64 fit into 16 bits, where processors without VNNI add them; of 255 x 127 they do not.
    integers = {i.name: np.abs(onnx.numpy_helper.to_array(i).astype(int)).max() for i in graph.initializer}
    assert 60 < max(integers[node.input[1]] for node in graph.node if node.op_type == "MatMulInteger") <= 64
    assert kinds.count("MatMul") + kinds.count("Gemm") >= 5  # encoder, times, FiLM and output stay as they are
    obs, seeds = observations(64), np.stack([np.arange(64), np.zeros(64)], 1).astype(np.int64)
    exact, rounded = (OnnxPolicy(path).predict_action(obs, noise_seeds=seeds)["action_pred"] for path in files.values())
    error = np.abs(exact - rounded) * policy.normalizer.action.scale.numpy()
    assert 1e-4 < error.mean() < 0.05
    assert OnnxPolicy(files["int8"]).metadata["weights"] == "int8"


@pytest.mark.parametrize(("options", "message"), [
    ({"weights": "int4"}, "weights='int4' is not one of float32, int8"),
    ({"weights": "int8", "format": "pt2"}, "belongs to format=onnx"),
])  # fmt: skip
def test_weights_that_cannot_be_written_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        export(tiny_policy(network=MLP), tmp_path / "p", FileFormat(**options))
