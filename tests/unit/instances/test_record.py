"""An instance's record on a disk that fails: it is the old one or the new one, and the caller knows which."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ramet.errors import HostError
from ramet.instances.context import Locked
from ramet.model import State
from ramet.store import atomic
from tests.unit.instances.place import Place


def failing(real: Callable[[Path], None], times: int) -> Callable[[Path], None]:
    """The fsync of a directory, which fails so many times."""
    left = times

    def fsync(directory: Path) -> None:
        nonlocal left
        if left:
            left -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(directory)

    return fsync


@pytest.mark.parametrize("times", [1, 2])
def test_a_record_that_could_not_be_made_durable_is_put_back(
    place: Place, times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its new bytes are there by then, and whoever looks next would take for done what is told to have failed."""
    instance = Locked(place.store, place.record)
    instance.put_back(place.record)
    monkeypatch.setattr(atomic, "fsync_directory", failing(atomic.fsync_directory, times))
    with caplog.at_level(logging.WARNING), pytest.raises(HostError, match="Input/output error"):
        instance.change(state=State.FAILED)
    assert instance.record == place.record
    assert place.store.read(place.record.id) == place.record
    assert ("its record may be the new one" in caplog.text) == (times == 2), "the second fsync said nothing either"


def test_one_that_refers_to_what_has_gone_meanwhile_is_not_put_back(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who gives up the last reference to a snapshot while the fsync takes its time deletes it."""
    instance = Locked(place.store, place.record)
    fsync = atomic.fsync_directory

    def slow(directory: Path) -> None:
        if directory == place.paths.dir:
            monkeypatch.setattr(atomic, "fsync_directory", fsync)
            place.store.delete_snapshot(place.snapshot_id)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(directory)

    monkeypatch.setattr(atomic, "fsync_directory", slow)
    with pytest.raises(HostError, match="Input/output error"):
        instance.change(state=State.STOPPED, snapshot=None)
    assert place.store.read(place.record.id).references == ()
    assert "its record may be the new one" in caplog.text


def test_one_that_was_not_written_is_not_written_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = Locked(place.store, place.record)
    instance.put_back(place.record)
    before = instance.paths.record.stat().st_ino

    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(HostError, match="No space"):
        instance.change(state=State.FAILED)
    assert instance.paths.record.stat().st_ino == before
    assert msgspec.json.decode(instance.paths.record.read_bytes())["state"] == place.record.state
