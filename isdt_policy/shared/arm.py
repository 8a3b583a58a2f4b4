"""An arm: one way of asking a policy for actions, and what is compared in an evaluation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from isdt_policy.shared.errors import InputError

_FORM = re.compile(r"([a-z_]*)(?:([0-9]+)|((?:@[0-9]*\.?[0-9]+)+))?")
# Samplers that evaluate the network more than once an interval: name -> (evaluations an interval, evaluations saved at the end).
_DEARER = {"heun": (2, 1)}
_MOST = 10_000  # evaluations: more are a slip of the keyboard, and their times would fill the memory


@dataclass(frozen=True)
class Arm:
    """A sampler and the times it visits; written "1", "2", "euler10", "euler@0.6@0.3", or a bare name such as "expert".

    Attributes:
        sampler: name of the sampler; "" for the one that suits what the network was taught.
        intervals: number of intervals between noise and data; 0 for a policy that is not sampled (an expert).
        times: times chosen between noise (1) and data (0), decreasing; empty for equal intervals.

    >>> [Arm.parse(text).nfe for text in (1, "2", "euler10", "heun5", "@0.5")]
    [1, 2, 10, 9, 2]
    >>> [Arm.parse(text).title for text in (1, 4, "euler10", "ddim10", "euler@0.6@0.3", "expert")]
    ['1 evaluation', '4 evaluations', 'Euler 10', 'DDIM 10', 'Euler @0.6@0.3', 'Expert']
    """

    sampler: str = ""
    intervals: int = 1
    times: tuple[float, ...] = ()

    @classmethod
    def parse(cls, value: Arm | int | str) -> Arm:
        """Read an arm as users write it.

        Raises:
            InputError: it is neither a number of network evaluations nor a sampler's name with a number or times.
        """
        if isinstance(value, Arm):
            return value
        text = str(value).strip().strip("'\"")
        match = _FORM.fullmatch(text)
        if not match or not text or (match[2] and not match[2].strip("0")):
            raise InputError(
                f"'{value}' is not a way of sampling: give a number of network evaluations (1, 2, ...), or a sampler with a "
                "number (euler10) or with times between 1 and 0 (euler@0.6@0.3)."
            )
        if match[2] and (len(match[2].lstrip("0")) > 6 or int(match[2]) > _MOST):
            raise InputError(f"'{text[:40]}': a chunk takes at most {_MOST} network evaluations.")
        if match[3]:
            times = tuple(map(float, match[3][1:].split("@")))
            if any(t <= s for t, s in zip((1.0, *times), (*times, 0.0))):
                raise InputError(f"'{value}': times must fall from below 1 to above 0, for example {match[1]}@0.6@0.3.")
            return cls(match[1], len(times) + 1, times)
        return cls(match[1], int(match[2]) if match[2] else 0)

    @property
    def name(self) -> str:
        """As it is written and stored."""
        if self.times:
            return self.sampler + "".join(f"@{time}" for time in self.times)
        return f"{self.sampler}{self.intervals or ''}"

    @property
    def value(self) -> int | str:
        """As a policy is asked, `predict_action(nfe=arm.value)`: a number of evaluations, or a name."""
        return self.intervals if self.intervals and not self.sampler and not self.times else self.name

    @property
    def grid(self) -> tuple[float, ...]:
        """Times from noise to data, 1 = t_0 > ... > t_n = 0."""
        if self.times:
            return (1.0, *self.times, 0.0)
        return tuple(1 - i / self.intervals for i in range(self.intervals + 1)) if self.intervals else ()

    @property
    def nfe(self) -> int:
        """Network evaluations per action chunk; 0 for a policy that is not sampled."""
        each, saved = _DEARER.get(self.sampler, (1, 0))
        return max(0, each * self.intervals - saved)

    @property
    def title(self) -> str:
        """For tables and figures."""
        if not self.sampler and not self.times:
            return f"{self.intervals} evaluation{'s' if self.intervals != 1 else ''}"
        name = self.sampler.upper() if self.sampler in ("ddim", "ddpm") else self.sampler.capitalize()
        return f"{name} {self.name[len(self.sampler) :]}".strip()

    def __str__(self) -> str:
        return self.name
