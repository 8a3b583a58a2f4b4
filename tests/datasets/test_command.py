"""The verbs of `isdt data`: each explains itself, and does what it says to a small store."""

import json
import re
import sys
import types

import numpy as np
import pytest

from isdt_policy.cli import VERBS, main
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.datasets.windows import train_val_split
from isdt_policy.envs import experts


@pytest.mark.parametrize("verb", [verb.removeprefix("data ") for verb in VERBS if verb.startswith("data ")])
def test_every_verb_explains_itself(verb, capsys):
    assert main(["data", verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"isdt data {verb}" in text
    assert "examples" in text


def test_inspect_as_table_and_json(tiny_store, capsys):
    assert main(["data", "inspect", str(tiny_store)]) == 0
    table = capsys.readouterr().out
    assert main(["data", "inspect", str(tiny_store), "format=json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    store = DemoStore.open(tiny_store)
    assert (facts["episodes"], facts["steps"]) == (12, store.n_steps)
    assert facts["keys"]["action"]["shape"] == [2]
    np.testing.assert_allclose(facts["keys"]["state"]["max"], store.read("state").max(axis=0), rtol=1e-6)
    assert f"12 episodes, {store.n_steps} steps" in table


def test_view_draws_the_scene_where_nothing_was_filmed(tiny_store, tmp_path):
    pages = {}
    for frames in (3, 0):
        out = tmp_path / f"{frames}.html"
        assert main(["data", "view", str(tiny_store), f"out={out}", "episodes=0,3", f"frames={frames}"]) == 0
        pages[frames] = out.read_text()
    assert pages[3].count("<input type=range") == 2
    assert pages[3].count('<img src="data:image/png') == 2 * (3 + 1)
    assert "<img" not in pages[0]


def test_view_is_one_file_that_needs_no_network(tiny_store, tmp_path):
    assert main(["data", "view", str(tiny_store), f"out={tmp_path / 'v.html'}", "episodes=0,3-4"]) == 0
    page = (tmp_path / "v.html").read_text()
    assert re.findall(r'<section id="e(\d+)"', page) == ["0", "3", "4"]
    assert page.count("<polyline") >= 3 * (5 + 2)
    assert "http" not in page


def test_the_page_has_axes_a_legend_a_film_and_says_once_what_holds_for_all_episodes(tmp_path):
    episode = {
        "state": np.arange(12.0).reshape(6, 2),
        "action": np.ones((6, 2)),
        "img": np.zeros((6, 8, 8, 3), np.uint8),
    }
    about = {"keys": {"state": {"unit": "m", "meaning": "x, y of the arm"}}}
    with DemoWriter(tmp_path / "a.zarr", attributes=about) as writer:
        writer.extend([episode] * 3)
    assert main(["data", "view", str(tmp_path / "a.zarr"), f"out={tmp_path / 'v.html'}", "frames=4"]) == 0
    page = (tmp_path / "v.html").read_text()
    assert page.count("x, y of the arm, in m") == 3
    assert page.count("dimension 1</span>") == 6  # two keys of three episodes
    assert page.count("<input type=range") == 3
    assert page.count("constant") == 0
    assert page.count("never change") == 2  # action and img, of all episodes, hence not told with the first one
    assert ": :" not in page


def test_a_png_holds_the_image():
    import av

    from isdt_policy.datasets.formats.images import encode

    image = np.random.default_rng(0).integers(0, 255, (7, 5, 3), np.uint8)
    frame = next(av.CodecContext.create("png", "r").decode(av.Packet(encode(image))).__iter__())
    np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), image)


def test_split_into_parts_is_the_split_training_makes(tiny_store, tmp_path):
    assert main(["data", "split", str(tiny_store), str(tmp_path / "parts"), "val_ratio=0.25", "seed=3"]) == 0
    source = DemoStore.open(tiny_store)
    for name, numbers in zip(("train", "valid"), train_val_split(12, 0.25, 3)):
        part = DemoStore.open(tmp_path / "parts" / f"{name}.zarr")
        assert part.n_episodes == len(numbers)
        for place, number in enumerate(numbers):
            np.testing.assert_array_equal(part.episode(place)["state"], source.episode(number)["state"])


def test_merged_episodes_stand_one_after_another_and_masks_split_them_again(tiny_store, tmp_path):
    few, both, again = (str(tmp_path / name) for name in ("few.zarr", "both.zarr", "again.zarr"))
    assert main(["data", "split", str(tiny_store), few, "exclude=0-9"]) == 0
    assert main(["data", "merge", few, str(tiny_store), f"out={both}"]) == 0
    assert main(["data", "split", both, again, "mask=source_1"]) == 0
    source = DemoStore.open(tiny_store)
    assert DemoStore.open(both).n_episodes == 14
    np.testing.assert_array_equal(DemoStore.open(again).read("state"), source.read("state"))
    np.testing.assert_array_equal(DemoStore.open(both).episode(1)["state"], source.episode(11)["state"])


@pytest.fixture
def toy_expert(monkeypatch):
    """An expert whose every third attempt fails; `attempts` lists those made."""
    attempts = []

    def episode(seed, index, task):
        if len(attempts) == toy.stop_after:
            raise KeyboardInterrupt
        attempts.append(index)
        steps = 2 + index % 3
        arrays = {"state": np.full((steps, 5), index + 100 * seed), "action": np.full((steps, 2), index)}
        return arrays, {"index": index, "seed": seed, "success": index % 3 != 2}

    toy = types.ModuleType("toy_expert")
    toy.episode, toy.attempts, toy.stop_after = episode, attempts, None
    toy.facts = lambda seed, index: {"index": index, "seed": seed}
    monkeypatch.setitem(sys.modules, "toy_expert", toy)
    monkeypatch.setitem(experts.EXPERTS, "pusht", "toy_expert")
    return toy


@pytest.mark.parametrize("name", ["g.zarr", "g.zarr.zip"])
def test_an_interrupted_generation_goes_on_to_the_same_store(name, toy_expert, tmp_path):
    whole, parts = tmp_path / f"whole_{name}", tmp_path / f"parts_{name}"
    command = ["data", "generate", "episodes=7", "seed=1", "workers=1"]
    assert main([*command, f"out={whole}"]) == 0
    toy_expert.attempts.clear()
    toy_expert.stop_after = 5
    assert main([*command, f"out={parts}"]) == 130
    toy_expert.stop_after = None
    assert main([*command, f"out={parts}"]) == 0
    assert len(toy_expert.attempts) == len(set(toy_expert.attempts))  # no attempt was made twice
    stores = [DemoStore.open(path) for path in (whole, parts)]
    assert stores[0].n_episodes == 7
    assert stores[0].read("state").dtype == np.float32
    for key in stores[0].keys:
        np.testing.assert_array_equal(stores[0].read(key), stores[1].read(key))
    assert stores[1].attrs["provenance"]["seed"] == 1
    assert "gym-pusht" in stores[1].attrs["provenance"]["versions"]


def test_generation_adds_episodes_but_never_mixes_seeds(toy_expert, tmp_path, capsys):
    out = f"out={tmp_path / 'g.zarr'}"
    assert main(["data", "generate", out, "episodes=3", "workers=1"]) == 0
    assert main(["data", "generate", out, "episodes=5", "workers=1"]) == 0
    assert DemoStore.open(tmp_path / "g.zarr").n_episodes == 5
    assert main(["data", "generate", out, "episodes=6", "workers=1", "seed=2"]) == 2
    assert "begun with seed=0" in capsys.readouterr().err
    assert main(["data", "generate", "out=x.npz"]) == 2
    assert "must end in .zarr" in capsys.readouterr().err
