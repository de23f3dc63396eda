"""put and get by the agent's own program, run natively."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from ramet.errors import GuestError, NoSpaceError
from ramet.guests import wire
from ramet.guests.client import FileMeta, GuestRefusedError
from ramet.guests.wire import Reply, Request
from ramet.process import wait_until
from tests.capabilities import requires
from tests.unit.guests.native_agent import DEADLINE_S, NativeAgent
from tests.unit.guests.raw_client import EPOCH, Raw, exec_message

pytestmark = requires("gcc")
MIB = 1 << 20
LARGE_BYTES = 112 * MIB


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def put(agent: NativeAgent, data: bytes, dst: Path, *, mode: int = 0o644) -> int:
    src = agent.root / "to-put"
    src.write_bytes(data)
    with opened(src) as fd, agent.client() as client:
        return client.put(fd, str(dst), mode=mode)


def get(agent: NativeAgent, src: Path | str, dst: Path, *, max_bytes: int | None = None) -> FileMeta:
    with opened(dst, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as fd, agent.client() as client:
        return client.get(str(src), fd, max_bytes=max_bytes)


def test_there_where_every_file_has_a_name(own_agent: NativeAgent, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with own_agent.fake("openat", errno.EOPNOTSUPP):
        assert put(own_agent, b"old", target / "file") == 3
        assert put(own_agent, b"new", target / "file", mode=0o751) == 3
    assert (target / "file").read_bytes() == b"new"
    assert (target / "file").stat().st_mode & 0o7777 == 0o751
    assert [path.name for path in target.iterdir()] == ["file"]


@pytest.mark.parametrize("size", [0, 1, 12, 65536, 65537, 5 * MIB + 3])
def test_there_and_back(agent: NativeAgent, tmp_path: Path, size: int) -> None:
    data = (wire.MAGIC + os.urandom(4096) + wire.MAGIC[:5]) * (size // 4109 + 1)
    data = data[:size]
    assert put(agent, data, tmp_path / "there") == size
    assert (tmp_path / "there").read_bytes() == data
    assert get(agent, tmp_path / "there", tmp_path / "back") == FileMeta(size_bytes=size, mode=0o644)
    assert (tmp_path / "back").read_bytes() == data
    assert len(list(tmp_path.iterdir())) == 2


def test_more_than_100_mb_each_way(agent: NativeAgent, tmp_path: Path) -> None:
    block = os.urandom(MIB)
    src, there, back = tmp_path / "src", tmp_path / "there", tmp_path / "back"
    with src.open("wb") as stream:
        for _ in range(LARGE_BYTES // MIB):
            stream.write(block)
    begin = time.monotonic()
    heard: list[int] = []
    with opened(src) as fd, agent.client() as client:
        assert client.put(fd, str(there), progress=heard.append) == LARGE_BYTES
    assert heard[-1] == LARGE_BYTES
    assert get(agent, there, back).size_bytes == LARGE_BYTES
    assert time.monotonic() - begin < 150
    with src.open("rb") as one, back.open("rb") as other:
        assert hashlib.file_digest(one, "sha256").digest() == hashlib.file_digest(other, "sha256").digest()


@pytest.mark.parametrize("mode", [0o600, 0o755, 0o4711, 0o000])
def test_mode_bits(agent: NativeAgent, tmp_path: Path, mode: int) -> None:
    put(agent, b"x", tmp_path / "file", mode=mode)
    assert (tmp_path / "file").stat().st_mode & 0o7777 == mode
    if os.geteuid() == 0 or mode & 0o400:
        assert get(agent, tmp_path / "file", tmp_path / "back").mode == mode


def test_put_replaces_whole(agent: NativeAgent, tmp_path: Path) -> None:
    """A reader of the old file keeps the old one: it is replaced, not written over."""
    file = tmp_path / "file"
    file.write_bytes(b"old and longer")
    with file.open("rb") as reader:
        put(agent, b"new", file)
        assert reader.read() == b"old and longer"
    assert file.read_bytes() == b"new"


def test_put_follows_a_link_to_a_file(agent: NativeAgent, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    real, link = tmp_path / "elsewhere" / "real", tmp_path / "link"
    real.write_bytes(b"old")
    link.symlink_to(real)
    put(agent, b"new", link)
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("directory", errno.EISDIR),
        ("directory/", errno.EISDIR),
        ("new-directory/", errno.EISDIR),
        ("missing/file", errno.ENOENT),
        ("file/below", errno.ENOTDIR),
        ("fifo", errno.EINVAL),
        ("x" * 300, errno.ENAMETOOLONG),
    ],
)
def test_put_where_no_file_can_be(agent: NativeAgent, tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    before = sorted(tmp_path.rglob("*"))
    src = agent.root / "to-put"
    src.write_bytes(bytes(3 * MIB))
    with opened(src) as fd, agent.client() as client:
        with pytest.raises(GuestRefusedError) as caught:
            client.put(fd, f"{tmp_path}/{name}")
        assert caught.value.errno == number
        client.ping()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "number"),
    [("directory", errno.EISDIR), ("missing", errno.ENOENT), ("fifo", errno.EINVAL), ("file/below", errno.ENOTDIR)],
)
def test_get_of_what_is_no_file(agent: NativeAgent, tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(GuestRefusedError) as caught:
        get(agent, tmp_path / name, tmp_path / "back")
    assert caught.value.errno == number
    with pytest.raises(GuestRefusedError):
        get(agent, "/dev/zero", tmp_path / "back")
    with pytest.raises(GuestRefusedError):
        get(agent, "", tmp_path / "back")


def test_get_of_a_file_without_a_size(agent: NativeAgent, tmp_path: Path) -> None:
    assert get(agent, "/proc/version", tmp_path / "back").size_bytes > 10
    assert (tmp_path / "back").read_text() == Path("/proc/version").read_text()


@requires("root")
def test_put_with_no_room_leaves_nothing(agent: NativeAgent, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "ramet-test", str(tmp_path)], check=True)
    try:
        (tmp_path / "file").write_bytes(b"old")
        with pytest.raises(GuestRefusedError) as caught:
            put(agent, bytes(3 * MIB), tmp_path / "file")
        assert caught.value.errno == errno.ENOSPC
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        assert (tmp_path / "file").read_bytes() == b"old"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@contextmanager
def half_put(agent: NativeAgent, target: Path) -> Iterator[Path]:
    """The file that a put writes, with half of what it is to have, over an old one."""
    target.mkdir()
    (target / "file").write_bytes(b"old")
    with closing(agent.connect()) as sock:
        raw = Raw(sock)
        raw.send(wire.hello(EPOCH), exec_message("ramet-agent", "put", "644", f"{target}/file", flags=wire.FLAG_FILES))
        raw.send(wire.encode(Request.STDIN, b"half of it"))
        yield wait_until(lambda: written(agent, target), DEADLINE_S, what="half of it")


def written(agent: NativeAgent, target: Path) -> Path | None:
    """By its descriptor: it may have no name."""
    links = [link for pid in agent.children() for link in Path(f"/proc/{pid}/fd").glob("*")]
    with suppress(OSError):
        for link in links:
            if str(link.readlink()).startswith(str(target)) and link.read_bytes() == b"half of it":
                return link
    return None


@pytest.mark.parametrize("names", ["without a name", "with a name"])
def test_interrupted_put_leaves_nothing(own_agent: NativeAgent, tmp_path: Path, names: str) -> None:
    target = tmp_path / "target"
    with own_agent.fake("openat", errno.EOPNOTSUPP) if names == "with a name" else nullcontext():
        with half_put(own_agent, target):
            assert len(list(target.iterdir())) == (2 if names == "with a name" else 1)
        wait_until(
            lambda: written(own_agent, target) is None and len(list(target.iterdir())) == 1,
            DEADLINE_S,
            what="the program and its file to go",
        )
    assert (target / "file").read_bytes() == b"old"


def test_killed_put_leaves_nothing(own_agent: NativeAgent, tmp_path: Path) -> None:
    """As the kernel kills one where memory ends."""
    target = tmp_path / "target"
    with half_put(own_agent, target):
        for pid in own_agent.children():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: written(own_agent, target) is None, DEADLINE_S, what="the program to end")
        assert [path.name for path in target.iterdir()] == ["file"]
    assert (target / "file").read_bytes() == b"old"


def test_file_that_shrinks_while_it_is_got(own_agent: NativeAgent, tmp_path: Path) -> None:
    """Fewer bytes than were announced are an error, never a shorter file."""
    src = tmp_path / "src"
    with src.open("wb") as stream:
        stream.truncate(64 * MIB)
    with closing(own_agent.connect()) as sock:
        raw = Raw(sock)
        raw.send(wire.hello(EPOCH), exec_message("ramet-agent", "get", str(src), flags=wire.FLAG_FILES))
        assert raw.receive()[0] == Reply.STARTED
        kind, data = raw.receive()
        assert kind == Reply.STDOUT
        assert int.from_bytes(data[:8], "little") == 64 * MIB
        os.truncate(src, 0)
        while (message := raw.receive())[0] == Reply.STDOUT:
            pass
    assert message[0] == Reply.STDERR
    assert b"src: " in message[1]


def test_file_that_vanishes_while_it_is_got(own_agent: NativeAgent, tmp_path: Path) -> None:
    """It is read by its descriptor: all of it comes."""
    src = tmp_path / "src"
    src.write_bytes(bytes(16 * MIB))
    heard: list[int] = []

    def unlink(received: int) -> None:
        heard.append(received)
        src.unlink(missing_ok=True)

    with opened(tmp_path / "back", os.O_RDWR | os.O_CREAT) as fd, own_agent.client() as client:
        assert client.get(str(src), fd, progress=unlink).size_bytes == 16 * MIB
    assert heard[0] < 16 * MIB


def test_get_of_a_growing_file_stops_at_its_size(own_agent: NativeAgent, tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.write_bytes(bytes(4 * MIB))

    def grow(_received: int) -> None:
        with src.open("ab") as stream:
            stream.write(b"more")

    with opened(tmp_path / "back", os.O_RDWR | os.O_CREAT) as fd, own_agent.client() as client:
        assert client.get(str(src), fd, progress=grow).size_bytes == 4 * MIB


def test_get_of_more_than_is_allowed(agent: NativeAgent, tmp_path: Path) -> None:
    (tmp_path / "src").write_bytes(bytes(MIB))
    with pytest.raises(GuestError, match="1048576 bytes; 1000 are allowed"):
        get(agent, tmp_path / "src", tmp_path / "back", max_bytes=1000)
    with pytest.raises(GuestError, match="more than 5 bytes"):
        get(agent, "/proc/version", tmp_path / "back", max_bytes=5)
    assert (tmp_path / "back").read_bytes() == b""


def test_get_without_room_is_refused_first(agent: NativeAgent, tmp_path: Path) -> None:
    with (tmp_path / "src").open("wb") as stream:
        try:
            stream.truncate(1 << 43)
        except OSError:
            pytest.skip("this file system cannot hold a sparse file of 8 TiB")
    with pytest.raises(NoSpaceError):
        get(agent, tmp_path / "src", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b""


def test_put_while_frozen_waits_and_keeps_nobody(own_agent: NativeAgent, tmp_path: Path) -> None:
    sent = []
    thread = threading.Thread(target=lambda: sent.append(put(own_agent, b"late", tmp_path / "file")))
    with own_agent.frozen_workload():
        thread.start()
        wait_until(lambda: own_agent.children() or None, DEADLINE_S, what="the program")
        with own_agent.client() as client:
            client.ping()
        assert not (tmp_path / "file").exists()
    thread.join(DEADLINE_S)
    assert sent == [4]
    assert (tmp_path / "file").read_bytes() == b"late"


def test_put_reads_any_descriptor(agent: NativeAgent, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with closing(ours), agent.client() as client:
        theirs.sendall(b"through a socket")
        theirs.close()
        assert client.put(ours.fileno(), str(tmp_path / "file")) == 16
    assert (tmp_path / "file").read_bytes() == b"through a socket"
