"""`isdt deploy table`: a cell is what `control` does, is kept, and is not mixed with others."""

import json

import pytest
from isdt_deploy_toys import MLP, tiny_policy
from isdt_deploy_toys import run as isdt

from isdt_policy.cli.deploy_table import DeployTable
from isdt_policy.shared.errors import InputError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table") / "policy"
    tiny_policy(network=MLP).save_pretrained(folder)
    return folder


def run(checkpoint, out, *options):
    return isdt(DeployTable, f"checkpoint={checkpoint}", f"out={out}", "modes=[sync,async]", *options)


def test_cells_are_counted_kept_and_not_mixed(checkpoint, tmp_path, capsys):
    out = tmp_path / "latency"
    assert run(checkpoint, out, "episodes=1", "latencies=[0ms,200ms]") == 0
    result = json.loads(out.with_suffix(".json").read_text())
    assert set(result["cells"]) == {"sync 0ms", "async 0ms", "sync 200ms", "async 200ms"}
    # At 10 Hz an answer that takes 200 ms is due two steps later: sync waits those two of every ten, async never does.
    held = {name: cell["held"] / cell["periods"] for name, cell in result["cells"].items()}
    assert held["sync 0ms"] == held["async 0ms"] == 0
    assert 0.15 < held["sync 200ms"] < 0.25
    assert held["async 200ms"] < 0.02  # the very first chunk has nothing to go on with
    # Without latency the two are the same episode.
    assert result["cells"]["sync 0ms"]["records"] == result["cells"]["async 0ms"]["records"]
    assert "n = 1 per cell, seeds 100000 to 100000" in capsys.readouterr().out
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    html = out.with_suffix(".html").read_text()
    assert "<h2>async, 200ms</h2>" in html  # what the longest latency costs comes first
    assert "prefers-color-scheme:dark" in html
    assert all(f"held {100 * share:.0f} %" in html for share in held.values())

    assert result["device"] == "cpu"

    del result["device"]  # as earlier versions wrote it
    result["cells"]["sync 0ms"]["records"][0]["max_reward"] = 0.123
    out.with_suffix(".json").write_text(json.dumps(result))
    run(checkpoint, out, "episodes=1", "latencies=[0ms]")
    assert "score 0.123" in capsys.readouterr().out  # read, not run again
    with pytest.raises(InputError, match="another episodes"):
        run(checkpoint, out, "episodes=2", "latencies=[0ms]")


@pytest.mark.parametrize(("options", "message"), [
    (["modes=[sink]"], "modes='sink' is not one of sync, async, rtc"),
    (["episodes=0"], "must be above 0"),
])  # fmt: skip
def test_what_makes_no_table_is_refused(checkpoint, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        isdt(DeployTable, f"checkpoint={checkpoint}", f"out={tmp_path}/t", *options)
