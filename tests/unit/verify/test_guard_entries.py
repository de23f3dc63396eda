"""Guarding what holds no bytes: directories, symlinks, sockets, FIFOs, devices, and extended attributes."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.verify.checks import Verdict
from ramet.verify.entries import Kind
from ramet.verify.guard import GuardReport, guarding
from tests.unit.children import run_in_child

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """``memory``, a symlink to it, an empty directory, a FIFO and a socket."""
    root = tmp_path / "snapshot"
    (root / "sub").mkdir(parents=True)
    (root / "sub").chmod(0o755)
    root.chmod(0o755)
    (root / "memory").write_bytes(b"memory")
    (root / "link").symlink_to("memory")
    os.mkfifo(root / "fifo", 0o600)
    bind(root / "sock")
    return root


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def run(tree: Path, do: str | Callable[[], object]) -> GuardReport:
    with guarding([tree]) as guard:
        if isinstance(do, str):
            subprocess.run(["sh", "-ec", do], cwd=tree, check=True)
        else:
            do()
    assert guard.report is not None
    return guard.report


@pytest.mark.parametrize(
    ("script", "entry", "said"),
    [
        ("chmod 777 sub", "sub", "mode 0o755 became 0o777"),
        ("chmod 1755 .", ".", "mode 0o755 became 0o1755"),
        ("rmdir sub", "sub", "it is gone"),
        ("mkdir other; rmdir sub; mv other sub", "sub", "inode "),
        ("rmdir sub; touch sub", "sub", "it was a directory, and is a file"),
        ("rm memory; mkfifo memory", "memory", "it was a file, and is a FIFO"),
        ("mkdir new", "new", "it is new: a directory"),
        ("mkfifo new", "new", "it is new: a FIFO"),
        ("ln -s x new", "new", "it is new: a symlink to x"),
        ("rm fifo", "fifo", "it is gone"),
        ("chmod 644 fifo", "fifo", "mode 0o600 became 0o644"),
        ("rm sock", "sock", "it is gone"),
        pytest.param("chown 65534 sub", "sub", "owner 0:0 became 65534:0", marks=NEEDS_ROOT),
        pytest.param("chown 65534 .", ".", "owner 0:0 became 65534:0", marks=NEEDS_ROOT),
        pytest.param("chown -h 65534 link", "link", "owner 0:0 became 65534:0", marks=NEEDS_ROOT),
        pytest.param("chown 65534 fifo", "fifo", "owner 0:0 became 65534:0", marks=NEEDS_ROOT),
    ],
)
def test_every_change_of_an_entry_is_told(tree: Path, script: str, entry: str, said: str) -> None:
    report = run(tree, script)
    (change,) = report.changes
    assert report.verdict is Verdict.FAIL
    assert change.path == tree / entry
    assert change.differences[0].startswith(said)
    assert (change.is_new, change.is_gone) == (said.startswith("it is new"), said == "it is gone")


def test_a_socket_that_appears_is_a_change(tree: Path) -> None:
    (change,) = run(tree, lambda: bind(tree / "new")).changes
    assert (change.path, change.kind, change.is_new) == (tree / "new", Kind.SOCKET, True)


def test_devices_are_compared_by_their_numbers(tree: Path) -> None:
    def make(minor: int) -> None:
        os.mknod(tree / "device", 0o600 | 0o020000, os.makedev(1, minor))

    try:
        make(3)
    except PermissionError:
        pytest.skip("may not make devices")

    def replace_it() -> None:
        (tree / "device").unlink()
        make(5)

    (change,) = run(tree, replace_it).changes
    assert change.differences == (f"device number {os.makedev(1, 3)} became {os.makedev(1, 5)}",)


def test_what_is_not_read_is_counted_and_may_be_made_anew(tree: Path) -> None:
    def again() -> None:
        (tree / "sock").unlink()
        bind(tree / "sock")

    report = run(tree, again)
    assert (report.verdict, report.changes) == (Verdict.PASS, ())
    assert report.not_read == (tree / "fifo", tree / "sock")
    assert report.kinds == {Kind.FILE: 1, Kind.DIRECTORY: 2, Kind.SYMLINK: 1, Kind.FIFO: 1, Kind.SOCKET: 1}


def test_what_comes_and_goes_in_a_directory_leaves_it_as_it_was(tree: Path) -> None:
    assert run(tree, "touch sub/temporary; rm sub/temporary").changes == ()


@pytest.mark.parametrize("name", ["memory", "sub", "."])
def test_extended_attributes_are_compared(tree: Path, name: str) -> None:
    path = tree / name
    try:
        os.setxattr(path, "user.kept", b"1")
    except OSError as err:
        pytest.skip(f"no extended attributes here: {err}")

    def only(do: Callable[[], None]) -> tuple[str, ...]:
        report = run(tree, do)
        assert report.verdict is Verdict.FAIL
        (change,) = report.changes
        assert change.path == path
        return change.differences

    assert run(tree, "true").verdict is Verdict.PASS
    assert only(lambda: os.setxattr(path, "user.new", b"1")) == ("extended attribute user.new is new",)
    assert only(lambda: os.setxattr(path, "user.kept", b"2")) == ("extended attribute user.kept has another value",)
    assert only(lambda: os.removexattr(path, "user.kept")) == ("extended attribute user.kept is gone",)


def test_a_file_system_without_extended_attributes_is_guarded_too(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> list[str]:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "listxattr", refuse)
    assert run(tree, "true").verdict is Verdict.PASS


def test_an_attribute_that_may_not_be_read_is_compared_by_name(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "listxattr", lambda *_, **__: ["user.secret"])
    monkeypatch.setattr(os, "getxattr", refuse)
    assert run(tree, "true").verdict is Verdict.PASS
    with guarding([tree / "memory"]) as guard:
        monkeypatch.setattr(os, "listxattr", lambda *_, **__: [])
    assert guard.report is not None
    (change,) = guard.report.changes
    assert change.differences == ("extended attribute user.secret is gone",)


@NEEDS_ROOT
def test_what_cannot_be_entered_any_more_is_not_said_to_be_gone(tree: Path) -> None:
    (tree / "sub" / "state").touch()
    for path in [tree, *tree.rglob("*")]:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    for parent in tree.parents:
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(0o711)

    def as_nobody() -> None:
        os.setresuid(65534, 65534, 65534)
        report = run(tree, "chmod 0 sub")
        assert report.verdict is Verdict.FAIL
        unreadable = "it cannot be read any more: Permission denied"
        assert [(change.path.name, change.differences) for change in report.changes] == [
            ("sub", (unreadable, "mode 0o755 became 0o0")),
            ("state", (unreadable,)),
        ]

    assert run_in_child(as_nobody) == 0
