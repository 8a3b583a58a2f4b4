"""The conditions of an evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from isdt_policy.shared.errors import InputError
from isdt_policy.shared.values import Json


@dataclass(frozen=True)
class Protocol:
    """What decides the outcome of an episode besides seed, arm and policy. Results with equal protocols may be compared.

    Attributes:
        task: registered task id.
        seed_protocol: rule that turns a seed into an initial state; None is the first rule of the task.
        n_latency_steps: simulated latency of inference, in control steps.
        n_action_steps: actions executed per chunk; None is the number of the policy, any other value must equal it.
        noise_scale: scale of the initial noise; None is the scale of the policy, any other value must equal it.
        inference_batch: most rows in an inference call. Smaller calls are filled up to it, unless the policy has an
            attribute `inference_rows`, which says that its rows do not depend on their neighbours.
        max_steps: episode limit; None is the limit of the task.
        init: where initial states come from: "seed", or "train:<store>" for the first states of demonstrations.
    """

    task: str
    seed_protocol: str | None = None
    n_latency_steps: int = 0
    n_action_steps: int | None = None
    noise_scale: float | None = None
    inference_batch: int = 16
    max_steps: int | None = None
    init: str = "seed"

    @classmethod
    def from_json(cls, data: Json) -> Protocol:
        """Read what `to_json` wrote; conditions that are missing have their defaults.

        Raises:
            InputError: a condition that this version does not know.
        """
        unknown = sorted(set(data) - {field.name for field in fields(cls)})
        if unknown:
            raise InputError(f"the protocol has a condition '{unknown[0]}', which this version does not know.")
        return cls(**data)

    def to_json(self) -> dict[str, object]:
        """The conditions as JSON values."""
        return asdict(self)

    def difference(self, other: Protocol) -> str:
        """The conditions in which `other` differs, as "name was x, now y"; "" if there are none."""
        mine, theirs = self.to_json(), other.to_json()
        return ", ".join(f"{key} was {mine[key]}, now {theirs[key]}" for key in mine if mine[key] != theirs[key])
