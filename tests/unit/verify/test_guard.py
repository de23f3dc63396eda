"""Guarding files: every kind of change is told, with its pages and its writer; and what did not change passes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ramet.errors import ConfigError, ConflictError
from ramet.linux import fanotify
from ramet.verify.checks import Verdict
from ramet.verify.fingerprints import PAGE_BYTES
from ramet.verify.guard import COULD_WRITE, WROTE, Change, GuardReport, guarding
from tests.unit.children import run_in_child

MIB = 1 << 20


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """``memory`` (1 MiB with a hole), ``disk.raw``, and ``sub/state``."""
    root = tmp_path / "snapshot"
    (root / "sub").mkdir(parents=True)
    with (root / "memory").open("wb") as stream:
        stream.truncate(MIB)
        stream.write(os.urandom(4 * PAGE_BYTES))
    (root / "disk.raw").write_bytes(os.urandom(3 * PAGE_BYTES))
    (root / "sub" / "state").write_bytes(b"state")
    return root


def shell(script: str, root: Path) -> GuardReport:
    with guarding([root]) as guard:
        subprocess.run(["sh", "-ec", script], cwd=root, check=True)
    assert guard.report is not None
    return guard.report


def only(report: GuardReport) -> Change:
    (change,) = report.changes
    return change


def test_what_is_only_read_passes(tree: Path) -> None:
    report = shell("cat memory disk.raw sub/state >/dev/null; ls -lR >/dev/null", tree)
    assert (report.verdict, report.changes, report.files) == (Verdict.PASS, (), 3)
    assert report.total_bytes == MIB + 3 * PAGE_BYTES + 5


@pytest.mark.parametrize(
    ("script", "file", "said", "pages"),
    [
        ("printf x | dd of=memory bs=1 seek=9000 conv=notrunc status=none", "memory", "SHA-256", [2]),
        ("printf x | dd of=memory bs=1 seek=900000 conv=notrunc status=none", "memory", "SHA-256", [219]),
        ("fallocate -p -o 0 -l 4096 memory", "memory", "SHA-256", [0]),
        ("truncate -s +1 disk.raw", "disk.raw", "size", []),
        ("truncate -s 4096 disk.raw", "disk.raw", "size", [1, 2]),
        ("chmod 600 memory", "memory", "mode", []),
        ("ln memory ../linked", "memory", "links", []),
        ("cp -p memory other; mv other memory", "memory", "inode", []),
        ("rm sub/state", "sub/state", "gone", []),
        ("rm -r sub", "sub/state", "gone", []),
        ("echo x >sub/new", "sub/new", "new", []),
    ],
)
def test_every_kind_of_change_is_told(tree: Path, script: str, file: str, said: str, pages: list[int]) -> None:
    (tree / "memory").chmod(0o644)
    report = shell(script, tree)
    change = only(report)
    assert report.verdict is Verdict.FAIL
    assert change.path == tree / file
    assert said in " ".join(change.differences)
    assert [page for pages in change.pages for page in pages] == pages


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_owner_is_a_change(tree: Path) -> None:
    assert "owner 0:0 became 65534:0" in only(shell("chown 65534 memory", tree)).differences


@pytest.mark.parametrize(
    ("script", "said"),
    [("touch memory", "the bytes that it had"), ("cp memory ../copy; cat ../copy 1<>memory", "the bytes that it had")],
)
def test_what_changes_nothing_is_told_and_passes(tree: Path, script: str, said: str) -> None:
    report = shell(script, tree)
    assert report.verdict is Verdict.PASS
    assert said in " ".join(only(report).differences)


def test_a_write_through_a_shared_mapping_is_seen_and_who_could(tree: Path) -> None:
    script = "import mmap; f = open('memory', 'r+b'); m = mmap.mmap(f.fileno(), 0); m[5000] ^= 255; import time; time.sleep(0.2)"
    with guarding([tree / "memory"]) as guard:
        subprocess.run([sys.executable, "-c", script], cwd=tree, check=True)
    assert guard.report is not None
    change = only(guard.report)
    assert list(change.pages) == [range(1, 2)]
    assert any(COULD_WRITE in who or WROTE in who for who in change.writers), change


def can_fanotify() -> bool:
    try:
        os.close(fanotify.create())
    except OSError:
        return False
    return True


@pytest.mark.skipif(not can_fanotify(), reason="no fanotify for this user")
def test_who_wrote_is_named_though_it_has_ended(tree: Path) -> None:
    report = shell("printf x | dd of=memory bs=1 conv=notrunc status=none", tree)
    assert report.writers_unseen is None
    (who,) = only(report).writers
    assert who.endswith(WROTE)
    assert who.startswith(("dd (pid ", "a process that has ended (pid "))


@pytest.mark.skipif(not can_fanotify(), reason="no fanotify for this user")
def test_whoever_is_in_a_guarded_directory_of_new_files_is_named_too(tree: Path) -> None:
    writers = only(shell("exec 3>sub/new; sleep 0.1; echo x >&3", tree)).writers
    assert any(WROTE in who for who in writers)


def test_without_fanotify_it_looks_at_processes_and_says_so(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(fanotify, "create", refused)
    report = shell("exec 3<>memory; printf x >&3; sleep 0.4", tree)
    assert report.writers_unseen is not None
    writers = only(report).writers
    assert writers
    assert all(COULD_WRITE in who for who in writers), "the shell, and sleep, which has its descriptor"


def test_a_file_that_is_open_for_writing_already_is_refused(tree: Path) -> None:
    with (tree / "memory").open("r+b"):

        def other() -> None:
            with pytest.raises(ConflictError, match="open for writing already"), guarding([tree]):
                pass
            with guarding([tree], allow_writers=True) as guard:
                pass
            assert guard.report is not None
            assert guard.report.verdict is Verdict.PASS

        assert run_in_child(other) == 0


def test_what_cannot_be_guarded_is_refused_in_words(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    (tree / "link").symlink_to("memory")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tree / "sock"))
    for name, said in {
        "gone": "No such file",
        "pipe": "a pipe",
        "link": "a symlink",
        "sock": "a socket",
    }.items():
        with pytest.raises(ConfigError, match=said), guarding([tree / name]):
            pass
    with pytest.raises(ConfigError, match="nothing to guard"), guarding([]):
        pass
    with guarding([tree]) as guard:  # in a tree they are passed over
        pass
    assert guard.report is not None
    assert guard.report.files == 3


def test_the_whole_tree_may_vanish(tree: Path) -> None:
    with guarding([tree, tree / "memory"]) as guard:
        shutil.rmtree(tree)
    assert guard.report is not None
    assert {change.differences for change in guard.report.changes} == {("it is gone",)}
    assert len(guard.report.changes) == 3


def test_an_exception_of_the_block_goes_through_and_no_thread_is_left(tree: Path) -> None:
    with pytest.raises(RuntimeError, match="its own"), guarding([tree]) as guard:
        raise RuntimeError("its own")
    assert guard.report is None
    assert shell("true", tree).verdict is Verdict.PASS
