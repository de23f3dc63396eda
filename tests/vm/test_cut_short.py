"""Verbs that are cut short between any two steps, on a store without reflinks.

SIGKILL of Ramet, or of its VMMs: the next command finds the store whole and tells the truth, nothing is left that nobody owns,
the guest's marks are there, and the verb can be done again. A disk that is full (ENOSPC) or broken (EIO): the error says so, the
verb has not happened, the guest runs on as before, and the next snapshot lacks nothing (H12). SIGINT, SIGTERM, SIGHUP: the state
is the one before or the one after, and nothing is left even before the next command (H47). Real disks that are full are in
``test_full_disk.py``.

The steps are those that a verb is seen to make (``killing.py``). In ``make test`` one in the middle is tried of each way to cut a
verb short; with RAMET_TEST_ALL=1 one of a few, on ext4 and, where files are reflinked, on XFS; with RAMET_TEST_STEPS=all besides,
every one.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ramet import Host
from tests.artifacts import TOLD
from tests.file_systems import WHOLE, on_ext4
from tests.kept import Kept
from tests.vm.command_line import CommandLine
from tests.vm.cut_short import fail_disk_at, interrupt_before, kill_before, steps_of
from tests.vm.killing import writing
from tests.vm.verbs import DISK, EVERY_STEP, SIGNALS, VERBS, chosen, tried

pytestmark = on_ext4


@pytest.mark.timeout(10000 if EVERY_STEP else 3600 if WHOLE else 1800)
@pytest.mark.parametrize("name", [name for name in VERBS if tried(name)])
def test_a_verb_that_is_cut_short_between_any_two_steps(
    host: Host, command: CommandLine, kept: Kept, name: str, record_property: Callable[[str, object], None]
) -> None:
    steps = steps_of(host, command, kept, VERBS[name])
    for how in tried(name):
        those = writing(steps) if how == DISK else steps
        points = chosen(host, len(those), how=how)
        if how == DISK:
            said = fail_disk_at(host, command, kept, name, those, points)
        elif how == SIGNALS:
            said = interrupt_before(host, command, kept, name, those, points)
        else:
            said = kill_before(host, command, kept, name, how, those, points)
        record_property(TOLD, said)
