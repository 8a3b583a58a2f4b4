"""Several toy densities trained side by side, each with a network of its own, by the rule of the ordinary trainer.

A step of one small MLP is mostly the overhead of its many small operations: on one core three networks as one batch of
matrix products take 2 to 3 times less than one after another. What is computed is the same: for one density the weights
are those of `Trainer`, which a test compares.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.networks.mlp import MLP
from isdt_policy.method.networks.preconditioning import Preconditioned
from isdt_policy.method.objectives.isd import ISD
from isdt_policy.method.policy import Policy
from isdt_policy.training.ema import decay_at
from isdt_policy.training.phases import learning_rate
from isdt_policy.training.settings import TrainingConfig


class SideBySide(nn.Module):
    """MLPs of equal shape as one network: row i of a batch goes through number i mod n.

    So whatever stacks whole batches, as the objectives do, keeps every row with its network.
    """

    def __init__(self, networks: Sequence[MLP]) -> None:
        super().__init__()
        self.n, self.time_embedding = len(networks), networks[0].time_embedding
        layers = list(zip(*(_linear(network) for network in networks)))
        self.weights = nn.ParameterList([torch.stack([layer.weight.detach().T for layer in same]) for same in layers])
        self.biases = nn.ParameterList([torch.stack([layer.bias.detach()[None] for layer in same]) for same in layers])

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        h = torch.cat([x_t.flatten(1), self.time_embedding(t, s), cond], dim=-1)
        h = h.reshape(-1, self.n, h.shape[-1]).transpose(0, 1)  # (n, rows, features)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            h = torch.baddbmm(bias, nn.functional.silu(h) if i else h, weight)
        return h.transpose(0, 1).reshape(x_t.shape)

    @torch.no_grad()
    def copy_to(self, networks: Sequence[MLP]) -> None:
        """Write each network's weights back."""
        for i, network in enumerate(networks):
            for layer, weight, bias in zip(_linear(network), self.weights, self.biases):
                layer.weight.copy_(weight[i].T)
                layer.bias.copy_(bias[i, 0])


@dataclasses.dataclass(frozen=True)
class ISDApart(ISD):
    """`ISD` for a batch whose row i is of network i mod `networks`: what compares rows keeps to those of one network."""

    networks: int = 1

    def off_diagonal_rows(self, batch: int) -> int:
        """The same number of rows for every network."""
        return super().off_diagonal_rows(batch // self.networks) * self.networks

    def weight_by_times(self, per_sample: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Weights among the rows of one network."""
        loss, t, s = (x.reshape(-1, self.networks).T for x in (per_sample, t, s))  # (networks, rows of each)
        return super().weight_by_times(loss, t, s).T.reshape(-1)


def apart(objective: object, networks: int) -> object:
    """The objective for several networks in one batch; only `ISD` compares rows with each other."""
    return ISDApart(**dataclasses.asdict(objective), networks=networks) if isinstance(objective, ISD) else objective


def _linear(network: MLP) -> list[nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


@dataclasses.dataclass
class History:
    """One network's training: gradient norm of every finite step, and why it stopped early, if it did."""

    norms: list[float]
    reason: str = ""


def train_side_by_side(
    policies: Sequence[Policy], objective: object, points: Sequence[Tensor], config: TrainingConfig
) -> list[History]:
    """Train the policies' networks, each on its own points, and leave the averaged weights in them.

    A network whose gradient is no longer finite learns nothing more, and the others go on.

    Args:
        policies: all of one shape; their condition is a constant zero.
        points: (steps * batch_size, 2) for each policy: what it sees in training, in this order.
    """
    n, size = len(policies), config.batch_size
    cores = [cast(MLP, policy.network.network) for policy in policies]
    core = SideBySide(cores)
    wrapper = policies[0].network
    network = Preconditioned(core, wrapper.path, wrapper.sigma_data, wrapper.enabled)
    flow_map = FlowMap(network, wrapper.path)
    objective = apart(objective, n)
    parameters = list(core.parameters())
    averaged = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    warm_start = objective
    if config.diagonal_steps:
        warm_start = dataclasses.replace(objective, off_diagonal_weight=0.0)  # type: ignore[type-var]
    cond, null = torch.zeros(size * n, 1), torch.zeros(1)
    histories = [History([]) for _ in policies]
    for step in range(config.steps):
        generator = torch.Generator().manual_seed((config.seed * 1_000_003 + step) % 2**63)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        batch = torch.stack([p[step * size : (step + 1) * size] for p in points], dim=1)  # row i is of density i mod n
        chosen = warm_start if step < config.diagonal_steps else objective
        loss = chosen(flow_map, batch.reshape(size * n, 1, 2), cond, null, generator)  # type: ignore[operator]
        optimizer.zero_grad(set_to_none=True)
        (loss.total * n).backward()  # a mean over all rows; each network's own is n times its part
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm, alive = _noted(histories, gradients, step)
        if not alive.any():
            break
        scale = (config.grad_clip / (norm + 1e-6)).clamp(max=1.0)
        with torch.no_grad():
            for g in gradients:
                g.mul_(scale[:, None, None])
                g[~alive] = 0.0
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averaged, [p.detach() for p in parameters], 1 - decay_at(config.ema_decay, step))
    with torch.no_grad():
        for p, mean in zip(parameters, averaged):
            p.copy_(mean)
    core.copy_to(cores)
    return histories


def _noted(histories: Sequence[History], gradients: Sequence[Tensor], step: int) -> tuple[Tensor, Tensor]:
    """(gradient norm, whether it still learns) of each network, each (n,); the histories take note."""
    norm = torch.stack([g.flatten(1).square().sum(dim=1) for g in gradients]).sum(dim=0).sqrt()
    alive = torch.tensor([not h.reason for h in histories])
    for one, value, live in zip(histories, norm.tolist(), alive.tolist()):
        if live and not math.isfinite(value):
            one.reason = f"step {step}: the gradient norm is {value}"
        elif live:
            one.norms.append(value)
    return norm, alive & norm.isfinite()
