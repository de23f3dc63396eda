"""Sessions with the agent: found, said hello on, and answered. Nothing is asked on one before that."""

from __future__ import annotations

import logging
import socket
import time
from contextlib import suppress
from pathlib import Path

from ramet.errors import SEE_CONSOLE, GuestTimeoutError, VmmDiedError
from ramet.guests import vsock
from ramet.guests.ports import take_port
from ramet.guests.stream import AgentStream, first_answered

log = logging.getLogger("ramet.agent")
FIRST_TRY_S = 1.0
CONNECTIONS_MAX = 3
"""How many hellos may be unanswered at once."""
MORE_S = 0.5
"""How long one more connection is waited for."""
NO_SESSION = "The guest's agent opened no session within {:.3g} s."


def session_over(sock: socket.socket, deadline_s: float) -> AgentStream:
    """A session over a connected socket, which is closed with it, or if there is none.

    Raises:
        GuestTimeoutError: if the agent does not answer within ``deadline_s``.
        VmmDiedError: if the other end is closed.
    """
    stream = AgentStream(sock)
    try:
        if first_answered([stream], timeout_s=deadline_s) is None:
            raise GuestTimeoutError(NO_SESSION.format(deadline_s), hint=SEE_CONSOLE)
    except BaseException:
        stream.close()
        raise
    return stream


def open_session(run_dir: Path, deadline_s: float) -> AgentStream:
    """A session that the agent has answered. Until then nothing was asked, so a hello that is lost costs one more try.

    On a vsock it is lost where the guest resets its transport after it has taken the hello and before its agent has answered:
    it tells nobody (Linux, virtio_vsock_reset_sock). On a port, hello and command went out together once and neither was
    answered, after a boot; nobody knows which was lost. A connection on which nothing has come for a while gets company, and may
    still answer: agents can be slow.

    Raises:
        GuestTimeoutError: if all ports stay busy, or the agent does not answer, within ``deadline_s``.
        VmmDiedError: if the VMM is gone.
    """
    end_s = time.monotonic() + deadline_s
    try_s = FIRST_TRY_S
    streams: list[AgentStream] = []
    try:
        while (left_s := end_s - time.monotonic()) > 0:
            try:
                if not streams:
                    streams.append(_connect(run_dir, left_s))
                else:
                    if len(streams) == CONNECTIONS_MAX:
                        streams.pop().close()  # the first is kept: its agent has had the longest time
                    with suppress(GuestTimeoutError):  # those that there are may still answer
                        streams.append(_connect(run_dir, min(left_s, MORE_S)))
                answered = first_answered(streams, timeout_s=max(min(try_s, end_s - time.monotonic()), 0))
            except VmmDiedError:
                if not streams:
                    raise  # nobody listens
                log.debug("%s: a connection to the guest was reset before it was of use; once more", run_dir)
                while streams:
                    streams.pop().close()
                time.sleep(vsock.RETRY_S)  # the agent may have no room for one more session
                continue
            except GuestTimeoutError as err:
                raise GuestTimeoutError(f"{NO_SESSION.format(deadline_s)} {err.message}", hint=err.hint) from err
            if answered is not None:
                streams.remove(answered)
                return answered
            log.debug("%s: no answer to the hello for %g s; once more, on another connection", run_dir, try_s)
            try_s *= 2
    finally:
        for stream in streams:
            stream.close()
    raise GuestTimeoutError(NO_SESSION.format(deadline_s), hint=SEE_CONSOLE)


def _connect(run_dir: Path, deadline_s: float) -> AgentStream:
    if vsock.is_there(run_dir):
        return AgentStream(vsock.connect(run_dir, deadline_s=deadline_s), probes=True)
    port = take_port(run_dir, deadline_s=deadline_s)
    return AgentStream(port.sock, port=port)
