"""Confinement: a hostile program that is started as a VMM is reaches nothing but what is its instance's own (H70)."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from ramet import process
from ramet.errors import ConfigError
from ramet.hypervisors import confinement, users
from ramet.hypervisors import kvm as kvm_device
from ramet.hypervisors.firecracker import driver as firecracker
from ramet.linux import capabilities, credentials, landlock, seccomp
from tests.capabilities import requires
from tests.unit.hypervisors import hostile
from tests.unit.hypervisors.confined import INSTANCE_ID, PYTHON, Place, done, only

OWN = {"own: make", "own: write", "own: truncate", "own: rename", "own: remove", "own: log", "own: listen"}
OWN |= {"own: have it interpreted"}
READ = {"own: read the image", "own: read the snapshot"}
OTHERS_OF_THE_SAME_USER = {
    "victim: mode",
    "victim: times",
    "victim: attributes",
    "process: its socket",
    "process: limits",
    "process: scheduling",
    "new namespace",
    "shared memory",
}
"""What no version of Landlock keeps the same user from doing."""
LIMITED_FOR_ALL = {"host: many descriptors", "host: a large file"}
LIMITED_WITHOUT_CAPABILITIES = {"host: locked memory", "host: real-time priority"}
LIMITED_FOR_ITS_USER = {"host: many processes"}
FILTERED = OTHERS_OF_THE_SAME_USER | {
    "own snapshot: execute",
    "own snapshot: truncate",
    "execute what was written",
    "execute from memory",
    "victim: truncate",
    "victim: link",
    "victim: symlink",
    "victim: make a directory",
    "make a device",
    "process: trace",
    "process: write its memory",
    "process: abstract socket",
    "process: datagram",
    "network: listen",
}
"""What the filter of system calls refuses by itself; execution, as far as it takes a change of mode, or a file in memory."""
SINCE = {
    "own snapshot: truncate": landlock.TRUNCATE_SINCE,
    "victim: truncate": landlock.TRUNCATE_SINCE,
    "network: listen": landlock.NET_SINCE,
    "process: signal": landlock.SCOPE_SINCE,
    "process: abstract socket": landlock.SCOPE_SINCE,
    "process: datagram": landlock.SCOPE_SINCE,
}
MEANS = ("landlock", "seccomp", "user")


def beyond_root() -> set[str]:
    """What even an unconfined process may not do here: no capability for it, or the host's own rules."""
    refused = (
        {"host: many descriptors"} if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < hostile.DESCRIPTORS else set()
    )
    if os.geteuid() == 0:
        return refused
    return refused | {"make a device", "process: trace", "process: write its memory", *LIMITED_WITHOUT_CAPABILITIES}


def without_a_user() -> set[str]:
    """What no limit keeps a VMM from that runs as we do."""
    return LIMITED_FOR_ITS_USER | (LIMITED_WITHOUT_CAPABILITIES if os.geteuid() == 0 else set())


def assert_untouched(place: Place, *, but: frozenset[str] = frozenset()) -> None:
    files = {path.name for path in place.victim.iterdir()} - {"qmp.sock"}
    assert files == set(map(str, range(15)))
    assert {name for name in files if (place.victim / name).read_bytes() != b"victim's"} == but


@requires("landlock", "seccomp")
@pytest.mark.parametrize("users", [pytest.param(True, marks=requires("vmm-users"), id="a user of its own"), False])
def test_a_hostile_program_reaches_nothing_but_its_own(
    place: Place, monkeypatch: pytest.MonkeyPatch, users: bool
) -> None:
    only(monkeypatch, "landlock", "seccomp", *(("user",) if users else ()))
    found = place.run()
    may_signal = landlock.abi_version() < landlock.SCOPE_SINCE and not users
    beyond = set() if users else without_a_user()
    assert done(found) == OWN | READ | beyond | ({"process: signal"} if may_signal else set()), found
    assert_untouched(place)


@requires("landlock")
def test_landlock_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "landlock")
    found = place.run()
    version = landlock.abi_version()
    beyond = {act for act, since in SINCE.items() if version < since}
    beyond |= {"execute from memory", *without_a_user()}
    assert done(found) == OWN | READ | OTHERS_OF_THE_SAME_USER | beyond, found
    assert_untouched(place, but=frozenset({"3"} if "victim: truncate" in beyond else set()))


@requires("seccomp")
def test_the_filter_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "seccomp")
    found = place.run()
    assert done(found) & (FILTERED | LIMITED_FOR_ALL) == set(), found
    assert {"victim: write", "process: signal"} <= done(found), "files and signals are Landlock's"


@requires("landlock", "seccomp")
def test_a_call_that_a_vmm_needs_is_all_that_is_added(place: Place) -> None:
    """Firecracker, whose own filters refuse execve(2) before its guest runs."""
    assert done(place.run(needs_calls=firecracker.NEEDS_CALLS)) - done(place.run()) == {"execute from memory"}


@requires("vmm-users")
def test_a_user_of_its_own_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a store that is open to all, but for its files' modes."""
    only(monkeypatch, "user")
    for path in (place.victim, *place.victim.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o600)
    found = place.run()
    of_its_own = {"execute what was written", "execute what was made executable", "execute from memory"}
    of_its_own |= {"own snapshot: execute", "victim: symlink"}
    of_every_user = {"victim: list", "network: listen", "process: abstract socket", "process: datagram"}
    of_every_user |= {"new namespace", "shared memory"}
    assert done(found) == OWN | READ | of_its_own | of_every_user | {
        "own snapshot: write",
        "own snapshot: truncate",
    } & (done(found)), found
    assert_untouched(place)


@requires("vmm-users")
def test_what_is_published_is_the_vmms_for_the_time_of_its_start(place: Place) -> None:
    user = users.user_number(INSTANCE_ID)
    confined = confinement.of(place.spec, PYTHON, kvm=False, memory_is_written=True)
    with confined.lent():
        confined.hand_over()
        memory = place.spec.memory.stat()
        assert (memory.st_uid, memory.st_mode & 0o777) == (user, 0o600)
    memory = place.spec.memory.stat()
    assert (memory.st_uid, memory.st_mode & 0o777) == (os.geteuid(), 0o400)
    assert place.spec.boot is not None
    assert place.spec.boot.kernel.stat().st_mode & 0o777 == 0o444
    assert place.spec.disk.stat().st_uid == user
    assert (place.spec.work_dir.parent / "instance.json").stat().st_uid == os.geteuid()


@requires("vmm-users")
def test_what_forks_share_is_no_vmms_own_for_a_moment(place: Place) -> None:
    """Several start from it at once, its own instance among them: it is not taken back from one when another has started."""
    group = users.user_number(INSTANCE_ID)
    fork = replace(place.spec, instance_id="ba9876543210", snapshot_of=INSTANCE_ID)
    for spec in (fork, place.spec, fork):
        with confinement.of(spec, PYTHON, kvm=False, memory_is_written=False).lent():
            memory = place.spec.memory.stat()
            assert (memory.st_uid, memory.st_gid, memory.st_mode & 0o777) == (os.geteuid(), group, 0o440)
        assert (memory.st_uid, memory.st_gid, memory.st_mode & 0o777) == (os.geteuid(), group, 0o440)


@requires("vmm-users")
def test_another_instances_snapshot_is_read_as_one_of_its_group_and_not_written(place: Place) -> None:
    """The memory policy ``share``; without that group it cannot be opened."""
    found = done(replace(place, spec=replace(place.spec, snapshot_of="ba9876543210")).run())
    assert "own: read the snapshot" in found
    assert not found & {"own snapshot: write", "own snapshot: truncate", "own snapshot: execute"}
    assert place.spec.memory.stat().st_gid == users.user_number("ba9876543210")
    place.spec.memory.chmod(0o400)
    stranger = confinement.of(place.spec, PYTHON, kvm=False, memory_is_written=False)
    child = stranger.start(lambda: subprocess.Popen(["id", "-G"], stdout=subprocess.PIPE), lambda _child: None)
    groups = child.communicate()[0].split()
    assert [int(one) for one in groups] == [users.user_number(INSTANCE_ID)]


@requires("vmm-users")
def test_a_sealed_memory_file_is_lent_to_nobody_and_needs_no_rule(place: Place) -> None:
    fd = os.open(place.spec.memory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        spec = replace(place.spec, memory=Path(f"/proc/self/fd/{fd}"), memory_is_sealed=True)
        with confinement.of(spec, PYTHON, kvm=False, memory_is_written=True).lent():
            assert os.fstat(fd).st_mode & 0o777 == 0o400
            assert os.fstat(fd).st_uid == os.geteuid()
        rules = confinement.rules(spec, PYTHON, kvm=False, memory_is_written=True)
        assert [path for path in (*rules.load, *rules.write) if "/proc" in str(path)] == []
    finally:
        os.close(fd)


@requires("vmm-users")
def test_a_link_that_was_planted_among_its_files_is_not_given_away(place: Place) -> None:
    secret = place.victim / "0"
    (place.spec.work_dir / "linked").hardlink_to(secret)
    (place.spec.work_dir / "pointing").symlink_to(secret)
    place.run()
    assert secret.stat().st_uid == os.geteuid()


@requires("landlock")
def test_a_memory_file_that_the_vmm_opens_for_writing_is_all_that_is_added(place: Place) -> None:
    """QEMU before 8.2, without reflinks, as root: its instance's own snapshot, which nobody else uses."""
    assert done(place.run(memory_is_written=True)) - done(place.run()) <= {
        "own snapshot: write",
        "own snapshot: truncate",
    }


def test_without_confinement_the_same_program_does_its_worst(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the tests above would prove nothing."""
    monkeypatch.setenv("RAMET_CONFINEMENT", "off")
    found = place.run()
    assert {act for act, result in found.items() if result != "done"} <= beyond_root(), found
    assert confinement.weaknesses(PYTHON, kvm=False) == ["do anything that the user may do: RAMET_CONFINEMENT is off"]


def test_we_ourselves_are_not_confined_by_starting_one_that_is(place: Place) -> None:
    place.run()
    (place.victim / "0").write_bytes(b"ours")
    (place.victim / "1").chmod(0o600)
    os.kill(place.victim_pid, signal.SIGCONT)
    status = Path("/proc/self/status").read_text()
    assert "NoNewPrivs:\t0" in status
    assert "Seccomp:\t0" in status
    assert ctypes.CDLL(None).prctl(credentials.PR_GET_DUMPABLE, 0, 0, 0, 0) == 1


@requires("vmm-users")
def test_nobody_can_trace_us_while_a_thread_of_ours_has_another_user(place: Place) -> None:
    """Its memory is ours. Several are started at once, and in the end all is as before."""
    libc = ctypes.CDLL(None)
    confined = confinement.of(place.spec, PYTHON, kvm=False, memory_is_written=False)
    seen: set[int] = set()

    def start() -> process.Child:
        seen.add(libc.prctl(credentials.PR_GET_DUMPABLE, 0, 0, 0, 0))
        return subprocess.Popen(["/bin/true"], stdin=subprocess.DEVNULL)

    with ThreadPoolExecutor(5) as pool:
        for child in list(pool.map(lambda _: confined.start(start, lambda _: None), range(30))):
            child.wait()
    assert seen == {0}
    assert libc.prctl(credentials.PR_GET_DUMPABLE, 0, 0, 0, 0) == 1


def test_a_kernel_without_any_means_starts_it_all_the_same_and_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch)
    assert "victim: write" in done(place.run())
    weaknesses = confinement.weaknesses(PYTHON, kvm=False)
    if os.geteuid() == 0:
        assert weaknesses.pop(0) == "use root's capabilities: there is none"
    assert weaknesses[0].startswith("read and write the same user's files: the kernel has no Landlock")
    assert len(weaknesses) == 5


@pytest.mark.parametrize(
    ("means", "version", "expected"),
    [
        (("landlock",), 1, ["control other", "set the resource", "change modes", "truncate", "signal the processes"]),
        (("landlock",), 3, ["control other", "set the resource", "change modes", "signal the processes"]),
        (("landlock",), 7, ["control other", "set the resource", "change modes"]),
        (("landlock", "seccomp"), 2, ["signal the processes"]),
        (("landlock", "seccomp"), 6, []),
        (("landlock", "seccomp", "user"), 1, []),
        (("seccomp", "user"), 1, ["read what every user may read"]),
        (("landlock", "user"), 2, ["change its own snapshot, while it starts"]),
        (("landlock", "user"), 3, []),
        (("user",), 1, ["read what every user may read", "change its own snapshot, while it starts"]),
        (("seccomp",), 1, ["read and write the same user's files", "signal the processes"]),
    ],
)
def test_what_a_kernel_does_not_enforce_is_named(
    means: tuple[str, ...], version: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landlock, "abi_version", lambda: version)
    monkeypatch.setattr(seccomp, "why_not", lambda: None)
    monkeypatch.setattr(users, "why_no_users", lambda *_args, **_kw: None)
    only(monkeypatch, *means)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = confinement.weaknesses(PYTHON, kvm=False)
    assert len(found) == len(expected), found
    assert all(one.startswith(begin) for one, begin in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("not root", "does not run as root"),
        ("not wished", "RAMET_VMM_USERS is off"),
        ("no capability", "lacks capabilities"),
        ("few ids", "too few user ids"),
        ("a closed program", "is closed to other users"),
        ("a link in a closed place", "is closed to other users"),
        ("a closed KVM", "is open to root alone"),
    ],
)
@requires("vmm-users")
def test_why_a_vmm_has_no_user_of_its_own_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, words: str
) -> None:
    program, kvm = PYTHON, what == "a closed KVM"
    if what == "not root":
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
    elif what == "not wished":
        monkeypatch.setenv("RAMET_VMM_USERS", "off")
    elif what == "no capability":
        monkeypatch.setattr(users, "NEEDED_FOR_USERS", (63,))
    elif what == "few ids":
        (tmp_path / "uid_map").write_text("0 100000 65536\n")
        monkeypatch.setattr(credentials, "UID_MAP", tmp_path / "uid_map")
    elif what == "a closed program":
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        program = shutil.copy("/bin/true", str(closed))
    elif what == "a link in a closed place":
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        (closed / "true").symlink_to("/bin/true")
        program = str(closed / "true")
    else:
        (tmp_path / "kvm").touch(mode=0o600)
        monkeypatch.setattr(kvm_device, "DEVICE", tmp_path / "kvm")
    why = users.why_no_users(program, kvm=kvm)
    assert why is not None
    assert words in why


def test_users_are_of_the_range_that_nobody_gives_out() -> None:
    for instance_id in ("000000000000", "ffffffffffff", INSTANCE_ID):
        assert users.user_number(instance_id) in users.USERS
    assert users.user_number("000000000001") != users.user_number("000000000002")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RAMET_CONFINEMENT", "maybe", "RAMET_CONFINEMENT is 'maybe'"),
        pytest.param("RAMET_VMM_USERS", "no", "RAMET_VMM_USERS is 'no'", marks=requires("root")),
        ("RAMET_VMM_READS", "victim", "RAMET_VMM_READS must hold absolute paths, not 'victim'"),
        ("RAMET_VMM_READS", "/usr:/nowhere", "RAMET_VMM_READS names /nowhere, which does not exist"),
    ],
)
def test_a_setting_that_is_none_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        place.run()


@requires("landlock")
def test_more_can_be_read_and_executed_if_the_user_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMET_VMM_READS", f"/usr:{place.victim}")
    assert done(place.run()) - OWN - READ - set(SINCE) == {"victim: read", "victim: list"}


@requires("landlock")
def test_a_path_that_cannot_be_looked_at_stops_no_launch(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/etc/passwd/lib:{'x' * 300}:/{'x' * 300}:relative")
    assert done(place.run()) & OWN == OWN


@requires("landlock")
@pytest.mark.parametrize("why", ["Yama", "an ignored signal"])
def test_where_the_child_has_to_be_prepared_it_is_confined_too(
    place: Place, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Then it is no vfork(2), and some of our own code runs in the child; what that is is found out in /proc, before."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN if why != "Yama" else signal.SIG_DFL)
    try:
        monkeypatch.setattr(process, "YAMA_PTRACE_SCOPE", place.spec.disk)
        monkeypatch.setattr(capabilities, "CAP_SYS_PTRACE", 63)  # which nobody has
        assert process._needs_preparing()
        found = place.run()
    finally:
        signal.signal(signal.SIGHUP, old)
    assert done(found) & OWN == OWN
    assert "victim: write" not in done(found)


def test_no_rule_is_of_a_file_that_will_be_deleted(place: Place) -> None:
    """Its blocks would stay until the VMM's process is reaped: a host's init may never do that."""
    found = confinement.rules(place.spec, PYTHON, kvm=False, memory_is_written=False)
    assert [path for path in (*found.load, *found.write) if not path.is_dir()] == []
    live = replace(place.spec, memory=place.spec.disk)
    found = confinement.rules(live, PYTHON, kvm=False, memory_is_written=True)
    assert [path for path in found.write if not path.is_dir()] == [], "what is below work/ needs no rule"
