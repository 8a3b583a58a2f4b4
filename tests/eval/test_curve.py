"""`isdt eval curve`: every kept checkpoint against what its training had cost."""

import json

import pytest

from isdt_policy.cli import main as isdt
from isdt_policy.training.cost import training_of

TINY = [
    "experiment=pusht_demo", "training.diagonal_steps=0", "training.compile=false", "training.batch_size=4",
    "training.threads=1", "training.loggers=[]", "network.down_dims=[8,16]", "data.max_train_episodes=4",
    "training.checkpoint_every=2", "training.log_every=1", "training.keep_checkpoints=3", "training.validate_every=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert isdt(["train", *TINY, "training.steps=6", f"run_dir={folder}"]) == 0
    return folder


def test_every_kept_checkpoint_is_measured_and_says_what_it_cost(run, capsys):
    arguments = ["eval", "curve", f"checkpoint={run}", "arms=[1,2]", "episodes=2", "max_steps=6"]
    assert isdt(arguments) == 0
    costs = []
    for step in (2, 4, 6):
        info = json.loads((run / "curve" / f"{step:07d}" / "eval_info.json").read_text())
        assert info["seed_purpose"] == "selection"
        assert list(info["arms"]) == ["1", "2"]
        costs.append(info["policy"]["training"])
    logged = {
        r["step"]: r["elapsed_s"]
        for r in map(json.loads, (run / "log.jsonl").read_text().splitlines())
        if "elapsed_s" in r
    }
    assert costs == [{"step": n, "windows": 4 * n, "seconds": logged[n]} for n in (2, 4, 6)]
    assert (run / "curve" / "curve.png").read_bytes().startswith(b"\x89PNG")
    # Again, and only drawn: no episode is run twice.
    capsys.readouterr()
    before = (run / "curve" / "0000004" / "episodes.jsonl").read_bytes()
    assert isdt(arguments) == 0
    assert (run / "curve" / "0000004" / "episodes.jsonl").read_bytes() == before
    # The same results in one figure with others, by the words a reader sees.
    drawn = run.parent / "both.svg"
    assert isdt(["compare", *(str(p) for p in sorted(run.glob("curve/0*"))), "arm=1", f"curves={drawn}"]) == 0
    text = drawn.read_text()
    assert "minutes of training" in text
    assert "<!-- tiny, 1 evaluation -->" in text
    assert "tiny, 2 evaluations" not in text


def test_time_is_that_of_all_sittings_and_ends_at_the_checkpoint(run, tmp_path):
    """Two sittings of 30 and 12 seconds, the second in mid-run at the checkpoint asked for."""
    copy = tmp_path / "run"
    folder = copy / "checkpoints" / "0000006"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "trainer.json").write_text('{"step": 6}')
    (copy / "config.json").write_text((run / "config.json").read_text())
    clocks = [(2, 10.0), (4, 30.0), (5, 3.0), (6, 12.0), (8, 99.0)]
    lines = [json.dumps({"step": step, "elapsed_s": clock}) for step, clock in clocks]
    (copy / "log.jsonl").write_text("\n".join([*lines, json.dumps({"step": 4, "val_action_mse": 1.0})]) + "\n")
    assert training_of(folder) == {"step": 6, "windows": 24, "seconds": 42.0}
    assert training_of(run / "checkpoints" / "0000002" / "policy") is None


def test_a_folder_without_checkpoints_is_refused_with_the_way_out(tmp_path, capsys):
    assert isdt(["eval", "curve", f"checkpoint={tmp_path}"]) == 2
    assert "keep_checkpoints" in capsys.readouterr().err
    assert isdt(["eval", "curve", "episodes=2"]) == 2
    assert "which run?" in capsys.readouterr().err
