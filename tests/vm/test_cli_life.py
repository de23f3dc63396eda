"""An instance's whole life through the command line, judged by its JSON and exit statuses: the surface that others build on."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from ramet import Host
from ramet.model import InstanceInfo
from ramet.process import start_time_ticks, wait_until
from tests.vm.command_line import CommandLine
from tests.vm.guests import sh
from tests.vm.pseudo_terminal import PseudoTerminal

SHOWN = {"id", "name", "state", "hypervisor", "pid", "memory_mib", "lineage", "snapshot", "live_disk", "mapped_memory"}
SNAPSHOT_SHOWN = {"id", "dir", "memory", "vmstate", "disk", "method", "parent"}
MAPPED_SHOWN = {"path", "dev", "ino", "writable"}

on_one_file_system = pytest.mark.parametrize("file_system", ["ext4"], indirect=True)


@pytest.fixture
def ramet(host: Host) -> CommandLine:
    return CommandLine(host.home)


def state(ramet: CommandLine, name: str) -> str:
    return str(ramet.json("show", name)["state"])


def only(ramet: CommandLine, *argv: str) -> dict[str, Any]:
    """The one element of a verb's array."""
    (result,) = ramet.json(*argv)
    assert isinstance(result, dict)
    return result


def test_from_create_to_rm(ramet: CommandLine, file_system: Path) -> None:
    made = ramet.json("create", "web", "--memory", "128M", "--disk", "64M", "--cpus", "1")
    assert set(made) >= SHOWN
    assert (made["name"], made["state"], made["memory_mib"], made["disk_bytes"]) == ("web", "running", 128, 64 << 20)
    assert Path(f"/proc/{made['pid']}/exe").resolve().name.startswith("qemu-system"), "it outlives its command"
    assert set(made["mapped_memory"]) == MAPPED_SHOWN
    assert Path(made["mapped_memory"]["path"]).stat().st_ino == made["mapped_memory"]["ino"]
    assert ramet.json("ls") == [made]
    assert ramet.json("show", made["id"]) == made

    assert ramet.text("exec", "web", "--", "hostname") == "web\n"
    assert only(ramet, "pause", "web")["state"] == "paused"
    assert ramet.error("exec", "web", "true", status=4)["actual"] == "paused"
    assert only(ramet, "resume", "web")["state"] == "running"
    ramet.text("exec", "web", "--", "sh", "-c", "echo kept >/ram/mark; echo kept >/data/mark")

    asleep = only(ramet, "standby", "web")
    assert (asleep["state"], asleep["pid"], asleep["mapped_memory"], asleep["live_disk"]) == ("standby", *[None] * 3)
    assert start_time_ticks(made["pid"]) is None, "the VMM is gone"
    assert set(asleep["snapshot"]) >= SNAPSHOT_SHOWN
    for key in ("dir", "memory", "vmstate", "disk"):
        assert Path(asleep["snapshot"][key]).exists()

    awake = only(ramet, "restore", "web")
    assert (awake["state"], awake["snapshot"]["id"]) == ("running", asleep["snapshot"]["id"])
    assert ramet.text("exec", "web", "--", "cat", "/ram/mark", "/data/mark") == "kept\nkept\n"

    again = only(ramet, "standby", "web")["snapshot"]
    assert (again["kind"], again["parent"]) == ("diff", asleep["snapshot"]["id"])
    assert again["method"] == ("copy" if file_system_type(file_system) == "ext4" else "reflink")
    assert ramet.error("stop", "web", status=4)["actual"] == "standby"
    assert only(ramet, "stop", "web", "--discard-memory")["state"] == "stopped"
    assert ramet.json("snapshot", "ls") == []
    assert only(ramet, "start", "web")["state"] == "running"
    assert ramet.run("exec", "web", "--", "cat", "/data/mark", "/ram/mark").status == 1, (
        "the disk is there, the RAM is new"
    )
    assert ramet.error("rm", "web", status=4)["required"] == ["standby", "stopped", "failed"]
    assert only(ramet, "rm", "web", "--force") == {"name": "web", "deleted": True}
    assert ramet.json("ls") == []


def file_system_type(mount: Path) -> str:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next(fields[2] for fields in lines if fields[1] == str(mount))


@on_one_file_system
def test_a_verb_whose_target_is_reached_succeeds_and_says_so(ramet: CommandLine, running: InstanceInfo) -> None:
    for verb, reached in (("resume", "running"), ("restore", "running"), ("start", "running")):
        assert ramet.text(verb, "web") == f"web: {reached} (already {reached})\n"
    for verb, reached in (("pause", "paused"), ("standby", "standby")):
        assert ramet.text(verb, "web").startswith(f"web: {reached} (")
        assert ramet.text(verb, "web") == f"web: {reached} (already {reached})\n"
    ramet.text("stop", "web", "--discard-memory")
    assert ramet.text("stop", "web") == "web: stopped (already stopped)\n"


@on_one_file_system
def test_forks_from_every_source(host: Host, ramet: CommandLine, running: InstanceInfo) -> None:
    report = ramet.json("fork", "web", "-n", "2", "--start")
    assert [(made["name"], made["state"]) for made in report["instances"]] == [
        ("web-1", "running"),
        ("web-2", "running"),
    ]
    assert 0 < report["source_pause_s"] < 30
    assert state(ramet, "web") == "running"
    ramet.text("pause", "web")
    assert ramet.json("fork", "web", "of-a-paused-one")["source_pause_s"] is None, "it is not the fork that paused it"
    ramet.text("rm", "of-a-paused-one")
    ramet.text("resume", "web")
    assert [ancestor["name"] for ancestor in report["instances"][0]["lineage"]] == ["web"]
    for name in ("web-1", "web-2"):
        assert ramet.text("exec", name, "--", "sh", "-c", "hostname; cat /ram/mark") == f"{name}\nram-source\n"
    ramet.text("rm", "--force", "web-1", "web-2")

    golden = ramet.json("snapshot", "create", "web", "golden")
    assert golden["names"] == ["golden"]
    only(ramet, "standby", "web")
    assert ramet.json("fork", "web", "asleep")["instances"][0]["state"] == "standby"
    assert ramet.json("fork", "snapshot:golden", "by-name")["instances"][0]["lineage"][0]["snapshot_id"] == golden["id"]
    assert ramet.json("fork", f"snapshot:{golden['id']}", "by-id")["source_pause_s"] is None
    only(ramet, "stop", "web", "--discard-memory")
    stopped = ramet.json("fork", "web", "of-disk")["instances"][0]
    assert (stopped["state"], stopped["snapshot"]) == ("stopped", None)

    (web,) = ramet.json("tree")
    below = {child["name"]: child for child in web["children"]}
    assert set(below) == {"golden", "asleep", "of-disk"}
    assert {child["name"] for child in below["golden"]["children"]} == {"by-name", "by-id"}
    uses = {use["name"]: use for use in ramet.json("du")}
    assert set(uses) >= {"web", "of-disk", "golden"}
    assert uses["golden"]["allocated_bytes"] > 0

    assert ramet.error("snapshot", "rm", by_id(ramet, "asleep"), status=5)["dependents"]
    assert only(ramet, "snapshot", "rm", "golden")["deleted"] is True
    only(ramet, "restore", "by-name")
    assert ramet.text("exec", "by-name", "--", "cat", "/ram/mark") == "ram-source\n", "a fork depends on nothing"


def by_id(ramet: CommandLine, name: str) -> str:
    return str(ramet.json("show", name)["snapshot"]["id"])


@on_one_file_system
def test_rollback(ramet: CommandLine, running: InstanceInfo) -> None:
    ramet.text("snapshot", "create", "web", "golden")
    ramet.text("exec", "web", "--", "sh", "-c", "echo newer >/ram/mark; echo newer >/data/mark; sync")
    assert ramet.error("restore", "web", "--snapshot", "golden", status=4)["actual"] == "running"
    ramet.text("restore", "web", "--snapshot", "golden", "--discard-memory", "--discard-disk")
    assert ramet.text("exec", "web", "--", "cat", "/ram/mark", "/data/mark") == "ram-source\ndisk-source\n"


@on_one_file_system
def test_logs_and_console(ramet: CommandLine, running: InstanceInfo) -> None:
    typed = (
        b"echo typed-$((40 + 2))\n"  # it ends once the guest has said nothing for a second, also one that is held up
    )
    wait_until(lambda: "typed-42" in ramet.text("console", "web", stdin=typed), 60, what="the console to answer")
    assert b"typed-42" in ramet.run("logs", "web").out
    paths = ramet.json("logs", "web")
    assert ramet.run("logs", "web", "--vmm").out == Path(paths["vmm"]).read_bytes()
    assert Path(ramet.json("console", "web")["socket"]).is_socket()

    with PseudoTerminal(ramet, "console", "web") as terminal:
        terminal.expect(b"Ctrl-] detaches")
        terminal.type(b"\n")
        terminal.expect(b"web:")
        terminal.type(b"echo by-hand-$((40 + 2))\n")
        terminal.expect(b"by-hand-42")
        terminal.expect(b"web:")
        terminal.type(b"\x03")  # by itself: a terminal forgets with it what was typed and not read yet
        terminal.expect(b"web:")
        terminal.type(b"\x1d")
        terminal.expect(b"detached")
        assert terminal.finish() == 0
    with PseudoTerminal(ramet, "logs", "web", "-f") as terminal:
        terminal.expect(b"by-hand-42")
        ramet.text("console", "web", stdin=b"echo later-$((40 + 2))\n")
        terminal.expect(b"later-42")
        terminal.type(b"\x03")
        assert terminal.finish() == 130
    assert b"Interrupted" not in terminal.screen


@on_one_file_system
def test_work_that_takes_long_is_seen_on_a_terminal_and_tables_align(ramet: CommandLine) -> None:
    with PseudoTerminal(ramet, "create", "web", "--disk", "64M") as terminal:
        terminal.expect(b"booting")
        assert terminal.finish() == 0
    last = terminal.screen.rpartition(b"\x1b[2K")[2]
    assert last.startswith(b"web: "), "the line of progress is gone when it ends"
    assert b"running" in last
    ramet.text("fork", "web", "a-name-that-is-longer")
    with PseudoTerminal(ramet, "ls") as terminal:
        assert terminal.finish() == 0
    rows = [row for row in plain(terminal.screen).splitlines() if row]
    assert len(rows) == 3
    assert {row.index(word) for row, word in zip(rows, ("STATE", "running", "standby"), strict=True)} == {
        len("a-name-that-is-longer") + 2
    }
    elsewhere = ramet.text("ls").splitlines()
    assert [row.split()[:-1] for row in rows] == [row.split()[:-1] for row in elsewhere], "but for the age"


def plain(screen: bytes) -> str:
    """Without colours and with one kind of line end."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.decode()).replace("\r\n", "\n")
    return "\n".join(line.rstrip() for line in text.splitlines())


@on_one_file_system
def test_an_instance_survives_the_terminal_it_was_made_in(host: Host, ramet: CommandLine) -> None:
    with PseudoTerminal(ramet, "create", "web", "--disk", "64M") as terminal:
        assert terminal.finish() == 0
    with PseudoTerminal(ramet, "exec", "-t", "web", "sh", "-c", "echo up; exec sleep 1000") as terminal:
        terminal.expect(b"up")
        terminal.hang_up()
    assert terminal.process.returncode != 70
    assert state(ramet, "web") == "running"
    wait_until(lambda: sh(host, "web", "pidof sleep || echo ended") == "ended", 60, what="the command to end")
    assert os.getsid(host.get("web").pid or 0) != os.getsid(0)
