"""What changes the weights: AdamW, with a rate of its own for trunks that begin with weights of other pictures."""

from __future__ import annotations

import torch

from isdt_policy.method.networks.pretrained import Pretrained
from isdt_policy.method.policy import Policy
from isdt_policy.training.settings import TrainingConfig


def optimizer_of(policy: Policy, config: TrainingConfig) -> torch.optim.AdamW:
    """An optimiser of all parameters that learn; `factor` of a group multiplies the learning rate of a step."""
    slow: set[int] = set()
    if policy.cameras is not None:
        slow = {id(p) for trunk in policy.cameras.trunks() if isinstance(trunk, Pretrained) for p in trunk.parameters()}
    learning = [p for p in policy.parameters() if p.requires_grad]
    parts = [
        ([p for p in learning if id(p) not in slow], 1.0),
        ([p for p in learning if id(p) in slow], config.trunk_lr),
    ]
    groups = [{"params": parameters, "factor": factor} for parameters, factor in parts if parameters]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)
