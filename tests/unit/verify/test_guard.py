"""Guarding files: every kind of change is told, with its pages and its writer; and what did not change passes."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import ConfigError, ConflictError
from ramet.linux import fanotify
from ramet.verify import evidence
from ramet.verify.checks import Verdict
from ramet.verify.fingerprints import PAGE_BYTES, Examined, examine
from ramet.verify.guard import Change, GuardReport, Outcome, guarding
from ramet.verify.watch import COULD_WRITE, WROTE
from tests.unit.children import run_in_child

MIB = 1 << 20
PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


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
    [("touch memory", "written or touched"), ("cp memory ../copy; cat ../copy 1<>memory", "the bytes that it had")],
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
    report = shell("exec 3<>memory; printf x >&3; sleep 2", tree)
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
        "pipe": "a FIFO",
        "link": "a symlink",
        "sock": "a socket",
    }.items():
        with pytest.raises(ConfigError, match=said), guarding([tree / name]):
            pass
    with pytest.raises(ConfigError, match="nothing to guard"), guarding([]):
        pass
    (tree / "empty").mkdir()
    with pytest.raises(ConfigError, match="no file in"), guarding([tree / "empty"]):
        pass
    with guarding([tree]) as guard:  # in a tree they are not read, and said to be not
        pass
    assert guard.report is not None
    assert guard.report.files == 3
    assert guard.report.not_read == (tree / "pipe", tree / "sock")


def test_the_whole_tree_may_vanish(tree: Path) -> None:
    with guarding([tree, tree / "memory"]) as guard:
        shutil.rmtree(tree)
    assert guard.report is not None
    assert {change.differences for change in guard.report.changes} == {("it is gone",)}
    assert guard.report.verdict is Verdict.FAIL
    assert len(guard.report.changes) == 5, "three files and two directories"
    assert all(change.is_gone for change in guard.report.changes)


def test_an_exception_of_the_block_goes_through_and_no_thread_is_left(tree: Path) -> None:
    with pytest.raises(RuntimeError, match="its own"), guarding([tree]) as guard:
        raise RuntimeError("its own")
    assert guard.report is None
    assert shell("true", tree).verdict is Verdict.PASS


def test_a_file_that_cannot_be_read_any_more_is_a_change(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with guarding([tree]) as guard:

        def refuse(path: Path, **options: Any) -> Examined:
            if path.name == "memory":
                raise PermissionError(13, "Permission denied")
            return examine(path, **options)

        monkeypatch.setattr("ramet.verify.guard.examine", refuse)
    assert guard.report is not None
    assert guard.report.verdict is Verdict.FAIL
    assert only(guard.report).differences == ("it cannot be read any more: Permission denied",)


def test_a_symlink_that_points_elsewhere_now_is_a_change(tree: Path) -> None:
    (tree / "current").symlink_to("memory")
    report = shell("ln -sfn disk.raw current", tree)
    assert report.verdict is Verdict.FAIL
    assert only(report).differences == ("it pointed to memory, and points to disk.raw",)
    assert only(shell("rm current", tree)).differences == ("it pointed to disk.raw, and is gone",)
    assert only(shell("ln -s memory current", tree)).is_new


@pytest.mark.skipif(not can_fanotify(), reason="no fanotify for this user")
@pytest.mark.parametrize("guarded", [".", "memory"])
def test_who_replaced_a_file_is_named(tree: Path, guarded: str) -> None:
    with guarding([tree / guarded]) as guard:
        subprocess.run(["sh", "-ec", "cp memory other; sleep 0.1; mv other memory"], cwd=tree, check=True)
    assert guard.report is not None
    (who,) = only(guard.report).writers
    assert WROTE in who
    assert guard.report.writers_unseen is None


@pytest.mark.skipif(not can_fanotify(), reason="no fanotify for this user")
def test_files_in_a_directory_that_nobody_watched_are_told_to_have_no_known_writer(tree: Path) -> None:
    report = shell("mkdir sub/new; echo x >sub/new/file", tree)
    assert report.writers_unseen is not None
    assert "nobody watched" in report.writers_unseen


def test_a_writer_that_is_left_behind_is_told_though_it_wrote_nothing(tree: Path) -> None:
    with guarding([tree]) as guard:
        child = subprocess.Popen(["sh", "-c", "exec 3<>memory; echo ready; read line"], **PIPES, cwd=tree)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
    child.communicate(b"\n")
    assert guard.report is not None
    assert guard.report.verdict is Verdict.INCONCLUSIVE
    assert guard.report.undecided == "one is open for writing still"
    change = only(guard.report)
    assert change.differences == (f"it is open for writing still: descriptor 3 (writable) of sh (pid {child.pid})",)
    assert change.held_by == (f"descriptor 3 (writable) of sh (pid {child.pid})",)
    assert any(f"(pid {child.pid})" in who for who in change.writers)


def left_behind(tree: Path, argv: list[str]) -> tuple[GuardReport, int]:
    """The report on a run whose end a process outlives, which says ready when it is; and its pid."""
    with guarding([tree]) as guard:
        child = subprocess.Popen(argv, **PIPES, cwd=tree)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
    child.communicate(b"\n")
    assert guard.report is not None
    return guard.report, child.pid


def test_a_change_is_a_fail_whoever_can_write_still(tree: Path) -> None:
    report, _ = left_behind(tree, ["sh", "-c", "exec 3<>memory; echo x >&3; echo ready; read line"])
    assert report.verdict is Verdict.FAIL
    assert only(report).held_by


def test_a_shared_mapping_that_is_left_behind_is_told(tree: Path) -> None:
    script = (
        "import mmap, os, sys; fd = os.open('memory', os.O_RDWR); m = mmap.mmap(fd, 4096); os.close(fd);"
        "os.closerange(3, 100); print('ready', flush=True); sys.stdin.readline()"
    )
    report, pid = left_behind(tree, [sys.executable, "-c", script])
    assert report.verdict is Verdict.INCONCLUSIVE
    (held,) = only(report).held_by
    assert held.startswith("mapping rw-s ")
    assert f"(pid {pid})" in held


def test_a_process_that_is_left_behind_and_can_only_read_passes(tree: Path) -> None:
    """As a VM does that maps a snapshot privately."""
    script = (
        "import mmap, sys; f = open('memory', 'rb'); m = mmap.mmap(f.fileno(), 4096, mmap.MAP_PRIVATE); m[0] = 1;"
        "print('ready', flush=True); sys.stdin.readline()"
    )
    report, _ = left_behind(tree, [sys.executable, "-c", script])
    assert (report.verdict, report.changes) == (Verdict.PASS, ())


def test_a_name_that_the_kernel_has_cut_within_a_character_is_printed(tree: Path) -> None:
    """Fifteen bytes of it are kept, eight characters of two bytes each were given."""
    program = tree.parent / ("é" * 8)
    shutil.copyfile(shutil.which("dd") or "dd", program)
    program.chmod(0o700)
    with guarding([tree]) as guard:
        subprocess.run(
            [program, "if=/dev/zero", "of=memory", "bs=64", "count=1", "conv=notrunc", "status=none"],
            cwd=tree,
            check=True,
        )
    assert guard.report is not None
    assert guard.report.verdict is Verdict.FAIL
    assert "ended early" not in str(guard.report.writers_unseen)


def test_a_watch_that_fails_says_so(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> list[int]:
        raise OSError(24, "Too many open files")

    with guarding([tree]) as guard:
        monkeypatch.setattr(evidence, "processes", broken)
    assert guard.report is not None
    assert guard.report.writers_unseen is not None
    assert "Too many open files" in guard.report.writers_unseen
    assert guard.report.verdict is Verdict.INCONCLUSIVE, "nobody looked who can write still"
    assert guard.report.undecided is not None


@pytest.mark.skipif(not can_fanotify(), reason="no fanotify for this user")
def test_more_files_than_there_are_descriptors(tree: Path) -> None:
    """Each event brings a descriptor with it."""
    (tree / "many").mkdir()
    for number in range(600):
        (tree / "many" / f"{number}").write_bytes(b"x")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        report = shell("for file in many/*; do echo >>$file; done", tree)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(report.changes) == 600
    assert [change.path.name for change in report.changes if not change.writers] == []
    assert report.writers_unseen is None


def test_nobody_is_said_to_have_written_to_a_file_that_is_gone(tree: Path) -> None:
    """Another file that was made since may have its inode's number."""
    report = shell("rm disk.raw; echo x >../elsewhere", tree)
    assert only(report).differences == ("it is gone",)
    assert only(report).writers == ()


def test_a_file_that_was_renamed_is_told_as_that(tree: Path) -> None:
    report = shell("mv disk.raw other", tree)
    gone, made = report.changes
    assert gone.differences == ("it is gone",)
    assert made.differences == (f"it is new: {tree / 'disk.raw'} was renamed, or has this name too",)
    assert report.writers_unseen is None


def test_a_process_that_is_left_behind_and_may_not_be_looked_at_is_no_pass(tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(bytes(4096))
    with guarding([tmp_path]) as guarded:
        pass
    assert guarded.report is not None
    seen = Outcome(report=guarded.report, command=("x",), status=0, still_running=("sudo (pid 5)",), hidden=0)
    assert (seen.verdict, seen.exit_status, seen.reason) == ("PASS", 0, None)
    unseen = Outcome(report=guarded.report, command=("x",), status=0, still_running=("sudo (pid 5)",), hidden=1)
    assert (unseen.verdict, unseen.exit_status) == ("INCONCLUSIVE", 2)
    assert unseen.reason is not None
    assert "may not be looked at" in unseen.reason
