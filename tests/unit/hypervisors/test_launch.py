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


def come_up(place: Place, script: str, err: VmmError, *, started: list[VmmProcess]) -> None:
    """Start a program as a VMM is; then ``err`` happens."""
    confined = Confinement(
        spec=place.spec,
        user=None,
        memory_is_written=False,
        limits=process.NO_CORE_DUMPS,
        start=process.as_it_is,
    )

    def spawn() -> tuple[list[str], VmmProcess]:
        argv = ["sh", "-c", script]
        started.append(
            process.spawn(
                argv, log_path=place.spec.vmm_log, pass_fds=(), cwd=place.spec.run_dir, mark=place.spec.run_dir
            )
        )
        return argv, started[0]

    with launched("QEMU", confined, spawn, last_words=lambda: "its last words", hint="Look there."):
        raise err


def told_of(place: Place, script: str, err: VmmError) -> LaunchError:
    started: list[VmmProcess] = []
    with pytest.raises(LaunchError) as caught:
        come_up(place, script, err, started=started)
    assert not process.is_alive(started[0])
    return caught.value


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -SEGV $$", -signal.SIGSEGV), ("kill -9 $$", -9)])
def test_one_that_goes_away_has_its_status_told(
    place: Place, script: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sockets are closed before it has ended, and so it is waited for."""
    monkeypatch.setattr(process, "ENDS_WITHIN_S", 30.0)
    told = told_of(place, f"sleep 0.1; {script}", VmmDiedError("QEMU went away."))
    assert told.status == status
    assert told.message.startswith("QEMU did not come up for 'web': QEMU went away.\n  its process: ")
    assert told.message.endswith("\n  log: its last words")


def test_one_that_runs_on_has_none(place: Place) -> None:
    """It is we who end it."""
    told = told_of(place, "exec sleep 60", VmmError("QEMU does not answer."))
    assert told.status is None
    assert told.message == "QEMU did not come up for 'web': QEMU does not answer.\n  log: its last words"


def test_an_interruption_while_it_is_waited_for_leaves_no_process(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that went away, as it seemed, and has not ended."""
    started: list[VmmProcess] = []

    def wait_gone(_vmm: VmmProcess, _timeout_s: float) -> bool:
        signal.raise_signal(signal.SIGINT)
        return False

    monkeypatch.setattr(process, "wait_gone", wait_gone)
    with pytest.raises(KeyboardInterrupt):
        come_up(place, "exec sleep 60", VmmDiedError("QEMU went away."), started=started)
    try:
        assert not process.is_alive(started[0])
    finally:
        process.kill_and_wait(started[0])
