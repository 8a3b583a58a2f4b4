"""Errors of a flow map, measured without an environment: during training on a batch, or afterwards.

Each function takes a `FlowMap`, normalised chunks x (batch, horizon, action_dim), embeddings c (batch, cond_dim) and a
generator or noise, and returns numbers. Nothing is changed: no gradient is accumulated, no mode switched. Errors are in
normalised action units, velocities and residuals per unit of phase (docs/notation.md).

    consistency_residual(trainer.flow_map, x, cond, noise).overall
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isdt_policy.lab.diagnose.gradients import summary
from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import conditional_velocity, interpolate
from isdt_policy.method.samplers import compose, euler, heun, uniform_grid

Array = NDArray[np.float64]
Measure = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # (x_t, t, s) -> error, what it is compared with


# The (t, s) triangle.


@dataclass(frozen=True)
class Triangle:
    """An error at every pair of times s < t of a grid.

    Attributes:
        t, s: (n_pairs,) start and end time.
        error: (n_pairs,) root mean square over batch and entries.
        scale: (n_pairs,) root mean square of what the error is compared with.
    """

    t: Array
    s: Array
    error: Array
    scale: Array

    @property
    def relative(self) -> Array:
        """error / scale, (n_pairs,)."""
        return self.error / self.scale

    @property
    def overall(self) -> float:
        """Root mean square over the triangle, every pair alike, relative to the scale's."""
        return float(np.sqrt(np.square(self.error).mean() / np.square(self.scale).mean()))

    @property
    def one_step(self) -> float:
        """The relative error at (1, 0), the pair of a one-step policy."""
        return float(self.relative[(self.t == 1) & (self.s == 0)][0])


def triangle_pairs(n: int) -> list[tuple[float, float]]:
    """All (t, s) with s < t on the grid 0, 1/n, ..., 1.

    >>> triangle_pairs(2)
    [(0.5, 0.0), (1.0, 0.0), (1.0, 0.5)]
    """
    return [(i / n, j / n) for i in range(1, n + 1) for j in range(i)]


@torch.no_grad()
def consistency_residual(
    flow_map: FlowMap, action: Tensor, cond: Tensor, noise: Tensor, n: int = 10, eps: float | None = None
) -> Triangle:
    """dX(x_t, t -> s)/dphase(t) along the network's own velocity: zero where the network is a flow map of that velocity.

    Compared with the velocity. Zero alone does not say that a map is good: a constant map has it too, which
    `diversity` finds.

    Args:
        noise: as `action`; the same draw is used at every pair.
        n: times on the grid beside 0.
        eps: half width of the central difference, or None for the exact derivative.
    """

    def measure(x_t: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return flow_map.residual(x_t, t, s, cond, eps), flow_map.velocity(x_t, t, cond)

    return _over_triangle(flow_map, action, noise, n, measure)


@torch.no_grad()
def semigroup_error(flow_map: FlowMap, action: Tensor, cond: Tensor, noise: Tensor, n: int = 10) -> Triangle:
    """X(X(x_t, t -> r), r -> s) - X(x_t, t -> s) at r = (t + s) / 2: what two steps change against one.

    Compared with the spread of the data around their mean.
    """
    spread = action - action.mean(dim=0)

    def measure(x_t: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        r = (t + s) / 2
        two = flow_map.step(flow_map.step(x_t, t, r, cond), r, s, cond)
        return two - flow_map.step(x_t, t, s, cond), spread

    return _over_triangle(flow_map, action, noise, n, measure)


def _over_triangle(flow_map: FlowMap, action: Tensor, noise: Tensor, n: int, measure: Measure) -> Triangle:
    rows = []
    for t, s in triangle_pairs(n):
        start, end = (action.new_full((len(action),), time) for time in (t, s))
        error, scale = measure(interpolate(flow_map.path, action, noise, start), start, end)
        rows.append((t, s, _rms(error), _rms(scale)))
    return Triangle(*np.array(rows).T)


# Samples.


@dataclass(frozen=True)
class Diversity:
    """Spread of the chunks that one observation gives, in normalised action units.

    Attributes:
        one_step: (n_obs, horizon) standard deviation over draws of X(z, 1 -> 0), root mean square over action entries.
        euler: the same of the network's diagonal integrated in `euler_steps` steps from the same noise.
        data: (n_obs, horizon) distance of the demonstrated chunk from the mean of the Euler samples. The truth is one draw, so
            it is compared over many observations: its root mean square is that of `euler` where the samples are spread
            like people's or experts' actions, and larger where they are too narrow or beside the mark.
        from_euler: (n_obs, horizon) distance of a one-step sample from the Euler sample of the same noise.
        draws: samples per observation.
        euler_steps: see `euler`.
    """

    one_step: Array
    euler: Array
    data: Array
    from_euler: Array
    draws: int
    euler_steps: int

    @property
    def against_euler(self) -> float:
        """Spread of one-step samples over that of Euler samples; 0 is a collapsed map."""
        return _ratio(self.one_step, self.euler)

    @property
    def against_data(self) -> float:
        """Spread of one-step samples over the data's distance from the mean."""
        return _ratio(self.one_step, self.data)


@torch.no_grad()
def diversity(
    flow_map: FlowMap,
    action: Tensor,
    cond: Tensor,
    generator: torch.Generator,
    draws: int = 64,
    euler_steps: int = 10,
    rows: int = 1024,
) -> Diversity:
    """Draw `draws` chunks per observation by one step and by Euler, and compare their spread with the data; see `Diversity`.

    Args:
        action, cond: held-out chunks and embeddings of their observations.
        draws: at least 2.
        rows: samples in a network call.
    """
    assert draws >= 2
    columns: list[tuple[Array, ...]] = []
    for i in range(0, len(action), max(1, rows // draws)):
        x, c = action[i : i + max(1, rows // draws)], cond[i : i + max(1, rows // draws)]
        # Drawn on the generator's device (CPU), so that the numbers do not depend on the accelerator.
        z = torch.randn(len(x) * draws, *x.shape[1:], generator=generator, dtype=x.dtype).to(x.device)
        repeated = c.repeat_interleave(draws, dim=0)
        one = compose(flow_map, z, repeated, (1.0, 0.0)).unflatten(0, (len(x), draws))
        many = euler(flow_map, z, repeated, uniform_grid(euler_steps)).unflatten(0, (len(x), draws))
        # The mean of n draws misses the true one by 1/n of their variance.
        miss = (x - many.mean(dim=1)) * (draws / (draws + 1)) ** 0.5
        columns.append((
            _per_step(one.var(dim=1)), _per_step(many.var(dim=1)), _per_step(miss.square()),
            _per_step((one - many).square().mean(dim=1)),
        ))  # fmt: skip
    one_step, ten, data, from_euler = (np.concatenate(parts) for parts in zip(*columns))
    return Diversity(one_step, ten, data, from_euler, draws, euler_steps)


def _per_step(square: Tensor) -> Array:
    return square.mean(dim=-1).sqrt().double().cpu().numpy()


# The network's own flow.


@dataclass(frozen=True)
class FlowError:
    """Where few evaluations land beside the network's own flow, and how far its velocity is from the data's.

    The flow is 25 steps of Heun's method along the diagonal, from the same noise. What a map misses of it is lost in
    distillation; what the velocity misses, no number of evaluations brings back.

    Attributes:
        evaluations: (n,) network evaluations of the composed map.
        distance: (n, horizon) root mean square distance of their samples from the flow's, per step of the chunk.
        spread: (horizon,) root mean square distance of the data from their mean.
        t: (m,) times, 0 is data and 1 noise.
        velocity: (m,) mean squared error of the velocity against the path of each data point and its noise, per entry. What
            the data leave open, given the observation and a point between, is in it: compare policies of the same data.
    """

    evaluations: Array
    distance: Array
    spread: Array
    t: Array
    velocity: Array

    def relative(self, steps: slice = slice(None)) -> Array:
        """(n,) distance over the spread, root mean squares over these steps of the chunk."""
        return np.sqrt(np.square(self.distance[:, steps]).mean(axis=1) / np.square(self.spread[steps]).mean())  # type: ignore[no-any-return]


@torch.no_grad()
def flow_error(
    flow_map: FlowMap,
    action: Tensor,
    cond: Tensor,
    noise: Tensor,
    evaluations: tuple[int, ...] = (1, 2, 4),
    times: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
) -> FlowError:
    """Compare the composed map with the network's own flow, and its velocity with the data; see `FlowError`."""
    flow = heun(flow_map, noise, cond, uniform_grid(25))
    misses = [compose(flow_map, noise, cond, uniform_grid(n)) - flow for n in evaluations]
    distance = np.stack([_per_step(miss.square().mean(dim=0)) for miss in misses])
    velocity = []
    for time in times:
        t = action.new_full((len(action),), time)
        found = flow_map.velocity(interpolate(flow_map.path, action, noise, t), t, cond)
        error = found - conditional_velocity(flow_map.path, action, noise, t)
        velocity.append(float(error.square().mean()))
    spread = _per_step((action - action.mean(dim=0)).square().mean(dim=0))
    return FlowError(np.array(evaluations, float), distance, spread, np.array(times), np.array(velocity))


# The null branch.


@dataclass(frozen=True)
class NullDrift:
    """The unconditional velocity against the average of the conditional ones, per time; in velocity units.

    The null branch should be the average over conditions, so both have the same mean over points of the path, with training
    guidance of any scale.

    Attributes:
        t: (n,) times.
        drift: (n,) distance of the two means, root mean square over entries; includes `noise`.
        noise: (n,) what `drift` would be from the finite batch alone.
        effect: (n,) root mean square of F(x_t, t, t, null) - F(x_t, t, t, c): what the condition changes. Zero for a
            policy that does not look.
        velocity: (n,) root mean square of F(x_t, t, t, c).
    """

    t: Array
    drift: Array
    noise: Array
    effect: Array
    velocity: Array

    @property
    def overall(self) -> float:
        """Drift beyond the noise over the velocity, root mean squares over times."""
        beyond = np.maximum(np.square(self.drift) - np.square(self.noise), 0)
        return float(np.sqrt(beyond.mean() / np.square(self.velocity).mean()))


@torch.no_grad()
def null_drift(flow_map: FlowMap, action: Tensor, cond: Tensor, null: Tensor, noise: Tensor, n: int = 10) -> NullDrift:
    """Compare the null branch with the conditional one on the diagonal at n equal times up to 1; see `NullDrift`.

    Args:
        null: (cond_dim,).
        noise: as `action`; the same draw at every time.
    """
    rows = []
    for i in range(1, n + 1):
        t = action.new_full((len(action),), i / n)
        x_t = interpolate(flow_map.path, action, noise, t)
        conditional = flow_map.velocity(x_t, t, cond)
        gap = flow_map.velocity(x_t, t, null.expand(len(action), -1)) - conditional
        error = gap.std(dim=0) / len(action) ** 0.5
        rows.append((i / n, _rms(gap.mean(dim=0)), _rms(error), _rms(gap), _rms(conditional)))
    return NullDrift(*np.array(rows).T)


# All of it.


@dataclass(frozen=True)
class Measures:
    """What was measured of a policy.

    Attributes:
        consistency, semigroup: over the (t, s) triangle.
        flow: against the network's own flow.
        diversity: how varied one-step samples are.
        null_drift: how far the null branch is from the conditional average.
        gradient_norms: term of the loss -> norm on each training batch; empty where there is no training run.
        executed: the steps of a chunk that are carried out.
    """

    consistency: Triangle
    semigroup: Triangle
    flow: FlowError
    diversity: Diversity
    null_drift: NullDrift
    gradient_norms: Mapping[str, Sequence[float]]
    executed: slice

    def to_json(self) -> dict[str, object]:
        """As diagnostics.json holds it."""
        triangles = {"consistency": self.consistency, "semigroup": self.semigroup}
        return {
            "executed": [self.executed.start, self.executed.stop],
            **{k: {"overall": v.overall, "one_step": v.one_step, **_lists(asdict(v))} for k, v in triangles.items()},
            "flow": {"relative": self.flow.relative(self.executed).tolist(), **_lists(asdict(self.flow))},
            "diversity": {
                "against_euler": self.diversity.against_euler, "against_data": self.diversity.against_data,
                **_lists(asdict(self.diversity)),
            },
            "null_drift": {"overall": self.null_drift.overall, **_lists(asdict(self.null_drift))},
            "gradient_norms": {
                term: {**asdict(summary(values)), "values": list(values), "n": len(values)}
                for term, values in self.gradient_norms.items()
            },
        }  # fmt: skip


def _lists(values: Mapping[str, object]) -> dict[str, object]:
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in values.items()}


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _ratio(a: Array, b: Array) -> float:
    return float(np.sqrt(np.square(a).mean() / np.square(b).mean()))
