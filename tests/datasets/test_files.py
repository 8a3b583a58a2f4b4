"""Nothing that somebody else made is deleted."""

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
