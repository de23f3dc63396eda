"""Nothing runs on as the user of an instance whose VMM has gone."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ramet.errors import HostError
from ramet.hypervisors import users
from ramet.model import State, VmmProcess
from ramet.paths import InstancePaths
from ramet.process import VMM_MARK, start_time_ticks, wait_until
from ramet.store import atomic
from tests.capabilities import requires
from tests.unit.snapshots.published import record

pytestmark = requires("root", "vmm-users")
ID, ANOTHER = secrets.token_hex(6), secrets.token_hex(6)  # no other test's, at this moment
DEADLINE_S = 10.0
SHELL = ("sh", "-c", "sleep 600 & echo up; wait; exec sleep 600")
RUN_ON = """
import ctypes, threading, time
def run():
    time.sleep(0.3)
    print("up", flush=True)
    time.sleep(600)
threading.Thread(target=run).start()
ctypes.CDLL(None).syscall(60, 0)
"""
MAIN_THREAD_ENDS = ("python3", "-c", RUN_ON)
Start = Callable[..., "subprocess.Popen[str]"]


def place(instance_id: str) -> InstancePaths:
    """Where nothing is: it is the id that counts."""
    return InstancePaths(dir=Path("/nonexistent/instances", instance_id))


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts what runs as the user of an instance."""
    with ExitStack() as stack:

        def started(instance_id: str, *environment: str, main: tuple[str, ...] = SHELL) -> subprocess.Popen[str]:
            user = users.user_number(instance_id)
            child = subprocess.Popen(
                ["/usr/bin/env", "-i", *environment, *main],
                stdout=subprocess.PIPE,
                text=True,
                user=user,
                group=user,
                extra_groups=(),
                start_new_session=True,
            )
            stack.callback(child.wait)
            stack.callback(child.kill)
            assert child.stdout is not None
            stack.enter_context(child.stdout)
            assert child.stdout.readline() == "up\n"
            return child

        yield started
        users.end_all_of(place(ID))
        users.end_all_of(place(ANOTHER))


def test_all_of_one_user_and_nothing_else_is_ended(start: Start) -> None:
    mine, others = start(ID), start(ANOTHER)
    wait_until(lambda: len(users._running_as(users.user_number(ID))) == 2, DEADLINE_S, what="the shell and its child")
    users.end_all_of(place(ID))
    assert mine.wait(DEADLINE_S) == -signal.SIGKILL
    assert users._running_as(users.user_number(ID)) == []
    assert others.poll() is None


@pytest.mark.parametrize(
    "whose",
    ["of a copied store", "of its own", "of a record that is no root's", "another process", "an earlier process"],
)
def test_a_vmm_of_another_store_that_has_the_same_user_is_left_alone(start: Start, tmp_path: Path, whose: str) -> None:
    """A copied store has the same ids. A record that the process has made itself saves it from nothing."""
    ours, theirs = (InstancePaths(dir=tmp_path / one / ID) for one in ("ours", "theirs"))
    paths = ours if whose == "of its own" else theirs
    paths.dir.mkdir(parents=True)
    one = start(ID, f"{VMM_MARK}={paths.run}")
    for pid in users._running_as(users.user_number(ID)):
        if pid != one.pid:
            os.kill(pid, signal.SIGKILL)
    ticks = start_time_ticks(one.pid)
    assert ticks is not None
    vmm = VmmProcess(
        pid=one.pid + (whose == "another process"), start_time_ticks=ticks - (whose == "an earlier process"), boot_id=""
    )
    atomic.write_json(paths.record, record(id=ID, state=State.RUNNING, vmm=vmm))
    if whose == "of a record that is no root's":
        os.chown(paths.record, users.user_number(ID), -1)
    users.end_all_of(ours)
    assert (one.poll() is None) == (whose == "of a copied store")


def test_one_whose_main_thread_has_ended_runs(start: Start) -> None:
    """It is a zombie by its state (proc(5)), and its other threads run on."""
    ended = start(ID, main=MAIN_THREAD_ENDS)
    users.end_all_of(place(ID))
    assert ended.wait(DEADLINE_S) == -signal.SIGKILL


def test_one_that_has_ended_and_that_nobody_has_reaped_keeps_nobody(start: Start) -> None:
    zombie = start(ID)
    zombie.kill()
    wait_until(lambda: users._running_as(users.user_number(ID)) != [zombie.pid], DEADLINE_S, what="its end")
    users.end_all_of(place(ID))
    assert zombie.returncode is None, "not reaped by us either"


def test_what_does_not_end_is_said(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    start(ID)
    with monkeypatch.context() as patch:
        patch.setattr(signal, "pidfd_send_signal", lambda *_arguments: None)
        patch.setattr(users, "END_S", 0.1)
        with pytest.raises(HostError, match=f"{ID} has started is still there"):
            users.end_all_of(place(ID))
