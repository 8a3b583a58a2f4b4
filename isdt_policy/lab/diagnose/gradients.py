"""Gradients of a loss and of its terms.

terms = loss_terms(trainer.objective, trainer.flow_map, x, cond, trainer.policy.null, seed=step)
gradient_norms(terms, trainer.policy.parameters())          # {"diagonal": 0.8, "off_diagonal": 0.3, "loss": 1.4}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.objectives.base import Objective


def loss_terms(
    objective: Objective,
    flow_map: FlowMap,
    action: Tensor,
    cond: Tensor,
    null: Tensor,
    seed: int,
    *,
    keep: Tensor | None = None,
) -> dict[str, Tensor]:
    """The loss as it is trained and what each of its terms adds, as scalars that can be differentiated.

    The terms are those of the same draws without adaptive weights. "off_diagonal" includes its factor
    `off_diagonal_weight`, and "diagonal" + "off_diagonal" is the loss at weight_power = 0. That loss is diagonal +
    factor * off-diagonal for every objective that has both, so two values of the factor tell them apart; objectives of a
    single term give "loss".

    Args:
        seed: decides the draws (noise, times, dropped conditions).
        keep: (batch, horizon) bool, see `Objective`.
    """

    def changed(variant: Objective, **settings: float) -> Objective:
        return replace(variant, **settings)  # type: ignore[type-var]  # every objective is a dataclass

    def total(variant: Objective) -> Tensor:
        return variant(flow_map, action, cond, null, torch.Generator().manual_seed(seed), keep=keep).total

    terms = {}
    factor = getattr(objective, "off_diagonal_weight", None)
    if factor is not None:
        plain = {"weight_power": 0.0} if hasattr(objective, "weight_power") else {}
        once = total(changed(objective, **plain))
        if factor > 0:
            terms["off_diagonal"] = total(changed(objective, off_diagonal_weight=2 * factor, **plain)) - once
            terms = {"diagonal": once - terms["off_diagonal"], **terms}
        else:
            terms["diagonal"] = once
    return {**terms, "loss": total(objective)}


def gradient_norms(losses: Mapping[str, Tensor], parameters: Iterable[Tensor]) -> dict[str, float]:
    """Euclidean norm of each loss's gradient over all parameters; their .grad is left alone.

    Args:
        losses: name -> scalar. They may share a graph.
        parameters: those that require a gradient count; one that a loss does not reach counts 0.
    """
    wanted = [p for p in parameters if p.requires_grad]
    norms = {}
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
        norms[name] = float(torch.nn.utils.get_total_norm([g for g in gradients if g is not None]))
    return norms


@dataclass(frozen=True)
class Summary:
    """Gradient norms over batches: median, 99 %, largest, and tail, which is 99 % over median."""

    median: float
    p99: float
    max: float
    tail: float


def summary(values: Sequence[float]) -> Summary:
    """Summarise gradient norms.

    >>> summary([1.0] * 50 + [2.0] + [9.0] * 50)
    Summary(median=2.0, p99=9.0, max=9.0, tail=4.5)
    """
    median, high, largest = (float(q) for q in np.percentile(values, [50, 99, 100]))
    return Summary(median, high, largest, high / median)
