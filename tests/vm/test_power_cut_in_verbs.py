"""The power is cut in the middle of a verb: the store is on real ext4 and XFS, which lose what they were not told to keep.

The cut is that of ``test_power_cut.py``, at a step of ``killing.py``. When the host is up again its VMMs are gone, and all else
is as after a kill: the store is whole, what was published restores, nothing is left that nobody owns, the verb can be done again.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ramet import Host
from ramet.process import wait_until
from tests import artifacts, guest_images
from tests import kept as kept_guests
from tests.artifacts import TOLD
from tests.capabilities import requires
from tests.file_systems import WHOLE
from tests.kept import Kept
from tests.vm.command_line import CommandLine
from tests.vm.cut_short import check_after, cut_short, prepare, steps_of, told
from tests.vm.verbs import VERBS, spread
from tools import loopfs

TRIED = (
    ("create", "rm", "start", "stop", "standby", "restore", "fork --start", "fork one", "snapshot create", "rollback")
    if WHOLE
    else ("standby",)
)
SAMPLE = 10 if WHOLE else 2
TRIES = 3
"""For a step that the verb does not come to, since it has fewer this time."""
pytestmark = [requires("qemu", "loopfs"), pytest.mark.timeout(3600 if WHOLE else 900)]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """On another disk, which loses nothing."""
    return kept_guests.keep(tmp_path_factory.mktemp("kept"))


@pytest.fixture(params=["ext4", "xfs"])
def mount(request: pytest.FixtureRequest) -> Iterator[Path]:
    with loopfs.loopfs(request.param) as mounted:
        try:
            yield mounted
        finally:
            come_up_again(mounted)  # no VMM of a test that has failed is left


@pytest.mark.parametrize("name", TRIED)
def test_a_verb_in_which_the_power_is_cut(
    mount: Path, kept: Kept, name: str, record_property: Callable[[str, object], None]
) -> None:
    host = Host(guest_images.give(mount / "home"))
    command, verb = CommandLine(host.home), VERBS[name]
    steps = steps_of(host, command, kept, verb)
    outcomes: Counter[str] = Counter()
    hit = 0
    points = spread(len(steps), SAMPLE)
    for at in points:
        for _ in range(TRIES):
            prepare(host, command, kept, verb)
            os.sync()
            try:
                cut = cut_short(command, verb, at=at, options=["--power"])
            finally:
                come_up_again(mount)
            print(f"{name}: power cut before step {at} ({steps[at]}): status {cut.status}")
            assert cut.status in (-signal.SIGKILL, 0), cut
            outcomes[check_after(host, command, verb, repair=True)] += 1
            if cut.struck:
                hit += 1
                break
    assert hit >= len(points) * 0.8, "most were struck"
    for info in host.list():
        host.remove(info.name, force=True)
    record_property(TOLD, f"{name}: {len(steps)} steps, power cut before {len(points)} of them: {told(outcomes)}")


def come_up_again(mount: Path) -> None:
    """No VMM has lived on: also where the verb was done before its step came, and the power was not cut."""
    for pid in artifacts.vmm_pids(f"{mount}/"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        wait_until(
            lambda: subprocess.run(["umount", str(mount)], check=False).returncode == 0, 30, what="the mount to be free"
        )
    except TimeoutError as err:
        raise AssertionError(f"{mount} is still used: {artifacts.users_of(mount)}") from err
    subprocess.run(["mount", "-o", "loop", str(mount.parent / "image"), str(mount)], check=True)
