"""Pictures of a store: bytes, or one line that says what to do."""

import numpy as np
import pytest

from isdt_policy.datasets.augment import MemoryStore
from isdt_policy.datasets.pictures import with_pictures
from isdt_policy.envs import task_spec
from isdt_policy.shared.errors import InputError

PUSHT = task_spec("pusht")
PICTURES = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), np.uint8)


def store(**arrays):
    action = np.zeros((4, 2), np.float32)
    return MemoryStore({"action": action, **arrays}, np.array([4]), np.array([0]))


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "int64"])
@pytest.mark.parametrize("name", ["pixels", "img", "image"])
def test_whole_numbers_of_any_type_are_read(dtype, name):
    seen = with_pictures(store(**{name: PICTURES.astype(dtype)}), PUSHT, ["pixels"])
    assert seen.read("pixels").dtype == np.uint8
    np.testing.assert_array_equal(seen.read("pixels"), PICTURES)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (
            PICTURES / 255.0,
            r"'img' holds floats between 0 and 1, and pictures are bytes, 0 to 255. Record \(255 \* x\)",
        ),
        (PICTURES / 127.5 - 1, "'img' holds float64 from -1 to 1 that are not all whole numbers from 0 to 255"),
        (PICTURES.astype(int) + 1, "from 1 to 256 that are not all whole"),
        (np.where(PICTURES == 7, np.nan, PICTURES), "that are not all whole numbers"),
        (PICTURES[..., 0], r"shape \(96, 96\), expected \(height, width, 3\): it is grey"),
        (np.concatenate([PICTURES, PICTURES[..., :1]], -1), "alpha channel"),
        (
            np.moveaxis(PICTURES, -1, 1),
            r"shape \(3, 96, 96\), .*: the channels come first. Move them to the end: np.moveaxis",
        ),
        (PICTURES[:, ::2, ::2], "'img' was recorded with 48x48 px, and task 'pusht' gives 'pixels' with 96x96 px"),
        (None, "the demonstrations hold no pictures 'pixels', and they cannot be drawn from what is there: action"),
    ],
)
def test_what_cannot_be_read_is_one_line(pictures, message):
    with pytest.raises(InputError, match=message) as error:
        with_pictures(store(**({} if pictures is None else {"img": pictures})), PUSHT, ["pixels"])
    assert "\n" not in str(error.value)


def test_a_later_picture_that_is_none_is_found_too():
    broken = PICTURES.astype(np.float32)
    broken[3, 0, 0, 0] = 0.5
    with pytest.raises(InputError, match="not all whole numbers"):
        with_pictures(store(img=broken), PUSHT, ["pixels"]).read("pixels")


def test_a_store_without_pictures_is_left_alone():
    plain = store(state=np.zeros((4, 5), np.float32))
    assert with_pictures(plain, PUSHT, ["agent_pos"]) is plain
