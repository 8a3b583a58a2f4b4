"""Sources as other programs leave them: frames by their time, keys nobody asked for, odd attributes, files that reach out."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction

import h5py
import numpy as np
import pytest
import zarr

from isdt_policy.cli import main
from isdt_policy.datasets.convert import convert
from isdt_policy.datasets.formats import Reading, hdf5, images, read
from isdt_policy.datasets.store import DemoStore, DemoWriter
from isdt_policy.shared.errors import InputError

TOP = "observation.images.top"


def lerobot(root, lengths=(6, 4, 5), fps=10):
    """A LeRobot v3 dataset without images."""
    with DemoWriter(root.with_suffix(".zarr"), attributes={"action_space": {"rate_hz": fps}}) as writer:
        for number, steps in enumerate(lengths):
            writer.append({"state": np.full((steps, 2), float(number)), "action": np.full((steps, 2), float(number))})
    convert(root.with_suffix(".zarr"), root, to="lerobot")
    return root


def with_video(root, frames, starts):
    """Add a video of (time, grey level) frames, in which the episodes begin at `starts`."""
    import av
    import pyarrow as pa
    import pyarrow.parquet as parquet

    info = json.loads((root / "meta/info.json").read_text())
    info["features"][TOP] = {"dtype": "video", "shape": [32, 32, 3], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    video = root / f"videos/{TOP}/chunk-000/file-000.mp4"
    video.parent.mkdir(parents=True)
    with av.open(str(video), "w") as container:
        stream = container.add_stream("mpeg4", rate=30, options={"g": "4"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, level in frames:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = parquet.read_table(path).to_pylist()
    for row, start in zip(rows, starts):
        row |= {f"videos/{TOP}/chunk_index": 0, f"videos/{TOP}/file_index": 0, f"videos/{TOP}/from_timestamp": start}
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return root


def levels(root):
    return [np.round(e["top"].mean((1, 2, 3)) / 10).astype(int).tolist() for e in read(root).episodes()]


EPISODES = [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 12, 13, 14]]


def test_the_frame_of_a_step_is_the_one_of_its_time(tmp_path):
    slow = [(i / 10, 10 * i) for i in range(15)]
    assert levels(with_video(lerobot(tmp_path / "plain"), slow, (0, 0.6, 1.0))) == EPISODES
    # Three frames a step: the first of each three shows the step.
    fast = [(i / 30, 10 * (i // 3) + 50 * (i % 3)) for i in range(45)]
    assert levels(with_video(lerobot(tmp_path / "fast"), fast, (0, 0.6, 1.0))) == EPISODES
    # In the order 2, 0, 1, with frames of a deleted episode in between.
    order = [*EPISODES[2], 20, 20, *EPISODES[0], *EPISODES[1]]
    frames = [(i / 10, 10 * level) for i, level in enumerate(order)]
    assert levels(with_video(lerobot(tmp_path / "order"), frames, (0.7, 1.3, 0))) == EPISODES


def test_a_step_without_a_frame_is_refused_and_its_episode_can_be_left_out(tmp_path, capsys):
    frames = [(i / 10, 10 * i) for i in range(15) if i != 3]
    root = with_video(lerobot(tmp_path / "dropped"), frames, (0, 0.6, 1.0))
    with pytest.raises(InputError, match=r"no frame within half a step of step 3 of episode 0.*exclude=0"):
        convert(root, tmp_path / "a.zarr")
    assert main(["data", "split", str(root), str(tmp_path / "b.zarr"), "exclude=0"]) == 0
    assert DemoStore.open(tmp_path / "b.zarr").n_episodes == 2
    half = [(i / 15, 10 * i) for i in range(23)]
    root = with_video(lerobot(tmp_path / "half", fps=30), half, (0, 0.2, 0.34))
    with pytest.raises(InputError, match="another rate than 30 Hz"):
        convert(root, tmp_path / "c.zarr")


def test_a_video_that_is_not_wanted_need_not_be_there(tmp_path):
    root = with_video(lerobot(tmp_path / "a"), [(0, 0)], (0, 0.6, 1.0))
    (root / f"videos/{TOP}/chunk-000/file-000.mp4").unlink()
    with pytest.raises(InputError, match="download the videos too, or leave"):
        convert(root, tmp_path / "a.zarr", overwrite=True)
    convert(root, tmp_path / "b.zarr", how=Reading(keys=("state",)))
    assert DemoStore.open(tmp_path / "b.zarr").keys == ("action", "state")


def test_texts_are_left_out_and_noted(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    root = lerobot(tmp_path / "a")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["language_instruction"] = {"dtype": "string", "shape": [1], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    path = root / "data/chunk-000/file-000.parquet"
    table = parquet.read_table(path)
    parquet.write_table(table.append_column("language_instruction", pa.array(["push"] * len(table))), path)
    assert "not carried over: language_instruction (no numbers)" in read(root).notes
    assert set(next(read(root).episodes())) == {"state", "action"}


def robomimic(path, lengths=(12, 15, 9), change=lambda demo, steps, number: None, **attributes):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for key, value in attributes.items():
            data.attrs[key] = value
        for number, steps in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            demo["actions"] = rng.uniform(-0.9, 0.9, (steps, 7))
            demo["obs/eef_pos"], demo["obs/object"] = rng.normal(size=(steps, 3)), rng.normal(size=(steps, 10))
            change(demo, steps, number)
    return path


def env_args(**kwargs):
    return json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20, **kwargs}})


ODD = {
    "null": {"env_args": json.dumps({"env_name": "MyEnv", "type": 2, "env_kwargs": None})},
    "no JSON": {"env_args": ""},
    "a list": {"env_args": "[1]"},
    "a controller a robot": {"env_args": env_args(robots=["Panda", "Panda"], controller_configs=[{"type": "OSC_POSE"}] * 2)},
    "controllers of no kind": {"env_args": env_args(controller_configs="OSC_POSE")},
    "bytes": {"objects": np.array([b"cube", b"table"]), "odd": b"\xff"},
    "empty": {"note": h5py.Empty("f")},
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_attributes_of_any_kind_are_taken_over_or_noted(case, tmp_path):
    source = robomimic(tmp_path / "a.hdf5", **ODD[case])
    convert(source, tmp_path / "b.zarr")
    convert(tmp_path / "b.zarr", tmp_path / "c.hdf5")
    assert read(tmp_path / "c.hdf5").n_episodes == 3
    assert any("env_args" in note for note in read(source).notes) == (
        case not in ("null", "a controller a robot", "controllers of no kind")
    )


def test_a_name_that_is_no_text_is_written_as_one(tmp_path):
    source = robomimic(tmp_path / "a.hdf5")
    with h5py.File(source, "a") as file:
        space = h5py.h5s.create(h5py.h5s.SCALAR)
        h5py.h5a.create(file["data/demo_0"].id, b"\xff", h5py.h5t.NATIVE_INT32, space)
    convert(source, tmp_path / "b.zarr")
    assert "\\xff" in DemoStore.open(tmp_path / "b.zarr").episode_info()[0]


def test_a_file_on_which_hdf5_crashes_or_hangs_is_one_line(tmp_path, monkeypatch):
    """It is looked at by another process, which then looks at the next one as well."""
    from isdt_policy.datasets.formats import probe

    good, bad = robomimic(tmp_path / "a.hdf5"), robomimic(tmp_path / "bad.hdf5")
    crashes = "if b'bad' in line.encode(): import os; os.kill(os.getpid(), 11)\n    "
    monkeypatch.setattr(
        probe,
        "_PROGRAM",
        probe._PROGRAM.replace(
            "    with contextlib.suppress(Exception), h5py", f"    {crashes}with contextlib.suppress(Exception), h5py"
        ),
    )
    monkeypatch.setattr(probe, "_looking", {})
    for _ in range(2):
        convert(good, tmp_path / "b.zarr", overwrite=True)
        with pytest.raises(InputError, match="HDF5 crashes or hangs"):
            convert(bad, tmp_path / "c.zarr")
    assert not (tmp_path / "c.zarr").exists()


def test_nested_observations_come_with_dots_and_other_groups_are_noted(tmp_path):
    def more(demo, steps, number):
        demo["obs/datagen_info/eef_pose/franka"] = np.full((steps, 4, 4), number)
        demo["initial_state/robot"] = np.zeros((1, 9))
        demo["obs/language"] = np.array([b"push"] * steps)

    source = robomimic(tmp_path / "a.hdf5", change=more)
    with h5py.File(source, "a") as file:
        file["tasks/x"] = 1
        file["data/extra"] = 2
    convert(source, tmp_path / "a.zarr")
    assert DemoStore.open(tmp_path / "a.zarr").keys == ("action", "datagen_info.eef_pose.franka", "eef_pos", "object")
    (note,) = [note for note in read(source).notes if note.startswith("not carried over")]
    assert note == "not carried over: data/demo_N/initial_state, data/extra, obs/language (no numbers), tasks/"
    convert(source, tmp_path / "b.zarr", how=Reading(keys=("object",)))
    assert DemoStore.open(tmp_path / "b.zarr").keys == ("action", "object")


def test_a_key_that_is_missing_in_one_demo_is_no_matter_if_nobody_wants_it(tmp_path):
    def lose(demo, steps, number):
        if number == 2:
            del demo["obs/object"]

    source = robomimic(tmp_path / "a.hdf5", change=lose)
    with pytest.raises(InputError, match="object"):
        convert(source, tmp_path / "a.zarr")
    convert(source, tmp_path / "a.zarr", how=Reading(keys=("eef_pos",)))


def emptied(demo, steps, number):
    if number == 1:
        for name in ("actions", "obs/eef_pos", "obs/object"):
            values = demo[name][:0]
            del demo[name]
            demo[name] = values


def not_a_number(demo, steps, number):
    if number == 1:
        demo["actions"][3, 0] = np.nan


def another_type(demo, steps, number):
    if number == 1:
        values = demo["obs/object"][:].astype(np.float32)
        del demo["obs/object"]
        demo["obs/object"] = values


@pytest.mark.parametrize("change", [emptied, not_a_number, another_type])
def test_a_bad_episode_is_named_with_the_command_that_leaves_it_out(change, tmp_path):
    source = robomimic(tmp_path / "a.hdf5", change=change)
    with pytest.raises(InputError, match=r"a\.hdf5', demo_1: .*isdt data split SOURCE TARGET exclude=1"):
        convert(source, tmp_path / "a.zarr")
    assert main(["data", "split", str(source), str(tmp_path / "b.zarr"), "exclude=1"]) == 0
    assert [info["name"] for info in DemoStore.open(tmp_path / "b.zarr").episode_info()] == ["demo_0", "demo_2"]


@pytest.mark.parametrize("to", ["zarr", "robomimic", "lerobot", "minari", "diffusion_policy"])
def test_an_action_by_another_name_can_be_named(to, tmp_path):
    group = zarr.open_group(tmp_path / "own.zarr", mode="w")
    for name, value in {
        "data/actions": np.ones((9, 2)),
        "data/state": np.ones((9, 3)),
        "meta/episode_ends": np.array([4, 9]),
    }.items():
        group.create_array(name, data=value)
    group.attrs["action_space"] = {"rate_hz": 10}
    target = tmp_path / ("b.zarr" if to in ("zarr", "diffusion_policy") else "b")
    with pytest.raises(InputError, match=r"no key 'action', only actions, state; .*rename=NAME:action"):
        convert(tmp_path / "own.zarr", target, to=to)
    convert(tmp_path / "own.zarr", target, to=to, how=Reading(rename={"actions": "action"}))
    assert set(next(read(target).episodes())) == {"action", "state"}
    with pytest.raises(InputError, match="no key 'acton'"):
        convert(tmp_path / "own.zarr", tmp_path / "c.zarr", how=Reading(rename={"acton": "action"}))


def turned(share):
    """Absolute rotations, of about pi, in a share of the steps."""

    def change(demo, steps, number):
        demo["actions"][: round(share * steps), 3] = 3.1

    return change


def test_actions_that_cannot_be_displacements_are_taken_as_absolute(tmp_path):
    said = {"env_args": env_args(controller_configs={"type": "OSC_POSE", "control_delta": True})}
    delta = read(robomimic(tmp_path / "delta.hdf5", **said))
    assert delta.attributes["action_space"]["type"] == "delta"
    absolute = read(robomimic(tmp_path / "abs.hdf5", change=turned(1.0), **said))
    assert absolute.attributes["action_space"] == {
        "type": "absolute",
        "controller": "OSC_POSE",
        "rate_hz": 20,
        "rotation": "6d",
    }
    assert absolute.task == "lift_abs"
    assert next(absolute.episodes())["action"].shape[1] == 10
    assert "they are taken as absolute" in absolute.notes[0]
    assert absolute.attributes["env"]["kwargs"]["controller_configs"]["control_delta"] is False
    # Also when the task is named: nothing is replayed.
    convert(tmp_path / "abs.hdf5", tmp_path / "abs.zarr", task="lift_abs")
    np.testing.assert_array_equal(
        DemoStore.open(tmp_path / "abs.zarr").episode(0)["action"], next(absolute.episodes())["action"]
    )


def test_actions_that_fit_neither_kind_are_asked_for(tmp_path, capsys):
    source = robomimic(
        tmp_path / "a.hdf5", change=turned(0.3), env_args=env_args(controller_configs={"control_delta": True})
    )
    assert main(["data", "convert", str(source), str(tmp_path / "a.zarr")]) == 2
    assert "actions=delta or actions=absolute" in capsys.readouterr().err
    for kind in ("delta", "absolute"):
        assert main(["data", "convert", str(source), str(tmp_path / f"{kind}.zarr"), f"actions={kind}"]) == 0
        assert DemoStore.open(tmp_path / f"{kind}.zarr").attrs["action_space"]["type"] == kind


def linked(path, secret):
    with h5py.File(path, "a") as file:
        del file["data/demo_1/obs/object"]
        file["data/demo_1/obs/object"] = h5py.ExternalLink(str(secret), "/x")


def stored_outside(path, secret):
    with h5py.File(path, "a") as file:
        del file["data/demo_1/obs/object"]
        file["data/demo_1/obs"].create_dataset("object", (15, 10), np.uint8, external=[(str(secret), 0, 150)])


def virtual(path, secret):
    layout = h5py.VirtualLayout((15, 10), np.float64)
    layout[:] = h5py.VirtualSource(str(secret), "x", (15, 10))
    with h5py.File(path, "a") as file:
        del file["data/demo_1/obs/object"]
        file["data/demo_1/obs"].create_virtual_dataset("object", layout)


@pytest.mark.parametrize("reach", [linked, stored_outside, virtual])
@pytest.mark.parametrize("format", ["robomimic", "minari"])
def test_hdf5_that_takes_data_from_other_files_is_refused(reach, format, tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.zeros((15, 10))
    source = robomimic(tmp_path / "a.hdf5")
    reach(source, tmp_path / "secret.h5")
    if format == "minari":
        (tmp_path / "m/data").mkdir(parents=True)
        source.rename(tmp_path / "m/data/main_data.hdf5")
        (tmp_path / "m/data/metadata.json").write_text("{}")
        source = tmp_path / "m"
    with pytest.raises(InputError, match=r"another file|other files"):
        convert(source, tmp_path / "b.zarr")


def test_rows_that_were_never_written_are_not_read_as_zeros(tmp_path):
    source = robomimic(tmp_path / "a.hdf5")
    with h5py.File(source, "a") as file:
        del file["data/demo_1/obs/object"]
        file["data/demo_1/obs"].create_dataset("object", (15, 10), np.float64, chunks=(4, 10))[:8] = 1
    with pytest.raises(InputError, match="incomplete: /data/demo_1/obs/object claims 15 rows"):
        convert(source, tmp_path / "b.zarr")
    with h5py.File(source, "a") as file:
        del file["data/demo_1/obs/object"]
        file["data/demo_1/obs"].create_dataset("object", (10**12, 10), np.float64, chunks=(4, 10))
    with pytest.raises(InputError, match="object"):
        convert(source, tmp_path / "b.zarr")


def test_a_file_that_a_recorder_still_writes_is_called_that(tmp_path, monkeypatch):
    source = robomimic(tmp_path / "a.hdf5")
    monkeypatch.setattr(hdf5.h5(), "File", lambda *_: (_ for _ in ()).throw(BlockingIOError(11, "unable to lock file")))
    with pytest.raises(InputError, match="open in another program"):
        hdf5.opened(source)


def test_a_picture_that_claims_too_many_pixels_is_not_decoded():
    picture = images.encode(np.zeros((8, 6, 3), np.uint8))
    assert images.size(picture) == (8, 6)
    bomb = picture[:16] + (20_000).to_bytes(4) + (20_000).to_bytes(4) + picture[24:]
    with pytest.raises(InputError, match="claims 20000 x 20000 pixels"):
        images.decode(bomb)
    with pytest.raises(InputError, match="neither PNG nor JPEG"):
        images.decode(b"GIF89a")


def test_two_conversions_to_one_target_exclude_each_other(tiny_store, tmp_path):
    from isdt_policy.shared import files

    with files.locked(tmp_path / "a.zarr", "busy"), pytest.raises(InputError, match="being written by another process"):
        convert(tiny_store, tmp_path / "a.zarr")
    convert(tiny_store, tmp_path / "a.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_a_file_that_somebody_else_made_is_not_replaced(tiny_store, tmp_path):
    robomimic(tmp_path / "theirs.hdf5")
    with pytest.raises(InputError, match="not written by isdt"):
        convert(tiny_store, tmp_path / "theirs.hdf5", overwrite=True)
    for name in ("a.hdf5", "a.zarr.zip"):
        for _ in range(2):
            convert(tiny_store, tmp_path / name, task="pusht", overwrite=True)
    for _ in range(2):
        convert(tiny_store, tmp_path / "b.zarr.zip", to="diffusion_policy", overwrite=True)


@pytest.mark.parametrize(
    "line",
    [
        "convert {store} file/x.zarr",
        "view {store} out=file/x.html",
        "generate out=file/x.zarr",
        "split {store} file/x.zarr episodes=0",
        "merge {store} {store} out=file/x.zarr",
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(line, tiny_store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["data", *line.format(store=tiny_store).split()]) == 2
    error = [text for text in capsys.readouterr().err.splitlines() if text.startswith("isdt")]
    assert len(error) == 1
    assert "cannot be written" in error[0]


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
from isdt_policy.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("to", ["robomimic", "minari"])
def test_a_full_disk_does_not_crash_the_process_that_writes_hdf5(to, tmp_path):
    """HDF5 itself ends in a segmentation fault when it cannot write what it holds of compressed images."""
    rng = np.random.default_rng(0)
    with DemoWriter(tmp_path / "a.zarr") as writer:
        for _ in range(20):
            image = rng.integers(0, 255, (40, 48, 48, 3), np.uint8)
            writer.append({"state": rng.random((40, 40)), "img": image, "action": rng.random((40, 7))})
    command = [
        sys.executable,
        "-c",
        LIMITED,
        "data",
        "convert",
        str(tmp_path / "a.zarr"),
        str(tmp_path / "b"),
        f"to={to}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done
    (line,) = [line for line in done.stderr.splitlines() if "elapsed" not in line]
    assert "b' cannot be written ([Errno 27] File too large)." in line
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
