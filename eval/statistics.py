"""Statistics of success rates and scores: intervals, paired tests, sample sizes. NumPy only.

Sources
    Wilson (1927) interval; McNemar (1947) test in its exact (binomial) form; Efron (1979) bootstrap percentiles;
    Fisher (1935) permutation of the signs of paired differences;
    Davison & Hinkley (1997) section 3.8 for resampling nested data, top level first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import Json


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: point estimate.
        low: lower end of the interval.
        high: upper end of the interval.
        confidence: nominal coverage, for example 0.95.
        n: observations behind it.
    """

    value: float
    low: float
    high: float
    confidence: float
    n: int

    @classmethod
    def from_dict(cls, data: Json) -> Estimate:
        """Read the fields of a JSON object."""
        return cls(float(data["value"]), float(data["low"]), float(data["high"]), data["confidence"], int(data["n"]))


@dataclass(frozen=True)
class PairedTest:
    """Exact McNemar test on pairs of outcomes.

    Attributes:
        only_a: pairs in which only A succeeded.
        only_b: pairs in which only B succeeded.
        p_value: two-sided; 1.0 when no pair differs.
        n: pairs.
    """

    only_a: int
    only_b: int
    p_value: float
    n: int


def wilson(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """Return the Wilson score interval of a success rate.

    It stays inside [0, 1] and keeps its coverage near 0 and 1, where the usual p +- 1.96 sqrt(p(1-p)/n) collapses.

    >>> e = wilson(50, 100)
    >>> round(e.low, 4), round(e.high, 4)
    (0.4038, 0.5962)

    Raises:
        InputError: unless 0 <= successes <= n, n >= 1 and 0 < confidence < 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"a success rate needs 0 <= successes <= n and n >= 1, got {successes} of {n}.")
    z = _z(confidence)
    p = successes / n
    denominator = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / denominator
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / denominator
    # The ends are exact at 0 and n; rounding would leave 1e-17 or 1 - 1e-16 there.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Estimate(p, low, high, confidence, n)


def bootstrap_mean(values: ArrayLike, confidence: float = 0.95, n_boot: int = 10_000, seed: int = 0) -> Estimate:
    """Return the mean with its percentile bootstrap interval.

    Args:
        values: (n,) one number per episode.
        confidence: nominal coverage.
        n_boot: resamples.
        seed: decides the resampling, so that a report repeats.
    """
    x = _vector(values, "values")
    rng = np.random.default_rng(seed)
    means = _resampled_means(x, n_boot, rng)
    low, high = np.quantile(means, _tails(confidence))
    return Estimate(float(x.mean()), float(low), float(high), confidence, len(x))


def mcnemar(a: ArrayLike, b: ArrayLike) -> PairedTest:
    """Test whether A and B succeed equally often on the same episodes (exact, two-sided).

    Only episodes in which one succeeds and the other fails carry information; under the null hypothesis each such
    episode falls to either side with probability 1/2.

    Args:
        a: (n,) outcomes of A, truthy for success.
        b: (n,) outcomes of B on the same seeds, in the same order.

    >>> mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]).p_value
    0.0625
    """
    x, y = _pair(a, b)
    xb, yb = x != 0, y != 0
    only_a, only_b = int(np.sum(xb & ~yb)), int(np.sum(~xb & yb))
    return PairedTest(only_a, only_b, _binomial_two_sided(only_a, only_a + only_b), len(x))


def paired_difference(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, n_boot: int = 10_000, seed: int = 0
) -> tuple[Estimate, float]:
    """Return mean(b - a) with its bootstrap interval, and a two-sided p-value for "no difference".

    Episodes are resampled as pairs: start states differ in difficulty much more than policies do, and pairing removes that
    difference. The p-value comes from a permutation test: if A and B are alike, the sign of every difference is random. p is
    the share of `n_boot` random draws of all signs whose mean is as far from zero as the one observed (with one added to
    numerator and denominator, so that p is never 0). On single outcomes this is McNemar's exact test. A p-value from resampled
    means would be too small where few episodes differ and all in one direction: they hardly cross zero.

    Args:
        a: (n,) numbers of A, one per seed.
        b: (n,) numbers of B on the same seeds.
        confidence: nominal coverage.
        n_boot: resamples.
        seed: decides the resampling.
    """
    x, y = _pair(a, b)
    difference = y - x
    rng = np.random.default_rng(seed)
    means = _resampled_means(difference, n_boot, rng)
    low, high = np.quantile(means, _tails(confidence))
    moved = difference[difference != 0]
    flipped = (1 - 2 * rng.integers(0, 2, (n_boot, len(moved)), dtype=np.int8)) @ moved
    as_far = np.abs(flipped) >= abs(moved.sum()) - 1e-9 * np.abs(moved).sum()  # sums round
    p_value = (int(as_far.sum()) + 1) / (n_boot + 1)
    return Estimate(float(difference.mean()), float(low), float(high), confidence, len(x)), p_value


def hierarchical_bootstrap(
    groups: Sequence[ArrayLike], confidence: float = 0.95, n_boot: int = 10_000, seed: int = 0
) -> Estimate:
    """Return the mean over training runs of the mean over episodes, with an interval for "train again and evaluate".

    Runs are resampled first, then episodes within each drawn run, so that the interval covers chance in training as
    well as in evaluation. With k runs the resampled variance between runs is too small by (k - 1) / k; each run's
    deviation from the grand mean is therefore stretched by sqrt(k / (k - 1)). Simulated coverage at nominal 0.95, runs
    that differ by 0.12 and 50 episodes each: 0.88 with 3 runs, 0.93 with 5, 0.95 with 10. Runs that do not differ at
    all get an interval up to sqrt(2) too wide.

    Args:
        groups: per training seed the (n_i,) numbers of its episodes.
        confidence: nominal coverage.
        n_boot: resamples.
        seed: decides the resampling.

    Raises:
        InputError: for fewer than two groups.
    """
    data = [_vector(g, f"group {i}") for i, g in enumerate(groups)]
    if len(data) < 2:
        raise InputError("a bootstrap over training seeds needs at least two trained policies; for one use wilson.")
    k = len(data)
    rng = np.random.default_rng(seed)
    grand = float(np.mean([g.mean() for g in data]))
    # (k, n_boot): resampled mean of every run, stretched away from the grand mean.
    means = np.stack([_resampled_means(g, n_boot, rng) for g in data])
    centres = np.array([g.mean() for g in data])[:, None]
    stretched = grand + (centres - grand) * math.sqrt(k / (k - 1)) + (means - centres)
    chosen = rng.integers(0, k, size=(k, n_boot))
    # A run drawn twice should have its episodes drawn twice as well: permute the resamples independently per draw.
    totals = np.zeros(n_boot)
    for draw in chosen:
        totals += stretched[draw, rng.integers(0, n_boot, size=n_boot)]
    # A mean lies among its numbers; resampled runs that were stretched may not.
    ends = min(g.min() for g in data), max(g.max() for g in data)
    low, high = np.quantile(totals / k, _tails(confidence)).clip(*ends)
    return Estimate(grand, float(low), float(high), confidence, sum(len(g) for g in data))


def sample_size(
    p_a: float, p_b: float, power: float = 0.8, alpha: float = 0.05, correlation: float | None = None
) -> int:
    """Return the number of episodes per policy needed to tell success rate p_a from p_b.

    Args:
        p_a: first rate, in (0, 1).
        p_b: second rate, in (0, 1), different from p_a.
        power: chance of a significant result when the rates are as given.
        alpha: two-sided significance level.
        correlation: correlation of the two outcomes on a common seed; None for independent seeds. With common seeds
            McNemar's test needs fewer episodes, the more the two policies fail on the same ones.

    >>> sample_size(0.70, 0.75)
    1251

    Source:
        Fleiss, Levin & Paik (2003) eq. 4.14 (two samples), Connor (1987) (pairs); both without continuity correction.
    """
    for name, p in (("p_a", p_a), ("p_b", p_b)):
        if not 0 < p < 1:
            raise InputError(f"{name}={p} is not a success rate strictly between 0 and 1.")
    if p_a == p_b:
        raise InputError(f"no number of episodes tells {p_a} from itself; give two different rates.")
    z_alpha, z_beta = _z(1 - alpha), NormalDist().inv_cdf(power)
    difference = abs(p_a - p_b)
    if correlation is None:
        mean = (p_a + p_b) / 2
        pooled = math.sqrt(2 * mean * (1 - mean))
        separate = math.sqrt(p_a * (1 - p_a) + p_b * (1 - p_b))
        return math.ceil(((z_alpha * pooled + z_beta * separate) / difference) ** 2)
    both = p_a * p_b + correlation * math.sqrt(p_a * (1 - p_a) * p_b * (1 - p_b))
    low, high = max(0.0, p_a + p_b - 1), min(p_a, p_b)
    if not low <= both <= high:
        limits = [(edge - p_a * p_b) / math.sqrt(p_a * (1 - p_a) * p_b * (1 - p_b)) for edge in (low, high)]
        raise InputError(
            f"correlation {correlation} is impossible for rates {p_a} and {p_b}; "
            f"allowed: {limits[0]:.3f} to {limits[1]:.3f}."
        )
    discordant = p_a + p_b - 2 * both
    n = (z_alpha * math.sqrt(discordant) + z_beta * math.sqrt(discordant - difference**2)) ** 2 / difference**2
    return math.ceil(n)


def advice(p: float, n: int, power: float = 0.8) -> str:
    """Say in one line what difference n episodes can show near rate p, and what n a difference of 0.05 would take.

    >>> advice(0.7, 100)
    '100 episodes can tell 0.70 from 0.50 or less and from 0.87 or more; to tell 0.70 from 0.75 you need n = 1251.'
    """
    p = min(max(p, 0.01), 0.99)
    other = p + 0.05 if p <= 0.94 else p - 0.05
    below = next((q for q in _grid(p, -1) if sample_size(p, q, power) <= n), None)
    above = next((q for q in _grid(p, +1) if sample_size(p, q, power) <= n), None)
    parts = []
    if below is not None:
        parts.append(f"{below:.2f} or less")
    if above is not None:
        parts.append(f"{above:.2f} or more")
    shown = f"can tell {p:.2f} from {' and from '.join(parts)}" if parts else f"cannot tell {p:.2f} from any other rate"
    return f"{n} episodes {shown}; to tell {p:.2f} from {other:.2f} you need n = {sample_size(p, other, power)}."


def _grid(p: float, sign: int) -> list[float]:
    return [q for k in range(1, 100) if 0.005 < (q := round(p + sign * k * 0.01, 2)) < 0.995]


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie strictly between 0 and 1, got {confidence}.")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _tails(confidence: float) -> tuple[float, float]:
    _z(confidence)
    return (1 - confidence) / 2, (1 + confidence) / 2


def _binomial_two_sided(k: int, n: int) -> float:
    """P-value of k against Binomial(n, 1/2): symmetric, so twice the smaller tail."""
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(min(k, n - k) + 1))
    return min(1.0, 2 * tail / 2**n)  # exact integers up to the division


def _resampled_means(x: NDArray[np.float64], n_boot: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(n_boot,) means of resamples with replacement, drawn in blocks to bound memory."""
    block = max(1, 4_000_000 // len(x))
    means = [x[rng.integers(0, len(x), (min(block, n_boot - i), len(x)))].mean(axis=1) for i in range(0, n_boot, block)]
    return np.concatenate(means)


def _vector(values: ArrayLike, name: str) -> NDArray[np.float64]:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise InputError(f"{name} must be a non-empty one-dimensional array, got shape {x.shape}.")
    if not np.isfinite(x).all():
        raise InputError(f"{name} holds values that are not finite.")
    return x


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = _vector(a, "a"), _vector(b, "b")
    if len(x) != len(y):
        raise InputError(f"a paired comparison needs the same episodes on both sides, got {len(x)} and {len(y)}.")
    return x, y


def entropy(modes: Sequence[int], possible: int) -> float | None:
    """Entropy of how often each mode occurred, in units of log `possible`; None without modes.

    >>> entropy([0, 1, 2, 3], possible=4), entropy([7, 7, 7], possible=24)
    (1.0, 0.0)
    """
    if possible < 2 or not modes:
        return None
    share = np.bincount(np.asarray(modes), minlength=possible) / len(modes)
    share = share[share > 0]
    return float(max(0.0, -(share * np.log(share)).sum() / np.log(possible)))
