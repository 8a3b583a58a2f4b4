"""Fine-tuning: a run that begins with the weights of another."""

from __future__ import annotations

import dataclasses

from isdt_policy.method.policy import Policy
from isdt_policy.shared.errors import InputError

# What weights and normaliser depend on: field of PolicyConfig -> the setting that decides it.
_SAME = {
    "observations": "data.obs_keys", "action_dim": "task", "network": "network", "interpolant": "policy.interpolant",
    "n_obs_steps": "policy.n_obs_steps", "horizon": "policy.horizon", "cond_dim": "policy.cond_dim",
    "encoder_hidden": "policy.encoder_hidden", "encoder_octaves": "policy.encoder_octaves", "image_encoder": "images",
    "precondition": "policy.precondition", "obs_normalization": "policy.obs_normalization",
    "action_normalization": "policy.action_normalization", "action_reference": "policy.action_reference",
}  # fmt: skip


def begun_from(policy: Policy, checkpoint: str) -> Policy:
    """The policy of a new run with the weights, the normaliser and the spread of actions (sigma_data) of another.

    Args:
        policy: as the settings of the run ask for it.
        checkpoint: what `Policy.from_pretrained` takes.

    Raises:
        InputError: nothing there, or a policy of another shape, with the setting to change.
    """
    source = Policy.from_pretrained(checkpoint)
    for field, setting in _SAME.items():
        has, wanted = getattr(source.config, field), getattr(policy.config, field)
        if field == "observations":  # other recordings may look otherwise
            has, wanted = (
                {key: dataclasses.replace(spec, looks=None, source=None) for key, spec in seen.items()}
                for seen in (has, wanted)
            )
        if has != wanted:
            raise InputError(
                f"training.init={checkpoint}: that policy has {setting}={_shown(has)}, this run {setting}={_shown(wanted)}. "
                f"Give it {setting} as that policy has it."
            )
    begun = Policy(
        dataclasses.replace(policy.config, sigma_data=source.config.sigma_data), normalizer=source.normalizer
    )
    begun.load_state_dict(source.state_dict())
    return begun


def _shown(value: object) -> str:
    """A value as a setting has it: keys for observations, sizes for a network."""
    if isinstance(value, dict):
        return f"[{','.join(value)}]"
    return str(value if not isinstance(value, tuple) else list(value))
