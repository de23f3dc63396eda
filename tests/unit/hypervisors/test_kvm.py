"""KVM counts as usable only if guest code runs at native speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.errors import UnsupportedError
from ramet.hypervisors import kvm
from ramet.linux.kvm import time_loop


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(kvm, "DEVICE", device)
    monkeypatch.setattr(kvm, "_cpu_flags", lambda: {"vmx"})
    monkeypatch.setattr(kvm, "time_loop", lambda device, iterations, runs: 0.0001)
    monkeypatch.setattr(kvm, "problem", kvm.problem.__wrapped__)


def test_native_speed_counts() -> None:
    assert kvm.why_not_usable() is None
    kvm.require_usable(otherwise="Use something else.")


@pytest.mark.parametrize(
    ("flags", "mend"),
    [({"vmx"}, "modprobe kvm_intel"), ({"svm"}, "modprobe kvm_amd"), (set(), "hardware virtualisation")],
)
def test_a_missing_device_is_mended_as_the_cpu_allows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: set[str], mend: str
) -> None:
    monkeypatch.setattr(kvm, "DEVICE", tmp_path / "none")
    monkeypatch.setattr(kvm, "_cpu_flags", lambda: flags)
    found = kvm.problem()
    assert found is not None
    assert "there is no" in found.why
    assert mend in found.mend


def test_a_cpu_without_the_extension_is_a_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "_cpu_flags", lambda: {"sse2"})
    monkeypatch.setattr(kvm, "PVM_MODULE", Path("/"))
    found = kvm.problem()
    assert found is not None
    assert "kvm_pvm" in found.why
    with pytest.raises(UnsupportedError, match="neither vmx nor svm"):
        kvm.require_usable(otherwise="Use something else.")


def test_the_host_s_cpu_is_named_so_that_another_one_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """H61: a guest under KVM has it, whatever QEMU and Firecracker call it."""
    one = {"vendor_id": "GenuineIntel", "cpu family": "6", "model": "143", "stepping": "8", "model name": "Xeon"}
    names = set()
    for other in ({}, {"model": "106"}, {"stepping": "6"}, {"vendor_id": "AuthenticAMD"}, {"model name": "Xeon 2"}):
        monkeypatch.setattr(kvm, "_cpu_info", lambda other=other: {**one, **other})
        names.add(kvm.host_cpu.__wrapped__())
    assert "GenuineIntel 6/143/8 Xeon" in names
    assert len(names) == 5


def test_slow_guest_code_is_a_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "time_loop", lambda device, iterations, runs: 0.08)
    assert "80 ms" in (kvm.why_not_usable() or "")


def test_guest_code_that_fails_is_a_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: Path, iterations: int, runs: int) -> float:
        raise OSError(131, "the guest's code ended with exit reason 17")

    monkeypatch.setattr(kvm, "time_loop", fail)
    assert "exit reason 17" in (kvm.why_not_usable() or "")


@pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="there is no /dev/kvm")
def test_the_loop_really_runs_in_a_guest() -> None:
    """Twenty times the work takes at least twice the time, at whatever speed this KVM runs."""
    few = time_loop(Path("/dev/kvm"), 10_000, runs=3)
    many = time_loop(Path("/dev/kvm"), 200_000, runs=3)
    assert many > 2 * few > 0
