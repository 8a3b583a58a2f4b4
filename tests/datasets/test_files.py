"""Nothing that somebody else made is deleted, and what is replaced is there all the time."""

import os
import sys

import pytest

from isdt_policy.datasets.convert import convert
from isdt_policy.shared import files
from isdt_policy.shared.errors import InputError


@pytest.fixture
def precious(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    (folder / "thesis").mkdir(parents=True)
    (folder / "thesis" / "chapter.tex").write_text("years")
    monkeypatch.chdir(folder)
    return folder / "thesis" / "chapter.tex"


@pytest.mark.parametrize("target", [".", "..", "../home", "thesis", "thesis/.."])
def test_overwriting_leaves_folders_of_other_people_alone(precious, tiny_store, target):
    with pytest.raises(InputError, match=r"current folder|did not write"):
        convert(str(tiny_store), target, to="lerobot", overwrite=True)
    assert precious.read_text() == "years"


@pytest.mark.parametrize("to", ["zarr", "diffusion_policy", "lerobot", "minari"])
def test_what_this_program_wrote_is_replaced(tiny_store, tmp_path, to):
    target = tmp_path / ("demos.zarr" if to in ("zarr", "diffusion_policy") else "demos")
    for _ in range(2):
        convert(str(tiny_store), str(target), to=to, task="pusht", overwrite=True)
    assert files.is_ours(target)
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


def test_the_current_folder_is_kept_even_if_it_is_a_store(tiny_store, tmp_path, monkeypatch):
    convert(str(tiny_store), str(tmp_path / "demos.zarr"))
    monkeypatch.chdir(tmp_path / "demos.zarr")
    with pytest.raises(InputError, match="current folder"):
        convert(str(tiny_store), ".", to="zarr", overwrite=True)
    assert (tmp_path / "demos.zarr" / "zarr.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="exchanging two names is Linux's")
def test_a_folder_is_there_at_every_instant_in_which_it_is_replaced(tmp_path, monkeypatch):
    old, new = tmp_path / "run", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "provenance.json").write_text('{"isdt_policy": 1}')
    seen = []
    for name in ("rename", "replace"):
        before = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, before=before: (before(*a), seen.append(old.is_dir())))
    files.replace(new, old)
    assert seen
    assert all(seen)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
