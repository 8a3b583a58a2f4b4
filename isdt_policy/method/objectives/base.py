"""What an objective is: a function of a flow map and a batch that returns named, per-sample loss terms.

An objective takes tensors and a callable, never a configuration. Draws (noise, times, dropped conditions) come from the
generator that is handed in, and each may be passed explicitly instead, so that a test can fix it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.samplers import Sampling
from isdt_policy.method.shapes import Chunks, Dropped, Embedding, Embeddings, Kept, Levels, Rows, Samples, Scalar, Times


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise and the mean of each term, for the log and for the check that each is finite."""

    total: Scalar
    terms: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch; whatever is None is drawn.

    Attributes:
        noise: z, (batch, horizon, action_dim).
        t, s: start and end time, (batch,), in [0, 1]; both or none.
        drop: (batch,) bool, rows that lose their condition.
        level: (batch,) int64, noise level of a diffusion objective in place of t.
    """

    noise: Chunks | None = None
    t: Times | None = None
    s: Times | None = None
    drop: Dropped | None = None
    level: Levels | None = None


DRAWN = Draws()  # everything is drawn


@runtime_checkable
class Objective(Protocol):
    """One training objective."""

    @property
    def sampling(self) -> Sampling:
        """What the network is taught, and so which samplers may ask it; saved with the policy."""
        ...

    def __call__(
        self,
        flow_map: FlowMap,
        action: Chunks,
        cond: Embeddings,
        null: Embedding,
        generator: torch.Generator,
        *,
        keep: Kept | None = None,
        draws: Draws = DRAWN,
    ) -> Loss:
        """Loss on one batch.

        Args:
            flow_map: network and path.
            action: clean, normalised chunks x, (batch, horizon, action_dim).
            cond: observation embeddings c, (batch, cond_dim).
            null: the embedding that stands for "no condition", (cond_dim,).
            generator: source of every random draw.
            keep: (batch, horizon) bool, false where an error shall not count (actions past an episode's end); None
                counts all.
            draws: what is not to be drawn but given, so that a test can fix it.
        """
        ...


def mean_square(error: Samples, keep: Kept | None = None) -> Rows:
    """Mean over everything but the batch: (batch, horizon, d) -> (batch,), over the kept steps (batch, horizon) alone.

    Half precision is summed in float32. A sample of which nothing is kept counts 0.
    """
    error = error.float() if error.dtype in (torch.bfloat16, torch.float16) else error
    if keep is None:
        return error.square().flatten(1).mean(dim=1)
    count = keep.sum(dim=1).clamp_min(1) * error.shape[-1]
    return torch.where(keep[..., None], error, 0.0).square().flatten(1).sum(dim=1) / count
