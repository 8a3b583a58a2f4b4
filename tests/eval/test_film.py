"""Films: whatever an environment draws becomes a picture, and one that draws nothing costs the films alone."""

from functools import partial

import numpy as np
import pytest
from isdt_eval_toys import Chaos, NoisyPolicy, evaluate, torch_policy

from isdt_policy.cli import main as isdt
from isdt_policy.eval.protocol import Protocol
from isdt_policy.shared.errors import InputError

RED = np.zeros((4, 6, 3), np.uint8) + np.uint8([255, 0, 0])


class Drawing(Chaos):
    def __init__(self, drawn):
        super().__init__(4)
        self.drawn = drawn

    def render(self):
        return self.drawn


@pytest.mark.parametrize(
    ("drawn", "shown"),
    [
        (RED, RED),
        ([RED * 0, RED], RED),  # Gymnasium's rgb_array_list
        (RED / 255.0, RED),
        (np.dstack([RED, RED[..., :1]]), RED),  # with opacity
        (RED[..., 0], RED[..., :1].repeat(3, axis=2)),  # grey
    ],
)
def test_what_is_drawn_becomes_a_picture(drawn, shown):
    result = evaluate(NoisyPolicy(), Protocol("chaos"), [100_000], make_env=partial(Drawing, drawn), keep=("frames",))
    frames = result.kept[result.episodes[0].key].frames
    assert len(frames) == 5
    assert all(frame.dtype == np.uint8 and np.array_equal(frame, shown) for frame in frames)


@pytest.mark.parametrize(("drawn", "what"), [(None, "nothing"), (np.zeros(3), "ndarray"), ("picture", "str")])
def test_what_is_no_picture_is_named(drawn, what):
    with pytest.raises(InputError, match=f"gave {what} in place of a picture"):
        evaluate(NoisyPolicy(), Protocol("chaos"), [100_000], make_env=partial(Drawing, drawn), keep=("frames",))


def test_an_environment_that_draws_nothing_costs_the_films_and_not_the_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("isdt_policy.envs.pusht.PushTEnv.render", lambda self: None)
    torch_policy(0.0, 512.0).save_pretrained(tmp_path / "policy")
    assert isdt(["eval", f"checkpoint={tmp_path / 'policy'}", "episodes=2", "max_steps=8"]) == 0
    assert "note: nothing was filmed" in capsys.readouterr().err
    page = (tmp_path / "policy" / "eval" / "report.html").read_text()
    assert "<video" not in page
    assert "<svg" in page
