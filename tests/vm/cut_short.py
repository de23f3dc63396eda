"""Verbs that are cut short, by a signal or by SIGKILL: what each starts from and ends in, and what must be true afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from ramet import Host
from ramet.errors import RametError
from ramet.model import MIB, State
from tests import artifacts
from tests.vm.command_line import CommandLine
from tests.vm.guests import sh

MARKS = "echo disk >/data/mark; echo ram >/ram/mark; sync"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """A verb that is cut short."""

    argv: tuple[str, ...]
    before: State | None
    """The state of ``web`` that it starts from; None: there is no ``web``."""
    after: State | None
    first: tuple[str, ...] | None = None
    """What else there must be: a command that makes it."""


VERBS = {
    "create": Verb(argv=("create", "web", "--disk", "64M"), before=None, after=State.RUNNING),
    "rm": Verb(argv=("rm", "web", "--force"), before=State.RUNNING, after=None),
    "start": Verb(argv=("start", "web"), before=State.STOPPED, after=State.RUNNING),
    "stop": Verb(argv=("stop", "web"), before=State.RUNNING, after=State.STOPPED),
    "stop --force": Verb(
        argv=("stop", "web", "--force", "--timeout", "0.1"), before=State.RUNNING, after=State.STOPPED
    ),
    "standby": Verb(argv=("standby", "web"), before=State.RUNNING, after=State.STANDBY),
    "pause": Verb(argv=("pause", "web"), before=State.RUNNING, after=State.PAUSED),
    "resume": Verb(argv=("resume", "web"), before=State.PAUSED, after=State.RUNNING),
    "restore": Verb(argv=("restore", "web"), before=State.STANDBY, after=State.RUNNING),
    "fork": Verb(argv=("fork", "web", "-n", "3"), before=State.RUNNING, after=State.RUNNING),
    "fork --start": Verb(argv=("fork", "web", "-n", "3", "--start"), before=State.STANDBY, after=State.STANDBY),
    "snapshot create": Verb(argv=("snapshot", "create", "web", "golden"), before=State.RUNNING, after=State.RUNNING),
    "rollback": Verb(
        argv=("restore", "web", "--snapshot", "golden", "--discard-memory", "--discard-disk"),
        before=State.RUNNING,
        after=State.RUNNING,
        first=("snapshot", "create", "web", "golden"),
    ),
    "snapshot rm": Verb(
        argv=("snapshot", "rm", "golden"),
        before=State.RUNNING,
        after=State.RUNNING,
        first=("snapshot", "create", "web", "golden"),
    ),
}


def state_of(host: Host, name: str) -> State | None:
    return host.get(name).state if host.exists(name) else None


def bring_to(host: Host, state: State | None) -> None:
    """Make ``web`` what the verb starts from, with its marks."""
    now = state_of(host, "web")
    if state is now:
        return
    if state is None:
        host.remove("web", force=True)
        return
    if now is None:
        host.create("web", disk_bytes=64 * MIB)
        sh(host, "web", MARKS)
        bring_to(host, state)
    elif state is State.RUNNING:
        {State.STANDBY: host.restore, State.PAUSED: host.resume}.get(now, host.start)("web")
        if now is State.STOPPED:
            sh(host, "web", MARKS)
    elif state in (State.STANDBY, State.PAUSED):
        bring_to(host, State.RUNNING)
        (host.standby if state is State.STANDBY else host.pause)("web")
    else:
        bring_to(host, State.RUNNING)
        host.stop("web")


def use_once_more(host: Host, command: CommandLine, verb: Verb) -> None:
    """The next command of the user: the same verb, or a pause where that would make something twice."""
    if verb.argv[0] in ("fork", "snapshot", "create") or verb.after is None:
        if state_of(host, "web") is State.RUNNING:
            command.text("pause", "web")
            command.text("resume", "web")
        return
    command.text(*verb.argv)
    assert state_of(host, "web") is verb.after


def check_owners(host: Host) -> None:
    """Every name and every VMM belongs to an instance, and nothing is left of the work."""
    infos = host.list()
    names = {path.name: path.read_text().strip() for path in (host.home / "names" / "instances").iterdir()}
    assert names == {info.name: info.id for info in infos}
    assert artifacts.vmm_pids(f"{host.home}/") == {info.pid for info in infos if info.pid is not None}


def check_guest(host: Host, name: str, *, has_marks: bool = True) -> None:
    """It answers, and its workload and its disk are not frozen."""
    script = "cat /sys/fs/cgroup/workload/cgroup.freeze; date >/data/written; sync"
    assert sh(host, name, script) == "0"
    if has_marks:
        assert sh(host, name, "cat /ram/mark /data/mark") == "ram\ndisk"


def is_settled(host: Host) -> bool:
    """Whether a guest that may have been told to shut down has done so, or answers and is not going down."""
    if host.get("web").state in (State.STOPPED, State.FAILED):
        return True
    try:
        host.ping("web")
        return sh(host, "web", "pidof poweroff rcK || echo no") == "no"
    except (RametError, AssertionError):
        return False
