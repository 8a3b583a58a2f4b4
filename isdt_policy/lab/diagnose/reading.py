"""The numbers in sentences, with a mark and with what to do about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isdt_policy.lab.diagnose.gradients import summary
from isdt_policy.lab.diagnose.measure import Measures

# Where a number asks for a look. The tail of a stable run's gradient norms is the project's own target; the others are
# judgement, and only decide the mark beside a sentence.
HEAVY_TAIL = 5.0
MOSTLY_CLIPPED = 0.5
INCONSISTENT = 0.5
DISAGREEING = 0.1
NARROW, WIDE, COLLAPSED = 0.8, 1.25, 0.3
DRIFTED = 0.1

ROLLOUTS = (
    "Compare one and two evaluations by rollouts first (isdt eval checkpoint=... 'arms=[1,2]'). If they succeed equally often, "
    "leave the policy as it is, whatever the marks say of how one evaluation differs from many."
)
_ABOUT_ONE_STEP = ("diversity", "consistency", "semigroup", "flow")


@dataclass(frozen=True)
class Training:
    """What the reading needs to know of the run that trained the policy; None and 0 where only a policy is there.

    Attributes:
        grad_clip: largest norm of a gradient in training; 0 for no limit.
        cond_drop: share of the conditions that training dropped; the null branch learns from these alone.
    """

    grad_clip: float = 0.0
    cond_drop: float | None = None


@dataclass(frozen=True)
class Line:
    """One finding.

    Attributes:
        key: what was measured.
        title: the same as people read it.
        good: False asks for a look; None is no verdict (not measured, or without consequence).
        text: what was found.
        advice: what to do about it, "" for nothing.
    """

    key: str
    title: str
    good: bool | None
    text: str
    advice: str = ""

    @property
    def mark(self) -> str:
        """A word for the mark."""
        return {True: "ok", False: "look", None: "-"}[self.good]


def read(m: Measures, training: Training | None = None) -> list[Line]:
    """Every finding, what training depends on most first."""
    training = training or Training()
    return [
        _gradients(m, training.grad_clip), _diversity(m), _consistency(m), _semigroup(m), _flow(m),
        _null(m, training.cond_drop),
    ]  # fmt: skip


def what_to_do(lines: Sequence[Line]) -> list[str]:
    """Advice, in the order in which to follow it."""
    asking = [line for line in lines if line.advice]
    rollouts = any(line.key in _ABOUT_ONE_STEP for line in asking)
    return [*([ROLLOUTS] if rollouts else []), *(f"{line.title}: {line.advice}" for line in asking)]


def _gradients(m: Measures, grad_clip: float) -> Line:
    if not m.gradient_norms:
        return Line("gradients", "Gradients", None, "Not measured: it needs the training run, and batches= above 0.")
    norms = {term: summary(values) for term, values in m.gradient_norms.items()}
    loss = norms["loss"]
    text = f"99 % of gradient norms are within {loss.tail:.1f}x the median ({loss.median:.2g})"
    if "off_diagonal" in norms and "diagonal" in norms:
        balance = norms["off_diagonal"].median / norms["diagonal"].median
        text += f"; self-distillation pulls {balance:.2g}x as hard as flow matching"
    clipped = float(np.mean(np.array(m.gradient_norms["loss"]) > grad_clip)) if grad_clip else 0.0
    if grad_clip:
        text += f"; the clip at {grad_clip:g} bites in {clipped:.0%} of batches"
    advice = ""
    if loss.tail > HEAVY_TAIL:
        advice = "A heavy tail: a few batches decide where training goes. Set objective.bound=1, or lower training.lr."
    elif clipped > MOSTLY_CLIPPED:
        advice = (
            "The clip shortens most steps, so they are all about equally long, however steep the loss is. Try "
            f"training.grad_clip={2 * loss.median:.2g}, which stops rare batches only, and a lower training.lr if the loss then "
            "jumps. Keep both as they are if rollouts are good."
        )
    return Line("gradients", "Gradients", not advice, f"{text}.", advice)


def _diversity(m: Measures) -> Line:
    ratio, truth = m.diversity.against_euler, m.diversity.against_data
    verdict, advice = "as varied as what it distils", ""
    if ratio < COLLAPSED:
        verdict = "the map has collapsed, noise hardly matters"
        advice = "Train again with a longer training.diagonal_steps, or lower objective.off_diagonal_weight."
    elif ratio < NARROW:
        verdict = "narrower than what it distils"
        advice = "Train longer."
    elif ratio > WIDE:
        verdict = "wider than what it distils"
        advice = "Train longer; policy.noise_scale=0.5 draws nearer to the middle without training."
    elif truth < NARROW:
        advice = (
            "Held-out actions lie further out than the samples. Record more demonstrations, or train for fewer steps."
        )
    text = (
        f"One-step samples of an observation spread {ratio:.2f}x as far as {m.diversity.euler_steps}-step Euler samples of the "
        f"same network ({verdict}) and {truth:.2f}x as far as the demonstrations lie from their mean."
    )
    return Line("diversity", "Diversity", not advice, text, advice)


def _consistency(m: Measures) -> Line:
    found = m.consistency
    worst = int(np.argmax(found.relative))
    text = (
        f"The map's residual is {found.overall:.0%} of its velocity over all pairs of times and {found.one_step:.0%} at the pair "
        f"that one step uses; it is worst from t = {found.t[worst]:g} to s = {found.s[worst]:g}."
    )
    advice = ""
    if found.overall > INCONSISTENT:
        advice = "The map does not follow its own velocity. Train longer, or raise objective.off_diagonal_weight."
    elif found.one_step > INCONSISTENT:
        advice = "Training rarely draws that pair of times. objective.times=one_step_mix draws it more often."
    return Line("consistency", "Consistency", not advice, text, advice)


def _semigroup(m: Measures) -> Line:
    moved = m.semigroup.one_step
    good = moved <= DISAGREEING
    text = f"Two steps from noise to action end {moved:.1%} of the data's spread away from where one step ends."
    advice = (
        "" if good else "A second evaluation gives another action; act with two (nfe=2) if they succeed more often."
    )
    return Line("semigroup", "Two steps against one", good, text, advice)


def _flow(m: Measures) -> Line:
    flow = m.flow
    one, *_, last = flow.relative(m.executed)
    velocity = ", ".join(f"{flow.velocity[i]:.3f} at {flow.t[i]:g}" for i in (0, len(flow.t) // 2, -1))
    good = bool(one <= DISAGREEING)
    text = (
        f"One evaluation ends {one:.1%} of the data's spread away from 25 steps of Heun's method from the same noise, "
        f"{flow.evaluations[-1]:g} evaluations end {last:.1%} away. Squared error of the velocity: {velocity} (time 0 is data, 1 "
        "noise; compare runs on the same data)."
    )
    advice = "" if good else "Longer training, or more self-distillation, is what brings it closer."
    return Line("flow", "Against its own flow", good, text, advice)


def _null(m: Measures, cond_drop: float | None) -> Line:
    d = m.null_drift
    effect = float(np.sqrt(np.square(d.effect).mean() / np.square(d.velocity).mean()))
    text = (
        f"Its mean is {d.overall:.1%} of the velocity away from the conditional average"
        if d.overall
        else "Its mean is no further from the conditional average than chance puts it"
    ) + f"; the observation changes {effect:.0%} of the velocity."
    if cond_drop == 0:
        text += " That is as expected: training never dropped a condition (objective.cond_drop=0), and nothing reads this branch."
        return Line("null", "Null branch", None, text)
    good = d.overall <= DRIFTED
    advice = "Training guidance reads this branch: raise objective.cond_drop, or train longer."
    if cond_drop is None:
        advice = f"If objective.cond_drop was 0, it was never trained, and this is as expected. If not: {advice}"
    return Line("null", "Null branch", good, text, "" if good else advice)
