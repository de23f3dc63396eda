"""What is true of an instance whose VMM is gone: readers and verbs must say the same."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.errors import HostError
from ramet.hypervisors import users
from ramet.instances import observe
from ramet.instances.context import Store
from ramet.linux.unixsock import listen_in
from ramet.model import Failure, Hypervisor, State, VmmProcess
from ramet.store import atomic
from tests.capabilities import requires
from tests.unit.instances.place import Place
from tests.unit.snapshots.published import INSTANCE, record

GONE = VmmProcess(pid=1, start_time_ticks=1, boot_id="another boot")


@pytest.mark.parametrize(
    ("pending", "state", "failure"),
    [
        (None, State.FAILED, Failure.VMM_LOST),
        ("stop", State.FAILED, Failure.VMM_LOST),
        (observe.FORCED_STOP, State.STOPPED, None),
    ],
)
def test_a_vmm_that_a_killed_stop_has_ended_was_not_lost(
    tmp_path: Path, pending: str | None, state: State, failure: Failure | None
) -> None:
    store = Store(tmp_path / "home")
    paths = store.paths.instance(INSTANCE)
    for directory in (paths.dir, paths.work, paths.run, paths.logs):
        directory.mkdir()
    (paths.run / "qemu.alive").touch()  # QEMU removes it if it ends in order
    made = record(vmm=GONE, pending=pending)
    atomic.write_json(paths.record, made)
    seen = observe.look(store, made)
    settled = observe.settle(store, made)
    assert (seen.state, seen.failure) == (settled.state, settled.failure) == (state, failure)
    assert settled.pending is None
    assert store.read(INSTANCE) == settled


@requires("root", "vmm-users")
def test_what_a_vmm_has_started_that_ended_by_itself_goes_too(tmp_path: Path) -> None:
    instance_id = secrets.token_hex(6)  # no other test's, at this moment
    store = Store(tmp_path / "home")
    paths = store.paths.instance(instance_id)
    for directory in (paths.dir, paths.work, paths.run, paths.logs):
        directory.mkdir()
    (paths.run / "qemu.alive").touch()
    made, user = record(id=instance_id, vmm=GONE), users.user_number(instance_id)
    atomic.write_json(paths.record, made)
    argv = ["/usr/bin/env", "-i", "sleep", "600"]
    with subprocess.Popen(argv, user=user, group=user, extra_groups=(), start_new_session=True) as stray:
        try:
            assert observe.settle(store, made).failure is Failure.VMM_LOST
            assert stray.wait(10) == -signal.SIGKILL
        finally:
            stray.kill()


def a_huge_file(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(8 << 40)


@pytest.mark.parametrize(
    "plant",
    [os.mkfifo, Path.mkdir, a_huge_file, lambda path: listen_in(path.parent, path.name).close()],
    ids=["a FIFO", "a directory", "a huge file", "a socket"],
)
@pytest.mark.parametrize("hypervisor", Hypervisor)
def test_what_a_vmm_leaves_in_the_place_of_its_log_keeps_nobody_from_anything(
    place: Place, hypervisor: Hypervisor, plant: Callable[[Path], object]
) -> None:
    """It may write there, and was taken over."""
    place.change(state=State.RUNNING, vmm=GONE, hypervisor=hypervisor)
    for name in (place.paths.vmm_log.name, "firecracker.log"):
        plant(place.paths.logs / name)
    assert observe.look(place.store, place.record).state in (State.FAILED, State.STOPPED)
    with observe.exclusive(place.store, "web") as instance:
        assert instance.record.vmm is None


def fail_half_way(place: Place, meanwhile: Callable[[], object]) -> None:
    """A verb that has begun, and fails."""
    with observe.exclusive(place.store, "web") as instance, instance.pending("restore"):
        meanwhile()
        raise HostError("It was refused.")


def test_a_verb_that_fails_leaves_nothing_to_tidy_up(place: Place) -> None:
    with pytest.raises(HostError, match="refused"):
        fail_half_way(place, place.paths.memory.touch)
    assert place.store.read(place.record.id).pending is None
    assert place.problems() == ()


def test_if_that_fails_too_the_first_error_is_told_and_the_next_command_tidies_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise HostError("The disk is gone.")

    with pytest.raises(HostError, match="refused"):
        fail_half_way(place, lambda: monkeypatch.setattr(observe, "settle", fail))
    assert place.store.read(place.record.id).pending == "restore"
