"""Quiesce and thaw, identity, shutdown: the agent's order of calls and what it does when one fails or hangs."""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing

import pytest

from ramet.errors import GuestError
from ramet.guests import wire
from ramet.guests.client import GuestRefusedError
from ramet.guests.requests import identity_request
from ramet.guests.wire import Reply, Request
from ramet.process import wait_until
from tests.capabilities import requires
from tests.unit.guests.native_agent import CGROUP, DEADLINE_S, NativeAgent
from tests.unit.guests.raw_client import EPOCH, Raw, refusal

pytestmark = requires("gcc")
SEED = bytes(range(64))
MACHINE_ID = "0123456789abcdef" * 2
WALL_NS = 1_700_000_000_123_456_789
IDENTITY = (
    f"RNDADDENTROPY 512 {SEED.hex()}",
    "RNDRESEEDCRNG",
    "clock_settime 0 1700000000.123456789",
    "sethostname twig",
)


def freeze_file(agent: NativeAgent) -> str:
    return (agent.root / CGROUP / "cgroup.freeze").read_text()


def make_workload(agent: NativeAgent, *, freezable: bool) -> None:
    (agent.root / CGROUP / "cgroup.events").write_text(f"populated 1\nfrozen {int(freezable)}\n")


def give_identity(agent: NativeAgent, *, generation: int = 7, machine_id: str = MACHINE_ID) -> tuple[str, ...]:
    with agent.client() as client:
        return client.identity(
            generation=generation, hostname="twig", machine_id=machine_id, seed=SEED, wall_clock_ns=WALL_NS
        )


def without_clock(calls: Sequence[str]) -> list[str]:
    return [line for line in calls if not line.startswith("clock_settime")]


def add_hook(agent: NativeAgent, name: str, script: str, *, mode: int = 0o755) -> None:
    path = agent.root / "etc/ramet/resume.d" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)


def refusal_of(request: Callable[[], object]) -> GuestRefusedError:
    with pytest.raises(GuestRefusedError) as caught:
        request()
    return caught.value


def quiesce_in_background(agent: NativeAgent, errors: list[GuestError], *, timeout_s: float) -> threading.Thread:
    def work() -> None:
        try:
            with agent.client() as client:
                client.quiesce(timeout_s=timeout_s)
        except GuestError as err:
            errors.append(err)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


# -- quiesce and thaw -----------------------------------------------------------------------------------------------


def test_quiesce_freezes_the_workload_then_syncs_then_freezes_data(own_agent: NativeAgent) -> None:
    with own_agent.mounted_data(), own_agent.client() as client:
        client.quiesce(timeout_s=5)
        assert freeze_file(own_agent) == "1"
        assert own_agent.calls() == ["sync", "FIFREEZE"]
        client.thaw()
        assert freeze_file(own_agent) == "0"
        assert own_agent.calls() == ["sync", "FIFREEZE", "FITHAW"]


def test_data_that_is_no_file_system_of_its_own_is_not_frozen(own_agent: NativeAgent) -> None:
    with own_agent.client() as client:
        client.quiesce(timeout_s=5)
        client.thaw()
    assert own_agent.calls() == ["sync"]


def test_quiesce_and_thaw_may_be_repeated(own_agent: NativeAgent) -> None:
    with own_agent.mounted_data(), own_agent.client() as client:
        client.quiesce(timeout_s=5)
        with own_agent.fake("FIFREEZE", errno.EBUSY):
            client.quiesce(timeout_s=5)
        client.thaw()
        with own_agent.fake("FITHAW", errno.EINVAL):
            client.thaw()


def test_thaw_does_not_rely_on_the_agents_memory(own_agent: NativeAgent) -> None:
    """An agent that was started anew thaws what its predecessor had frozen."""
    (own_agent.root / CGROUP / "cgroup.freeze").write_text("1")
    with own_agent.mounted_data(), own_agent.client() as client:
        client.thaw()
    assert own_agent.calls() == ["FITHAW"]
    assert freeze_file(own_agent) == "0"


def test_workload_that_cannot_be_frozen(own_agent: NativeAgent) -> None:
    """Past the deadline it runs on, and nothing was synced or frozen."""
    make_workload(own_agent, freezable=False)
    begin = time.monotonic()
    with own_agent.mounted_data(), own_agent.client() as client:
        with pytest.raises(GuestRefusedError, match="it runs on") as caught:
            client.quiesce(timeout_s=0.1)
        assert caught.value.errno == errno.ETIMEDOUT
        assert 0.1 <= time.monotonic() - begin < 30
        assert freeze_file(own_agent) == "0"
        assert "sync" not in own_agent.calls()
        client.ping()


def test_guest_without_the_cgroup_is_not_quiesced(own_agent: NativeAgent) -> None:
    (own_agent.root / CGROUP / "cgroup.freeze").unlink()
    with own_agent.client() as client:
        with pytest.raises(GuestRefusedError, match="no workload cgroup"):
            client.quiesce(timeout_s=1)
        client.thaw()


def test_file_system_that_cannot_be_frozen(own_agent: NativeAgent) -> None:
    with own_agent.mounted_data(), own_agent.fake("FIFREEZE", errno.EIO), own_agent.client() as client:
        error = refusal_of(lambda: client.quiesce(timeout_s=5))
    assert error.errno == errno.EIO
    assert freeze_file(own_agent) == "0"


@pytest.mark.parametrize("call", ["sync", "FIFREEZE"])
def test_sync_that_hangs_past_the_deadline(own_agent: NativeAgent, call: str) -> None:
    """It cannot be interrupted: the workload runs on at the deadline, and what comes of it later is undone."""
    with own_agent.mounted_data():
        with own_agent.fake(call, "hang"):
            begin = time.monotonic()
            with own_agent.client() as client:
                with pytest.raises(GuestRefusedError) as caught:
                    client.quiesce(timeout_s=1.0)
                assert caught.value.errno == errno.ETIMEDOUT
                assert time.monotonic() - begin < 30
                assert own_agent.calls()[-1] == call, "it is that which hangs"
                assert freeze_file(own_agent) == "0"
                client.ping()
                client.thaw()
                with pytest.raises(GuestRefusedError, match="earlier sync"):
                    client.quiesce(timeout_s=0.1)
                assert freeze_file(own_agent) == "0"
        if call == "FIFREEZE":
            wait_until(lambda: own_agent.calls()[-1] == "FITHAW", DEADLINE_S, what="the thaw of what froze too late")
        with own_agent.client() as client:
            wait_until(lambda: can_quiesce(own_agent), DEADLINE_S, what="the end of the earlier sync")
            client.thaw()
        assert own_agent.calls()[-2:] == ["FIFREEZE", "FITHAW"]


def can_quiesce(agent: NativeAgent) -> bool:
    try:
        with agent.client() as client:
            client.quiesce(timeout_s=1)
    except GuestRefusedError:
        return False
    return True


def test_thaw_wins_over_a_quiesce_under_way(own_agent: NativeAgent) -> None:
    make_workload(own_agent, freezable=False)
    errors: list[GuestError] = []
    thread = quiesce_in_background(own_agent, errors, timeout_s=30)
    wait_until(lambda: freeze_file(own_agent) == "1", DEADLINE_S, what="the quiesce")
    with own_agent.client() as client:
        client.ping()
        client.thaw()
    thread.join(DEADLINE_S)
    assert [err.errno for err in errors if isinstance(err, GuestRefusedError)] == [errno.ECANCELED]
    assert freeze_file(own_agent) == "0"


@pytest.mark.parametrize("hello", [True, False], ids=["next client", "hangup"])
def test_quiesce_whose_client_goes_away_is_undone(own_agent: NativeAgent, hello: bool) -> None:
    """H71: nobody is left to thaw it."""
    with own_agent.mounted_data(), own_agent.fake("sync", "hang"), closing(own_agent.connect()) as sock:
        raw = Raw(sock)
        raw.send(wire.hello(bytes(16)), wire.encode(Request.QUIESCE, (30_000).to_bytes(4, "little")))
        wait_until(lambda: own_agent.calls() == ["sync"], DEADLINE_S, what="the sync")
        if hello:
            raw.send(wire.hello(EPOCH), wire.encode(Request.PING))
            assert raw.receive()[0] == Reply.OK
        else:
            sock.close()
            own_agent.settle()
    wait_until(lambda: freeze_file(own_agent) == "0", DEADLINE_S, what="the thaw")


def test_quiesce_that_took_over_is_not_undone_by_the_first(own_agent: NativeAgent) -> None:
    make_workload(own_agent, freezable=False)
    with closing(own_agent.connect()) as sock:
        Raw(sock).send(wire.hello(EPOCH), wire.encode(Request.QUIESCE, (30_000).to_bytes(4, "little")))
        wait_until(lambda: freeze_file(own_agent) == "1", DEADLINE_S, what="the first quiesce")
        errors: list[GuestError] = []
        thread = quiesce_in_background(own_agent, errors, timeout_s=30)
        raw = Raw(sock)
        kind, payload = raw.receive()
        assert kind == Reply.ERROR
        assert refusal(payload).errno == errno.ECANCELED
        make_workload(own_agent, freezable=True)
        thread.join(DEADLINE_S)
    own_agent.settle()
    assert errors == []
    assert freeze_file(own_agent) == "1"


# -- identity -------------------------------------------------------------------------------------------------------


def test_identity_is_set_in_order(own_agent: NativeAgent) -> None:
    with own_agent.mounted_data():
        assert give_identity(own_agent) == ()
    assert own_agent.calls() == [*IDENTITY, "FITHAW"]
    assert (own_agent.root / "etc/hostname").read_text() == "twig\n"
    assert (own_agent.root / "etc/machine-id").read_text() == MACHINE_ID + "\n"
    assert (own_agent.root / "run/ramet/generation").read_text() == "7\n"
    with own_agent.client() as client:
        assert client.ping().generation == 7


def test_identity_leaves_the_workload_frozen(own_agent: NativeAgent) -> None:
    with own_agent.client() as client:
        client.quiesce(timeout_s=5)
    add_hook(own_agent, "look", f"cat {own_agent.root}/{CGROUP}/cgroup.freeze >{own_agent.root}/seen")
    assert give_identity(own_agent) == ()
    assert freeze_file(own_agent) == "1"
    assert (own_agent.root / "seen").read_text() == "1", "hooks run before the thaw"


@pytest.mark.parametrize("call", ["RNDADDENTROPY", "RNDRESEEDCRNG", "clock_settime", "sethostname", "FITHAW"])
def test_identity_that_cannot_be_set_is_not_acknowledged(own_agent: NativeAgent, call: str) -> None:
    add_hook(own_agent, "hook", f"touch {own_agent.root}/hook-ran")
    with own_agent.mounted_data(), own_agent.fake(call, errno.EPERM):
        error = refusal_of(lambda: give_identity(own_agent))
    assert error.errno == errno.EPERM
    assert "could not" in str(error)
    assert not (own_agent.root / "hook-ran").exists()


def test_identity_is_written_over_files_that_are_plainly_ours_and_replaces_others(own_agent: NativeAgent) -> None:
    etc, elsewhere = own_agent.root / "etc", own_agent.root / "elsewhere"
    give_identity(own_agent)
    plain = (etc / "machine-id").stat().st_ino
    give_identity(own_agent)
    assert (etc / "machine-id").stat().st_ino == plain, "one write, and no other file"
    elsewhere.write_text("untouched\n")
    for make in (
        lambda path: path.symlink_to(elsewhere),
        lambda path: path.hardlink_to(elsewhere),
        lambda path: os.mkfifo(path),
        lambda path: path.write_text("x" * 100),
    ):
        for name, line in (("hostname", "twig\n"), ("machine-id", MACHINE_ID + "\n")):
            (etc / name).unlink()
            make(etc / name)
            give_identity(own_agent)
            assert stat.S_ISREG((etc / name).lstat().st_mode)
            assert (etc / name).read_text() == line
        assert elsewhere.read_text() == "untouched\n"


def test_data_is_thawed_before_an_identity_is_written(own_agent: NativeAgent) -> None:
    """A file that is a mount of one in /data would be waited for for ever."""
    with own_agent.mounted_data(), own_agent.fake("FITHAW", errno.EIO):
        error = refusal_of(lambda: give_identity(own_agent))
    assert "thaw /data" in str(error)
    for name in ("etc/hostname", "etc/machine-id", "run/ramet/generation"):
        assert not (own_agent.root / name).exists()


@pytest.mark.parametrize("name", ["etc/hostname", "etc/machine-id", "run/ramet/generation"])
def test_identity_file_that_cannot_be_written(own_agent: NativeAgent, name: str) -> None:
    (own_agent.root / name).mkdir()
    with pytest.raises(GuestRefusedError):
        give_identity(own_agent)
    assert list((own_agent.root / name).parent.glob("*.new")) == []


@pytest.mark.parametrize(
    ("hostname", "machine_id"),
    [("", MACHINE_ID), ("x" * 65, MACHINE_ID), ("a\nb", MACHINE_ID), ("a", "0" * 31), ("a", "G" * 32), ("a", "0" * 33)],
)
def test_malformed_identity_changes_nothing(own_agent: NativeAgent, hostname: str, machine_id: str) -> None:
    with own_agent.client() as client, pytest.raises(GuestRefusedError) as caught:
        client.identity(generation=1, hostname=hostname, machine_id=machine_id, seed=SEED)
    assert caught.value.errno == errno.EINVAL
    assert own_agent.calls() == []


def test_hooks_run_in_order_and_failures_are_named(own_agent: NativeAgent) -> None:
    said = own_agent.root / "said"
    add_hook(own_agent, "20-second", f"echo second $(readlink /proc/self/fd/0) >>{said}")
    add_hook(own_agent, "10-first", f"echo first >>{said}")
    add_hook(own_agent, "15-fails", "exit 1")
    add_hook(own_agent, "16-killed", "kill -9 $$")
    add_hook(own_agent, "17-no-interpreter", "")
    (own_agent.root / "etc/ramet/resume.d/17-no-interpreter").write_text("#!/no/such/interpreter\n")
    add_hook(own_agent, "18-not-executable", "exit 1", mode=0o644)
    add_hook(own_agent, ".hidden", "exit 1")
    assert give_identity(own_agent) == ("15-fails", "16-killed", "17-no-interpreter")
    assert said.read_text() == "first\nsecond /dev/null\n"
    assert own_agent.children() == set()


def test_ping_is_answered_while_a_hook_runs(own_agent: NativeAgent) -> None:
    gate, ran = own_agent.root / "gate", own_agent.root / "ran"
    add_hook(own_agent, "hook", f"touch {ran}; while [ ! -e {gate} ]; do sleep 0.01; done")
    thread = threading.Thread(target=give_identity, args=(own_agent,))
    thread.start()
    wait_until(ran.exists, DEADLINE_S, what="the hook")
    with own_agent.client() as client:
        client.ping()
    gate.touch()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_identity_again_while_one_is_under_way(own_agent: NativeAgent) -> None:
    """They come one after the other, whole."""
    add_hook(own_agent, "hook", "sleep 0.05")
    threads = [threading.Thread(target=give_identity, args=(own_agent,), kwargs={"generation": n}) for n in (8, 9, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert without_clock(own_agent.calls()) == without_clock(IDENTITY) * 3


def test_identity_without_hooks_waits_for_one_that_runs_some(own_agent: NativeAgent) -> None:
    gate, ran = own_agent.root / "gate", own_agent.root / "ran"
    add_hook(own_agent, "hook", f"touch {ran}; while [ ! -e {gate} ]; do sleep 0.01; done")
    first = threading.Thread(target=give_identity, args=(own_agent,), kwargs={"generation": 8})
    second = threading.Thread(target=give_identity, args=(own_agent,), kwargs={"generation": 9})
    first.start()
    wait_until(ran.exists, DEADLINE_S, what="the hook")
    (own_agent.root / "etc/ramet/resume.d/hook").unlink()
    second.start()
    second.join(1.5)
    assert second.is_alive()
    assert own_agent.calls() == [*IDENTITY]
    gate.touch()
    for thread in (first, second):
        thread.join(DEADLINE_S)
    assert without_clock(own_agent.calls()) == without_clock(IDENTITY) * 2
    first_s, second_s = (float(line.split()[2]) for line in own_agent.calls() if line.startswith("clock_settime"))
    assert 0.2 < second_s - first_s < DEADLINE_S, "the clock goes on while an identity waits"


def test_hooks_run_once_for_an_identity_that_is_asked_again(own_agent: NativeAgent) -> None:
    """Its first answer may not have arrived; it is the same again."""
    said = own_agent.root / "said"
    add_hook(own_agent, "10-says", f"echo >>{said}")
    add_hook(own_agent, "20-fails", "exit 1")
    assert give_identity(own_agent, generation=7) == give_identity(own_agent, generation=7) == ("20-fails",)
    assert said.read_text() == "\n"
    assert own_agent.calls() == [*IDENTITY] * 2, "all else is done again"
    give_identity(own_agent, generation=8)
    assert said.read_text() == "\n\n"
    give_identity(own_agent, generation=8, machine_id="f" * 32)
    assert said.read_text() == "\n\n\n"


def test_hooks_of_an_identity_whose_client_has_gone_run_once(own_agent: NativeAgent) -> None:
    gate, said = own_agent.root / "gate", own_agent.root / "said"
    add_hook(own_agent, "hook", f"echo >>{said}; while [ ! -e {gate} ]; do sleep 0.01; done; exit 1")
    request = identity_request(generation=7, wall_clock_ns=WALL_NS, seed=SEED, hostname="twig", machine_id=MACHINE_ID)
    with closing(own_agent.connect()) as sock:
        Raw(sock).send(wire.hello(EPOCH), wire.encode(Request.IDENTITY, request))
        wait_until(said.exists, DEADLINE_S, what="the hook")
    found: list[tuple[str, ...]] = []
    again = threading.Thread(target=lambda: found.append(give_identity(own_agent)))
    again.start()
    again.join(0.2)
    gate.touch()
    again.join(DEADLINE_S)
    assert found == [("hook",)]
    assert said.read_text() == "\n"


# -- shutdown -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reboot", "number"), [(False, signal.SIGUSR2), (True, signal.SIGTERM)])
def test_shutdown_thaws_data_and_tells_init(own_agent: NativeAgent, reboot: bool, number: int) -> None:
    with own_agent.mounted_data(), own_agent.client() as client:
        client.shutdown(reboot=reboot)
    assert own_agent.calls() == ["FITHAW", f"kill 1 {int(number)}"]


def test_shutdown_that_init_does_not_hear(own_agent: NativeAgent) -> None:
    with own_agent.fake("kill", errno.EPERM), own_agent.client() as client, pytest.raises(GuestRefusedError):
        client.shutdown()
