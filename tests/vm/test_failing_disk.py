"""A disk that is full (ENOSPC) or broken (EIO) at any step of any verb: the error says so, the verb has not happened, the guest
runs on as before, and the next snapshot lacks nothing (H12).

The steps are those that a verb is seen to make (``killing.py``), and each fails once. In ``make test`` a few of each verb's are
tried, with RAMET_TEST_ALL=1 all are (on XFS as in ``test_killed.py``). Real disks that are full are in ``test_full_disk.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from ramet import Host
from tests.artifacts import TOLD
from tests.file_systems import WHOLE, on_ext4
from tests.vm.command_line import CommandLine
from tests.vm.cut_short import (
    DISK,
    VERBS,
    Verb,
    check_after,
    check_told,
    chosen,
    cut_short,
    prepare,
    sleep_and_wake,
    tried,
)

SAMPLE = 1
"""How many steps of each verb ``make test`` tries: those in the middle."""
ERRORS = ("ENOSPC", "EIO")
pytestmark = on_ext4


@pytest.mark.timeout(3600 if WHOLE else 300)
@pytest.mark.parametrize("name", tried(DISK))
def test_a_verb_whose_disk_fails_at_any_step(
    host: Host, command: CommandLine, name: str, record_property: Callable[[str, object], None]
) -> None:
    verb = VERBS[name]
    prepare(host, command, verb)
    done = cut_short(command, verb, options=["--errno", "EIO"])
    assert done.status == 0
    steps = len(done.steps)
    points = chosen(host, steps, apart=1, sample=SAMPLE)
    outcomes: Counter[str] = Counter()
    hit = 0
    for count, at in enumerate(points):
        error = ERRORS[count % 2]
        prepare(host, command, verb)
        failed = cut_short(command, verb, at=at, options=["--errno", error])
        print(f"{name}: {error} at step {at} ({done.steps[at]}): status {failed.status}: {failed.stderr.strip()}")
        hit += failed.struck
        if failed.status != 0:
            check_told(failed, error)
        became = check_after(host, command, verb, then=lambda: sleep_and_wake(host, verb), repair=True)
        expected = verb.after if failed.status == 0 else verb.before
        assert became == (expected.value if expected else "absent") or is_half_way(verb, became), became
        outcomes[f"{'done all the same' if failed.status == 0 else 'not done'}, {became}"] += 1
    assert hit >= len(points) * 0.8, "most were struck"
    told = ", ".join(f"{state} {count}" for state, count in outcomes.items())
    record_property(TOLD, f"{name}: {steps} writing steps, the disk failed at {len(points)} of them: {told}")


def is_half_way(verb: Verb, became: str) -> bool:
    """What a verb cannot take back: a guest that was told to go down, a live VM that was given up, a removal, which goes on."""
    return (verb.argv[0] in ("stop", "rm") or "--discard-disk" in verb.argv) and became in ("stopped", "absent")
