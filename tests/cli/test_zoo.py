"""The policies that come with the package: they load, they are what their cards say, and they act as they did."""

import hashlib
import json
import math
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from isdt_policy.cli import main as isdt
from isdt_policy.cli.command import parse
from isdt_policy.cli.eval import Eval
from isdt_policy.deploy.loading import load_policy
from isdt_policy.envs import make
from isdt_policy.eval import Protocol, evaluate
from isdt_policy.eval.origin import versions
from isdt_policy.eval.result import Result
from isdt_policy.method import zoo
from isdt_policy.method.policy import Policy, weights_sha256
from isdt_policy.shared.errors import InputError

ROOT = Path(__file__).parents[2]
SEEDS = range(100_000, 100_008)
# Processors of one kind round alike. Which kind this is, is asked of other people's arithmetic alone.
COMMITTED_ON = "6f17eca23a209148"


def kind_of_processor() -> str:
    """Hash of what this machine and its libraries make of some fixed sums, products and functions."""
    digest = hashlib.sha256()
    x = np.random.default_rng(0).standard_normal((16, 64, 24))
    t = torch.from_numpy(x.astype(np.float32))
    weight = torch.from_numpy(np.random.default_rng(1).standard_normal((32, 64, 5)).astype(np.float32))
    h = torch.nn.functional.conv1d(t, weight, padding=2)
    square = torch.nn.functional.linear(h.mean(-1), weight.reshape(320, 32)[:, :32])
    for part in (h, torch.nn.functional.group_norm(h, 8), square, torch.nn.functional.mish(h), h.sin(), h.exp()):
        digest.update(part.contiguous().numpy().tobytes())
    for function in (np.sin, np.cos, np.exp, np.arctan):
        digest.update(function(x).tobytes() + function(x.astype(np.float32)).tobytes())
    digest.update(repr([f(v) for f in (math.sin, math.cos, math.atan, math.exp) for v in x[0, 0]]).encode())
    return digest.hexdigest()[:16]


@pytest.fixture(params=zoo.names())
def name(request):
    return request.param


def first_action(policy, seed):
    obs, _ = make(policy.task, policy.obs_keys).reset(seed=seed)
    history = {key: np.stack([value] * policy.n_obs_steps)[None] for key, value in obs.items()}
    return policy.predict_action(history, nfe=1, noise_seeds=np.array([[seed, 0]]))["action"][0, 0]


def test_there_is_a_policy_to_try():
    assert "pusht_human" in zoo.names()


def test_weights_are_the_ones_of_the_card_and_of_the_numbers(name):
    config = json.loads((zoo.folder(name) / "config.json").read_text())
    stored = (zoo.folder(name) / "model.safetensors").read_bytes()
    assert hashlib.sha256(stored).hexdigest() == config["weights_sha256"]
    assert weights_sha256(f"zoo:{name}") == Result.load(ROOT / "results/zoo" / name).origin.policy.fingerprint
    card = json.loads((zoo.folder(name) / "card.json").read_text())
    assert set(card) == {"what", "demonstrations", "command", "seed", "commit", "where", "licence", "first_action"}


def test_damaged_weights_are_refused(name, tmp_path):
    folder = shutil.copytree(zoo.folder(name), tmp_path / "copy")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        Policy.from_pretrained(folder)


def test_all_of_it_is_small():
    assert sum(file.stat().st_size for file in zoo.HERE.rglob("*") if file.is_file()) < 10e6


def test_a_policy_computes_in_float32(name):
    assert {p.dtype for p in Policy.from_pretrained(f"zoo:{name}").parameters()} == {torch.float32}


def test_the_first_action_is_the_committed_one(name):
    card = json.loads((zoo.folder(name) / "card.json").read_text())
    got = first_action(Policy.from_pretrained(f"zoo:{name}"), 100_000)
    np.testing.assert_allclose(got, card["first_action"], atol=0.05)  # px of 512; processors round differently


def test_committed_episodes_repeat(name):
    """Bit for bit on the kind of processor and the versions they were made with; elsewhere most end as they did."""
    before = Result.load(ROOT / "results/zoo" / name)
    stored = {record.seed: record for record in before.episodes if record.arm.name == "1"}
    policy = Policy.from_pretrained(f"zoo:{name}")
    again = evaluate(policy, Protocol(policy.task), SEEDS, [1])
    here = versions(policy.task)
    packages = ("torch", "numpy", "gym-pusht", "pymunk")
    same = kind_of_processor() == COMMITTED_ON and all(here[p] == before.origin.versions[p] for p in packages)
    ends = 0
    for record in again.episodes:
        was = stored[record.seed]
        np.testing.assert_allclose(record.initial_state, was.initial_state, atol=1e-6)
        ends += record.success == was.success
        if same:
            assert record.digest == was.digest, f"seed {record.seed}"
    assert ends >= len(SEEDS) - 2


def test_an_unknown_name_is_one_line_with_the_nearest(capsys):
    assert isdt(["eval", "checkpoint=zoo:pusht_humn"]) == 2
    assert "Did you mean 'pusht_human'?" in capsys.readouterr().err


def test_a_wrong_path_points_to_the_zoo():
    with pytest.raises(InputError, match="checkpoint=zoo:"):
        Policy.from_pretrained("outputs/nothing_here")


def test_nothing_is_written_beside_the_weights(name):
    verb = parse(Eval, [f"checkpoint=zoo:{name}"])
    assert verb.folder() == Path(f"outputs/zoo_{name}/eval")


def test_deploy_and_rtc_load_it(name):
    assert load_policy(f"zoo:{name}").task == "pusht"
    assert hasattr(load_policy(f"zoo:{name}", "rtc"), "continue_action")


def test_it_drives_the_simulator(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = [f"checkpoint=zoo:{name}", "clock=virtual", "latency=10ms", "seconds=3", "out=numbers.json"]
    assert isdt(["deploy", *line]) == 0
    assert json.loads((tmp_path / "numbers.json").read_text())["periods"] == 30


def test_every_verb_ends_with_the_next_and_the_last_is_one_that_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["eval", f"checkpoint=zoo:{name}", "episodes=1", "max_steps=8", "report=false"]
    for verb in ("deploy", "export", "deploy"):
        assert isdt(line) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith(f"next: isdt {verb} ")
        short = {"deploy": ["clock=virtual", "seconds=1"], "export": ["check=0"]}[verb]
        line = [*shlex.split(last)[2:], *short]
    assert isdt(line) == 0  # from ONNX


def test_the_page_is_made_from_cards_and_results(script):
    assert (ROOT / "docs/zoo.md").read_text() == script("docs/make_zoo.py").page(), "run: python docs/make_zoo.py"
