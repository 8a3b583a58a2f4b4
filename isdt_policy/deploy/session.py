"""What a client of the policy server may say: one message read, checked and turned into a question for the policy.

A question is checked alone and completely, so that it cannot spoil the batch in which it is computed.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from isdt_policy.deploy.wire import unpack
from isdt_policy.envs.protocol import Policy
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.looks import Looks, doubts, image_looks
from isdt_policy.shared.pixels import check_bytes, check_layout, fitted, image_shapes, image_sources
from isdt_policy.shared.recorded import Recorded

log = logging.getLogger("isdt_policy.deploy")

RESERVED = ("reset", "noise_seeds", "known", "weight", "request")
MAX_BATCH = 64
Obs = dict[str, NDArray[np.generic]]  # float32, pictures uint8
Known = tuple[
    NDArray[np.float32], NDArray[np.float32]
]  # actions (batch, horizon, action_dim), weights (batch, horizon)


class Unreadable(InputError):
    """A frame that is not a message: whoever sent it does not speak this protocol."""


@dataclass(frozen=True)
class Contract:
    """Shapes that questions and answers of a policy must have.

    Attributes:
        obs_dims: features per observation key.
        action_dim, n_obs_steps, n_action_steps, horizon: see `isdt_policy.method.policy`; None where a policy does not say.
        task: that it was trained on, or "".
        continues: whether it can continue a started chunk.
        recorded: the robot as its recordings show it, or None.
        images: (height, width, 3) per picture.
        names: {key: what clients call it}, where that is another name.
        sources: (height, width, 3) per picture that the camera gives larger; clients may send either.
        looks: how the recorded pictures look, per picture.
    """

    obs_dims: Mapping[str, int]
    n_obs_steps: int
    n_action_steps: int
    horizon: int | None
    action_dim: int | None
    task: str
    continues: bool
    recorded: Recorded | None = None
    images: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    looks: Mapping[str, Looks] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one step of every observation."""
        return {**{key: (size,) for key, size in self.obs_dims.items()}, **self.images}

    @property
    def max_bytes(self) -> int:
        """Largest message that is read unless somebody says otherwise: a MiB, or twice one history of all pictures."""
        largest = {**self.images, **self.sources}.values()
        return max(1 << 20, 2 * self.n_obs_steps * sum(math.prod(shape) for shape in largest))

    def blank(self) -> Obs:
        """One row of observations that say nothing."""
        types = {key: np.uint8 if key in self.images else np.float32 for key in self.shapes}
        return {key: np.zeros((1, self.n_obs_steps, *shape), types[key]) for key, shape in self.shapes.items()}

    @classmethod
    def of(cls, policy: Policy, names: Mapping[str, str] | None = None) -> Contract:
        """Read it from a policy.

        Args:
            policy: that is served.
            names: {key: what clients call it}.

        Raises:
            InputError: it does not say how many features its observations have, a key has a name of the protocol, or a name is
                given to a key that it does not read.
        """
        config = getattr(policy, "config", None)
        dims: Mapping[str, int] | None = getattr(policy, "obs_dims", None) or getattr(config, "obs_dims", None)
        if dims is None:
            raise InputError("the policy does not say how many features its observations have (obs_dims).")
        images = image_shapes(policy)
        for key in names or {}:
            if key not in (*dims, *images):
                raise InputError(f"names: the policy reads no '{key}'.{nearest(key, [*dims, *images])}")
        for key in (*dims, *images):
            if key in RESERVED:
                raise InputError(f"an observation may not be called '{key}': the server's protocol uses that name.")
        return cls(
            obs_dims=dict(dims),
            n_obs_steps=policy.n_obs_steps,
            n_action_steps=policy.n_action_steps,
            horizon=getattr(policy, "horizon", None),
            action_dim=getattr(policy, "action_dim", None) or getattr(config, "action_dim", None),
            task=str(getattr(policy, "task", "")),
            continues=hasattr(policy, "continue_action"),
            recorded=Recorded.of(policy),
            images=images,
            names=dict(names or {}),
            sources=image_sources(policy),
            looks=image_looks(policy),
        )

    def metadata(self) -> dict[str, object]:
        """As a server tells its clients."""
        images = {"images": {key: list(shape) for key, shape in self.images.items()}} if self.images else {}
        if self.sources:
            images["image_sources"] = {key: list(shape) for key, shape in self.sources.items()}
        return {
            "task": self.task,
            "obs_dims": dict(self.obs_dims),
            **images,
            **({"names": dict(self.names)} if self.names else {}),
            "action_dim": self.action_dim,
            "n_obs_steps": self.n_obs_steps,
            "n_action_steps": self.n_action_steps,
            "horizon": self.horizon,
            "continues": self.continues,
            **({"recorded": asdict(self.recorded)} if self.recorded else {}),
        }


@dataclass(frozen=True)
class Question:
    """Rows for the policy.

    Attributes:
        obs: {key: (batch, n_obs_steps, d)}.
        noise_seeds: (batch, 2).
        known: what the answer has to continue, or None.
        batched: whether the client gave the batch axis, so that the answer has it too.
    """

    obs: Obs
    noise_seeds: NDArray[np.int64]
    known: Known | None
    batched: bool

    @property
    def rows(self) -> int:
        return len(self.noise_seeds)


class Session:
    """One client: its history, its stream of noise, and what it may still ask for.

    Args:
        contract: shapes that the policy reads and answers.
        max_rate: messages per second, averaged over a second.
        chunks: single observations come once a chunk, not once a control step: the history is the newest, repeated.

    Attributes:
        previous_ms: how long the last answer took, or None.
        heard: when the last message came, in seconds.
    """

    def __init__(self, contract: Contract, max_rate: float, chunks: bool = False) -> None:
        self.contract, self.max_rate, self._chunks = contract, max_rate, chunks
        self._told = chunks or contract.n_obs_steps == 1  # whether the reading of single observations needs no word
        self.previous_ms: float | None = None
        self.heard = self._last = time.perf_counter()
        self._tokens = max_rate
        self._looked = not contract.looks
        self.reset()

    def reset(self) -> None:
        """Forget the history and begin a new stream of noise."""
        self._history: deque[Obs] = deque(maxlen=self.contract.n_obs_steps)
        self._stream = int(np.random.default_rng().integers(2**62))
        self._asked = 0

    def allow(self, now: float) -> bool:
        """Whether one more message is within the rate (a token bucket of one second's messages)."""
        self._tokens = min(self.max_rate, self._tokens + (now - self._last) * self.max_rate)
        self._last = self.heard = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def read(self, message: Mapping[object, object]) -> Question | None:
        """Turn a message into a question; None if it only asks to reset.

        Raises:
            InputError: keys, shapes or values that do not fit.
        """
        given: Mapping[object, object] = {key: value for key, value in message.items() if key not in RESERVED}
        if message.get("reset", False) is True:
            self.reset()
            if not given:
                return None
        obs, batched = self._observations(given)
        if not self._looked:
            self._looked = True
            for doubt in doubts(self.contract.looks, {k: obs[k][:, -1].view(np.uint8) for k in self.contract.looks}):
                log.warning("a client: %s", doubt)
        rows = len(next(iter(obs.values())))
        seeds, known = self._seeds(message.get("noise_seeds"), rows), self._known(message, rows, batched)
        self._asked += rows
        return Question(obs, seeds, known, batched)

    def _seeds(self, given: object, rows: int) -> NDArray[np.int64]:
        if given is None:
            return np.stack([np.full(rows, self._stream), np.arange(self._asked, self._asked + rows)], axis=1)
        if not isinstance(given, np.ndarray) or given.shape != (rows, 2) or given.dtype.kind not in "iu":
            raise InputError(f"noise_seeds must be integers of shape ({rows}, 2).")
        if any(abs(int(value)) >= 2**63 for value in given.flat):
            raise InputError("noise_seeds must be above -2**63 and below 2**63.")
        return given.astype(np.int64)

    def _known(self, message: Mapping[object, object], rows: int, batched: bool) -> Known | None:
        """What the answer has to continue, with the batch axis, or None."""
        if "known" not in message and "weight" not in message:
            return None
        c = self.contract
        if not c.continues or c.horizon is None or c.action_dim is None:
            raise InputError(
                "this server's policy cannot continue a started chunk: leave out known and weight, or serve a trained "
                "flow map with rtc=true, or a file exported with prefix=true."
            )
        arrays = []
        for key, shape in (("known", (c.horizon, c.action_dim)), ("weight", (c.horizon,))):
            if key not in message:
                raise InputError(f"known and weight belong together; '{key}' is missing.")
            value, expected = message[key], (rows, *shape) if batched else shape
            if not isinstance(value, np.ndarray) or value.shape != expected or value.dtype.kind not in "iuf":
                raise InputError(f"{key} must be an array of numbers of shape {expected}.")
            value = _float32(value)
            if not np.isfinite(value).all():
                raise InputError(f"{key} holds NaN or infinity.")
            arrays.append(value if batched else value[None])
        known, weight = arrays
        if not np.isin(weight, (0, 1)).all():
            raise InputError("weight must be 1 (frozen) or 0 (free) for every action.")
        return known, weight

    def _observations(self, given: Mapping[object, object]) -> tuple[Obs, bool]:
        """{key: (batch, n_obs_steps, *shape)} and whether the message had the batch axis."""
        n, shapes, called = self.contract.n_obs_steps, self.contract.shapes, self.contract.names
        given = _level(given) if called else given
        obs: Obs = {}
        leading: set[tuple[int, ...]] = set()  # axes before those of one step
        for key, shape in shapes.items():
            name = called.get(key, key)
            if name not in given:
                names = [str(one)[:100] for one, _ in zip(given, range(50))]
                raise InputError(
                    f"the policy reads observation '{name}', given: {', '.join(names)[:200] or 'nothing'}.{nearest(name, names)}"
                )
            obs[key] = self._observation(key, given[name], shape)
            leading.add(obs[key].shape[: obs[key].ndim - len(shape)])
        if len(leading) > 1:
            raise InputError("the observations disagree on whether they have history and batch axes.")
        axes = len(leading.pop())
        if axes == 2:
            return obs, True
        if axes == 1:
            return {key: value[None] for key, value in obs.items()}, False
        if not self._told and self._history:
            self._told = True
            log.warning(
                "a client sends single observations; they are taken for consecutive control steps. If it executes whole chunks "
                "(openpi's ActionChunkBroker), serve with history=chunks, or send histories of %d", n,
            )  # fmt: skip
        self._history.extend([obs] * (n if self._chunks or not self._history else 1))
        return {key: np.stack([row[key] for row in self._history])[None] for key in shapes}, False

    def _observation(self, key: str, given: object, shape: tuple[int, ...]) -> NDArray[np.generic]:
        n, picture = self.contract.n_obs_steps, key in self.contract.images
        try:
            value = np.asarray(given)
        except (TypeError, ValueError, OverflowError):  # a ragged list
            value = np.asarray(None)
        if value.dtype.kind not in "biuf":
            raise InputError(f"observation '{key}' is not an array of numbers.")
        if picture and value.ndim >= 3:
            value = fitted(value, shape, self.contract.sources.get(key))
            grey = value.shape[-2:] == shape[:2] and value.shape[-3] not in (1, 3, 4)
            check_layout(value.shape[-2:] if grey else value.shape[-3:], key, shape)
            check_bytes(value.dtype, key)
        axes = value.ndim - len(shape)
        allowed = {0: shape, 1: (n, *shape), 2: (value.shape[0], n, *shape) if value.ndim else None}
        if value.shape != allowed.get(axes) or (axes == 2 and not 1 <= len(value) <= MAX_BATCH):
            one = ", ".join(map(str, shape))
            raise InputError(
                f"observation '{key}' has shape {value.shape}; allowed: ({one}{',' * (len(shape) == 1)}), ({n}, {one}) or "
                f"(1..{MAX_BATCH}, {n}, {one})."
            )
        if picture:
            return value
        value = _float32(value)
        if not np.isfinite(value).all():
            raise InputError(f"observation '{key}' holds NaN or infinity; the policy will not act on it.")
        return value


def _level(given: Mapping[object, object]) -> dict[object, object]:
    """Maps of one more level, such as openpi's images, under NAME/NAME."""
    flat: dict[object, object] = {}
    for name, value in given.items():
        flat |= (
            {f"{name}/{inner}": one for inner, one in value.items()} if isinstance(value, Mapping) else {name: value}
        )
    return flat


def decode(frame: str | bytes) -> dict[object, object]:
    """A frame as a message.

    Raises:
        Unreadable: text, not msgpack, or not a map.
    """
    if isinstance(frame, str):
        raise Unreadable("a text frame; messages are binary msgpack frames.")
    try:
        message = unpack(frame)
    except InputError as error:
        raise Unreadable(str(error)) from None
    if not isinstance(message, dict):
        raise Unreadable(f"a {type(message).__name__}; it must be a map of observations.")
    return message


def number_of(message: Mapping[object, object]) -> int | None:
    """The number that the client gave its request, or None.

    Raises:
        InputError: it is not a whole number.
    """
    number = message.get("request")
    if number is None or (type(number) is int and 0 <= number < 2**63):
        return number
    raise InputError("request must be a whole number from 0 to below 2**63.")


def _float32(value: NDArray[np.generic]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # too large a number becomes infinite, and is refused as such
        return value.astype(np.float32)
