"""ramet cp"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import click

from ramet.cli import completion, output, terminal
from ramet.cli.context import App, verb
from ramet.errors import ConfigError, NotFoundError, host_errors

if TYPE_CHECKING:
    from ramet.instances.host import Host

_IN_GUEST = re.compile(r"([^/:]+):(.*)", re.DOTALL)
STREAM = "-"
CHUNK_BYTES = 1 << 20


class GuestPath(NamedTuple):
    """``web:/data/x``."""

    instance: str
    path: str

    def __str__(self) -> str:
        return f"{self.instance}:{self.path}"


def parse_place(text: str) -> GuestPath | str:
    """A path in a guest if ``text`` begins with ``NAME:``, else one on this host (``./a:b`` is one on this host).

    Raises:
        ConfigError: for a path in the guest that is not absolute, and for an empty one.
    """
    match = _IN_GUEST.fullmatch(text)
    if match is None:
        if not text:
            raise ConfigError("An empty path cannot be copied.")
        return text
    place = GuestPath(match.group(1), match.group(2))
    if not place.path.startswith("/"):
        raise ConfigError(
            f"{text!r} is not an absolute path in the guest.",
            hint=f"Write it like {place.instance}:/data/file; a file here whose name has a colon as ./{text}",
        )
    return place


@verb(
    "cp",
    examples=[
        "ramet cp site.tar web:/data/",
        "ramet cp web:/var/log/messages .",
        "ramet cp web:/etc/hostname -     # to stdout; as SRC, - is stdin",
        "tar c site | ramet exec web -- tar x -C /data     # a whole tree",
    ],
)
@click.argument("src", shell_complete=completion.places)
@click.argument("dst", shell_complete=completion.places)
def cp(app: App, src: str, dst: str) -> None:
    """Copy a file into or out of the guest.

    Exactly one side is NAME:/path. A directory as DST takes the file under its own name. The file appears whole or not
    at all, with its permission bits.
    """
    source, target = parse_place(src), parse_place(dst)
    if isinstance(source, GuestPath) == isinstance(target, GuestPath):
        raise ConfigError(
            "Exactly one of SRC and DST must be in a guest.",
            hint="Write it as NAME:/path. From guest to guest: cp to a file here, then cp that.",
        )
    if isinstance(target, GuestPath):
        assert isinstance(source, str)
        place, size_bytes = _copy_in(app, source, target)
    else:
        assert isinstance(source, GuestPath)
        place, size_bytes = _copy_out(app, source, target)
        if target == STREAM:
            return  # the file is the output
    if app.json:
        output.json({"source": src, "destination": place, "size_bytes": size_bytes})
    else:
        output.line(f"{src} -> {place}: {output.size(size_bytes)}")


def _copy_in(app: App, source: str, target: GuestPath) -> tuple[str, int]:
    if source != STREAM and Path(source).is_dir():
        raise ConfigError(
            f"{source!r} is a directory, and cp copies files.",
            hint=f"Send it as a stream: tar c {source} | ramet exec {target.instance} -- tar x -C {target.path}",
        )
    host = app.host()
    with app.working(f"Copying to {target}") as say, _guest_knows_no(target):
        if target.path.endswith("/") or _is_directory(host, target):
            if source == STREAM:
                raise ConfigError(f"{target} is a directory.", hint="Say what the file is to be called.")
            target = target._replace(path=str(PurePosixPath(target.path, Path(source).absolute().name)))
        with _stdin_as_a_file() if source == STREAM else nullcontext(Path(source)) as path:
            of_all = f" of {output.size(path.stat().st_size)}" if path.is_file() else ""
            told = _told(say, f"Copying to {target}", of_all)
            return str(target), host.copy_in(target.instance, path, target.path, progress=told)


def _copy_out(app: App, source: GuestPath, target: str) -> tuple[str, int]:
    if source.path.endswith("/"):
        raise _is_a_directory(source)
    if target.endswith("/") and not Path(target).is_dir():
        raise NotFoundError(f"There is no directory {target} on this host.", hint=f"Make it: mkdir -p {target}")
    host = app.host()
    with app.working(f"Copying from {source}") as say, _guest_knows_no(source):
        if _is_directory(host, source):
            raise _is_a_directory(source)
        told = _told(say, f"Copying from {source}")
        if target == STREAM:
            return target, _copy_to_stdout(host, source, told)
        path = Path(target)
        if path.is_dir():
            path /= PurePosixPath(source.path).name
        return str(path), host.copy_out(source.instance, source.path, path, progress=told)


def _told(say: Callable[[str], None], doing: str, of_all: str = "") -> Callable[[int], None]:
    return lambda done: say(f"{doing}: {output.size(done)}{of_all}")


@contextmanager
def _guest_knows_no(place: GuestPath) -> Iterator[None]:
    """A file or directory that the guest does not have is "not found", wherever it was to be.

    Raises:
        NotFoundError: in place of the guest's ENOENT.
    """
    from ramet.guests.client import GuestRefusedError

    try:
        yield
    except GuestRefusedError as err:
        if err.errno != errno.ENOENT:
            raise
        raise NotFoundError(err.message, hint=f"`ramet exec {place.instance} -- ls` shows what there is.") from err


@contextmanager
def _stdin_as_a_file() -> Iterator[Path]:
    """All of stdin, in a file without a name: whole before anything is sent, whatever stdin is, with the mode of a new file."""
    import tempfile

    from ramet.linux import procfs

    with ExitStack() as stack:
        with host_errors("copy stdin to a temporary file"):
            file = stack.enter_context(tempfile.TemporaryFile())
            os.fchmod(file.fileno(), 0o666 & ~procfs.umask())
            while data := os.read(terminal.STDIN, CHUNK_BYTES):
                file.write(data)
            file.flush()
        yield Path(f"/proc/self/fd/{file.fileno()}")


def _is_a_directory(source: GuestPath) -> ConfigError:
    return ConfigError(
        f"{source} is a directory, and cp copies files.",
        hint=f"Fetch it as a stream: ramet exec {source.instance} -- tar c -C {source.path} . | tar x",
    )


def _copy_to_stdout(host: Host, source: GuestPath, told: Callable[[int], None]) -> int:
    """By way of a file without a name, so that a copy that fails half-way has printed nothing."""
    import tempfile

    with ExitStack() as stack:
        with host_errors("make a temporary file"):
            file = stack.enter_context(tempfile.TemporaryFile())
        size_bytes = host.copy_out(source.instance, source.path, file.fileno(), progress=told)
        file.seek(0)
        while data := file.read(CHUNK_BYTES):
            output.raw(data)
    return size_bytes


def _is_directory(host: Host, place: GuestPath) -> bool:
    from ramet.guests.client import GuestRefusedError

    try:
        return host.exec(place.instance, ["test", "-d", place.path], timeout_s=30.0).exit_status == 0
    except GuestRefusedError:
        return False  # a guest without test(1), perhaps: the copy itself will say what is wrong
