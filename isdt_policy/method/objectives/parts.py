"""What the objectives have in common, each part under its own name: the draw of a batch, the diagonal term, the total."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from isdt_policy.method.device import sent
from isdt_policy.method.flow_map import FlowMap, central_difference, exact_derivative, null_like, value_and_derivative
from isdt_policy.method.interpolants import Interpolant, conditional_velocity, interpolate
from isdt_policy.method.objectives.base import DRAWN, Draws, Loss, mean_square
from isdt_policy.method.objectives.share import share_of
from isdt_policy.method.objectives.times import TIMES
from isdt_policy.method.objectives.weighting import adaptive
from isdt_policy.method.shapes import Chunks, Embedding, Embeddings, FirstChunks, FirstKept, Kept, Rows, Term, Times
from isdt_policy.shared.errors import InputError, nearest


@dataclass(frozen=True)
class Points:
    """A batch of points on the path.

    Attributes:
        noise: z, (batch, horizon, action_dim), as are x_t and v_t.
        t, s: start and end time, (batch,).
        cond: condition with the dropped rows replaced, (batch, cond_dim).
        x_t, v_t: alpha x + beta z and its velocity per unit of phase.
    """

    noise: Chunks
    t: Times
    s: Times
    cond: Embeddings
    x_t: Chunks
    v_t: Chunks


def draw_points(
    path: Interpolant,
    action: Chunks,
    cond: Embeddings,
    null: Embedding,
    generator: torch.Generator,
    times: str,
    cond_drop: float,
    draws: Draws = DRAWN,
) -> Points:
    """Draw noise, times and dropped conditions, in this order; what is given is not drawn.

    Args:
        times: name of the time draw, a key of `TIMES`.
        cond_drop: fraction of the rows that lose their condition.
    """
    # Draws happen on the generator's device (CPU) and move, so that a run does not depend on the accelerator; and they are those
    # of the whole batch, so that it does not depend on the number of processes.
    noise, t, s, drop = draws.noise, draws.t, draws.s, draws.drop
    share, batch = share_of(generator), share_of(generator).of(action.shape[0])
    if noise is None:
        noise = draw_noise(action, generator)
    if t is None or s is None:
        t, s = (sent(share.take(time), action) for time in TIMES[times](batch, generator))
    if drop is None:
        drop = sent(share.take(torch.rand(batch, generator=generator)), action) < cond_drop
    return Points(
        noise, t, s, null_like(cond, null, drop),
        interpolate(path, action, noise, t), conditional_velocity(path, action, noise, t),
    )  # fmt: skip


def draw_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the shape, type and device of `like`, whose rows are those of this process."""
    share = share_of(generator)
    noise = torch.randn((share.of(like.shape[0]), *like.shape[1:]), generator=generator)
    return sent(share.take(noise), like)


def first_rows(
    n: int, points: Points, velocity: Chunks, keep: Kept | None
) -> tuple[Points, FirstChunks, FirstKept | None]:
    """The first n rows; batches are shuffled, so this is a random subset."""
    if n == len(velocity):
        return points, velocity, keep
    # Copies: torch 2.13 does not compile a derivative along part of a tensor.
    some = Points(*(getattr(points, field.name)[:n].clone() for field in fields(points)))
    return some, velocity[:n].clone(), None if keep is None else keep[:n]


def at_times(path: Interpolant, action: Chunks, points: Points, t: Times, s: Times) -> Points:
    """The same data, noise and conditions at other times."""
    x_t = interpolate(path, action, points.noise, t)
    return Points(points.noise, t, s, points.cond, x_t, conditional_velocity(path, action, points.noise, t))


def guided_velocity(flow_map: FlowMap, points: Points, null: Embedding, scale: float) -> Chunks:
    """v_g = u + w (v_t - u), u = sg F(x_t, t, t, null): the target of the diagonal under training guidance of scale w.

    w = 1 is v_t itself, without the evaluation.
    """
    if scale == 1.0:
        return points.v_t
    with torch.no_grad():
        u = flow_map.velocity(points.x_t, points.t, null.expand(points.t.shape[0], -1)).to(points.x_t.dtype)
    return u + scale * (points.v_t - u)


def diagonal_and_off_diagonal(
    flow_map: FlowMap, points: Points, off_points: Points | None = None
) -> tuple[Chunks, Chunks]:
    """F(x_t, t, t) and F(x_t, t, s), the second at `off_points` if given, as one evaluation of twice the batch."""
    p, q = points, off_points or points
    both = flow_map.network(
        torch.cat([p.x_t, q.x_t]), torch.cat([p.t, q.t]), torch.cat([p.t, q.s]), torch.cat([p.cond, q.cond])
    )
    diagonal, off_diagonal = both.to(p.x_t.dtype).chunk(2)
    return diagonal, off_diagonal


def prediction_and_rate(
    flow_map: FlowMap, points: Points, velocity: Chunks, derivative: str, eps: float
) -> tuple[Chunks, Chunks]:
    """F(x_t, t, s), and without a graph D, its total derivative along (velocity, 1, 0).

    Args:
        derivative: "jvp", exact and one evaluation for both, or "central" difference of half width eps, two more.
    """
    x_t, t, s, cond = points.x_t, points.t, points.s, points.cond
    if derivative == "jvp":
        prediction, rate = value_and_derivative(flow_map, x_t, t, s, cond, velocity)
    else:
        prediction = flow_map.network(x_t, t, s, cond)
        rate = central_difference(flow_map, x_t, t, s, cond, velocity, eps)
    return prediction.to(x_t.dtype), rate.to(x_t.dtype)


def derivative_along(flow_map: FlowMap, points: Points, velocity: Chunks, derivative: str, eps: float) -> Chunks:
    """D alone, by the same two routes."""
    x_t, t, s, cond = points.x_t, points.t, points.s, points.cond
    if derivative == "jvp":
        return exact_derivative(flow_map, x_t, t, s, cond, velocity).to(x_t.dtype)
    return central_difference(flow_map, x_t, t, s, cond, velocity, eps).to(x_t.dtype)


@runtime_checkable
class Distilling(Protocol):
    """An objective with a flow-matching and a self-distillation term."""

    @property
    def guidance_scale(self) -> float:
        """How strongly the target leans away from the null branch; 1 is no guidance."""
        ...

    @property
    def weight_power(self) -> float:
        """Exponent of the adaptive weights; 0 weighs all alike."""
        ...

    @property
    def off_diagonal_weight(self) -> float:
        """Weight of self-distillation beside the velocity's own loss."""
        ...


def distil(
    objective: Distilling,
    flow_map: FlowMap,
    points: Points,
    null: Embedding,
    keep: Kept | None,
    error: Callable[[Tensor, Tensor], Tensor],
    off_points: Points | None = None,
) -> Loss:
    """Flow matching on the diagonal plus one self-distillation term off it.

    Args:
        objective: its weights; at off_diagonal_weight=0 the self-distillation term is not evaluated.
        error: (F(x_t, t, t) without gradient, F(x_t, t, s)) -> the error whose square is the off-diagonal term.
        off_points: where the off-diagonal term is taken, if not at `points`.
    """
    if objective.off_diagonal_weight > 0:
        diagonal, off_diagonal = diagonal_and_off_diagonal(flow_map, points, off_points)
    else:
        diagonal = flow_map.velocity(points.x_t, points.t, points.cond).to(points.x_t.dtype)
    target = guided_velocity(flow_map, points, null, objective.guidance_scale)
    diagonal_loss = mean_square(diagonal - target, keep)
    if objective.off_diagonal_weight <= 0:
        return weighted(diagonal_loss, objective.weight_power, diagonal=diagonal_loss)
    off_diagonal_loss = mean_square(error(diagonal.detach(), off_diagonal), keep)
    per_sample = diagonal_loss + objective.off_diagonal_weight * off_diagonal_loss
    return weighted(per_sample, objective.weight_power, diagonal=diagonal_loss, off_diagonal=off_diagonal_loss)


def weighted(per_sample: Rows, power: float, **terms: Term) -> Loss:
    """Mean of the per-sample loss (batch,) under adaptive weights, with the mean of each of its terms for the log."""
    total = (adaptive(per_sample, power) * per_sample).mean()
    return Loss(total, {name: term.mean().detach() for name, term in terms.items()})


def check_choice(objective: object, **allowed: Iterable[str]) -> None:
    """Refuse a field of `objective` that is not among its allowed names."""
    for name, names in allowed.items():
        value, names = getattr(objective, name), list(names)
        if value not in names:
            raise InputError(
                f"objective.{name}='{value}' is not one of {', '.join(names)}.{nearest(str(value), names)}"
            )


DERIVATIVES = ("jvp", "central")
