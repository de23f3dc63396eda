"""One session's stream: requests out, messages in. What the guest sends is never trusted, and every wait has an end."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Sequence
from math import ceil
from typing import NoReturn

from ramet.errors import SEE_CONSOLE, GuestTimeoutError, VmmDiedError
from ramet.guests import wire
from ramet.guests.ports import Port
from ramet.guests.wire import Request

RECEIVE_BYTES = 256 * 1024
GONE = "The VMM ended while its guest was being talked to."
LOST = "The connection to the guest was lost: its VMM ended, or its vsock was reset, as after a capture and a restore."
OUTLIVES = "What must outlive a fork or a snapshot of a running Firecracker instance: `ramet exec --detach`."
PROBE_S = 2.0
NO_SIGNAL = b"\0"
"""What kill(2) sends nothing for."""


class SessionLostError(VmmDiedError):
    """The other end of a session is closed. The VMM has ended, or (on a vsock) the guest has reset its transport."""


class AgentStream:
    """A connected socket and what is queued on it. Memory is bounded by what is sent, one message and one receive.

    ``probes``: the guest's end can be reset without a word to ours (a vsock whose device was captured), which only sending
    something shows; so a silent agent is sent a signal that is none, now and then.
    """

    def __init__(self, sock: socket.socket, *, port: Port | None = None, probes: bool = False) -> None:
        self._sock = sock
        self._port = port
        self._probes = probes
        epoch = os.urandom(wire.EPOCH_BYTES)
        self._decoder = wire.Decoder(epoch)
        self._messages: list[tuple[int, bytes]] = []
        self._sock.setblocking(False)
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
            SessionLostError: if the other side is gone.
        """
        end_s = time.monotonic() + timeout_s
        while not self._messages:
            if self.exchange(end_s=end_s) is None:
                raise GuestTimeoutError(
                    f"The guest's agent did not answer within {timeout_s:.3g} s.",
                    hint=SEE_CONSOLE,
                )
        return self._messages.pop(0)

    def pending_events(self) -> int:
        """What to poll this session for."""
        return select.POLLIN | (select.POLLOUT if self._unsent else 0)

    def move(self, events: int) -> None:
        """Send and receive what can be, after these events.

        Raises:
            SessionLostError: if the other side is gone.
        """
        if events & select.POLLOUT:
            self._flush()
        if events & ~select.POLLOUT:
            self._fill()

    def exchange(self, *, end_s: float | None, extra: Sequence[int] = ()) -> list[int] | None:
        """Send and receive until a message is there to be taken or one of ``extra`` is readable; returns which of them are,
        or None if neither has come about by ``end_s`` of the monotonic clock (None: wait for ever).

        Raises:
            SessionLostError: if the other side is gone.
        """
        while not self._messages:
            left_s = None if end_s is None else end_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return None  # whatever is there: a guest that sends without end must not keep us for ever
            wait_s = min(left_s if left_s is not None else PROBE_S, PROBE_S) if self._probes else left_s
            readable, writable = self._poll(wait_s, extra)
            if writable:
                self._flush()
            if self.fileno() in readable:
                self._fill()
            if self._probes and not readable and not writable and not self._unsent:
                self.send(Request.SIGNAL, NO_SIGNAL)
            ready = [fd for fd in readable if fd != self.fileno()]
            if ready:
                return ready
        return []

    def _poll(self, timeout_s: float | None, extra: Sequence[int]) -> tuple[list[int], bool]:
        poller = select.poll()
        poller.register(self.fileno(), self.pending_events())
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
            self._raise_gone(err)
        del self._unsent[:sent]

    def _fill(self) -> None:
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as err:
            self._raise_gone(err)
        if not data:
            self._raise_gone()
        self._messages += self._decoder.feed(data)

    def _raise_gone(self, err: OSError | None = None) -> NoReturn:
        if self._probes:
            raise SessionLostError(LOST, hint=OUTLIVES) from err
        raise SessionLostError(GONE) from err


def first_answered(streams: Sequence[AgentStream], *, timeout_s: float) -> AgentStream | None:
    """Say hello on each; the first whose agent has answered it, or None if none has within ``timeout_s``.

    Raises:
        SessionLostError: if the other side of one of them is gone.
    """
    end_s = time.monotonic() + timeout_s
    while True:
        for stream in streams:
            if stream.synced:
                return stream
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            return None
        poller = select.poll()
        by_fd = {stream.fileno(): stream for stream in streams}
        for fd, stream in by_fd.items():
            poller.register(fd, stream.pending_events())
        for fd, events in poller.poll(ceil(left_s * 1000)):
            by_fd[fd].move(events)
