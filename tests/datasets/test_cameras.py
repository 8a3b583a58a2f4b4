"""Pictures on their way into a store: chosen, made smaller, drawn from states; or one line and nothing written."""

import ctypes.util
import json
from fractions import Fraction as F

import numpy as np
import pytest

from isdt_policy.cli import main
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.envs import make, task_spec
from isdt_policy.shared.pixels import resized

rng = np.random.default_rng(0)


def by_hand(picture, size):
    """Means of areas in exact fractions, one axis after the other."""

    def shares(before, after):
        covered = [
            [
                max(F(0), min(F((i + 1) * before, after), F(k + 1)) - max(F(i * before, after), F(k)))
                for k in range(before)
            ]
            for i in range(after)
        ]
        return np.array([[part / F(before, after) for part in row] for row in covered], object)

    rows, columns = shares(picture.shape[0], size[0]), shares(picture.shape[1], size[1])
    exact = np.einsum("iy,yxc,jx->ijc", rows, picture.astype(object), columns, optimize=["einsum_path", (0, 1), (0, 1)])
    return np.array([int(value + F(1, 2)) for value in exact.flat], np.uint8).reshape(*size, 3)


@pytest.mark.parametrize("size", [(4, 6), (3, 4), (5, 2), (1, 1), (9, 16), (8, 12)])
def test_a_pixel_is_the_mean_of_the_area_that_it_covers(size):
    picture = rng.integers(0, 256, (8, 12, 3), np.uint8)
    np.testing.assert_array_equal(resized(picture, size), by_hand(picture, size))
    stacked = resized(np.stack([picture, 255 - picture])[None], size)
    assert stacked.shape == (1, 2, *size, 3)
    np.testing.assert_array_equal(stacked[0, 0], resized(picture, size))


def test_a_large_white_picture_stays_white():
    assert (resized(np.full((1, 1080, 1920, 3), 255, np.uint8), (71, 97)) == 255).all()


@pytest.fixture
def recorded(tmp_path):
    """Two cameras and a state."""
    path = tmp_path / "recorded.zarr"
    with DemoWriter(path) as writer:
        for length in (5, 7):
            writer.append({
                "action": rng.normal(size=(length, 2)).astype(np.float32), "hand": np.zeros((length, 2), np.float32),
                "front": rng.integers(0, 256, (length, 48, 64, 3), np.uint8),
                "wrist": rng.integers(0, 256, (length, 32, 32, 3)).astype(np.float32),
            })  # fmt: skip
    return path


def converted(source, target, *options):
    assert main(["data", "convert", str(source), str(target), *options]) == 0
    return DemoStore.open(target)


def test_chosen_pictures_become_smaller_and_the_store_says_from_what(recorded, tmp_path):
    store = converted(recorded, tmp_path / "small.zarr", "images=[front]", "resize=24x32")
    assert set(store.keys) == {"action", "hand", "front"}
    before = DemoStore.open(recorded).read("front")
    np.testing.assert_array_equal(store.read("front"), resized(before, (24, 32)))
    assert store.attrs["keys"]["front"] == {"source_shape": [48, 64, 3], "resized": "area"}


def test_all_pictures_get_the_size_and_whole_floats_become_bytes(recorded, tmp_path):
    store = converted(recorded, tmp_path / "small.zarr", "resize=32x32")
    assert store.read("wrist").dtype == np.uint8
    np.testing.assert_array_equal(store.read("wrist"), DemoStore.open(recorded).read("wrist"))
    assert "wrist" not in store.attrs.get("keys", {})  # it was of that size
    assert store.read("front").shape == (12, 32, 32, 3)


def test_named_pictures_join_named_keys(recorded, tmp_path):
    assert set(converted(recorded, tmp_path / "a.zarr", "keys=[hand]", "images=[wrist]").keys) == {
        "action",
        "hand",
        "wrist",
    }
    assert set(converted(recorded, tmp_path / "b.zarr", "images=[]").keys) == {"action", "hand"}


def test_pusht_is_drawn_from_its_states(tiny_store, tmp_path):
    store = converted(tiny_store, tmp_path / "seen.zarr", "task=pusht", "render=[pixels]", "keys=[state]")
    assert set(store.keys) == {"action", "state", "pixels"}
    env = make("pusht", obs_keys=["pixels"])
    there = env.reset(options={"reset_to_state": store.read("state", 30, 31)[0].astype(float)})[0]["pixels"]
    np.testing.assert_array_equal(store.read("pixels", 30, 31)[0], there)
    described = store.attrs["keys"]["pixels"]["renderer"]
    assert described["source"] == "recorded states"
    assert described["pymunk"] == task_spec("pusht").versions()["pymunk"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["images=[fornt]"], "has no pictures 'fornt'. Did you mean 'front'? It has: front, wrist."),
        (["images=[hand]"], "has no pictures 'hand'. It has: front, wrist."),
        (["resize=96"], "resize='96' must be HEIGHTxWIDTH in pixels, such as resize=96x128."),
        (["resize=0x9"], "resize='0x9' must be HEIGHTxWIDTH"),
        (["resize=9x9", "images=[]"], "holds no pictures; it has action, hand."),
        (["render=[pixels]"], "does not say which task it shows; add task=."),
        (["render=[pixel]", "task=pusht"], "task 'pusht' has no camera 'pixel'. Did you mean 'pixels'?"),
        (["render=[pixels]", "task=pusht"], "has no 'state', from which task 'pusht' draws"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_one_line_and_nothing_is_written(recorded, tmp_path, capsys, options, message):
    assert main(["data", "convert", str(recorded), str(tmp_path / "out.zarr"), *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["recorded.zarr"]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (np.full((5, 24, 24, 3), 0.5), "'front' holds floats between 0 and 1"),
        (np.zeros((5, 24, 24, 1), np.uint8), "it is grey"),
        (np.zeros((5, 24, 24), np.uint8), "it is grey"),
        (np.zeros((5, 24, 24, 4), np.uint8), "alpha channel"),
        (np.zeros((5, 3, 24, 24), np.uint8), "the channels come first"),
    ],
)
def test_what_is_no_picture_is_not_resized(tmp_path, capsys, pictures, message):
    source = tmp_path / "source.zarr"
    with DemoWriter(source) as writer:
        writer.append({"action": rng.normal(size=(5, 2)).astype(np.float32), "front": pictures})
    assert main(["data", "convert", str(source), str(tmp_path / "out.zarr"), "resize=8x8"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out.zarr").exists()


def test_the_renderer_is_in_the_result(monkeypatch):
    from isdt_policy.envs import opengl
    from isdt_policy.eval.origin import versions

    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert versions("lift")["gl"] == "osmesa"
    assert "gl" not in versions("pusht")
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(opengl.ctypes.util, "find_library", lambda name: None)
    assert opengl.renderer(["mujoco"])["gl"] == "none"
    assert json.dumps(opengl.renderer(["mujoco"]))


def test_an_expert_is_filmed_by_the_cameras_that_are_named(tmp_path, capsys):
    out = tmp_path / "seen.zarr"
    options = ["task=pusht", "episodes=1", "seed=3", "workers=1"]
    assert main(["data", "generate", f"out={out}", *options, "cameras=[pixels]"]) == 0
    assert main(["data", "generate", f"out={tmp_path / 'blind.zarr'}", *options]) == 0
    store, blind = DemoStore.open(out), DemoStore.open(tmp_path / "blind.zarr")
    assert {*store.keys} - {*blind.keys} == {"pixels"}
    np.testing.assert_array_equal(store.read("state"), blind.read("state"))
    assert store.attrs["keys"]["pixels"]["renderer"]["pymunk"]
    drawn = task_spec("pusht").draw_fn({"state": store.read("state")}, "pixels")
    assert np.abs(drawn.astype(int) - store.read("pixels")).mean() < 0.1  # states are stored as float32
    assert main(["data", "generate", f"out={out}", *options]) == 2  # without pictures it does not go on
    assert "seen by pixels" in capsys.readouterr().err
    assert main(["data", "generate", f"out={tmp_path / 'no.zarr'}", "cameras=[agentview]"]) == 2
    assert "task 'pusht' has no camera 'agentview'. It has: pixels." in capsys.readouterr().err
    assert not (tmp_path / "no.zarr").exists()


@pytest.mark.slow
@pytest.mark.skipif(not ctypes.util.find_library("EGL"), reason="needs EGL to draw")
def test_two_cameras_of_lift_see_what_the_environment_shows(tmp_path):
    """Its cube has another size in every episode; without the reset's seed another one would be drawn."""
    blind = tmp_path / "lift.zarr"
    assert main(["data", "generate", f"out={blind}", "task=lift", "episodes=1", "seed=1", "workers=1"]) == 0
    cameras = "render=[agentview,robot0_eye_in_hand]"
    store = converted(blind, tmp_path / "seen.zarr", "task=lift", cameras, "keys=[object]")
    keys = ["agentview_image", "robot0_eye_in_hand_image"]
    assert set(store.keys) == {"action", "object", *keys}
    env = make("lift", obs_keys=keys)
    obs, _ = env.reset(seed=DemoStore.open(blind).episode_info()[0]["reset_seed"])
    for step in range(3):
        for key in keys:
            np.testing.assert_array_equal(store.read(key, step, step + 1)[0], obs[key])
        obs = env.step(store.read("action", step, step + 1)[0])[0]
    assert store.attrs["keys"][keys[0]]["renderer"]["gl"]
