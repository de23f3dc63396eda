"""The store's directories, work in progress, and a sweep that takes what was abandoned and nothing else."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.errors import ConfigError, HostError
from ramet.paths import StorePaths
from ramet.store import atomic, layout
from ramet.store.layout import discard, is_id, new_id, open_store, work_in_progress
from ramet.store.locks import locked
from tests.unit.children import exit_codes, fork, holding, run_in_child


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return open_store(tmp_path / "home")


def names_in(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


# -- opening ------------------------------------------------------------------------------------------------------


def test_a_new_store_is_private_whatever_the_umask_is(tmp_path: Path) -> None:
    """H54."""
    old = os.umask(0)
    try:
        paths = open_store(tmp_path / "deep" / "er" / "home")
    finally:
        os.umask(old)
    for directory in paths.directories():
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700, directory
    assert names_in(paths.home) == {"images", "snapshots", "instances", "names", "locks", "tmp"}


def test_opening_again_changes_nothing(store: StorePaths) -> None:
    (store.snapshots / "0123456789ab").mkdir()
    (store.home / "notes").write_text("a person's")
    assert open_store(store.home) == store
    assert names_in(store.snapshots) == {"0123456789ab"}


def test_a_store_that_was_half_made_is_completed(tmp_path: Path) -> None:
    (tmp_path / "home" / "images").mkdir(parents=True)
    assert open_store(tmp_path / "home").tmp.is_dir()


def test_a_new_file_system_may_be_the_home(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    assert open_store(tmp_path).tmp.is_dir()


def test_a_directory_with_other_things_is_no_store_and_stays_as_it_is(tmp_path: Path) -> None:
    """RAMET_HOME=/ or =$HOME: their tmp/ is not our work in progress."""
    work = tmp_path / "tmp" / "0123456789ab"
    work.mkdir(parents=True)
    (work / "precious").write_text("x")
    (tmp_path / "etc").mkdir()
    tmp_path.chmod(0o2775)
    with pytest.raises(ConfigError, match="holds other things, such as 'etc'"):
        open_store(tmp_path)
    assert tmp_path.stat().st_mode & 0o7777 == 0o2775, "a project's directory, with a group that works in it"
    assert names_in(tmp_path) == {"tmp", "etc"}
    assert (work / "precious").exists()


def test_a_file_or_a_link_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "dangling"):
        with pytest.raises(ConfigError, match="is not a directory"):
            open_store(tmp_path / name)
    assert names_in(tmp_path / "real") == set()


def test_another_user_s_directory_is_refused_before_anything_is_made_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="belongs to uid"):
        open_store(tmp_path)
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("which", ["", "instances", "names/snapshots", "tmp"])
def test_a_store_that_others_may_write_is_refused(store: StorePaths, which: str) -> None:
    """They could put records in it: those say which process is to be killed."""
    directory = store.home / which
    directory.chmod(0o777)
    with pytest.raises(ConfigError, match=f"{directory}: its mode is 0777") as caught:
        open_store(store.home)
    assert f"chmod go-w {directory}" in str(caught.value.hint)
    directory.chmod(0o755)
    open_store(store.home)


def test_a_store_that_a_group_may_write_is_closed_to_it(store: StorePaths, caplog: pytest.LogCaptureFixture) -> None:
    """umask 002 makes such directories; nobody's commands shall end because of it."""
    store.home.chmod(0o775)
    open_store(store.home)
    assert store.home.stat().st_mode & 0o777 == 0o755
    assert f"{store.home} could be written by its group" in caplog.text


@pytest.mark.parametrize("which", ["tmp", "locks"])
def test_a_directory_of_somebody_else_in_it_is_refused(
    store: StorePaths, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, real = store.home / which, Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        found = real(path, **options)
        return os.stat_result((*found[:4], 4711, *found[5:])) if path == theirs else found

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(ConfigError, match=f"{theirs} belongs to uid 4711"):
        open_store(store.home)


def test_what_cannot_be_swept_hinders_nobody_and_is_said(
    store: StorePaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = store.tmp / f"trash-{new_id()}"
    left.mkdir()

    def immutable(_path: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "remove_tree", immutable)
        open_store(store.home)
    assert f"{left} was left" in caplog.text
    assert left.is_dir()
    open_store(store.home)
    assert not left.exists()


@pytest.mark.parametrize(("flags", "words"), [(os.ST_RDONLY, "read-only"), (0, "Permission denied")])
def test_a_store_that_cannot_be_written(
    store: StorePaths, monkeypatch: pytest.MonkeyPatch, flags: int, words: str
) -> None:
    real = os.statvfs(store.tmp)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((*real[:8], flags, real[9])))
    with pytest.raises(HostError, match=words):
        open_store(store.home)


def test_a_home_below_a_file_is_a_host_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises((HostError, ConfigError)):
        open_store(tmp_path / "file" / "home")


# -- the sweep ----------------------------------------------------------------------------------------------------


ABANDONED = ["0123456789ab", "0123456789ab-fork", "trash-0123456789ab"]
FOREIGN = [
    "notes",
    ".hidden",
    "0123456789AB",
    "0123456789ab\n",
    "line\nbreak",
    "trash-",
    "x" * 255,
    "0123456789ab-forks",
]


@pytest.mark.parametrize("name", ABANDONED)
def test_abandoned_work_is_swept(store: StorePaths, name: str) -> None:
    (store.tmp / name).mkdir()
    (store.tmp / name / "memory").write_bytes(b"x")
    open_store(store.home)
    assert names_in(store.tmp) == set()
    assert names_in(store.locks) == set()


@pytest.mark.parametrize("name", FOREIGN, ids=repr)
def test_what_is_not_ours_is_left_alone_and_hinders_nobody(store: StorePaths, name: str) -> None:
    (store.tmp / name).write_text("somebody's")
    (store.tmp / "0123456789ab").mkdir()
    open_store(store.home)
    assert names_in(store.tmp) == {name}


def test_a_link_or_a_file_with_our_name_is_swept_and_not_followed(store: StorePaths, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (store.tmp / "0123456789ab").symlink_to(outside)
    (store.tmp / "0123456789ac").symlink_to(tmp_path / "nowhere")
    (store.tmp / "0123456789ad").write_text("x")
    open_store(store.home)
    assert names_in(store.tmp) == set()
    assert names_in(outside) == {"precious"}


def test_a_live_command_s_work_is_not_swept_and_a_killed_one_s_is(store: StorePaths) -> None:
    def work(ready: Callable[[], None]) -> None:
        with work_in_progress(store, "0123456789ab") as directory:
            (directory / "memory").write_bytes(b"x")
            ready()

    with holding(work):
        open_store(store.home)
        assert (store.tmp / "0123456789ab" / "memory").exists()
    open_store(store.home)
    assert names_in(store.tmp) == set()


@pytest.mark.timeout(60)
def test_commands_that_open_and_work_at_once_never_lose_their_work(store: StorePaths) -> None:
    def work() -> None:
        for _ in range(15):
            with work_in_progress(open_store(store.home), new_id()) as directory:
                (directory / "file").write_bytes(b"x")
                open_store(store.home)
                assert (directory / "file").exists()

    assert exit_codes([fork(work) for _ in range(4)]) == [0] * 4
    assert names_in(store.tmp) == set()


# -- work in progress, and discarding -----------------------------------------------------------------------------


def test_work_is_private_and_gone_after_the_block(store: StorePaths) -> None:
    with work_in_progress(store, "0123456789ab") as directory:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        (directory / "sub").mkdir()
    with pytest.raises(ZeroDivisionError), work_in_progress(store, "0123456789ab"):
        raise ZeroDivisionError
    assert names_in(store.tmp) == set()
    assert names_in(store.locks) == set()


def test_work_that_was_published_stays_published(store: StorePaths) -> None:
    with work_in_progress(store, "0123456789ab") as directory:
        (directory / "file").write_text("x")
        directory.rename(store.snapshots / "0123456789ab")
    assert names_in(store.snapshots / "0123456789ab") == {"file"}


def test_work_that_is_there_already_is_a_host_error_and_stays(store: StorePaths) -> None:
    (store.tmp / "0123456789ab").mkdir()
    with pytest.raises(HostError, match="File exists"), work_in_progress(store, "0123456789ab"):
        pytest.fail("two commands share their work")
    assert names_in(store.tmp) == {"0123456789ab"}


def test_a_discarded_directory_is_gone(store: StorePaths) -> None:
    victim = store.snapshots / "0123456789ab"
    victim.mkdir()
    (victim / "memory").write_bytes(b"x")
    (victim / "memory").chmod(0o400)
    discard(store, victim)
    assert names_in(store.snapshots) == set()
    assert names_in(store.tmp) == set()


def test_killed_while_it_discards_it_has_vanished_whole_and_the_sweep_takes_the_rest(store: StorePaths) -> None:
    victim = store.snapshots / "0123456789ab"
    victim.mkdir()
    (victim / "memory").write_bytes(b"x")

    def killed() -> None:
        atomic.remove_tree = lambda path: os.kill(os.getpid(), signal.SIGKILL)
        discard(store, victim)

    assert run_in_child(killed) == -9
    assert names_in(store.snapshots) == set()
    [trash] = store.tmp.iterdir()
    assert names_in(trash) == {"memory"}
    open_store(store.home)
    assert names_in(store.tmp) == set()


# -- ids ----------------------------------------------------------------------------------------------------------


def test_new_ids_are_ids_and_do_not_repeat() -> None:
    made = {new_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(is_id(text) and layout._WORK.fullmatch(text) for text in made)


@pytest.mark.parametrize(
    "text", ["", "0123456789a", "0123456789abc", "0123456789aB", "0123456789a\n", "..", "0123456789é"]
)
def test_what_is_no_id(text: str) -> None:
    assert not is_id(text)


@pytest.mark.parametrize("kind", ["tmp", "instance", "snapshot"])
def test_the_lock_of_what_is_gone_is_swept_and_no_other(store: StorePaths, kind: str) -> None:
    gone, there, held = "0" * 12, "1" * 12, "2" * 12
    {"tmp": store.snapshots, "instance": store.instances, "snapshot": store.snapshots}[kind].joinpath(there).mkdir()
    for one in (gone, there):
        (store.locks / f"{kind}-{one}").touch()
    (store.locks / "others").touch()
    with locked(store.locks, f"{kind}-{held}"):
        open_store(store.home)
        kept = {f"{kind}-{held}", "others"} | (set() if kind == "tmp" else {f"{kind}-{there}"})
        assert names_in(store.locks) == kept


def test_the_lock_of_a_check_that_was_killed_is_swept(store: StorePaths) -> None:
    """It is of a name, which may be there for years."""
    for one in ("check-instance-web", "check-snapshot-golden"):
        (store.locks / one).touch()
    with locked(store.locks, "check-instance-db"):
        open_store(store.home)
        assert names_in(store.locks) == {"check-instance-db"}
