"""Names: claimed by one, freed only by their owner, and never believed when they are damaged."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from ramet.errors import ConflictError, CorruptError, HostError
from ramet.process import wait_until
from ramet.store import names
from tests.unit.children import run_in_child
from tests.unit.steps import Steps

FIRST, SECOND = "0123456789ab", "ba9876543210"


def test_a_claimed_name_means_its_id_until_it_is_freed(tmp_path: Path) -> None:
    assert names.lookup(tmp_path, "web") is None
    names.claim(tmp_path, "web", FIRST, what="instance")
    assert names.lookup(tmp_path, "web") == FIRST
    assert names.all_names(tmp_path) == {"web": FIRST}
    names.release(tmp_path, "web", FIRST)
    assert names.lookup(tmp_path, "web") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("what", "words"), [("instance", "an instance"), ("snapshot", "a snapshot")])
def test_a_taken_name_is_a_conflict_and_keeps_its_meaning(tmp_path: Path, what: str, words: str) -> None:
    names.claim(tmp_path, "web", FIRST, what=what)
    with pytest.raises(ConflictError, match=f"already {words} called 'web'"):
        names.claim(tmp_path, "web", SECOND, what=what)
    assert names.all_names(tmp_path) == {"web": FIRST}
    assert [entry.name for entry in tmp_path.iterdir()] == ["web"]


def test_only_one_of_many_processes_wins_a_name(tmp_path: Path) -> None:
    start = tmp_path / "start"
    directory = tmp_path / "names"
    directory.mkdir()
    ids = [f"{number:012x}" for number in range(6)]
    pids = []
    for target in ids:
        pid = os.fork()
        if pid == 0:
            os._exit(_claim_after(start, directory, target))
        pids.append(pid)
    start.touch()
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert sorted(codes) == [0] + [4] * (len(ids) - 1), "0 is a claim, 4 a ConflictError"
    assert names.all_names(directory) == {"web": ids[codes.index(0)]}
    assert [entry.name for entry in directory.iterdir()] == ["web"]


def _claim_after(start: Path, directory: Path, target: str) -> int:
    try:
        wait_until(start.exists, 20, what="the start")
        names.claim(directory, "web", target, what="instance")
    except ConflictError as err:
        return err.exit_status
    except BaseException:  # noqa: BLE001 - nothing may return into the test that forked us
        return 1
    return 0


def test_a_name_that_means_another_is_not_freed(tmp_path: Path) -> None:
    names.claim(tmp_path, "web", SECOND, what="instance")
    names.release(tmp_path, "web", FIRST)
    names.release(tmp_path, "nobody", FIRST)
    assert names.all_names(tmp_path) == {"web": SECOND}


def test_a_name_that_was_claimed_anew_between_the_look_and_the_unlink_is_not_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced: when we have looked and not yet unlinked, another command frees the name and claims it anew."""
    names.claim(tmp_path, "web", FIRST, what="instance")
    real = names.lookup
    others: list[threading.Thread] = []

    def free_and_claim() -> None:
        names.release(tmp_path, "web", FIRST)
        names.claim(tmp_path, "web", SECOND, what="instance")

    def look(directory: Path, name: str) -> str | None:
        found = real(directory, name)
        if not others:
            others.append(threading.Thread(target=free_and_claim))
            others[0].start()
            others[0].join(0.1)
        return found

    monkeypatch.setattr(names, "lookup", look)
    names.release(tmp_path, "web", FIRST)
    others[0].join(20)
    assert names.all_names(tmp_path) == {"web": SECOND}


@pytest.mark.parametrize("step", range(3))
def test_a_claim_that_failed_is_no_claim(tmp_path: Path, step: int) -> None:
    with Steps(fail_at=step).recorded(), pytest.raises(HostError, match="claim the name 'web'"):
        names.claim(tmp_path, "web", FIRST, what="instance")
    assert names.all_names(tmp_path) == {}
    names.claim(tmp_path, "web", SECOND, what="instance")


def test_killed_between_the_link_and_the_end_is_a_whole_claim(tmp_path: Path) -> None:
    def killed() -> None:
        with Steps(kill_at=2).recorded():
            names.claim(tmp_path, "web", FIRST, what="instance")

    assert run_in_child(killed) == -9
    assert names.all_names(tmp_path) == {"web": FIRST}, "a temporary file is no name"


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"../../etc\n", b"a\nb\n", b"\xff\xfe", "\u00e9".encode(), b"0123456789ab 0123456789ab", b"\0" * 12],
    ids=repr,
)
def test_a_damaged_name_is_never_believed(tmp_path: Path, content: bytes) -> None:
    """H46: what it says becomes a path."""
    (tmp_path / "web").write_bytes(content)
    for look in (lambda: names.lookup(tmp_path, "web"), lambda: names.all_names(tmp_path)):
        with pytest.raises(CorruptError, match=str(tmp_path / "web")):
            look()
    with pytest.raises(CorruptError):
        names.release(tmp_path, "web", FIRST)
    with pytest.raises(ConflictError):
        names.claim(tmp_path, "web", FIRST, what="instance")
    assert (tmp_path / "web").read_bytes() == content


def test_a_directory_for_a_name_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    with pytest.raises(CorruptError, match="cannot be read as an id"):
        names.lookup(tmp_path, "web")


def test_a_name_that_cannot_be_read_now_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody shall be told to remove what may be the only reference to a snapshot."""
    names.claim(tmp_path, "golden", "0123456789ab", what="snapshot")

    def read_text(_path: Path, **_options: str) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", read_text)
        with pytest.raises(HostError, match="Too many open files"):
            names.lookup(tmp_path, "golden")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CorruptError, match="cannot be read as an id"):
        names.lookup(tmp_path, "loop")
    assert names.names_of(tmp_path, "0123456789ab") == ["golden"], "of those that can be read"


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(HostError, match="Could not claim the name 'web': No space left") as caught:
        names.claim(tmp_path, "web", FIRST, what="instance")
    assert caught.value.code == "no-space"
    assert list(tmp_path.iterdir()) == []
