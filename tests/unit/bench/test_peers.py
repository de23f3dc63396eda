"""Peers that are here, and what is said of those that are not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest

from ramet.bench import libvirt, peers
from ramet.bench.place import Place
from ramet.bench.results import Peer
from ramet.errors import CommandError
from ramet.hypervisors.qemu import driver as qemu
from ramet.instances.host import Host
from ramet.model import Hypervisor

NO_REFLINKS = "FICLONE: Operation not supported"


def place(why_no_reflinks: str | None) -> Place:
    return Place(directory=Path("/nowhere"), host=cast("Host", None), why_no_reflinks=why_no_reflinks)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing but a ``cp`` and what a test adds; a QEMU that needs not be there."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr(qemu, "program", lambda: "/usr/bin/qemu")
    monkeypatch.setattr(qemu, "version", lambda _path: "7.2")
    add(directory, "cp", "echo 'cp (GNU coreutils) 9.1'; echo more")
    return directory


def add(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def look(why_no_reflinks: str | None = None, hypervisor: Hypervisor = Hypervisor.QEMU) -> dict[str, Peer]:
    return {peer.name: peer for peer in peers.look(place(why_no_reflinks), hypervisor, wanted=True)}


def test_libvirt_that_is_not_installed_is_absent_with_what_brings_it(programs: Path) -> None:
    found = look()
    assert found[peers.LIBVIRT].version is None
    assert found[peers.LIBVIRT].why_absent == "virsh was not found in PATH"
    assert found[peers.LIBVIRT].mend == "Install it: apt-get install libvirt-clients libvirt-daemon-system"
    assert found[peers.STREAM].version == "7.2"
    assert found[peers.REFLINK].version == found[peers.SPARSE].version == "cp (GNU coreutils) 9.1"


def test_a_daemon_that_does_not_answer_is_absent_with_what_it_said(programs: Path) -> None:
    add(programs, "virsh", "echo 'error: failed to connect to the hypervisor' >&2; exit 1")
    found = look()[peers.LIBVIRT]
    assert found.version is None
    assert found.why_absent is not None
    assert "failed to connect to the hypervisor" in found.why_absent
    assert "systemctl start libvirtd" in str(found.mend)


def test_libvirt_that_answers_tells_its_version(programs: Path) -> None:
    add(programs, "virsh", "echo 'Using library: libvirt 9.0.0'; echo 'Running hypervisor: QEMU 7.2.22'")
    assert look()[peers.LIBVIRT].version == "libvirt 9.0.0, QEMU 7.2.22"


def test_without_reflinks_cp_cannot_make_any(programs: Path) -> None:
    found = look(NO_REFLINKS)
    assert found[peers.REFLINK].why_absent == f"the store's file system has no reflinks ({NO_REFLINKS})"
    assert found[peers.REFLINK].mend == "keep RAMET_HOME on XFS or btrfs"
    assert found[peers.SPARSE].why_absent is None


def test_what_saves_qemu_s_guests_is_absent_for_others(programs: Path) -> None:
    found = look(hypervisor=Hypervisor.FIRECRACKER)
    assert {found[name].why_absent for name in (peers.STREAM, peers.LIBVIRT)} == {"the guests are not QEMU's"}


def test_nobody_is_looked_for_who_was_not_asked_for(programs: Path) -> None:
    (programs / "cp").unlink()
    found = peers.look(place(None), Hypervisor.QEMU, wanted=False)
    assert {peer.why_absent for peer in found} == {peers.NOT_ASKED}
    assert {peer.name for peer in found} == {peers.STREAM, peers.LIBVIRT, peers.REFLINK, peers.SPARSE}


# -- libvirt's domain ---------------------------------------------------------------------------------------------


def test_a_domain_that_a_killed_run_left_is_ended(programs: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    add(programs, "virsh", f'echo "$*" >>{told}')
    scratch = tmp_path / "bench-0a1b2c" / "scratch"
    scratch.mkdir(parents=True)
    libvirt.destroy_abandoned(scratch.parent)
    assert not told.exists(), "that run had none"
    (scratch / libvirt.DESCRIPTION).touch()
    libvirt.destroy_abandoned(scratch.parent)
    assert told.read_text().endswith("destroy ramet-bench-0a1b2c\n")


def test_a_domain_that_is_gone_already_is_no_error_and_one_that_stays_is(programs: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "bench-0a1b2c" / "scratch"
    scratch.mkdir(parents=True)
    (scratch / libvirt.DESCRIPTION).touch()
    add(programs, "virsh", 'case "$*" in *destroy*) exit 1;; *) echo other;; esac')
    libvirt.destroy_abandoned(scratch.parent)
    add(programs, "virsh", 'case "$*" in *destroy*) exit 1;; *) echo ramet-bench-0a1b2c;; esac')
    with pytest.raises(CommandError):
        libvirt.destroy_abandoned(scratch.parent)


def test_root_s_domain_may_enter_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    assert libvirt._uri() == "qemu:///session"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert libvirt._uri() == "qemu:///system"
