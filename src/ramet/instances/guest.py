"""What is done to a live guest around a capture and a restore: freeze, thaw, identity."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ramet.errors import GuestError, VmmDiedError, VmmError
from ramet.guests.client import AgentClient, GuestRefusedError
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
    """Freeze the workload and sync the file systems. Past its deadline the guest is thawed, runs on, and this raises.

    Raises:
        GuestError: if the guest could not be frozen; it runs on.
    """
    try:
        with AgentClient.open(run_dir, deadline_s=QUIESCE_DEADLINE_S) as agent:
            agent.quiesce(timeout_s=QUIESCE_DEADLINE_S)
    except BaseException:
        with (
            signals_held(),
            suppress(GuestError, VmmDiedError),
        ):  # the guest may be beyond reach; the first error is the one to see
            thaw(run_dir, deadline_s=2.0)
        raise


def thaw(run_dir: Path, *, deadline_s: float = THAW_DEADLINE_S) -> None:
    """Let the workload and the file systems go on; nothing happens if they were not frozen. Anew if its session is lost."""
    agent, _ = _answered(
        lambda: AgentClient.open(run_dir, deadline_s=deadline_s), lambda agent: agent.thaw(timeout_s=deadline_s)
    )
    agent.close()


def thaw_by(agent: AgentClient, run_dir: Path) -> None:
    """``thaw`` in a session that is open, and in another one if that is lost."""
    try:
        agent.thaw(timeout_s=THAW_DEADLINE_S)
    except VmmDiedError:
        thaw(run_dir)  # where the VMM is gone, this says so


def _answered(connect: Callable[[], AgentClient], ask: Callable[[AgentClient], T]) -> tuple[AgentClient, T]:
    """Ask what may be asked twice, anew if the session is lost and somebody still listens. Returns the session with the answer.

    Firecracker has the guest reset its vsock once a snapshot was taken or loaded. The guest learns of it by an event, and what it
    accepts before it has come to that goes with all other connections, answered or not (firecracker pull request 5882).

    Raises:
        VmmDiedError: if nobody listens any more, or ``SESSIONS_MAX`` sessions were lost.
    """
    sessions = 0
    while True:
        agent = connect()
        sessions += 1
        try:
            return agent, ask(agent)
        except BaseException as err:
            agent.close()
            if not isinstance(err, VmmDiedError) or sessions == SESSIONS_MAX:
                raise
            log.info("a session that the guest had answered was lost; once more")


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
        VmmDiedError: if its VMM ended.
    """

    def connect() -> AgentClient:
        with phase("first answer"):
            return AgentClient.open(run_dir, deadline_s=IDENTITY_DEADLINE_S)

    def ask(agent: AgentClient) -> tuple[str, ...]:
        with phase("identity"):
            return agent.identity(
                generation=generation,
                hostname=record.name,
                machine_id=record.machine_id,
                seed=os.urandom(64),
                timeout_s=IDENTITY_DEADLINE_S,
            )

    agent, failed = _answered(connect, ask)
    with agent:
        if failed:
            log.warning("%s: resume hooks failed: %s", record.name, ", ".join(failed))
        yield agent


def rehearse(agent: AgentClient) -> None:
    """Run a command that does nothing outside the frozen workload: the first one after a load takes many times as long as those
    after it, since what the guest runs is translated, or its pages come in. A guest that cannot is as slow at its first command.
    """
    try:
        agent.exec(REHEARSED, timeout_s=REHEARSAL_DEADLINE_S, outside_workload=True)
    except GuestRefusedError as err:  # no shell; or the agent of an older image
        log.info("a parked fork could not rehearse a command: %s", err.message)
