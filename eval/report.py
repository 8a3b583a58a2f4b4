"""The report: one HTML file that opens without a network, with plots as SVG and videos as embedded H.264.

Everything shown comes from the result; the videos are the same episodes run again with a camera.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isdt_policy.eval.film import PLAYBACK_SPEED, Video
from isdt_policy.eval.plots import plots_of, start_map
from isdt_policy.eval.result import NOT_REPORTED, Result
from isdt_policy.eval.statistics import advice, mcnemar, paired_difference
from isdt_policy.eval.tables import p_value
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.files import write_text
from isdt_policy.shared.page import data_url, render

_TEMPLATE = Path(__file__).parent / "templates" / "report.html"
_TITLES = {"pusht": "PushT"}


@dataclass(frozen=True)
class Pair:
    """An arm against the first one, on common seeds, as texts."""

    title: str
    success: str
    success_interval: str
    alone: str
    p_success: str
    score: str
    score_interval: str
    p_score: str


@dataclass(frozen=True)
class Clip:
    """A video on the page."""

    title: str
    text: str
    url: str
    kind: str
    same: bool


def write_report(result: Result, path: Path, videos: Sequence[Video] = ()) -> Path:
    """Write the HTML file and return its path.

    Args:
        result: a finished evaluation with its origin.
        path: file to write.
        videos: filmed episodes, embedded in the order given.

    Raises:
        InputError: Matplotlib is not installed.
    """
    arm, summary = result.first
    rate = summary.success_rate
    task = _TITLES.get(result.protocol.task, result.protocol.task)
    headline = NOT_REPORTED if rate is None else f"{100 * rate.value:.0f} %"
    score = f"score {summary.score.value:.3f}"
    page = render(
        _TEMPLATE,
        title=f"{result.protocol.task} evaluation",
        headline=f"{task}: {score if rate is None else f'{headline} success'} at {arm.title}",
        facts_line=_facts_line(result),
        arms=result.arms,
        not_reported=NOT_REPORTED,
        advice="" if rate is None else advice(rate.value, summary.n),
        plots=plots_of(result),
        pairs=_pairs(result),
        first=arm,
        groups=_groups(videos, result),
        speed=PLAYBACK_SPEED,
        map=start_map(result),
        rows=_episodes(result),
        episodes=len(result.episodes),
        command=result.origin.command,
        facts={"Evaluation": _evaluation_facts(result), "Software and machine": _machine_facts(result)},
        config=json.dumps(result.origin.policy.config, indent=1) if result.origin.policy.config else "",
    )
    write_text(path, page)
    return path


def _facts_line(result: Result) -> str:
    policy, seeds = result.origin.policy, result.seeds
    parts = [policy.checkpoint or f"scripted {policy.name}"]
    if policy.parameters:
        n = policy.parameters
        parts.append(f"{n / 1e6:.1f} M parameters" if n >= 1e5 else f"{n} parameters")
    parts.append(f"{len(seeds)} episodes per arm, seeds {seeds[0]} to {seeds[-1]} ({result.seed_purpose})")
    parts.append(result.origin.created[:10])
    return " · ".join(parts)


def _pairs(result: Result) -> list[Pair]:
    first, *others = result.arms
    reference, found = result.of(first), []
    for arm in others:
        records = result.of(arm)
        score, p_score = paired_difference([r.max_reward for r in reference], [r.max_reward for r in records])
        success = interval = alone = p_success = ""
        if result[first].success_rate is not None and result[arm].success_rate is not None:
            a, b = ([bool(r.success) for r in side] for side in (reference, records))
            test, (rate, _) = mcnemar(a, b), paired_difference(a, b)
            success, p_success = f"{100 * rate.value:+.1f} points", p_value(test.p_value)
            interval = f"{100 * rate.low:+.1f} to {100 * rate.high:+.1f}"
            alone = f"{test.only_a} / {test.only_b}"
        found.append(
            Pair(
                f"{arm.title} − {first.title}", success, interval, alone, p_success, f"{score.value:+.3f}",
                f"{score.low:+.3f} to {score.high:+.3f}", p_value(p_score),
            )
        )  # fmt: skip
    return found


def _groups(videos: Sequence[Video], result: Result) -> dict[str, tuple[str, list[Clip]]]:
    """Title -> (what to say if there is none, the videos); {} without videos."""
    if not videos:
        return {}
    none = f"None in {len(result.episodes)} episodes."
    if all(video.record.success is None for video in videos):
        return {"Episodes": (none, [_clip(video) for video in videos])}
    return {
        title: (none, [_clip(video) for video in videos if bool(video.record.success) is success])
        for title, success in (("Failures", False), ("Successes", True))
    }


def _clip(video: Video) -> Clip:
    record = video.record
    text = f"highest reward {record.max_reward:.2f}, {record.length} steps"
    if record.success:
        text = f"success at step {record.steps_to_success}"
    kind = "" if record.success is None else "good" if record.success else "bad"
    title = f"seed {record.seed}, {record.arm.title}"
    return Clip(title, text, data_url(video.path.read_bytes(), "video/mp4"), kind, video.same)


def _episodes(result: Result) -> list[tuple[int, list[tuple[str, str, str, str]]]]:
    """Per seed and arm: CSS class, outcome (or the error), highest reward, steps."""
    by_key = {record.key: record for record in result.episodes}

    def cell(seed: int, arm: Arm) -> tuple[str, str, str, str]:
        record = by_key[seed, arm]
        if not record.ok:
            return "bad", f"error: {record.error}", "", ""
        outcome = {None: ("dim", "–"), True: ("good", "success"), False: ("bad", "failure")}[record.success]
        return *outcome, f"{record.max_reward:.3f}", str(record.length)

    return [(seed, [cell(seed, arm) for arm in result.arms]) for seed in result.seeds]


def _evaluation_facts(result: Result) -> dict[str, object]:
    timing, policy = result.timing, result.origin.policy
    return {
        "commit": result.origin.commit or "not run from a checkout",
        **({"weights (SHA-256)": policy.fingerprint} if policy.checkpoint else {}),
        **{k.replace("_", " "): v for k, v in result.protocol.to_json().items() if v is not None},
        "time": f"{timing.wall_s:.1f} s ({timing.env_s:.1f} s environments, {timing.policy_s:.1f} s policy, "
        f"{timing.overhead_s:.1f} s else), {timing.episodes_per_s:.2f} episodes/s",
    }


def _machine_facts(result: Result) -> Mapping[str, object]:
    facts = {**result.origin.versions, **result.origin.hardware}
    return {key.replace("_", " "): value for key, value in facts.items() if value is not None}
