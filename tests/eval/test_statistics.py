"""Statistics against scipy, against closed forms, and against what they promise: their coverage."""

import doctest

import numpy as np
import pytest
from scipy import stats

from isdt_policy.eval import seeds, statistics
from isdt_policy.eval.statistics import (
    bootstrap_mean,
    hierarchical_bootstrap,
    mcnemar,
    paired_difference,
    sample_size,
    wilson,
)
from isdt_policy.shared.errors import InputError


@pytest.mark.parametrize("module", [statistics, seeds])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (1, 1), (3, 7), (137, 200), (999, 1000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_is_scipys(k, n, confidence):
    ours = wilson(k, n, confidence)
    theirs = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert ours.low == pytest.approx(theirs.low, abs=1e-12)
    assert ours.high == pytest.approx(theirs.high, abs=1e-12)


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9])
def test_wilson_covers_as_promised_on_average_over_n(p):
    """Exact coverage, by summing the binomial; it oscillates with n, so average over a range of n."""
    coverage = []
    for n in range(40, 60):
        k = np.arange(n + 1)
        inside = [(e := wilson(int(i), n)).low <= p <= e.high for i in k]
        coverage.append(stats.binom.pmf(k, n, p)[inside].sum())
    assert 0.93 < np.mean(coverage) < 0.97


def test_mcnemar_is_scipys_binomial_test():
    rng = np.random.default_rng(0)
    for _ in range(30):
        a, b = rng.random(40) < 0.6, rng.random(40) < 0.4
        test = mcnemar(a, b)
        discordant = test.only_a + test.only_b
        assert test.p_value == pytest.approx(stats.binomtest(test.only_a, discordant, 0.5).pvalue, rel=1e-12)
    assert mcnemar([1, 0], [1, 0]).p_value == 1.0


def test_mcnemar_keeps_its_level():
    """Two policies of equal skill that share hard episodes: p < 0.05 in at most 5 % of comparisons."""
    rng = np.random.default_rng(1)
    low = 0
    for _ in range(1000):
        difficulty = rng.random(50)
        low += mcnemar(rng.random(50) < difficulty, rng.random(50) < difficulty).p_value < 0.05
    assert low / 1000 <= 0.05


def test_bootstrap_of_the_mean_is_scipys():
    x = np.random.default_rng(2).beta(4, 1, 80)
    ours = bootstrap_mean(x, n_boot=20_000)
    theirs = stats.bootstrap((x,), np.mean, method="percentile", n_resamples=20_000, rng=0).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=2e-3)
    assert ours.high == pytest.approx(theirs.high, abs=2e-3)
    assert bootstrap_mean(x) == bootstrap_mean(x)


def test_paired_difference_covers_the_difference_and_sees_it():
    rng = np.random.default_rng(3)
    covered = false_alarms = 0
    for _ in range(400):
        difficulty = rng.normal(0, 1, 60)  # shared, five times the noise
        a, b = difficulty + rng.normal(0, 0.2, 60), difficulty + 0.1 + rng.normal(0, 0.2, 60)
        estimate, _ = paired_difference(a, b, n_boot=1000)
        covered += estimate.low <= 0.1 <= estimate.high
        false_alarms += paired_difference(a, b - 0.1, n_boot=1000)[1] < 0.05
    assert 0.91 <= covered / 400 <= 0.98
    assert false_alarms / 400 <= 0.08
    estimate, p_value = paired_difference(a, b)
    assert estimate.value == pytest.approx(np.mean(b) - np.mean(a))
    assert p_value < 0.05


def test_the_p_value_of_paired_differences_is_mcnemars_for_outcomes_and_counts_few_differing_episodes_as_few():
    rng = np.random.default_rng(5)
    a, b = rng.random(100) < 0.7, rng.random(100) < 0.8
    assert paired_difference(a, b)[1] == pytest.approx(mcnemar(a, b).p_value, abs=0.015)
    for n in (5, 8):  # of 200 episodes n differ, all the same way, each by the half that one of two trained policies is
        halves = np.zeros(200)
        halves[:n] = 0.5
        assert paired_difference(np.zeros(200), halves)[1] == pytest.approx(2 * 0.5**n, abs=0.005)
    assert paired_difference(a, a)[1] == 1.0


def test_hierarchical_bootstrap_covers_what_one_level_does_not():
    """Five training runs that differ: the interval must cover the mean over runs, an episode-level one cannot."""
    rng = np.random.default_rng(4)
    hierarchical = flat = 0
    for _ in range(300):
        skill = np.clip(rng.normal(0.6, 0.12, 5), 0, 1)
        runs = [(rng.random(50) < s).astype(float) for s in skill]
        e = hierarchical_bootstrap(runs, n_boot=1000)
        hierarchical += e.low <= 0.6 <= e.high
        e = bootstrap_mean(np.concatenate(runs), n_boot=1000)
        flat += e.low <= 0.6 <= e.high
    assert 0.87 <= hierarchical / 300 <= 0.98  # five runs: a little short of 0.95, as documented
    assert flat / 300 < 0.82


def test_hierarchical_bootstrap_of_equal_runs_is_about_the_flat_one():
    rng = np.random.default_rng(5)
    runs = [(rng.random(400) < 0.5).astype(float) for _ in range(20)]
    ours, flat = hierarchical_bootstrap(runs), bootstrap_mean(np.concatenate(runs))
    assert ours.value == pytest.approx(flat.value)
    assert flat.high - flat.low < ours.high - ours.low < 2 * (flat.high - flat.low)


def test_hierarchical_bootstrap_stays_among_the_numbers_it_averages():
    """Lift at two evaluations: 197, 200 and 198 of 200; the stretched runs reached 1.002."""
    runs = [np.arange(200) < k for k in (197, 200, 198)]
    assert hierarchical_bootstrap(runs).high == 1.0
    assert hierarchical_bootstrap([~run for run in runs]).low == 0.0


@pytest.mark.parametrize(("p_a", "p_b"), [(0.5, 0.7), (0.8, 0.95)])
def test_sample_size_gives_the_power_it_promises(p_a, p_b):
    n = sample_size(p_a, p_b)
    rng = np.random.default_rng(6)
    a, b = rng.binomial(n, p_a, 20_000), rng.binomial(n, p_b, 20_000)
    mean = (a + b) / (2 * n)
    z = np.abs(a - b) / n / np.sqrt(2 * mean * (1 - mean) / n)
    assert 0.77 <= np.mean(z > 1.959964) <= 0.85


def test_common_seeds_need_fewer_episodes():
    assert sample_size(0.7, 0.75, correlation=0.5) < 0.6 * sample_size(0.7, 0.75)
    assert sample_size(0.7, 0.75, correlation=0.0) == pytest.approx(sample_size(0.7, 0.75), rel=0.01)


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(3, 2),
        lambda: wilson(0, 0),
        lambda: wilson(1, 2, 1.0),
        lambda: bootstrap_mean([]),
        lambda: bootstrap_mean([1.0, float("nan")]),
        lambda: mcnemar([1, 0], [1]),
        lambda: hierarchical_bootstrap([[1.0, 0.0]]),
        lambda: sample_size(0.5, 0.5),
        lambda: sample_size(0.0, 0.5),
        lambda: sample_size(0.1, 0.9, correlation=0.9),
    ],
)
def test_nonsense_is_refused(call):
    with pytest.raises(InputError):
        call()


def test_seed_ranges_cannot_meet():
    assert not set(seeds.final_seeds(seeds.RANGE)) & set(seeds.selection_seeds(seeds.RANGE))
    with pytest.raises(InputError, match="do not fit"):
        seeds.final_seeds(10, offset=seeds.RANGE - 5)
    with pytest.raises(InputError, match="cross"):
        seeds.check_seeds(range(seeds.SELECTION_START - 1, seeds.SELECTION_START + 1))
    with pytest.raises(InputError, match="twice"):
        seeds.check_seeds([100000, 100001, 100000])
    with pytest.raises(InputError, match="episodes=0"):
        seeds.check_seeds([])
