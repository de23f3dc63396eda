"""SIGKILL between any two steps of any verb, of Ramet and of its VMMs: the next command finds the store whole and tells the
truth, nothing is left that nobody owns, the guest's marks are there, and the verb can be done again.

The steps are those that a verb is seen to make (``killing.py``). In ``make test`` a few of each verb's are tried, with
RAMET_TEST_ALL=1 all are.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable

import pytest

from ramet import Host
from tests.artifacts import TOLD
from tests.file_systems import WHOLE
from tests.vm.command_line import CommandLine
from tests.vm.cut_short import VERBS, check_after, cut_short, prepare

SAMPLE = {"ramet": 1, "VMMs": 1}
"""How many steps of each verb ``make test`` tries."""
APART = {"ramet": 1, "VMMs": 4}
"""How far apart those are that are tried with RAMET_TEST_ALL=1."""
REPEATED = 5
"""Every so many-th of them is done again; in ``make test`` the first after a kill of Ramet."""
pytestmark = pytest.mark.parametrize("file_system", ["ext4"], indirect=True)


@pytest.mark.timeout(3600 if WHOLE else 300)
@pytest.mark.parametrize("whom", SAMPLE)
@pytest.mark.parametrize("name", VERBS)
def test_a_verb_that_is_killed_between_any_two_steps(
    host: Host, command: CommandLine, name: str, whom: str, record_property: Callable[[str, object], None]
) -> None:
    verb = VERBS[name]
    prepare(host, command, verb)
    done = cut_short(command, verb)
    assert done.status == 0
    steps = done.steps
    outcomes: Counter[str] = Counter()
    hit = 0
    points = chosen(len(steps), whom)
    for at in points:
        prepare(host, command, verb)
        killed = cut_short(command, verb, at=at, options=["--vmms"] if whom == "VMMs" else [])
        print(f"{name}: {whom} killed before step {at} ({steps[at]}): status {killed.status}")
        hit += killed.struck
        if whom == "ramet":
            assert killed.status in (-signal.SIGKILL, 0), "it may have had fewer steps to make this time, and succeeds"
        outcomes[check_after(host, command, verb, repair=whom == "VMMs")] += 1
        if at % REPEATED == 0 if WHOLE else (whom == "ramet" and at == points[0]):
            prepare(host, command, verb)
            command.text(*verb.argv)
            assert check_after(host, command, verb) == (verb.after or "absent")
    assert hit >= len(points) * 0.8, "most were struck"
    told = ", ".join(f"{state} {count}" for state, count in outcomes.items())
    record_property(TOLD, f"{name}: {len(steps)} steps, {whom} killed before {len(points)} of them: {told}")


def chosen(count: int, whom: str) -> range:
    """Which steps are tried: all, or a few as far apart as can be."""
    apart = APART[whom] if WHOLE else max(count // SAMPLE[whom], 1)
    return range(0 if WHOLE else apart // 2, count, apart)
