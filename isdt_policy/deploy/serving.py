"""Where and how a policy is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isdt_policy.shared.errors import InputError


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens, and what it refuses.

    Attributes:
        host: listen on this address; 0.0.0.0 is every address of this machine.
        port: listen on this port; 0 takes a free one.
        max_bytes: refuse larger messages; default: 1 MiB, or twice one history of all pictures.
        max_rate: refuse more messages per second from one connection, averaged over a second.
        max_connections: refuse more connections at a time.
        message_timeout: close a connection whose message takes longer, or that does not answer a ping in time; seconds.
        names: what clients call the observations, NAME:KEY, such as observation/joint_position:state. Nested maps count as
            NAME/NAME. Without it by the policy's own keys.
        history: what single observations are. steps: one a control step; the server keeps the history. chunks: one a chunk, as
            openpi's ActionChunkBroker sends them; the history is then the newest observation, repeated.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_bytes: int | None = None
    max_rate: float = 500.0
    max_connections: int = 64
    message_timeout: float = 10.0
    names: tuple[str, ...] = ()
    history: Literal["steps", "chunks"] = "steps"

    def __post_init__(self) -> None:
        most = 1 if self.max_bytes is None else self.max_bytes
        if min(most, self.max_rate, self.max_connections, self.message_timeout) <= 0:
            raise InputError("max_bytes, max_rate, max_connections and message_timeout must be above 0.")
        for pair in self.names:
            if not all(pair.rpartition(":")[::2]):
                raise InputError(f"names='{pair}' must be NAME:KEY, such as observation/joint_position:state.")

    @property
    def named(self) -> dict[str, str]:
        """{key of the policy: what clients call it}."""
        return {key: name for name, _, key in (pair.rpartition(":") for pair in self.names)}


@dataclass(frozen=True)
class Serving(Endpoint):
    """How a policy is served.

    Attributes:
        nfe: network evaluations per chunk.
        api_key: key that every client must send, or None.
    """

    nfe: int | str = 1
    api_key: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.api_key == "":
            raise InputError("api_key is empty, which would let everyone in; leave it out to switch the check off.")
