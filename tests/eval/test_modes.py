"""Of how many ways a policy knows: the entropy of the modes among its successes."""

import math

import pytest

from isdt_policy.envs.experts import expert
from isdt_policy.eval.protocol import Protocol
from isdt_policy.eval.report import write_report
from isdt_policy.eval.result import Result
from isdt_policy.eval.rollout import evaluate
from isdt_policy.eval.statistics import entropy


@pytest.mark.parametrize(
    ("modes", "possible", "expected"),
    [
        ([0, 1, 2, 3], 4, 1.0),
        ([5] * 10, 24, 0.0),
        ([0, 0, 1, 1], 24, math.log(2) / math.log(24)),
        ([], 24, None),
        ([0], 0, None),
    ],
)
def test_entropy(modes, possible, expected):
    assert entropy(modes, possible) == (expected if expected is None else pytest.approx(expected))


def test_the_ways_of_an_evaluation_are_recorded_summarised_and_read_back(tmp_path):
    result = evaluate(expert("avoiding"), Protocol("avoiding"), range(100_000, 100_012), ["expert"])
    modes = [record.mode for record in result.episodes]
    assert result["expert"].n_success == 12
    assert result["expert"].mode_entropy == pytest.approx(entropy(modes, 24))
    assert result["expert"].mode_entropy > 0.5
    page = write_report(result, tmp_path / "report.html").read_text()
    assert f"entropy of the ways taken</th><td>{result['expert'].mode_entropy:.2f}" in page
    assert "How many ways the successes took" in page
    again = Result.load(result.save(tmp_path))
    assert [record.mode for record in again.episodes] == modes
    assert again["expert"].mode_entropy == result["expert"].mode_entropy


def test_a_task_without_named_ways_has_no_entropy(tmp_path):
    result = evaluate(expert("pusht"), Protocol("pusht", max_steps=3), [100_000], ["expert"])
    assert result["expert"].mode_entropy is None
    assert "mode_entropy" not in result["expert"].to_json()
    assert "ways" not in write_report(result, tmp_path / "report.html").read_text()
