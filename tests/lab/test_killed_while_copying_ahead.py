"""Verbs that copy a running guest's memory ahead of its pause, by soft-dirty bits, and are cut short on the way: Ramet or the VMM
is killed, or the disk fails. Wherever that is, nothing that the guest wrote is missing from its next snapshot (H07, H12, H22).

A few steps of each, since a guest in the lab is slow; without the bits, all are in ``tests/vm/test_cut_short.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ramet import Host
from ramet.linux import soft_dirty
from ramet.model import Hypervisor
from tests import artifacts
from tests import kept as kept_guests
from tests.artifacts import TOLD
from tests.capabilities import requires
from tests.file_systems import WHOLE, on_xfs
from tests.kept import Kept
from tests.lab.conftest import SMALL_MIB
from tests.vm.command_line import CommandLine
from tests.vm.cut_short import fail_disk_at, kill_before, sleep_and_wake, steps_of
from tests.vm.guests import sh
from tests.vm.killing import writing
from tests.vm.verbs import DISK, RAMET, VERBS, VMMS, Verb, spread

CUT_SHORT = ("fork one", "snapshot create")
COUNTS = "(n=0; while :; do n=$((n + 1)); echo $n >/ram/count; usleep 5000; done) >/dev/null 2>&1 &"
"""A page that is written all the time: one that a snapshot lacks has an older number."""
COUNTED = "[ -e /ram/count ] || echo booted; until [ ! -e /ram/count ] || grep . /ram/count; do :; done"
"""It is empty for a moment each time."""
SAMPLE = 6
pytestmark = [
    pytest.mark.skipif(not WHOLE, reason="in make test-all: a step takes the lab ten seconds"),
    requires("kvm", "root"),
    on_xfs,
]


@pytest.fixture(scope="module")
def kept(store_home: Path) -> Kept:
    """A QEMU guest on KVM that has booted and sleeps, beside the store."""
    if not soft_dirty.is_there():
        assert not artifacts.in_the_lab(), "the lab's kernel notes what is written"
        pytest.skip("this host's kernel has no soft-dirty bits")
    return kept_guests.keep(
        store_home.parent / "kept-kvm", memory_mib=SMALL_MIB, hypervisor=Hypervisor.QEMU, workload=COUNTS
    )


def it_counts_on(host: Host, verb: Verb) -> None:
    """In its next snapshot, from where it was: one that has booted meanwhile has no workload."""
    counted = sh(host, "web", COUNTED)
    sleep_and_wake(host, verb)
    if counted != "booted":
        assert int(sh(host, "web", COUNTED)) >= int(counted)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("whom", [RAMET, VMMS, DISK])
@pytest.mark.parametrize("name", CUT_SHORT)
def test_a_verb_that_copies_ahead_and_is_cut_short(
    host: Host, kept: Kept, name: str, whom: str, record_property: Callable[[str, object], None]
) -> None:
    command = CommandLine(host.home)
    steps = steps_of(host, command, kept, VERBS[name])
    assert len(steps) > SAMPLE
    if whom == DISK:
        steps = writing(steps)
        told = fail_disk_at(host, command, kept, name, steps, spread(len(steps), SAMPLE))
    else:
        told = kill_before(host, command, kept, name, whom, steps, spread(len(steps), SAMPLE), then=it_counts_on)
    record_property(TOLD, f"copied ahead, {told}")
