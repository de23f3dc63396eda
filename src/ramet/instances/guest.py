"""What is done to, and inside, a live guest: freeze, thaw, identity, commands, files, the console."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ramet.errors import ConfigError, GuestError, NotFoundError, VmmDiedError, host_errors
from ramet.guests.client import AgentClient, ExecControl
from ramet.hypervisors.base import Monitor
from ramet.instances.context import Store
from ramet.linux.unixsock import connect_in
from ramet.model import ExecResult, InstanceRecord, Ping, State
from ramet.paths import InstancePaths
from ramet.states import Verb, require
from ramet.store import atomic

QUIESCE_DEADLINE_S = 20.0
THAW_DEADLINE_S = 20.0
IDENTITY_DEADLINE_S = 30.0
CONSOLE_SOCKET = "console.sock"


def quiesce(run_dir: Path) -> None:
    """Freeze the workload and sync the file systems. Past its deadline the guest is thawed, runs on, and this raises.

    Raises:
        GuestError: if the guest could not be frozen; it runs on.
    """
    try:
        with AgentClient.open(run_dir, deadline_s=QUIESCE_DEADLINE_S) as agent:
            agent.quiesce(timeout_s=QUIESCE_DEADLINE_S)
    except BaseException:
        with suppress(GuestError, VmmDiedError):  # the guest may be beyond reach; the first error is the one to see
            thaw(run_dir, deadline_s=2.0)
        raise


def thaw(run_dir: Path, *, deadline_s: float = THAW_DEADLINE_S) -> None:
    """Let the workload and the file systems go on; nothing happens if they were not frozen."""
    with AgentClient.open(run_dir, deadline_s=deadline_s) as agent:
        agent.thaw(timeout_s=deadline_s)


def freeze(monitor: Monitor, run_dir: Path) -> None:
    """Quiesce, then stop the vCPUs. On failure the guest runs on, thawed."""
    quiesce(run_dir)
    try:
        monitor.stop_vcpus()
    except BaseException:
        unfreeze(monitor, run_dir)
        raise


def unfreeze(monitor: Monitor, run_dir: Path) -> None:
    """Resume the vCPUs, then thaw."""
    monitor.resume_vcpus()
    thaw(run_dir)


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
        unfreeze(monitor, run_dir)


def give_identity(run_dir: Path, record: InstanceRecord, *, generation: int, thaw_after: bool) -> None:
    """Reseed the guest's randomness, set its clock, host name and machine-id; thaw only once it has acknowledged.

    Raises:
        GuestError: if it did not acknowledge: its workload is still frozen and must not be let run.
    """
    with AgentClient.open(run_dir, deadline_s=IDENTITY_DEADLINE_S) as agent:
        agent.identity(
            generation=generation,
            hostname=record.name,
            machine_id=record.machine_id,
            seed=os.urandom(64),
            timeout_s=IDENTITY_DEADLINE_S,
        )
        if thaw_after:
            agent.thaw(timeout_s=THAW_DEADLINE_S)


def clear_live_files(paths: InstancePaths, *, keep_disk: bool) -> None:
    """Remove what a VMM that is gone has left: sockets, its memory file and, unless it is the truth now, its disk."""
    with host_errors(f"clear {paths.work}"):
        for path in paths.run.iterdir():
            if path.suffix == ".sock":
                path.unlink(missing_ok=True)
        paths.memory.unlink(missing_ok=True)
        paths.vmstate.unlink(missing_ok=True)
        if not keep_disk:
            paths.disk.unlink(missing_ok=True)


def set_aside_path(paths: InstancePaths) -> Path:
    """Where the live disk waits while a rollback may still fail."""
    return paths.work / "disk.before-rollback.raw"


def restore_set_aside_disk(paths: InstancePaths) -> None:
    """Put the live disk back that an unfinished rollback had set aside."""
    aside = set_aside_path(paths)
    if aside.exists():
        with host_errors(f"put {paths.disk} back"):
            aside.rename(paths.disk)
            atomic.fsync_directory(paths.work)


# -- commands and files -----------------------------------------------------------------------------------------


def agent_of(store: Store, name: str, verb: Verb) -> AgentClient:
    """A session with the agent of a running instance; no lock is held, so that a long one does not keep it from sleeping.

    Raises:
        StateError: if it is not running.
    """
    from ramet.instances import observe

    record = observe.observed(store, store.read(store.find(name)))
    require(verb, record.state, name=name)
    return AgentClient.open(store.paths.instance(record.id).run)


def execute(
    store: Store,
    name: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stdin: int | bytes | None = None,
    stdout: Callable[[bytes], None] | None = None,
    stderr: Callable[[bytes], None] | None = None,
    timeout_s: float | None = None,
    pty: tuple[int, int] | None = None,
    detach: bool = False,
    control: ExecControl | None = None,
) -> ExecResult:
    """Run a command in the guest; see ``Host.exec``."""
    if not argv or not argv[0]:
        raise ConfigError("There is no command to run.", hint="Write it after --: ramet exec NAME -- uname -a")
    with agent_of(store, name, Verb.EXEC) as agent:
        return agent.exec(
            argv,
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            timeout_s=timeout_s,
            pty=pty,
            detach=detach,
            control=control,
        )


def ping(store: Store, name: str) -> Ping:
    with agent_of(store, name, Verb.EXEC) as agent:
        return agent.ping()


def copy_in(store: Store, name: str, src: Path, dst: str) -> int:
    """Copy a file of the host into the guest; returns its bytes. In the guest it appears whole or not at all."""
    try:
        src_fd = os.open(src, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as err:
        raise NotFoundError(f"There is no file {src} on this host.") from err
    except OSError as err:
        raise ConfigError(f"Could not open {src}: {err.strerror}.") from err
    try:
        mode = os.fstat(src_fd).st_mode
        if Path(f"/proc/self/fd/{src_fd}").is_dir():
            raise ConfigError(
                f"{src} is a directory; cp copies files.",
                hint=f"Send a tree as a stream: tar c {src} | ramet exec {name} -- tar x -C /data",
            )
        with agent_of(store, name, Verb.COPY) as agent:
            return agent.put(src_fd, dst, mode=mode & 0o777)
    finally:
        os.close(src_fd)


def copy_out(store: Store, name: str, src: str, dst: Path) -> int:
    """Copy a file of the guest to the host; returns its bytes. ``dst`` appears whole or not at all."""
    if not dst.parent.is_dir():
        raise NotFoundError(f"There is no directory {dst.parent} on this host.")
    with agent_of(store, name, Verb.COPY) as agent, host_errors(f"write {dst}"):
        handle, temporary = tempfile.mkstemp(prefix=f".{dst.name[:100]}.", dir=dst.parent)
        try:
            meta = agent.get(src, handle)
            os.fchmod(handle, meta.mode & 0o777)
            size = os.fstat(handle).st_size
            Path(temporary).rename(dst)
            return size
        finally:
            os.close(handle)
            Path(temporary).unlink(missing_ok=True)


def console(store: Store, name: str) -> socket.socket:
    """A connection to the guest's serial console; closing it detaches."""
    from ramet.instances import observe

    record = observe.observed(store, store.read(store.find(name)))
    require(Verb.CONSOLE, record.state, name=name)
    try:
        return connect_in(store.paths.instance(record.id).run, CONSOLE_SOCKET)
    except OSError as err:
        raise VmmDiedError(f"Could not reach the console of {name!r}: {err.strerror}.") from err


def is_live(record: InstanceRecord) -> bool:
    return record.state in (State.RUNNING, State.PAUSED)
