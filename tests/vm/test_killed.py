"""SIGKILL between any two steps of any verb, of Ramet and of its VMMs: the next command finds the store whole and tells the
truth, nothing is left that nobody owns, the guest's marks are there, and the verb can be done again.

The steps are those that a verb is seen to make (``killing.py``). In ``make test`` a few of each verb's are tried; with
RAMET_TEST_ALL=1 all are on ext4, and every fifth on XFS, where files are reflinked (RAMET_TEST_XFS=whole: all).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from ramet import Host
from tests.artifacts import TOLD
from tests.file_systems import WHOLE, on_ext4
from tests.vm.command_line import CommandLine
from tests.vm.cut_short import RAMET, VMMS, chosen, kill_before, tried

SAMPLE = 1
"""How many steps of each verb ``make test`` tries."""
APART = {RAMET: 1, VMMS: 4}
"""How far apart those are that are tried with RAMET_TEST_ALL=1."""
pytestmark = on_ext4


@pytest.mark.timeout(3600 if WHOLE else 300)
@pytest.mark.parametrize(("name", "whom"), [(name, whom) for whom in APART for name in tried(whom)])
def test_a_verb_that_is_killed_between_any_two_steps(
    host: Host, command: CommandLine, name: str, whom: str, record_property: Callable[[str, object], None]
) -> None:
    choose = partial(chosen, host, apart=APART[whom], sample=SAMPLE)
    record_property(TOLD, kill_before(host, command, name, whom, choose))
