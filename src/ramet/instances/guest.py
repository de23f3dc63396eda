"""What is done to a live guest around a capture and a restore: freeze, thaw, identity."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ramet.errors import GuestError, VmmDiedError, VmmError
from ramet.guests.client import AgentClient, GuestRefusedError
from ramet.guests.stream import SessionLostError
from ramet.hypervisors.base import Monitor
from ramet.model import InstanceRecord
from ramet.phases import phase
from ramet.signals import signals_held

log = logging.getLogger("ramet.guest")
QUIESCE_DEADLINE_S = 20.0
THAW_DEADLINE_S = 20.0
IDENTITY_DEADLINE_S = 30.0
REHEARSAL_DEADLINE_S = 20.0
SESSIONS_MAX = 3
REHEARSED = ("sh", "-c", "true")
T = TypeVar("T")


def quiesce(run_dir: Path) -> None:
    """Freeze the workload and sync the file systems. If that fails or takes too long, the guest is thawed and runs on. Tried once
    more if the session is lost.

    Raises:
        GuestError: if the guest could not be frozen; it runs on.
    """
    try:
        _quiesce(run_dir)
    except SessionLostError:
        log.info("%s: a session was lost; quiescing once more", run_dir)  # what the guest had begun is thawed
        _quiesce(run_dir)


def _quiesce(run_dir: Path) -> None:
    try:
        with AgentClient.open(run_dir, deadline_s=QUIESCE_DEADLINE_S) as agent:
            agent.quiesce(timeout_s=QUIESCE_DEADLINE_S)
    except BaseException:
        with (
            signals_held(),
            suppress(GuestError, VmmDiedError),
        ):  # the guest may be beyond reach; the first error is the one to see
            thaw(run_dir, attempt_s=2.0)
        raise


def thaw(run_dir: Path, *, attempt_s: float = THAW_DEADLINE_S) -> None:
    """Let the workload and the file systems go on; nothing happens if they were not frozen. Anew if its session is lost."""

    def connect(left_s: float) -> AgentClient:
        return AgentClient.open(run_dir, deadline_s=left_s)

    with _answered(connect, lambda agent, left_s: agent.thaw(timeout_s=left_s), attempt_s=attempt_s):
        pass


def thaw_by(agent: AgentClient, run_dir: Path) -> None:
    """``thaw`` in a session that is open, and in another one if that is lost."""
    try:
        agent.thaw(timeout_s=THAW_DEADLINE_S)
    except SessionLostError:
        thaw(run_dir, attempt_s=THAW_DEADLINE_S / 2)  # where the VMM is gone, this says so


@contextmanager
def _answered(
    connect: Callable[[float], AgentClient], ask: Callable[[AgentClient, float], T], *, attempt_s: float
) -> Iterator[tuple[AgentClient, T]]:
    """Ask what may be asked twice, anew if the session is lost and somebody still listens (guests/vsock.py says when that is).
    Yields the session with the answer. Each session opens, and answers, within ``attempt_s``; twice that is the end of it all.

    Raises:
        VmmDiedError: if nobody listens any more.
        SessionLostError: if ``SESSIONS_MAX`` were lost, or one too late for another.
    """
    end_s = time.monotonic() + 2 * attempt_s
    for left in reversed(range(SESSIONS_MAX)):
        with connect(min(attempt_s, end_s - time.monotonic())) as agent:
            try:
                found = ask(agent, min(attempt_s, end_s - time.monotonic()))
            except SessionLostError:
                if not left or time.monotonic() >= end_s:
                    raise
                log.info("a session that the guest had answered was lost; once more")
                continue
            yield agent, found
        return


def freeze(monitor: Monitor, run_dir: Path) -> None:
    """Quiesce, then stop the vCPUs. On failure the guest runs on, thawed."""
    quiesce(run_dir)
    try:
        monitor.stop_vcpus()
    except BaseException:
        with signals_held():
            unfreeze(monitor, run_dir)
        raise


def unfreeze(monitor: Monitor, run_dir: Path) -> None:
    """Resume the vCPUs, then thaw."""
    monitor.resume_vcpus()
    thaw(run_dir)


def run_on(monitor: Monitor) -> None:
    """Let a guest run that stopped by itself: QEMU stops one whose disk had no room (werror=enospc), and there is some again."""
    with signals_held(), suppress(VmmError):  # one that has ended says so to the next command
        if not monitor.vcpus_running():
            monitor.resume_vcpus()


@contextmanager
def frozen(monitor: Monitor, run_dir: Path, *, already: bool) -> Iterator[None]:
    """Freeze the guest for the block and let it run on after it, whatever happens; ``already``: it is paused and stays so."""
    if already:
        yield
        return
    freeze(monitor, run_dir)
    try:
        yield
    finally:
        with signals_held():
            unfreeze(monitor, run_dir)


@contextmanager
def identified(run_dir: Path, record: InstanceRecord, *, generation: int) -> Iterator[AgentClient]:
    """Reseed the guest's randomness, set its clock, host name and machine-id; the session goes on in the block. Thaws nothing.

    Raises:
        GuestError: if it did not acknowledge: its workload is still frozen and must not be let run.
        VmmDiedError: if its VMM ended, or sessions are lost time and again.
    """

    def connect(left_s: float) -> AgentClient:
        with phase("first answer"):
            return AgentClient.open(run_dir, deadline_s=left_s)

    def ask(agent: AgentClient, left_s: float) -> tuple[str, ...]:
        with phase("identity"):
            return agent.identity(
                generation=generation,
                hostname=record.name,
                machine_id=record.machine_id,
                seed=os.urandom(64),
                timeout_s=left_s,
            )

    with _answered(connect, ask, attempt_s=IDENTITY_DEADLINE_S) as (agent, failed):
        if failed:
            log.warning("%s: resume hooks failed: %s", record.name, ", ".join(failed))
        yield agent


def rehearse(agent: AgentClient, run_dir: Path) -> None:
    """Run a command that does nothing outside the frozen workload: the first one after a load takes many times as long as those
    after it, since what the guest runs is translated, or its pages come in. A guest that cannot is as slow at its first command.
    In another session if that one is lost.
    """
    try:
        try:
            agent.exec(REHEARSED, timeout_s=REHEARSAL_DEADLINE_S, outside_workload=True)
        except SessionLostError:
            with AgentClient.open(run_dir, deadline_s=REHEARSAL_DEADLINE_S) as another:
                another.exec(REHEARSED, timeout_s=REHEARSAL_DEADLINE_S, outside_workload=True)
    except GuestRefusedError as err:  # no shell; or the agent of an older image
        log.info("a parked fork could not rehearse a command: %s", err.message)
