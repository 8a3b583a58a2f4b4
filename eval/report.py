"""The report: one HTML file that opens without a network, with plots as SVG and videos as embedded H.264.

Everything shown comes from the content of `eval_info.json`; the videos are the same episodes run again with a camera.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isdt_policy.envs.protocol import Policy
from isdt_policy.eval.page import PAGE
from isdt_policy.eval.result import EpisodeRecord, Result
from isdt_policy.eval.rollout import Scene, Workers, evaluate
from isdt_policy.eval.statistics import advice, mcnemar, paired_difference
from isdt_policy.shared.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from isdt_policy.eval.episode import Start

GOOD, BAD, INK, MUTED, ACCENT = "#0f8b8d", "#d1495b", "#1d2733", "#6b7785", "#3d5a80"
PLAYBACK_SPEED = 2
VIDEO_SIZE = 320

# Outline of the T in its own frame, px, as gym-pusht builds it: bar 120 x 30, stem 30 x 90, origin on the bar's edge.
TEE = np.array([(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], float)


@dataclass(frozen=True)
class Video:
    """One filmed episode.

    Attributes:
        seed: of the episode.
        arm: of the episode.
        record: its numbers.
        path: the MP4 file.
        same: whether filming reproduced the evaluated episode exactly.
    """

    seed: int
    arm: str
    record: Mapping[str, Any]
    path: Path
    same: bool


def film(
    policy: Policy,
    result: Result,
    count: int,
    init_states: Mapping[int, Start] | None,
    out: Path,
) -> list[Video]:
    """Run up to `count` failures and `count` successes again with a camera; failures first.

    They come from the first arm, or from the next that has any, and are spread over the outcomes: for failures from the
    lowest score to the nearest miss, for successes from the quickest to the slowest.
    """
    from isdt_policy.envs import make, task_spec

    protocol = result.protocol
    spec = task_spec(protocol.task)
    keys = tuple(dict.fromkeys([*policy.obs_keys, *(["state"] if "state" in spec.observations else [])]))
    size = {"render_size": VIDEO_SIZE} if spec.extra in ("pusht", "robosuite") else {}
    make_env = partial(make, protocol.task, keys, seed_protocol=protocol.seed_protocol, render_mode="rgb_array", **size)
    videos = []
    for record in choose(result, count):
        filmed = evaluate(
            policy, protocol, [record.seed], [record.arm], workers=Workers(n_envs=1),
            scene=Scene(make_env, init_states=init_states, keep=("frames",)),
        )  # fmt: skip
        outcome = "success" if record.success else "failure"
        path = out / "videos" / f"{outcome}_seed{record.seed}_steps{record.arm}.mp4"
        write_mp4(path, filmed.kept[record.key].frames, round(spec.rate_hz) * PLAYBACK_SPEED)
        same = filmed.episodes[0].digest == record.digest
        videos.append(Video(record.seed, record.arm.name, record.to_json(), path, same))
    return videos


def choose(result: Result, count: int) -> list[EpisodeRecord]:
    """Return the episodes worth filming, failures first."""
    chosen = []
    for success, order in ((False, "max_reward"), (True, "length")):
        for arm in result.arms:
            found = [r for r in result.of(arm) if bool(r.success) is success and r.ok]
            if found:
                found.sort(key=lambda r: (getattr(r, order), r.seed))
                index = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int))
                chosen += [found[i] for i in index]
                break
    return chosen


def write_mp4(path: Path, frames: Sequence[NDArray[np.uint8]], fps: int) -> None:
    """Write frames (h, w, 3) as H.264, 4:2:0, index first: plays in every browser.

    Raises:
        InputError: if PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise InputError("videos need PyAV: pip install 'isdt-policy[report]', or videos=0.") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as container:
        height, width = (side - side % 2 for side in frames[0].shape[:2])  # 4:2:0 needs even sides
        stream: Any = container.add_stream("libx264", rate=fps, options={"crf": "26", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        # The last frame stays for a second, so that the end can be seen.
        for frame in [*frames, *[frames[-1]] * fps]:
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    part.replace(path)


def write_report(info: Mapping[str, Any], path: Path, videos: Sequence[Video] = ()) -> Path:
    """Write the HTML file and return its path.

    Args:
        info: content of eval_info.json.
        path: file to write.
        videos: filmed episodes, embedded in the order given.

    Raises:
        InputError: if Matplotlib is not installed.
    """
    sections = [
        _headline(info),
        _plots(info),
        _pairs(info),
        _videos(videos, info),
        _map(info),
        _episodes(info),
        _provenance(info),
    ]
    title = f"{info['protocol']['task']} evaluation"
    page = PAGE.replace("@TITLE@", html.escape(title)).replace("@BODY@", "\n".join(s for s in sections if s))
    part = path.with_name(path.name + ".part")
    part.write_text(page, encoding="utf-8")
    part.replace(path)
    return path


# Sections, in the order of the page.


def _headline(info: Mapping[str, Any]) -> str:
    first = next(iter(info["arms"].values()))
    seeds, policy = info["seeds"], info["policy"]
    what = policy["checkpoint"] or f"scripted {policy['name']}"
    parts = [f"<b>{_e(what)}</b>"]
    if policy.get("parameters"):
        parts.append(f"{policy['parameters'] / 1e6:.1f} M parameters")
    parts.append(f"{first['n']} episodes per arm, seeds {seeds[0]}&ndash;{seeds[-1]} ({_e(info['seed_purpose'])})")
    parts.append(_e(info["created"][:10]))
    cards = "".join(_card(arm, summary) for arm, summary in info["arms"].items())
    rate = first["success_rate"]["value"]
    return (
        f"<header><p class=eyebrow>isdt-policy &middot; evaluation</p><h1>{_e(_task_title(info))}</h1>"
        f"<p class=sub>{' &middot; '.join(parts)}</p></header>"
        f"<section class=cards>{cards}</section>"
        "<p class=note>Intervals are 95 %: Wilson for success, bootstrap for the score (mean over episodes of the "
        f"highest reward). {_e(advice(rate, first['n']))}</p>"
    )


def _card(arm: str, summary: Mapping[str, Any]) -> str:
    rate, score, latency = summary["success_rate"], summary["score"], summary["latency"]
    low, high, value = (100 * rate[k] for k in ("low", "high", "value"))
    to_success = summary["mean_steps_to_success"]
    rows = [
        ("score", f"<span class=dim>{score['low']:.2f}&ndash;{score['high']:.2f}</span> {score['value']:.3f}"),
        ("steps to success", "&ndash;" if to_success is None else f"{to_success:.0f}"),
    ]
    if summary["final_coverage"] is not None:
        rows.append(("final coverage", f"{summary['final_coverage']:.3f}"))
    if latency is not None:
        single = latency["single_row_ms"]
        rows.append(("latency", f"<span class=dim>p95 {single['p95']:.1f}</span> {single['p50']:.1f} ms"))
    if summary["n_error"]:
        rows.append(("errors", f"<b class=bad>{summary['n_error']}</b> counted as failures"))
    table = "".join(f"<tr><th>{k}<td>{v}" for k, v in rows)
    return (
        f"<article class=card><h2>{_e(arm_title(arm))}</h2><p class=big>{value:.0f}<small>%</small></p>"
        f"<p class=dim>{low:.1f}&ndash;{high:.1f} % &middot; {summary['n_success']} of {summary['n']} succeed</p>"
        f"<div class=bar><i style='left:{low:.1f}%;width:{high - low:.1f}%'></i><b style='left:{value:.1f}%'></b></div>"
        f"<table>{table}</table></article>"
    )


def _plots(info: Mapping[str, Any]) -> str:
    figures = [_figure(_plot_score, info, (4.0, 3.0), "Every episode's score, sorted")]
    if len(info["arms"]) > 1:
        figures.insert(0, _figure(_plot_steps, info, (4.0, 3.0), "Success against network evaluations"))
        if all(summary["latency"] for summary in info["arms"].values()):
            figures.insert(1, _figure(_plot_latency, info, (4.0, 3.0), "Success against inference latency"))
    return f"<section class=plots>{''.join(figures)}</section>"


def _pairs(info: Mapping[str, Any]) -> str:
    arms = list(info["arms"])
    if len(arms) < 2:
        return ""
    first = _of(info, arms[0])
    rows = []
    for arm in arms[1:]:
        other = _of(info, arm)
        test = mcnemar([r["success"] for r in first], [r["success"] for r in other])
        rate, _ = paired_difference([r["success"] for r in first], [r["success"] for r in other])
        score, p_score = paired_difference([r["max_reward"] for r in first], [r["max_reward"] for r in other])
        rows.append(
            f"<tr><th>{_e(arm_title(arm))} &minus; {_e(arm_title(arms[0]))}"
            f"<td>{100 * rate.value:+.1f} points<br><span class=dim>{100 * rate.low:+.1f} to {100 * rate.high:+.1f}</span>"
            f"<td>{test.only_a} / {test.only_b}<td>{_p(test.p_value)}"
            f"<td>{score.value:+.3f}<br><span class=dim>{score.low:+.3f} to {score.high:+.3f}</span><td>{_p(p_score)}"
        )
    return (
        "<section><h2>Compared on the same seeds</h2><table class=grid><thead><tr><th><th>success"
        f"<th>only {_e(arm_title(arms[0]))} / only the other<th>p (McNemar, exact)<th>score<th>p (permutation of signs)"
        f"</thead><tbody>{''.join(rows)}</tbody></table></section>"
    )


def _videos(videos: Sequence[Video], info: Mapping[str, Any]) -> str:
    if not videos:
        return ""
    groups = []
    for success, title in ((False, "Failures"), (True, "Successes")):
        chosen = [v for v in videos if bool(v.record["success"]) is success]
        if chosen:
            groups.append(f"<h3>{title}</h3><div class=videos>{''.join(_video(v) for v in chosen)}</div>")
        else:
            total = sum(s["n"] for s in info["arms"].values())
            groups.append(f"<h3>{title}</h3><p class=note>None in {total} episodes.</p>")
    return (
        f"<section><h2>Watch</h2>{''.join(groups)}<p class=note>Shown at {PLAYBACK_SPEED}&times; speed. "
        "Failures from the lowest score to the nearest miss, successes from the quickest to the slowest.</p></section>"
    )


def _video(video: Video) -> str:
    record = video.record
    data = base64.b64encode(video.path.read_bytes()).decode()
    text = (
        f"success at step {record['steps_to_success']}"
        if record["success"]
        else f"highest reward {record['max_reward']:.2f}, {record['length']} steps"
    )
    changed = "" if video.same else " &middot; <b class=bad>differs from the evaluated episode</b>"
    kind = "good" if record["success"] else "bad"
    return (
        f"<figure class={kind}><video autoplay muted loop playsinline onmouseenter='this.controls=true' "
        f"onmouseleave='this.controls=false' src='data:video/mp4;base64,{data}'></video>"
        f"<figcaption><b>seed {video.seed}</b>, {_e(arm_title(video.arm))}<br>"
        f"<span class=dim>{text}{changed}</span></figcaption></figure>"
    )


def _map(info: Mapping[str, Any]) -> str:
    if info["protocol"]["task"] != "pusht" or "initial_state" not in info["episodes"][0]:
        return ""
    arms = list(info["arms"])[:3]
    size = (4.1 * len(arms) if len(arms) > 1 else 5.0, 4.8 if len(arms) > 1 else 5.5)
    figure = _figure(partial(_plot_map, arms=arms), info, size, "", columns=len(arms))
    kind = "wide" if len(arms) > 1 else "wide one"
    return (
        "<section><h2>Where episodes start, and how they end</h2>"
        f"<div class='{kind}'>{figure}</div><p class=note>Each T is the block's initial pose, drawn smaller than "
        "it is, with a thin line to where the pusher starts; the grey shape is the goal.</p></section>"
    )


def _episodes(info: Mapping[str, Any]) -> str:
    arms = list(info["arms"])
    by_key = {(r["seed"], r["arm"]): r for r in info["episodes"]}
    rows = []
    for seed in info["seeds"]:
        cells = []
        for arm in arms:
            r = by_key[seed, arm]
            if r["status"] == "error":
                cells.append(f"<td class=bad colspan=3>error: {_e(r['error'])}")
                continue
            mark = "<td class=good>success" if r["success"] else "<td class=bad>failure"
            cells.append(f"{mark}<td>{r['max_reward']:.3f}<td>{r['length']}")
        rows.append(f"<tr><th>{seed}{''.join(cells)}")
    head = "".join(f"<th colspan=3>{_e(arm_title(arm))}" for arm in arms)
    sub = "<th>outcome<th>max reward<th>steps" * len(arms)
    return (
        f"<details><summary>Every episode ({len(info['episodes'])})</summary><div class=scroll><table class=grid>"
        f"<thead><tr><th rowspan=2>seed{head}<tr>{sub}</thead><tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _provenance(info: Mapping[str, Any]) -> str:
    timing = info["timing"]
    facts = {
        "commit": info["commit"] or "not run from a checkout",
        "weights (SHA-256)": info["policy"]["fingerprint"] if info["policy"]["checkpoint"] else None,
        **{k: v for k, v in info["protocol"].items() if v is not None},
        "time": f"{timing['wall_s']:.1f} s ({timing['env_s']:.1f} s environments, {timing['policy_s']:.1f} s policy, "
        f"{timing['overhead_s']:.1f} s else), {timing['episodes_per_s']:.2f} episodes/s",
    }
    machine = {**info["versions"], **info["hardware"]}
    repeat = "isdt eval repeat eval_info.json"
    config = html.escape(json.dumps(info["policy"]["config"], indent=1)) if info["policy"]["config"] else ""
    return (
        f"<section><h2>How to get these numbers</h2><pre>{_e(info['command'])}</pre>"
        f"<p class=note>To check them episode by episode on this machine: <code>{repeat}</code></p>"
        f"<div class=columns>{_facts('Evaluation', facts)}{_facts('Software and machine', machine)}</div>"
        + (f"<details><summary>Policy configuration</summary><pre>{config}</pre></details>" if config else "")
        + "</section>"
    )


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{_e(str(k).replace('_', ' '))}<td>{_e(str(v))}" for k, v in facts.items() if v is not None)
    return f"<div><h3>{title}</h3><table class=facts>{rows}</table></div>"


# Figures.


def _figure(draw: Any, info: Mapping[str, Any], size: tuple[float, float], title: str, columns: int = 1) -> str:
    """Return a figure as inline SVG; `draw` takes the axes (a list of them if columns > 1) and the info."""
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("the report needs Matplotlib: pip install 'isdt-policy[report]', or report=false.") from error
    from matplotlib.figure import Figure  # no pyplot: a figure of our own touches no global state

    style: Any = {
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.edgecolor": "#c3cad2",
        "axes.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "text.color": INK,
        "svg.hashsalt": "isdt",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        draw(list(axes) if columns > 1 else axes[0], info)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    caption = f"<figcaption>{_e(title)}</figcaption>" if title else ""
    return f"<figure class=plot>{caption}{svg}</figure>"


def _plot_steps(axes: Axes, info: Mapping[str, Any]) -> None:
    mapped = [(int(arm), s["success_rate"]) for arm, s in info["arms"].items() if arm.isdigit()]
    others = [(evaluations(arm), arm, s["success_rate"]) for arm, s in info["arms"].items() if not arm.isdigit()]
    if mapped:
        mapped.sort(key=lambda item: item[0])
        _error_bars(axes, [x for x, _ in mapped], [r for _, r in mapped], GOOD, "o-", "flow map")
    for x, arm, rate in others:
        _error_bars(axes, [x], [rate], ACCENT, "s", "")
        axes.annotate(arm_title(arm), (x, 100 * rate["value"]), (7, 5), textcoords="offset points", color=ACCENT)
    ticks = sorted({x for x, _ in mapped} | {x for x, _, _ in others})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.minorticks_off()
    axes.set_xlim(min(ticks) / 1.3, max(ticks) * 1.6)
    axes.set_xlabel("network evaluations per chunk")
    _percent_axis(axes)
    if mapped and others:
        axes.legend(frameon=False, loc="lower right")


def _plot_latency(axes: Axes, info: Mapping[str, Any]) -> None:
    for i, (arm, summary) in enumerate(info["arms"].items()):
        x = summary["latency"]["single_row_ms"]["p50"]
        colour, marker = (GOOD, "o") if arm.isdigit() else (ACCENT, "s")
        _error_bars(axes, [x], [summary["success_rate"]], colour, marker, "")
        y = 100 * summary["success_rate"]["value"]
        # Above and below in turn: one and two steps lie close together.
        axes.annotate(arm_title(arm), (x, y), (7, (5, -13)[i % 2]), textcoords="offset points", color=colour)
    low, high = axes.get_xlim()
    axes.set_xlim(0, high + 0.25 * (high - low))
    axes.set_xlabel("median latency of one row, ms")
    _percent_axis(axes)


def _plot_score(axes: Axes, info: Mapping[str, Any]) -> None:
    colours = [GOOD, "#e09f3e", ACCENT, "#9a6fb0", "#7f8c5a"]
    for i, arm in enumerate(info["arms"]):
        scores = np.sort([r["max_reward"] for r in _of(info, arm)])
        share = (np.arange(len(scores)) + 0.5) / len(scores) * 100
        axes.plot(share, scores, color=colours[i % len(colours)], lw=2, label=arm_title(arm))
    axes.set_xlabel("episodes, % (sorted)")
    axes.set_ylabel("highest reward")
    axes.set_ylim(-0.02, 1.05)
    axes.set_xlim(0, 100)
    axes.grid(axis="y", color="#e8ecf0", lw=0.8)
    axes.legend(frameon=False, loc="lower right")


def _plot_map(axes: Axes | list[Axes], info: Mapping[str, Any], arms: Sequence[str]) -> None:
    from matplotlib.collections import PolyCollection

    scale = 1 / 3 if len(info["seeds"]) <= 60 else 1 / 5
    for ax, arm in zip(axes if isinstance(axes, list) else [axes], arms):
        ax.add_collection(
            PolyCollection([_tee(256, 256, np.pi / 4, 1.0)], facecolor="#eef1f4", edgecolor="#aab4bf", lw=1.2)
        )
        for success, colour in ((True, GOOD), (False, BAD)):
            states = [r["initial_state"] for r in _of(info, arm) if r["success"] is success and r.get("initial_state")]
            outlines = [_tee(x, y, angle, scale) for _, _, x, y, angle in states]
            ax.add_collection(PolyCollection(outlines, facecolor=colour, edgecolor="white", lw=0.4, alpha=0.85))
            for ax_x, ax_y, x, y, _ in states:
                ax.plot([ax_x, x], [ax_y, y], color=colour, lw=0.5, alpha=0.25)
            label = "success" if success else "failure"
            ax.plot([], [], "s", color=colour, ms=8, label=f"{label} ({len(states)})")
        ax.set(xlim=(0, 512), ylim=(512, 0), aspect="equal", xticks=[], yticks=[])
        for side in ax.spines.values():
            side.set_visible(True)
        ax.set_title(arm_title(arm), fontsize=11, loc="left")
        ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=2)


def _error_bars(
    axes: Axes, x: Sequence[float], rates: Sequence[Mapping[str, float]], colour: str, style: str, label: str
) -> None:
    y = np.array([100 * r["value"] for r in rates])
    error = np.abs(np.array([[100 * r["low"] for r in rates], [100 * r["high"] for r in rates]]) - y)
    axes.errorbar(x, y, error, fmt=style, color=colour, lw=2, ms=7, capsize=4, elinewidth=1.5, label=label)


def _percent_axis(axes: Axes) -> None:
    axes.set_ylabel("success, %")
    axes.set_ylim(0, 103)
    axes.grid(axis="y", color="#e8ecf0", lw=0.8)


def _tee(x: float, y: float, angle: float, scale: float) -> NDArray[np.floating]:
    """Outline (8, 2) of a T with its origin at x, y (px), turned by angle (rad)."""
    c, s = np.cos(angle), np.sin(angle)
    return scale * TEE @ np.array([[c, s], [-s, c]]) + (x, y)


# Words.


def arm_title(arm: str) -> str:
    """Return a readable name.

    >>> [arm_title(a) for a in ("1", "2", "euler10", "ddim10", "euler@0.6@0.3", "expert")]
    ['1 step', '2 steps', 'Euler 10', 'DDIM 10', 'Euler @0.6@0.3', 'Expert']
    """
    if arm.isdigit():
        return "1 step" if arm == "1" else f"{arm} steps"
    name = arm.split("@")[0].rstrip("0123456789")
    title = name.upper() if name in ("ddim", "ddpm") else name.capitalize()
    return f"{title} {arm[len(name) :]}".strip()


def evaluations(arm: str) -> int:
    """Return the network evaluations an arm takes.

    >>> [evaluations(a) for a in ("4", "euler10", "heun5", "ddim10", "euler@0.6@0.3", "@0.5")]
    [4, 10, 9, 10, 3, 2]
    """
    number = arm.count("@") + 1 if "@" in arm else int(arm[len(arm.rstrip("0123456789")) :] or 1)
    return 2 * number - 1 if arm.startswith("heun") else number


def _task_title(info: Mapping[str, Any]) -> str:
    names = {"pusht": "PushT"}
    task = info["protocol"]["task"]
    arm, summary = next(iter(info["arms"].items()))
    rate = summary["success_rate"]
    return f"{names.get(task, task)}: {100 * rate['value']:.0f} % success at {arm_title(arm)}"


def _of(info: Mapping[str, Any], arm: str) -> list[Mapping[str, Any]]:
    return [r for r in info["episodes"] if r["arm"] == arm]


def _p(value: float) -> str:
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"


def _e(text: Any) -> str:
    return html.escape(str(text))
