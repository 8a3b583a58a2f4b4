"""A policy from recordings alone: no task is registered, and everything that acting needs stands in config.json."""

import json

import numpy as np
import pytest

from isdt_policy import cli
from isdt_policy.datasets.store import DemoWriter
from isdt_policy.deploy.export import describe
from isdt_policy.deploy.loading import find_limits, load_policy
from isdt_policy.deploy.session import Contract
from isdt_policy.method.policy import Policy
from isdt_policy.method.policy_config import PolicyConfig
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.recorded import Recorded
from isdt_policy.training.config import compose_config, load_config

TINY = [
    "network.down_dims=[8,16]", "network.embed_dim=16", "network.time_dim=8", "policy.cond_dim=8", "training.device=cpu",
    "policy.encoder_hidden=[16]", "training.batch_size=16", "training.threads=1", "training.loggers=[]", "training.steps=2",
    "training.diagonal_steps=1",
]  # fmt: skip


def write(path, task=None, attributes=None, **names):
    rng = np.random.default_rng(0)
    with DemoWriter(path, task=task, attributes=attributes) as writer:
        for _ in range(4):
            target = np.cumsum(rng.normal(size=(30, 2)), axis=0).astype(np.float32)
            episode = {"q": target - 0.1, "action": target, "copy": target}
            writer.append({names.get(key, key): value for key, value in episode.items()})
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    store = write(
        folder / "my arm.zarr", task="my_arm", attributes={"action_space": {"type": "absolute", "rate_hz": 20.0}}
    )
    run = folder / "run"
    assert cli.main(["train", f"data.path='{store}'", f"run_dir={run}", *TINY]) == 0
    return run


def test_the_policy_knows_its_robot(trained):
    policy = Policy.from_pretrained(trained)
    assert policy.obs_keys == ("q",)
    assert (policy.task, policy.config.action_type) == ("", "absolute")
    assert policy.config.recorded.rate_hz == 20.0
    assert load_config(trained)["name"] == "my_arm-isd_t_quarter-s42"


def test_limits_travel_with_checkpoint_export_and_server(trained):
    policy = load_policy(str(trained))
    limits = find_limits(str(trained), policy, None)
    assert limits.position == "q"
    assert limits.low == policy.config.recorded.low
    exported = json.loads(json.dumps(describe(policy, 1, False, limits, "")))
    assert Recorded.read(exported["recorded"]) == policy.config.recorded
    told = Contract.of(policy).metadata()["recorded"]
    assert Recorded.read(json.loads(json.dumps(told))) == policy.config.recorded


def test_it_goes_on_after_a_kill_like_any_other(trained, capsys):
    assert cli.main(["train", f"resume={trained}"]) == 0
    assert "complete, 2 of 2 steps" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["eval"], ["deploy"], ["data", "record", "out=x.zarr"]])
def test_a_simulator_is_not_asked_for_what_it_does_not_know(verb, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*verb, f"checkpoint={trained}"]) == 2
    assert "trained on recordings of a robot, for which there is no simulator" in capsys.readouterr().err


def test_a_store_of_a_registered_task_is_trained_as_that_task(tmp_path):
    store = write(tmp_path / "s.zarr", task="avoiding")
    assert compose_config([f"data.path={store}"])["task"] == "avoiding"
    assert compose_config([f"data.path={store}", "task=lift"])["task"] == "lift"
    assert compose_config(["data.path=nowhere.zarr"])["task"] == "pusht"  # refused when it is read
    assert compose_config([])["task"] == "pusht"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["data.actions=relative"], "data.actions='relative' is not one of absolute, delta."),
        (["data.rate_hz=-1"], "data.rate_hz=-1.0 must be above 0"),
        ([], "does not say how many steps a second has (data.rate_hz=N) nor what an action is"),
        (
            ["task=pusht", "data.rate_hz=5"],
            "data.rate_hz is for recordings without a registered task; task 'pusht' says it",
        ),
        (["data.mirror=true", "data.rate_hz=5", "data.actions=delta"], "task 's' has no mirror symmetry"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_written(settings, expected, tmp_path, capsys):
    store = write(tmp_path / "s.zarr")
    assert cli.main(["train", f"data.path={store}", f"run_dir={tmp_path / 'run'}", *TINY, *settings]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert expected in error[0]
    assert not (tmp_path / "run").exists()


def test_a_key_by_another_name_is_the_action_of_a_registered_task_too(tmp_path):
    """A pusht recording whose action is called command."""
    store = write(tmp_path / "s.zarr", q="agent_pos", action="command")
    settings = [f"data.path={store}", "task=pusht", "data.obs_keys=[agent_pos]", "data.action_key=command", *TINY]
    assert cli.main(["train", f"run_dir={tmp_path / 'run'}", *settings]) == 0
    assert Policy.from_pretrained(tmp_path / "run").config.recorded is None


def test_a_policy_of_a_registered_task_is_written_as_before(trained):
    plain = PolicyConfig("pusht", Policy.from_pretrained(trained).config.observations, 2).to_json()
    assert "recorded" not in plain


@pytest.mark.parametrize("damage", [{"rate_hz": 0}, {"low": [0]}, {"speed": 1}, {"neutral": "x"}, {"step": None}])
def test_a_damaged_description_is_one_line(damage, trained):
    values = json.loads((trained / "checkpoints/last/policy/config.json").read_text())
    values.pop("weights_sha256")
    with pytest.raises(InputError, match="what it says of the recorded robot is damaged"):
        PolicyConfig.from_json({**values, "recorded": {**values["recorded"], **damage}})
