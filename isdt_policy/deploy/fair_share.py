"""A share of the event loop's time for every connection of the policy server."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the package is an extra; the server asks for it when it is made
    from websockets.asyncio.server import ServerConnection as Base
else:
    Base = object

SHARE = 0.1  # of the loop's time
CREDIT_S = 0.01  # that a connection may use at a stretch
UNSEEN = 1.25  # what is measured, and what the loop does around it
FRAGMENT_S = 2e-5  # that handing over a frame takes, about
REFUSED_S = 2e-3  # that a message costs which is refused, beside reading it: many of them keep others waiting
PAUSE_S = 0.005  # between looks at whether what was handed over has been taken
PIECE = 2048  # bytes that are handled before the clock is looked at


class FairShare(Base):
    """Mixed into a connection: what its peer sends takes at most a tenth of the event loop's time.

    A peer may send any number of tiny frames (empty fragments, pongs), which the websocket library handles as they come,
    before anybody counts them. Here they are handled piece by piece, and a connection without credit rests. Time is that of
    the processor: what other programs take is not the peer's fault.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._inbox, self._resting = bytearray(), False
        self._credit, self._counted = CREDIT_S, time.monotonic()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._inbox += data
        if self._resting:
            self.transport.pause_reading()  # the library resumes when its own queue has room
        else:
            self._handle_inbox()

    def eof_received(self) -> None:
        """Called by asyncio: who has gone needs no answer."""
        self._inbox.clear()
        super().eof_received()

    def charge(self, seconds: float) -> None:
        """Count processor time that was spent on this connection elsewhere."""
        now = time.monotonic()
        self._credit = min(CREDIT_S, self._credit + (now - self._counted) * SHARE) - UNSEEN * seconds
        self._counted = now

    async def rested(self) -> None:
        """Return when there is credit again."""
        self.charge(0.0)
        if self._credit < 0:
            await asyncio.sleep(-self._credit / SHARE)

    def _handle_inbox(self) -> None:
        self._resting = False
        while self._inbox:
            self.charge(0.0)
            if self._credit < 0 or self.recv_messages.paused:
                self._resting = True
                self.transport.pause_reading()
                self.loop.call_later(max(-self._credit / SHARE, PAUSE_S), self._go_on)
                return
            piece = bytes(self._inbox[:PIECE])
            del self._inbox[:PIECE]
            begin = time.thread_time()
            super().data_received(piece)
            self.charge(time.thread_time() - begin)

    def _go_on(self) -> None:
        if not self.transport.is_closing():
            self._handle_inbox()
            if not self._resting and not self.recv_messages.paused:
                self.transport.resume_reading()
