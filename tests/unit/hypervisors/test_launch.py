"""A VMM that does not come up is ended, and the error says how it ended and what it said last."""

from __future__ import annotations

import signal

import pytest

from ramet import process
from ramet.errors import LaunchError, VmmDiedError, VmmError
from ramet.hypervisors.confinement import Confinement
from ramet.hypervisors.launch import launched
from ramet.model import VmmProcess
from tests.unit.hypervisors.confined import Place


def come_up(place: Place, script: str, err: VmmError) -> LaunchError:
    """What is told of a program that is started as a VMM is, and with which ``err`` happens."""
    confined = Confinement(
        spec=place.spec,
        user=None,
        memory_is_written=False,
        limits=process.NO_CORE_DUMPS,
        start=process.as_it_is,
    )
    started: list[VmmProcess] = []

    def spawn() -> tuple[list[str], VmmProcess]:
        argv = ["sh", "-c", script]
        started.append(
            process.spawn(
                argv, log_path=place.spec.vmm_log, pass_fds=(), cwd=place.spec.run_dir, mark=place.spec.run_dir
            )
        )
        return argv, started[0]

    with (
        pytest.raises(LaunchError) as caught,
        launched("QEMU", confined, spawn, last_words=lambda: "its last words", hint="Look there."),
    ):
        raise err
    assert not process.is_alive(started[0])
    return caught.value


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -SEGV $$", -signal.SIGSEGV), ("kill -9 $$", -9)])
def test_one_that_goes_away_has_its_status_told(place: Place, script: str, status: int) -> None:
    """Its sockets are closed before it has ended, and so it is waited for."""
    told = come_up(place, f"sleep 0.1; {script}", VmmDiedError("QEMU went away."))
    assert told.status == status
    assert told.message.startswith("QEMU did not come up for 'web': QEMU went away.\n  its process: ")
    assert told.message.endswith("\n  log: its last words")


def test_one_that_runs_on_has_none(place: Place) -> None:
    """It is we who end it."""
    told = come_up(place, "exec sleep 60", VmmError("QEMU does not answer."))
    assert told.status is None
    assert told.message == "QEMU did not come up for 'web': QEMU does not answer.\n  log: its last words"
