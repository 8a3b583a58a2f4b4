"""LeRobot v3 and Minari: nothing lost on the way there and back, other versions and damaged files refused."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from isdt_policy.datasets.convert import convert
from isdt_policy.datasets.formats import Reading, detect, read
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.shared.errors import InputError


@pytest.fixture
def rich_store(tmp_path):
    """Keys of every kind a format may stumble over."""
    rng = np.random.default_rng(0)
    path = tmp_path / "rich.zarr"
    with DemoWriter(path, task="pusht", attributes={"action_space": {"rate_hz": 10}}) as writer:
        for steps in (1, 5, 3):
            writer.append(
                {
                    "state": rng.random((steps, 5)),
                    "points": rng.random((steps, 9, 2), np.float32),
                    "gap": rng.random((steps, 1), np.float32),
                    "contacts": rng.integers(0, 9, steps),
                    "img": rng.integers(0, 256, (steps, 8, 6, 3), np.uint8),
                    "action": rng.random((steps, 2), np.float32),
                    "reward": rng.random(steps),
                    "coverage": rng.random(steps, np.float32),
                }
            )
        writer.set_episode_info([{"tasks": ["push"]}, {"tasks": ["pull", "push"]}, {"tasks": ["push"]}])
    return path


def same(first, second):
    one, two = DemoStore.open(first), DemoStore.open(second)
    np.testing.assert_array_equal(one.episode_ends, two.episode_ends)
    assert one.keys == two.keys
    for key in one.keys:
        assert one.dtype(key) == two.dtype(key), key
        np.testing.assert_array_equal(one.read(key), two.read(key), err_msg=key)
    assert one.task == two.task


@pytest.mark.parametrize("format", ["lerobot", "minari"])
def test_there_and_back_every_bit_is_kept(format, rich_store, tmp_path):
    convert(str(rich_store), str(tmp_path / "there"), to=format)
    assert detect(tmp_path / "there") == format
    convert(str(tmp_path / "there"), str(tmp_path / "back.zarr"))
    same(rich_store, tmp_path / "back.zarr")
    assert DemoStore.open(tmp_path / "back.zarr").attrs["action_space"]["rate_hz"] == 10


@pytest.mark.parametrize("format", ["lerobot", "minari"])
def test_real_recordings_there_and_back(format, real_data, tmp_path):
    for name in ("lift_ph_low_dim", "lift_mh_image"):
        convert(str(real_data / "robomimic_samples" / f"{name}.hdf5"), str(tmp_path / f"{name}.zarr"), task="pusht")
        convert(str(tmp_path / f"{name}.zarr"), str(tmp_path / f"{name}_{format}"), to=format)
        convert(str(tmp_path / f"{name}_{format}"), str(tmp_path / f"{name}_{format}.zarr"))
        same(tmp_path / f"{name}.zarr", tmp_path / f"{name}_{format}.zarr")


def test_lerobot_tables_stand_where_their_reader_looks(rich_store, tmp_path):
    import pyarrow.parquet as parquet

    convert(str(rich_store), str(tmp_path / "there"), to="lerobot")
    info = json.loads((tmp_path / "there/meta/info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"]) == ("v3.0", 3, 9)
    data = parquet.read_table(tmp_path / "there" / info["data_path"].format(chunk_index=0, file_index=0))
    assert set(info["features"]) == set(data.column_names)
    assert data["index"].to_pylist() == list(range(9))
    np.testing.assert_array_equal(data["timestamp"].to_numpy()[1:6], np.arange(5, dtype=np.float32) / np.float32(10))
    assert data["task_index"].to_pylist() == [0] + [1] * 5 + [0] * 3
    episodes = parquet.read_table(tmp_path / "there/meta/episodes/chunk-000/file-000.parquet")
    assert episodes["dataset_to_index"].to_pylist() == [1, 6, 9]
    stats = json.loads((tmp_path / "there/meta/stats.json").read_text())
    store = DemoStore.open(rich_store)
    np.testing.assert_allclose(stats["action"]["std"], store.read("action").std(axis=0, dtype=np.float64))
    np.testing.assert_allclose(np.ravel(stats["observation.img"]["mean"]), store.read("img").mean((0, 1, 2)) / 255)


def test_lerobot_s_tools_find_statistics_of_every_episode(rich_store, tmp_path):
    """They make those of what is left from them; where there are none, a policy is trained unnormalised without a word."""
    import pyarrow.parquet as parquet

    convert(str(rich_store), str(tmp_path / "there"), to="lerobot")
    rows = parquet.read_table(tmp_path / "there/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    stats = json.loads((tmp_path / "there/meta/stats.json").read_text())
    store = DemoStore.open(rich_store)
    names = {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}
    features = json.loads((tmp_path / "there/meta/info.json").read_text())["features"]
    for name, feature in features.items():
        assert set(stats[name]) == names
        assert {column.removeprefix(f"stats/{name}/") for column in rows[0] if f"stats/{name}/" in column} == names
        for row in (*rows, {f"stats/{name}/{key}": value for key, value in stats[name].items()}):
            picture = feature["dtype"] == "image"
            assert np.shape(row[f"stats/{name}/q50"]) == ((3, 1, 1) if picture else tuple(feature["shape"]))
    state = [store.episode(number)["state"] for number in range(3)]
    for row, values in zip(rows, state):
        np.testing.assert_allclose(row["stats/observation.state/std"], values.std(0))
        np.testing.assert_allclose(row["stats/observation.state/q90"], np.quantile(values, 0.9, axis=0))
    weighted = sum(len(values) * np.quantile(values, 0.9, axis=0) for values in state) / 9
    np.testing.assert_allclose(stats["observation.state"]["q90"], weighted)  # as LeRobot joins them
    pixels = store.episode(1)["img"].reshape(-1, 3)
    for level, name in ((0.01, "q01"), (0.5, "q50"), (0.99, "q99")):
        expected = np.quantile(pixels, level, axis=0, method="inverted_cdf") / 255
        np.testing.assert_allclose(np.ravel(rows[1][f"stats/observation.img/{name}"]), expected)
    np.testing.assert_allclose(np.ravel(rows[1]["stats/observation.img/std"]), pixels.std(0) / 255)


def test_lerobot_gets_keys_of_several_axes_flat_and_a_schema_for_pictures(rich_store, tmp_path):
    import pyarrow.parquet as parquet

    convert(str(rich_store), str(tmp_path / "there"), to="lerobot")
    info = json.loads((tmp_path / "there/meta/info.json").read_text())
    assert info["features"]["observation.points"]["shape"] == [18]
    assert type(info["fps"]) is int
    table = parquet.read_schema(tmp_path / "there/data/chunk-000/file-000.parquet")
    columns = json.loads(table.metadata[b"huggingface"])["info"]["features"]
    assert list(columns) == table.names
    assert columns["observation.img"] == {"_type": "Image"}
    assert columns["observation.points"] == {
        "feature": {"dtype": "float32", "_type": "Value"}, "length": 18, "_type": "List",
    }  # fmt: skip
    assert columns["next.reward"] == {"dtype": "float64", "_type": "Value"}


def test_a_camera_that_is_called_like_a_state_keeps_its_prefix():
    from isdt_policy.datasets.formats.lerobot_names import keys_of

    names = ["observation.images.front", "observation.images.state", "observation.state", "next.reward", "action"]
    assert list(keys_of(names).values()) == ["front", "images.state", "state", "reward", "action"]


def test_lerobot_splits_long_data_over_files(rich_store, tmp_path, monkeypatch):
    monkeypatch.setattr("isdt_policy.datasets.formats.lerobot_write._FILE_BYTES", 1)
    convert(str(rich_store), str(tmp_path / "there"), to="lerobot")
    assert len(list((tmp_path / "there/data").rglob("*.parquet"))) == 3
    convert(str(tmp_path / "there"), str(tmp_path / "back.zarr"))
    same(rich_store, tmp_path / "back.zarr")


def test_lerobot_videos_give_every_episode_its_own_frames(rich_store, tmp_path):
    import av
    import pyarrow as pa
    import pyarrow.parquet as parquet

    root = tmp_path / "there"
    convert(str(rich_store), str(root), to="lerobot", how=Reading(keys=("state",)))
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.images.top"] = {"dtype": "video", "shape": [32, 32, 3], "names": None}
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    (root / "meta/info.json").write_text(json.dumps(info))
    video = root / "videos/observation.images.top/chunk-000/file-000.mp4"
    video.parent.mkdir(parents=True)
    with av.open(str(video), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for step in range(9):  # grey level tells the step
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 25 * step, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = parquet.read_table(path).to_pylist()
    for row in rows:
        row |= {f"videos/observation.images.top/{k}": 0 for k in ("chunk_index", "file_index")}
        row["videos/observation.images.top/from_timestamp"] = row["dataset_from_index"] / 10
    parquet.write_table(pa.Table.from_pylist(rows), path)
    recording = read(root)
    assert any("codec" in note for note in recording.notes)
    frames = np.concatenate([episode["top"] for episode in recording.episodes()])
    assert frames.shape == (9, 32, 32, 3)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), 25 * np.arange(9), atol=5)


def test_lerobot_v2_is_refused_with_the_reason(tmp_path):
    (tmp_path / "old/meta").mkdir(parents=True)
    (tmp_path / "old/meta/info.json").write_text('{"codebase_version": "v2.1"}')
    with pytest.raises(InputError, match=r"version v2\.1; v3 is read.*convert_dataset"):
        read(tmp_path / "old")


@pytest.mark.parametrize("damage", ["data", "meta/episodes", "meta/info.json"])
def test_a_damaged_lerobot_dataset_is_one_clear_error(damage, rich_store, tmp_path):
    convert(str(rich_store), str(tmp_path / "there"), to="lerobot")
    place = tmp_path / "there" / damage
    file = place if place.is_file() else next(place.rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match="download"):
        convert(str(tmp_path / "there"), str(tmp_path / "back.zarr"))
    assert not (tmp_path / "back.zarr").exists()


def minari_dataset(path, nested):
    """As Minari writes it: one observation more than actions."""
    rng = np.random.default_rng(1)
    (path / "data").mkdir(parents=True)
    (path / "data/metadata.json").write_text(json.dumps({"data_format": "hdf5", "author": ["x"], "total_episodes": 11}))
    with h5py.File(path / "data/main_data.hdf5", "w") as file:
        for number in range(11):
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": 4, "seed": 100 + number})
            names = ("observations/arm/joints", "observations/goal") if nested else ("observations",)
            for name in names:
                group[name] = number + rng.random((5, 3))
            group["actions"] = rng.random((4, 2), np.float32)
            group["rewards"] = np.arange(4.0)
            group["terminations"], group["truncations"] = np.zeros(4, bool), np.eye(1, 4, 3, dtype=bool)[0]
            group["infos/velocity"] = rng.random((5, 2))


@pytest.mark.parametrize("nested", [False, True])
def test_minari_there_and_back_keeps_the_last_observation(nested, tmp_path):
    minari_dataset(tmp_path / "a", nested)
    assert any("velocity" in note for note in read(tmp_path / "a").notes)
    convert(str(tmp_path / "a"), str(tmp_path / "a.zarr"))
    store = DemoStore.open(tmp_path / "a.zarr")
    assert store.n_episodes == 11
    assert store.episode_info()[10]["seed"] == 110  # numerical order: episode_10 is the last
    convert(str(tmp_path / "a.zarr"), str(tmp_path / "b"), to="minari")
    names = ["actions", "rewards", "terminations", "truncations"]
    names += ["observations/arm/joints", "observations/goal"] if nested else ["observations"]
    with h5py.File(tmp_path / "a/data/main_data.hdf5") as one, h5py.File(tmp_path / "b/data/main_data.hdf5") as two:
        for episode in one:
            for name in names:
                assert one[episode][name].dtype == two[episode][name].dtype
                np.testing.assert_array_equal(one[episode][name][()], two[episode][name][()])
            assert two[episode].attrs["seed"] == one[episode].attrs["seed"]
    assert json.loads((tmp_path / "b/data/metadata.json").read_text())["author"] == ["x"]


def test_minari_itself_reads_what_is_written(rich_store, tmp_path):
    import minari

    convert(str(rich_store), str(tmp_path / "there"), to="minari")
    dataset = minari.MinariDataset(tmp_path / "there" / "data")
    store = DemoStore.open(rich_store)
    assert (dataset.total_episodes, dataset.total_steps) == (3, 9)
    for number, episode in enumerate(dataset.iterate_episodes()):
        ours = store.episode(number)
        np.testing.assert_array_equal(episode.actions, ours["action"])
        np.testing.assert_array_equal(episode.observations["img"][:-1], ours["img"])


def test_other_minari_storage_is_refused(tmp_path):
    minari_dataset(tmp_path / "a", False)
    (tmp_path / "a/data/metadata.json").write_text('{"data_format": "arrow"}')
    with pytest.raises(InputError, match="only HDF5 is read"):
        read(tmp_path / "a")
