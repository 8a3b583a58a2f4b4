"""Results side by side: differences on common seeds, with intervals and p-values.

Two results compare episode by episode where task, seed protocol and the other conditions agree and seeds are shared. The pairing
removes the difficulty of the start states, which is most of the variance. Results of several training seeds of one configuration
form a group: their interval also covers chance in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from isdt_policy.eval.result import EpisodeRecord, Result
from isdt_policy.eval.statistics import (
    Estimate,
    bootstrap_mean,
    hierarchical_bootstrap,
    mcnemar,
    paired_difference,
    wilson,
)
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError, nearest

Run = Mapping[int, EpisodeRecord]  # the episodes of one training seed, by episode seed


@dataclass(frozen=True)
class Failures:
    """Who fails on common seeds.

    Attributes:
        reference_alone, here_alone, both: numbers of seeds.
        expected: joint failures if the two policies failed independently of each other.
    """

    reference_alone: int
    here_alone: int
    both: int
    expected: float


@dataclass(frozen=True)
class Difference:
    """A row against the reference, on the seeds that both have.

    Attributes:
        n: common seeds.
        success: difference of the rates; None if the environment does not report success.
        p_success: exact McNemar, or a permutation of signs for groups.
        score: difference of the scores.
        p_score: permutation of signs.
        failures: who fails (single runs only).
        rates: rates of success on the common seeds, of the reference and of the row.
        scores: scores on the common seeds, of the reference and of the row.
    """

    n: int
    success: Estimate | None
    p_success: float | None
    score: Estimate
    p_score: float
    failures: Failures | None
    rates: tuple[float, float] | None
    scores: tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was evaluated.
        arm: how it was sampled.
        n: episodes (over all training seeds).
        runs: training seeds behind it.
        success: rate with interval; None if the environment does not report success.
        score: mean maximum reward with interval.
        latency_ms: median of one row; None without a policy.
        difference: from the reference; None for the reference itself and for a row that shares no seeds with it.
    """

    name: str
    arm: Arm
    n: int
    runs: int
    success: Estimate | None
    score: Estimate
    latency_ms: float | None
    difference: Difference | None = None


@dataclass(frozen=True)
class Group:
    """Results of one configuration, one per training seed."""

    name: str
    results: tuple[Result, ...]

    def episodes(self, arm: Arm) -> list[Run]:
        """Per training seed {episode seed: record}."""
        return [{record.seed: record for record in result.of(arm)} for result in self.results]

    @property
    def arms(self) -> list[Arm]:
        """Arms that every member has."""
        return [arm for arm in self.results[0].arms if all(arm in result.arms for result in self.results)]


Line = tuple[Group, Arm]


def compare(groups: Sequence[Group], arm: Arm | None = None, confidence: float = 0.95) -> list[Row]:
    """One row per group and arm; the first is the reference of all differences.

    Raises:
        InputError: conditions differ, an arm is missing, or confidence is not between 0 and 1.
    """
    reference, *others = lines(groups, arm)
    first = reference[0].episodes(reference[1])
    rows = [_row(*reference, confidence)]
    for group, a in others:
        difference = _difference(first, group.episodes(a), confidence)
        rows.append(replace(_row(group, a, confidence), difference=difference))
    return rows


def lines(groups: Sequence[Group], arm: Arm | None) -> list[Line]:
    """Every group with each of its arms, or with this arm alone.

    Raises:
        InputError: conditions differ, or no group has the arm.
    """
    _check_comparable(groups)
    found = [(group, a) for group in groups for a in group.arms if arm is None or a == arm]
    if not found:
        known = sorted({a.name for group in groups for a in group.arms})
        raise InputError(f"no result has arm={arm}.{nearest(str(arm), known)} There are: {', '.join(known)}.")
    return found


def common_seeds(*sides: Sequence[Run]) -> list[int]:
    """Seeds that all runs of all sides have."""
    return sorted(set.intersection(*(set(run) for side in sides for run in side)))


def _row(group: Group, arm: Arm, confidence: float) -> Row:
    runs = [list(run.values()) for run in group.episodes(arm)]
    success = [[float(bool(record.success)) for record in run] for run in runs]
    score = [[record.max_reward for record in run] for run in runs]
    n = sum(map(len, runs))
    latencies = [result.arms[arm].latency for result in group.results]
    latency = [x.single_row_ms.p50 for x in latencies if x]
    reported = all(result.arms[arm].success_rate is not None for result in group.results)
    if len(runs) == 1:
        rate, mean = wilson(int(sum(success[0])), n, confidence), bootstrap_mean(score[0], confidence)
    else:
        rate, mean = hierarchical_bootstrap(success, confidence), hierarchical_bootstrap(score, confidence)
    median = float(np.median(latency)) if latency else None
    return Row(group.name, arm, n, len(runs), rate if reported else None, mean, median)


def _difference(reference: Sequence[Run], runs: Sequence[Run], confidence: float) -> Difference | None:
    """On the seeds that all runs of both sides share; each seed is averaged over the runs of a side."""
    shared = common_seeds(reference, runs)
    if not shared:
        return None

    def score(side: Sequence[Run]) -> list[float]:
        return [float(np.mean([run[seed].max_reward for run in side])) for seed in shared]

    def success(side: Sequence[Run]) -> list[float]:
        return [float(np.mean([bool(run[seed].success) for run in side])) for seed in shared]

    x, y = score(reference), score(runs)
    scores = float(np.mean(x)), float(np.mean(y))
    score_difference, p_score = paired_difference(x, y, confidence)
    if not (_reports(reference, shared) and _reports(runs, shared)):
        return Difference(len(shared), None, None, score_difference, p_score, None, None, scores)
    a, b = success(reference), success(runs)
    success_difference, p_success = paired_difference(a, b, confidence)
    failures = None
    if len(runs) == len(reference) == 1:
        p_success = mcnemar(a, b).p_value
        first, second = 1 - np.array(a), 1 - np.array(b)
        both = int((first * second).sum())
        alone = int(first.sum()) - both, int(second.sum()) - both
        failures = Failures(*alone, both, float(first.mean() * second.sum()))
    rates = float(np.mean(a)), float(np.mean(b))
    return Difference(len(shared), success_difference, p_success, score_difference, p_score, failures, rates, scores)


def _reports(side: Sequence[Run], seeds: Sequence[int]) -> bool:
    return any(run[seed].success is not None for run in side for seed in seeds)


def _check_comparable(groups: Sequence[Group]) -> None:
    first = groups[0].results[0].protocol.to_json()
    for group in groups:
        for result in group.results:
            for key, value in result.protocol.to_json().items():
                if key not in ("inference_batch", "n_action_steps", "noise_scale") and first[key] != value:
                    raise InputError(
                        f"'{group.name}' was evaluated with {key}={value}, '{groups[0].name}' with {key}={first[key]}: "
                        "their episodes are different ones. Evaluate both under the same conditions."
                    )
