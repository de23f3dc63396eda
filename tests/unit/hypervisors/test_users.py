"""Nothing runs on as the user of an instance whose VMM has gone."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ramet.errors import HostError
from ramet.hypervisors import users
from ramet.process import wait_until
from tests.capabilities import requires

pytestmark = requires("root", "vmm-users")
ID, ANOTHER = "0123456789ab", "ba9876543210"
DEADLINE_S = 10.0
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts what runs as the user of an instance."""
    with ExitStack() as stack:

        def started(instance_id: str) -> subprocess.Popen[str]:
            user = users.user_number(instance_id)
            child = subprocess.Popen(
                ["/usr/bin/env", "-i", "sh", "-c", "echo up; sleep 600 & wait"],
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
        users.end_all_of(ID)
        users.end_all_of(ANOTHER)


def test_all_of_one_user_and_nothing_else_is_ended(start: Start) -> None:
    mine, others = start(ID), start(ANOTHER)
    wait_until(lambda: len(users._running_as(users.user_number(ID))) == 2, DEADLINE_S, what="the shell and its child")
    users.end_all_of(ID)
    assert mine.wait(DEADLINE_S) == -signal.SIGKILL
    assert users._running_as(users.user_number(ID)) == []
    assert others.poll() is None


def test_one_that_has_ended_and_that_nobody_has_reaped_keeps_nobody(start: Start) -> None:
    zombie = start(ID)
    zombie.kill()
    wait_until(lambda: users._running_as(users.user_number(ID)) != [zombie.pid], DEADLINE_S, what="its end")
    users.end_all_of(ID)
    assert zombie.returncode is None, "not reaped by us either"


def test_what_does_not_end_is_said(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    start(ID)
    with monkeypatch.context() as patch:
        patch.setattr(signal, "pidfd_send_signal", lambda *_arguments: None)
        patch.setattr(users, "END_S", 0.1)
        with pytest.raises(HostError, match=f"{ID} has started is still there"):
            users.end_all_of(ID)
