"""QMP: a synchronous monitor on top of qemu.qmp, and the few requests that Ramet makes.

Lower-layer exceptions are mapped here, once: a refusal is ``RejectedError``, a lost connection ``VmmDiedError``, silence
``VmmError``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import msgspec
from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from ramet.closing import Closing
from ramet.errors import RejectedError, VmmDiedError, VmmError
from ramet.hypervisors.control import reach
from ramet.paths import QMP_SOCKET
from ramet.signals import signals_held

log = logging.getLogger("ramet.qmp")
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # it logs a lost connection by itself; we raise it

T = TypeVar("T")
CANCEL_S = 2.0


class _Status(msgspec.Struct):
    running: bool
    status: str


class _RamBlock(msgspec.Struct):
    human_readable_text: str = msgspec.field(name="human-readable-text")


class QmpMonitor(Closing):
    """One connection to one QEMU. ``close()`` twice is fine; nothing that the guest does can block it for ever."""

    def __init__(self, run_dir: Path, *, deadline_s: float) -> None:
        """Connect and negotiate.

        Raises:
            VmmDiedError: if nobody listens, or QEMU ends meanwhile.
            VmmError: if it does not answer within ``deadline_s``.
        """
        with signals_held():  # a loop that is half made complains when it is collected
            self._loop = asyncio.new_event_loop()
        self._run_dir = run_dir
        self._timeout_s = deadline_s
        self._loop.set_exception_handler(_log_leftover)
        self._client = QMPClient("ramet")
        self._events = EventListener(("STOP", "RESUME", "MIGRATION", "SHUTDOWN"))
        self._client.register_listener(self._events)
        sock: socket.socket | None = None
        try:
            sock = reach("QEMU", run_dir, QMP_SOCKET, deadline_s=deadline_s)
            self._sync(self._client.connect(sock), "the QMP greeting")
        except BaseException:
            self.close()
            if sock is not None:
                sock.close()
            raise

    def close(self) -> None:
        """Disconnect."""
        if self._loop.is_closed():
            return
        with signals_held():
            try:
                self._finish(self._client.disconnect(), CANCEL_S)
            except (TimeoutError, QMPError, OSError, EOFError) as err:
                log.debug("QMP disconnect: %s", err)
            finally:
                self._loop.close()

    def command(self, name: str, **arguments: object) -> object:
        """Run one command and return its result.

        Raises:
            RejectedError: if QEMU refused it.
            VmmDiedError: if the connection broke.
            VmmError: if there was no answer in time.
        """
        log.debug("QMP -> %s %s", name, arguments)
        wire = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self._sync(self._client.execute(name, wire or None), name)

    def stop_vcpus(self) -> None:
        """``stop``: the vCPUs halt and the block layer is drained and flushed before it returns."""
        self.command("stop")

    def resume_vcpus(self) -> None:
        self.command("cont")

    def vcpus_running(self) -> bool:
        return msgspec.convert(self.command("query-status"), _Status).running

    def save_device_state(self, path: Path) -> None:
        """``xen-save-devices-state``: device state without RAM; ``live=false`` keeps the vCPUs stopped.

        Raises:
            ValueError: for a path outside of the instance's directory, QEMU's working directory.
        """
        self.command("xen-save-devices-state", filename=str(path.relative_to(self._run_dir.parent)), live=False)

    def load_device_state(self, fd: int) -> None:
        """Load device state from a descriptor that QEMU inherited under the same number; the vCPUs stay stopped.

        Raises:
            VmmError: if the load failed; the reason is in QEMU's log.
        """
        capability = {"capability": "events", "state": True}
        self.command("migrate-set-capabilities", capabilities=[capability])
        self.command("migrate-incoming", uri=f"fd:{fd}")
        self._sync(self._loaded(), "the device state to load")

    def ram_blocks(self) -> str:
        """``x-query-ramblock``'s table: which memory the machine has beside the guest's RAM."""
        return msgspec.convert(self.command("x-query-ramblock"), _RamBlock).human_readable_text

    def local_apic(self, cpu: int) -> str:
        """``info lapic`` of a CPU, which there is for people only: lines such as ``Timer  … initial_count = 250000``."""
        asked = {"command-line": f"info lapic {cpu}"}
        return msgspec.convert(self.command("human-monitor-command", **asked), str)

    async def _loaded(self) -> None:
        async for event in self._events:
            if event["event"] != "MIGRATION":
                continue
            data = event["data"]
            status = data.get("status") if isinstance(data, dict) else None
            if status == "completed":
                return
            if status == "failed":
                raise VmmError("QEMU could not load the device state.")
        raise VmmDiedError("QEMU ended while it loaded the device state.")

    def _sync(self, awaitable: Awaitable[T], what: str) -> T:
        try:
            return self._finish(awaitable, self._timeout_s)
        except ExecuteError as err:
            raise RejectedError(f"QEMU refused {what}.", request=what, reply=str(err)) from err
        except TimeoutError as err:
            raise VmmError(f"QEMU did not answer {what} within {self._timeout_s:g} s.") from err
        except (QMPError, OSError, EOFError) as err:
            raise VmmDiedError(f"QEMU went away during {what}: {err}.") from err

    def _finish(self, awaitable: Awaitable[T], timeout_s: float) -> T:
        """Run the loop until it is done, or until an ending signal raises; then what was at work is cancelled, so that it does
        not clash with the disconnect that follows.

        A handler runs between two turns of the loop, never in one: qemu.qmp's own tasks would take what it raises for their
        connection's end and keep it.
        """
        task = self._loop.create_task(_within(awaitable, timeout_s))
        try:
            self._run(task)
            return task.result()
        except BaseException:
            with signals_held():
                task.cancel()
                self._run(self._loop.create_task(asyncio.wait([task], timeout=CANCEL_S)))
                if inspect.iscoroutine(awaitable) and inspect.getcoroutinestate(awaitable) == inspect.CORO_CREATED:
                    awaitable.close()  # it was not begun, and would say so
            raise

    def _run(self, task: asyncio.Task[T]) -> None:
        task.add_done_callback(lambda _: self._loop.stop())
        while not task.done():
            with signals_held(wake=self._stop_soon):
                self._loop.run_forever()

    def _stop_soon(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


def _log_leftover(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """What asyncio would print of requests that nobody waits for any more: what ended them has been raised."""
    log.debug("QMP: %s: %r", context.get("message"), context.get("exception"))


async def _within(awaitable: Awaitable[T], timeout_s: float) -> T:
    return await asyncio.wait_for(awaitable, timeout_s)
