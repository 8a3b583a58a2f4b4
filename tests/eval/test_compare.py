"""Comparisons: right differences on shared seeds, refused where conditions differ."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from isdt_policy.cli import main as isdt
from isdt_policy.eval.comparison import Group, compare
from isdt_policy.eval.origin import Origin, PolicyInfo
from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.result import ArmSummary, EpisodeRecord, Result
from isdt_policy.shared.arm import Arm


def result(path, outcomes, arm="1", first=100_000, checkpoint="run/checkpoints/100", **conditions):
    """Write an eval_info.json with the given (success, score) pairs; success None is what an environment never says."""
    episodes = tuple(
        EpisodeRecord(
            first + i, Arm.parse(arm), None if s is None else bool(s), float(r), 1.0, length=20,
            steps_to_success=10 if s else None, digest="0",
        )
        for i, (s, r) in enumerate(outcomes)
    )  # fmt: skip
    protocol = Protocol("pusht", "pusht", **conditions)
    arms = {Arm.parse(arm): ArmSummary.of(episodes)}
    origin = Origin(policy=PolicyInfo(checkpoint))
    found = Result(protocol, tuple(e.seed for e in episodes), arms, episodes, origin=origin)
    found.save(path)
    return found


A = [(1, 1.0), (0, 0.5), (0, 0.4), (1, 1.0), (0, 0.3), (0, 0.2)] * 5
B = [(1, 1.0), (1, 1.0), (0, 0.4), (1, 1.0), (0, 0.3), (1, 1.0)] * 5


def test_differences_are_paired_on_shared_seeds(tmp_path):
    a = Group("a", (result(tmp_path / "a", A),))
    b = Group("b", (result(tmp_path / "b", B[1:], first=100_001),))  # lacks the first seed
    first, second = compare([a, b])
    assert first.difference is None
    d = second.difference
    assert d.n == 29
    assert d.success.value == pytest.approx(10 / 29)
    assert d.score.value == pytest.approx((5 * 0.5 + 5 * 0.8) / 29)
    assert d.p_success == pytest.approx(2 * 0.5**10)  # ten discordant pairs, all one way
    assert d.score.low > 0
    # 20 and 10 of 29 fail, the 10 among the 20: 6.9 would if the two failed independently.
    assert (d.failures.reference_alone, d.failures.here_alone, d.failures.both) == (10, 0, 10)
    assert d.failures.expected == pytest.approx(20 * 10 / 29)


def test_no_shared_seeds_no_difference(tmp_path):
    a = Group("a", (result(tmp_path / "a", A),))
    b = Group("b", (result(tmp_path / "b", B, first=100_500),))
    assert compare([a, b])[1].difference is None


def test_unequal_seeds_are_told_with_the_rates_of_the_common_ones(tmp_path, capsys):
    """100 % of 10 against 50 % of 20, of which the common half failed: +100 points, and 0 % is what it is a difference from."""
    result(tmp_path / "a", [(0, 0.1)] * 10 + [(1, 1.0)] * 10)
    result(tmp_path / "b", [(1, 1.0)] * 10)
    assert isdt(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    text = capsys.readouterr().out
    assert "+100.0" in text
    assert "b, 1: on the 10 common seeds the first row and this one have success 0.0 and 100.0 %" in text
    assert isdt(["compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    assert "common seeds the first row and this one" not in capsys.readouterr().out


def test_success_that_was_never_reported_is_no_number(tmp_path, capsys):
    result(tmp_path / "a", [(None, 0.1), (None, 0.2)])
    result(tmp_path / "b", [(None, 0.3), (None, 0.4)])
    assert isdt(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    text = capsys.readouterr().out
    assert text.count("not reported by the environment") == 2
    assert "+0.200" in text


def test_groups_of_training_seeds_get_a_wider_interval(tmp_path):
    rng = np.random.default_rng(0)
    infos = []
    for i, p in enumerate((0.3, 0.5, 0.9)):
        infos.append(result(tmp_path / str(i), [(s, s) for s in rng.random(60) < p]))
    (row,) = compare([Group("g", tuple(infos))])
    assert (row.n, row.runs) == (180, 3)
    pooled = ArmSummary.of([e for info in infos for e in info.episodes]).success_rate
    assert row.success.high - row.success.low > 2 * (pooled.high - pooled.low)


def test_three_formats_say_the_same(tmp_path, capsys):
    result(tmp_path / "a", A)
    result(tmp_path / "b", B)
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert isdt(["compare", *paths]) == 0
    markdown = capsys.readouterr().out
    assert "| 33.3 (19.2 to 51.2)" in markdown
    assert "+33.3 (" in markdown
    assert "30 common seeds" in markdown
    assert isdt(["compare", *paths, "format=csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["policy"] for row in rows] == ["a", "b"]
    assert float(rows[1]["success_difference"]) == pytest.approx(1 / 3)
    assert isdt(["compare", *paths, "format=latex", f"out={tmp_path / 't.tex'}"]) == 0
    tex = (tmp_path / "t.tex").read_text()
    assert tex.count("\\\\") == 3
    assert "\\%" in tex


def test_diffusion_policys_protocol(tmp_path, capsys):
    """Best over checkpoints and last-ten average, per training seed, then over seeds: by hand."""
    paths = []
    for seed in range(3):
        for step in range(1, 13):
            score = 0.1 * seed + 0.05 * step
            path = tmp_path / f"{seed}_{step}"
            result(path, [(0, score)] * 4, checkpoint=f"runs/seed{seed}/checkpoints/{step}000")
            paths.append(str(path))
    assert isdt(["compare", "protocol=diffusion_policy", "mine=" + ",".join(paths)]) == 0
    text = capsys.readouterr().out
    assert "| mine | 1 | 3 | 4 | 0.700 ± 0.100 | 0.475 ± 0.100 |" in text
    curves = tmp_path / "c.svg"
    assert isdt(["compare", *paths[:12], f"curves={curves}", f"out={tmp_path / 't.md'}"]) == 0
    assert "<svg" in curves.read_text()


def test_every_seed_is_a_point_of_the_pair_plot(tmp_path):
    # Text is drawn as paths, with the words in comments; the counts are by hand from A and B.
    result(tmp_path / "a", A)
    result(tmp_path / "b", B)
    assert isdt(["compare", str(tmp_path / "a"), str(tmp_path / "b"), f"pairs={tmp_path / 'p.svg'}"]) == 0
    drawn = (tmp_path / "p.svg").read_text()
    for label in ("both succeed: 10", "only a, 1: 0", "only b, 1: 10", "neither: 10"):
        assert label in drawn


def test_a_pair_plot_of_one_result_names_its_arms_alone(tmp_path):
    result(tmp_path / "a", A)
    result(tmp_path / "b", B, arm="2")
    one, two = (Result.load(tmp_path / name) for name in "ab")
    replace(one, arms={**one.arms, **two.arms}, episodes=one.episodes + two.episodes).save(tmp_path / "a")
    assert isdt(["compare", str(tmp_path / "a"), f"pairs={tmp_path / 'p.svg'}"]) == 0
    drawn = (tmp_path / "p.svg").read_text()
    for label in ("only arm 1: 0", "only arm 2: 10", "<!-- best reward: arm 1 -->", "<!-- best reward: arm 2 -->"):
        assert label in drawn


def test_sample_size_from_the_command_line(capsys):
    assert isdt(["compare", "power=0.70,0.75"]) == 0
    assert "n = 1251 episodes" in capsys.readouterr().out


def test_other_conditions_are_refused(tmp_path, capsys):
    result(tmp_path / "a", A)
    result(tmp_path / "b", B, n_latency_steps=2)
    assert isdt(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "n_latency_steps=2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "cannot be read"),
        (["A", "arm=3"], "no result has arm=3"),
        (["A", "format=word"], "format='word' is not one of markdown, csv, latex"),
        (["A", "pairs=p.svg"], "needs two rows"),
        (["A", "fromat=csv"], "Did you mean 'format'"),
        (["format=csv"], "nothing to compare"),
        (["power=0.7"], "two rates"),
        (["A", "confidence=high"], "confidence must be a number, got 'high'"),
        (["A", "confidence=95"], "must lie between 0 and 1"),
        (["A", "out=FOLDER"], "it is a folder"),
        (["A", "curves=FOLDER"], "it is a folder"),
        (["protocol=dp", "A"], "is not one of diffusion_policy"),
    ],
)
def test_bad_input(arguments, message, tmp_path, capsys):
    result(tmp_path / "a", A)
    arguments = [str(tmp_path / "a") if a == "A" else a.replace("FOLDER", str(tmp_path)) for a in arguments]
    assert isdt(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
