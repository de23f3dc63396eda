"""One session's stream: requests out, messages in. What the guest sends is never trusted, and every wait has an end."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Sequence
from math import ceil

from ramet.errors import GuestTimeoutError, VmmDiedError
from ramet.guests import wire
from ramet.guests.ports import Port
from ramet.guests.wire import Request

RECEIVE_BYTES = 256 * 1024
GONE = "The VMM ended while its guest was being talked to."


class AgentStream:
    """A connected socket and what is queued on it. Memory is bounded by what is sent, one message and one receive."""

    def __init__(self, sock: socket.socket, *, port: Port | None = None) -> None:
        self._sock = sock
        self._port = port
        epoch = os.urandom(wire.EPOCH_BYTES)
        self._decoder = wire.Decoder(epoch)
        self._messages: list[tuple[int, bytes]] = []
        self._sock.setblocking(False)
        # The hello goes out with the first request: one round trip less on the way to the first answer.
        self._unsent = bytearray(wire.hello(epoch))

    def close(self) -> None:
        """End the session. Twice is fine."""
        self._sock.close()
        if self._port is not None:
            self._port.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def synced(self) -> bool:
        """Whether the agent has answered the hello."""
        return self._decoder.synced

    def send(self, kind: Request, payload: bytes = b"") -> None:
        """Queue a message; ``exchange`` sends it."""
        self._unsent += wire.encode(kind, payload)

    def take_messages(self) -> list[tuple[int, bytes]]:
        """The messages that have arrived."""
        found, self._messages = self._messages, []
        return found

    def receive(self, *, timeout_s: float) -> tuple[int, bytes]:
        """The next message.

        Raises:
            GuestTimeoutError: if it is not there, whole, after ``timeout_s``.
            VmmDiedError: if the other side is gone.
        """
        end_s = time.monotonic() + timeout_s
        while not self._messages:
            if self.exchange(end_s=end_s) is None:
                raise GuestTimeoutError(
                    f"The guest's agent did not answer within {timeout_s:.3g} s.",
                    hint="`ramet logs NAME` shows the guest's console.",
                )
        return self._messages.pop(0)

    def sync(self, *, timeout_s: float) -> bool:
        """Say hello alone; whether the agent has answered it within ``timeout_s``.

        Raises:
            VmmDiedError: if the other side is gone.
        """
        end_s = time.monotonic() + timeout_s
        while not self.synced:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return False
            readable, writable = self._poll(left_s, ())
            if writable:
                self._flush()
            if self.fileno() in readable:
                self._fill()
        return True

    def exchange(self, *, end_s: float | None, extra: Sequence[int] = ()) -> list[int] | None:
        """Send and receive until a message is there to be taken or one of ``extra`` is readable; returns which of them are,
        or None if neither has come about by ``end_s`` of the monotonic clock (None: wait for ever).

        Raises:
            VmmDiedError: if the other side is gone.
        """
        while not self._messages:
            left_s = None if end_s is None else end_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return None  # whatever is there: a guest that sends without end must not keep us for ever
            readable, writable = self._poll(left_s, extra)
            if writable:
                self._flush()
            if self.fileno() in readable:
                self._fill()
            ready = [fd for fd in readable if fd != self.fileno()]
            if ready:
                return ready
        return []

    def _poll(self, timeout_s: float | None, extra: Sequence[int]) -> tuple[list[int], bool]:
        poller = select.poll()
        poller.register(self.fileno(), select.POLLIN | (select.POLLOUT if self._unsent else 0))
        for fd in extra:
            poller.register(fd, select.POLLIN)
        events = poller.poll(None if timeout_s is None else ceil(timeout_s * 1000))
        readable = [fd for fd, what in events if what & ~select.POLLOUT]
        writable = any(fd == self.fileno() and what & select.POLLOUT for fd, what in events)
        return readable, writable

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return
        except OSError as err:
            raise VmmDiedError(GONE) from err
        del self._unsent[:sent]

    def _fill(self) -> None:
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as err:
            raise VmmDiedError(GONE) from err
        if not data:
            raise VmmDiedError(GONE)
        self._messages += self._decoder.feed(data)
