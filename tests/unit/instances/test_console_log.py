"""What the console says of a guest's end: it is a guest's word, and the log may be anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.instances import console_log, observe
from ramet.model import Failure, State, VmmProcess
from ramet.paths import InstancePaths
from tests.unit.instances.place import Place

PANICKED = b"""[    6.586914] sysrq: Trigger a crash
[    6.587407] Kernel panic - not syncing: sysrq triggered crash
[    6.587676] CPU: 0 PID: 126 Comm: sh Not tainted 6.1.0-56-amd64
[    6.588052] Call Trace:
"""
POWERED_OFF = b"[    9.123456] reboot: Power down\n"
GONE = VmmProcess(pid=1, start_time_ticks=1, boot_id="another boot")


def said(directory: Path, text: bytes, *, offset_bytes: int = 0) -> str | None:
    paths = InstancePaths(dir=directory)
    paths.logs.mkdir(exist_ok=True)
    paths.console_log.write_bytes(text)
    return console_log.panic(paths, offset_bytes)


def test_a_panic_is_told_with_the_lines_around_it(tmp_path: Path) -> None:
    told = said(tmp_path, b"login: \x1b[6n\r\n" + PANICKED)
    assert told is not None
    assert "panicked (sysrq triggered crash)" in told
    assert "Call Trace" in told
    assert "\x1b" not in told
    assert len(told.splitlines()) == 6


@pytest.mark.parametrize(
    "text", [b"", b"login: \n", POWERED_OFF, PANICKED + POWERED_OFF], ids=["nothing", "a prompt", "power off", "both"]
)
def test_no_panic(tmp_path: Path, text: bytes) -> None:
    assert said(tmp_path, text) is None


def test_an_earlier_guest_panicked_and_this_one_did_not(tmp_path: Path) -> None:
    assert said(tmp_path, PANICKED + b"[    0.5] up\n", offset_bytes=len(PANICKED)) is None
    assert said(tmp_path, PANICKED, offset_bytes=len(PANICKED)) is None
    assert said(tmp_path, PANICKED + PANICKED, offset_bytes=len(PANICKED)) is not None


def test_a_log_that_somebody_has_emptied_is_read_from_its_start(tmp_path: Path) -> None:
    assert said(tmp_path, PANICKED, offset_bytes=10_000) is not None


def test_a_message_without_end_is_cut(tmp_path: Path) -> None:
    told = said(tmp_path, b"Kernel panic - not syncing: " + b"A" * 200_000)
    assert told is None, "its beginning is too far back"
    told = said(tmp_path, b"Kernel panic - not syncing: " + b"A" * 20_000)
    assert told is not None
    assert len(told) < 1000


def test_reader_and_verb_say_the_same(place: Place) -> None:
    place.change(state=State.RUNNING, vmm=GONE, console_offset_bytes=0)
    place.paths.console_log.write_bytes(PANICKED)
    assert observe.look(place.store, place.record).failure is Failure.GUEST_PANICKED
    with observe.exclusive(place.store, "web") as instance:
        assert (instance.record.state, instance.record.failure) == (State.FAILED, Failure.GUEST_PANICKED)
        assert instance.record.snapshot == place.snapshot_id, "to roll back to"
