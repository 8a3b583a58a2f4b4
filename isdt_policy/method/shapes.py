"""Names for tensors by their shape and type, for signatures.

An axis has one size within a call: `(x_t: Samples, t: Times) -> Samples` takes as many samples as times, and gives as many.
The tests run with every signature checked (tests/conftest.py); at other times the names cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    Compiled = TypeVar("Compiled")

    def no_type_check(compiled: Compiled) -> Compiled:
        """Leave a function out of the check: one that torch.compile reads, because it cannot read the check itself; or a
        door at which users' values meet messages of our own."""
        return compiled
else:  # the real one hides a signature from mypy as well
    from typing import no_type_check as no_type_check

Samples = Float[Tensor, "batch *point"]  # actions, noise, velocities: chunks, or the points of a toy density
Chunks = Float[Tensor, "batch horizon action"]  # the same where a time axis is needed
Times = Float[Tensor, " batch"]  # t or s, in [0, 1]
Rows = Float[Tensor, " batch"]  # a loss or a weight per sample
Embeddings = Float[Tensor, "batch cond"]  # of observations
Embedding = Float[Tensor, " cond"]  # the one that stands for "no condition"
Dropped = Bool[Tensor, " batch"]  # rows that lose their condition
Kept = Bool[Tensor, "batch horizon"]  # steps whose error counts
Scalar = Float[Tensor, ""]
Term = Float[Tensor, "..."]  # a part of the loss, by samples or as their mean
Grouped = Float[Tensor, "*groups batch"]  # numbers per sample; groups have nothing to do with each other
FirstChunks = Float[Tensor, "first horizon action"]  # of the first rows of a batch
FirstKept = Bool[Tensor, "first horizon"]
Frames = Float[Tensor, "batch #horizon frame"]  # in which a chunk is expressed: an origin, or a planar pose
Levels = Int[Tensor, " batch"]  # noise levels of a diffusion policy
History = Float[Tensor, "batch n_obs_steps feature"]  # of one observation
