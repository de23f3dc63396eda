"""``doctor`` on a /dev/kvm that this user may not open: what it says to do about it helps."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from ramet.hypervisors import kvm
from ramet.instances import doctor

GROUPS = {0: "root", 106: "kvm", 107: "virt"}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "kvm"
    path.touch()
    monkeypatch.setattr(kvm, "DEVICE", path)
    monkeypatch.setattr(kvm, "problem", kvm.problem.__wrapped__)
    monkeypatch.setattr(kvm, "_cpu_flags", lambda: {"vmx"})
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    return path


def look_like(monkeypatch: pytest.MonkeyPatch, path: Path, mode: int, gid: int, members: tuple[str, ...] = ()) -> None:
    """As if it were a character device of that mode and group."""
    whole = Path.stat

    def stat(self: Path, **options: bool) -> object:
        return SimpleNamespace(st_mode=0o020000 | mode, st_gid=gid) if self == path else whole(self, **options)

    def group(number: int) -> object:
        if number not in GROUPS:
            raise KeyError(number)
        return SimpleNamespace(gr_name=GROUPS[number], gr_mem=members)

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setattr(Path, "exists", lambda _self: True)
    monkeypatch.setattr(grp, "getgrgid", group)
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: SimpleNamespace(pw_name="ann"))


@pytest.mark.parametrize(
    ("mode", "gid", "members", "mend"),
    [
        (0o660, 106, (), "usermod -aG kvm $USER"),
        (0o660, 107, (), "usermod -aG virt $USER"),
        (0o660, 106, ("ann",), "log in again: you are in the group kvm"),
        (0o600, 0, (), "setfacl -m u:$USER:rw"),
        (0o600, 106, (), "setfacl -m u:$USER:rw"),
        (0o640, 106, (), "setfacl -m u:$USER:rw"),
        (0o660, 0, (), "setfacl -m u:$USER:rw"),
        (0o660, 4711, (), "setfacl -m u:$USER:rw"),
    ],
)
def test_what_opens_it_depends_on_its_group_and_mode(
    monkeypatch: pytest.MonkeyPatch, device: Path, mode: int, gid: int, members: tuple[str, ...], mend: str
) -> None:
    look_like(monkeypatch, device, mode, gid, members)
    found = kvm.problem()
    assert found is not None
    assert found.mend.startswith(mend)
    assert "of group" in found.why
    assert doctor._kvm().mend == found.mend


def test_where_the_cpu_cannot_no_permission_is_said_to_help(monkeypatch: pytest.MonkeyPatch, device: Path) -> None:
    look_like(monkeypatch, device, 0o600, 0)
    monkeypatch.setattr(kvm, "_cpu_flags", lambda: {"sse2"})
    found = kvm.problem()
    assert found is not None
    assert "neither vmx nor svm" in found.why
    assert "crw------- of group root" in found.why
    assert found.mend == kvm.ELSEWHERE
