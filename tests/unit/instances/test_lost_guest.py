"""What is said of a guest that was lost while it was being talked to: what has become of its instance."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest

from ramet import process
from ramet.errors import VmmDiedError
from ramet.instances import commands
from ramet.model import Hypervisor, State, VmmProcess
from ramet.store.locks import locked
from tests.unit.guests.fake_vsock import answer_and_be_reset, fake_vsock
from tests.unit.instances.place import Place


def what_is_said(place: Place, vmm: VmmProcess, meanwhile: Callable[[], object]) -> VmmDiedError:
    """Of a ping whose session is lost, ``meanwhile`` having happened before it was."""

    def lose(sock: socket.socket) -> None:
        with suppress(OSError):
            answer_and_be_reset(sock)
        meanwhile()

    place.change(state=State.RUNNING, vmm=vmm, hypervisor=Hypervisor.FIRECRACKER)
    with fake_vsock(place.paths.run, [lose]), pytest.raises(VmmDiedError) as caught:
        commands.ping(place.store, "web")
    return caught.value


def end(vmm: VmmProcess) -> None:
    os.kill(vmm.pid, signal.SIGKILL)


def test_a_vmm_that_runs_on(place: Place, alive: VmmProcess) -> None:
    said = what_is_said(place, alive, lambda: None)
    assert said.message == (
        "The connection to the guest of 'web' was lost, and its VMM runs on: the guest has reset its vsock, as after a "
        "capture and a restore."
    )
    assert said.hint is not None
    assert "--detach" in said.hint


def test_a_vmm_that_was_killed(place: Place, alive: VmmProcess) -> None:
    said = what_is_said(place, alive, lambda: end(alive))
    assert said.message.startswith("The VMM of 'web' ended while its guest was being talked to; 'web' is failed now.\n")
    assert "killed, crashed" in said.message
    assert said.hint is not None
    assert "ramet logs web" in said.hint


def test_an_instance_that_was_put_to_standby(place: Place, alive: VmmProcess) -> None:
    def sleep() -> None:
        place.change(state=State.STANDBY)
        process.kill_and_wait(alive)

    said = what_is_said(place, alive, sleep)
    assert said.message == "The VMM of 'web' ended while its guest was being talked to; 'web' is standby now."


def test_an_instance_that_was_restored_meanwhile(place: Place, vmms: Callable[[], VmmProcess]) -> None:
    before, after = vmms(), vmms()

    def restore() -> None:
        process.kill_and_wait(before)
        place.change(vmm=after)

    said = what_is_said(place, before, restore)
    assert said.message == "The VMM of 'web' ended while its guest was being talked to; 'web' has another VMM now."


def vanish(place: Place) -> None:
    """As rm makes a directory vanish."""
    place.paths.dir.rename(place.store.paths.tmp / "trash-of-a-test")


def test_an_instance_that_was_removed(place: Place, alive: VmmProcess) -> None:
    said = what_is_said(place, alive, lambda: vanish(place))
    assert said.message == "'web' was removed while its guest was being talked to."


def test_an_instance_that_is_being_removed(place: Place, alive: VmmProcess) -> None:
    """Its VMM has ended for a while before its record has gone."""
    held = ExitStack()

    def begin() -> None:
        held.enter_context(locked(place.store.paths.locks, f"instance-{place.record.id}"))
        process.kill_and_wait(alive)
        threading.Timer(0.3, end_it).start()

    def end_it() -> None:
        place.paths.dir.rename(place.store.paths.tmp / "trash")
        held.close()

    assert "was removed" in what_is_said(place, alive, begin).message


def test_an_instance_of_which_nothing_can_be_said(place: Place, alive: VmmProcess) -> None:
    said = what_is_said(place, alive, lambda: place.paths.record.write_text("{"))
    assert said.message.startswith("The connection to the guest was lost")
