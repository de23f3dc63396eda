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
    monkeypatch.setattr(kvm, "why_not_usable", kvm.why_not_usable.__wrapped__)


def test_native_speed_counts() -> None:
    assert kvm.why_not_usable() is None
    kvm.require_usable(otherwise="Use something else.")


def test_a_missing_device_and_missing_rights_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kvm, "DEVICE", tmp_path / "none")
    assert "there is no" in (kvm.why_not_usable() or "")


def test_a_cpu_without_the_extension_is_a_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "_cpu_flags", lambda: {"sse2"})
    with pytest.raises(UnsupportedError, match="neither vmx nor svm"):
        kvm.require_usable(otherwise="Use something else.")


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
