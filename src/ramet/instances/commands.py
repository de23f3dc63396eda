"""What is asked of a running guest: commands, files, the console.

No lock is held, so that a long command does not keep its instance from sleeping.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ramet.errors import (
    SEE_CONSOLE,
    ConfigError,
    GuestError,
    NotFoundError,
    UnsupportedError,
    VmmDiedError,
    host_errors,
)
from ramet.guests.client import AgentClient, ExecControl
from ramet.guests.stream import SessionLostError
from ramet.instances import lost_guest, observe
from ramet.instances.context import Store
from ramet.linux import procfs
from ramet.linux.unixsock import connect_in
from ramet.model import ExecResult, Hypervisor, Ping
from ramet.paths import CONSOLE_SOCKET
from ramet.states import Verb, require
from ramet.store import atomic


@contextmanager
def agent_of(store: Store, name: str, verb: Verb) -> Iterator[AgentClient]:
    """A session with the agent of a running instance; no lock is held, so that a long one does not keep it from sleeping.

    Raises:
        StateError: if it is not running.
        VmmDiedError: if the session is lost; it says what has become of the instance.
    """
    instance_id = store.find(name)
    record = observe.look(store, store.read(instance_id))
    if record.pending is not None and observe.is_live(record):
        with observe.exclusive(store, name) as instance:  # a verb is at work, or died and left the guest frozen
            record = instance.record
    require(verb, record, name=name)
    with _named(record.name):
        try:
            agent = AgentClient.open(store.paths.instance(record.id).run)
        except VmmDiedError as err:
            raise lost_guest.told(store, record, err) from err
        try:
            with agent:
                yield agent
        except SessionLostError as err:
            raise lost_guest.told(store, record, err) from err


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say whose guest it is that does not answer."""
    try:
        yield
    except GuestError as err:
        if err.hint == SEE_CONSOLE:
            err.hint = SEE_CONSOLE.replace("NAME", name)
        raise


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
    if isinstance(argv, str):  # it would pass for a list of one-letter words
        raise ConfigError(
            f"{argv!r} is a string, not a list of words.", hint='Use ["sh", "-c", …] for a shell\'s command line.'
        )
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
    """Ask the agent of a running instance for its boot nonce and tick."""
    with agent_of(store, name, Verb.EXEC) as agent:
        return agent.ping()


def copy_in(store: Store, name: str, src: Path, dst: str, *, progress: Callable[[int], None] | None = None) -> int:
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
            return agent.put(src_fd, dst, mode=mode & 0o777, progress=progress)
    finally:
        os.close(src_fd)


def copy_out(
    store: Store, name: str, src: str, dst: Path | int, *, progress: Callable[[int], None] | None = None
) -> int:
    """Copy a file of the guest to the host; returns its bytes. As a path, ``dst`` appears whole or not at all; a descriptor is
    written to as the bytes come.
    """
    if isinstance(dst, int):
        with agent_of(store, name, Verb.COPY) as agent:
            return agent.get(src, dst, progress=progress).size_bytes
    with host_errors(f"write {dst}"):
        place = _place_of(dst)
    with agent_of(store, name, Verb.COPY) as agent, host_errors(f"write {dst}"), atomic.replacing(place) as fd:
        meta = agent.get(src, fd, progress=progress)
        os.fchmod(fd, meta.mode & 0o777 & ~procfs.umask())  # the guest chooses bits, and not past ours
        return meta.size_bytes


def _place_of(dst: Path) -> Path:
    """Where a file that is copied out goes: what a symbolic link points to is replaced, and not the link.

    Raises:
        ConfigError: if something is there that is no regular file; a device that was replaced would be one no more.
        NotFoundError: if its directory is not there.
        OSError: if nobody can tell.
    """
    try:
        found = dst.stat()  # of links that go in a circle, this says so
    except FileNotFoundError:
        found = None
    place = dst.resolve() if dst.is_symlink() else dst
    if not place.parent.is_dir():
        raise NotFoundError(f"There is no directory {place.parent} on this host.")
    if found is not None and not stat.S_ISREG(found.st_mode):
        what = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise ConfigError(
            f"{dst} is {what}, and cp writes files.", hint=f"To have it written to: - as DST, and > {dst}"
        )
    return place


def console(store: Store, name: str) -> socket.socket:
    """A connection to the guest's serial console; closing it detaches."""
    record = observe.look(store, store.read(store.find(name)))
    require(Verb.CONSOLE, record, name=name)
    if record.hypervisor is Hypervisor.FIRECRACKER:
        raise UnsupportedError(
            f"The console of {name!r} takes no input: Firecracker gives it no socket.",
            capability="console",
            why="Firecracker writes its guest's console to a file",
            hint=f"`ramet logs {name}` shows what it says; `ramet exec -t {name} -- sh` is a shell.",
        )
    try:
        return connect_in(store.paths.instance(record.id).run, CONSOLE_SOCKET)
    except OSError as err:
        raise VmmDiedError(f"Could not reach the console of {name!r}: {err.strerror}.") from err
