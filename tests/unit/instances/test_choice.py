"""What a new instance runs on, for each state of a host."""

from __future__ import annotations

import pytest

from ramet.errors import ConfigError, UnsupportedError
from ramet.hypervisors import kvm
from ramet.hypervisors.firecracker import driver as firecracker
from ramet.hypervisors.qemu import driver as qemu
from ramet.instances.choice import choose
from ramet.model import Accelerator, Hypervisor

QEMU, FIRECRACKER = Hypervisor.QEMU, Hypervisor.FIRECRACKER
KVM, TCG = Accelerator.KVM, Accelerator.TCG
NO_KVM = "there is no /dev/kvm"


def missing(name: str) -> str:
    raise UnsupportedError(f"The program {name!r} is not on this host.", capability=name, why="not found")


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has everything."""
    monkeypatch.setattr(qemu, "program", lambda: "/usr/bin/qemu")
    monkeypatch.setattr(firecracker, "program", lambda: "/usr/bin/firecracker")
    monkeypatch.setattr(firecracker, "version", lambda path: (1, 12, "1"))
    monkeypatch.setattr(kvm, "why_not_usable", lambda: None)


@pytest.fixture
def no_qemu(on: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "program", lambda: missing("qemu-system-x86_64"))


@pytest.fixture
def no_firecracker(on: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firecracker, "program", lambda: missing("firecracker"))


@pytest.fixture
def no_kvm(on: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "why_not_usable", lambda: NO_KVM)


@pytest.mark.usefixtures("on")
def test_qemu_comes_first_and_it_is_said_why() -> None:
    chosen = choose(None, None)
    assert (chosen.hypervisor, chosen.accelerator) == (QEMU, KVM)
    assert chosen.why == "QEMU with KVM, which works here"


@pytest.mark.usefixtures("no_kvm")
def test_without_kvm_it_is_emulated_and_it_is_said_why() -> None:
    chosen = choose(None, None)
    assert (chosen.hypervisor, chosen.accelerator) == (QEMU, TCG)
    assert chosen.why == f"QEMU without KVM, slower: {NO_KVM}"
    assert choose(QEMU, None) == chosen


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize(
    ("asked", "accelerator", "expected"),
    [
        (QEMU, KVM, (QEMU, KVM)),
        (QEMU, TCG, (QEMU, TCG)),
        (FIRECRACKER, None, (FIRECRACKER, KVM)),
        (None, TCG, (QEMU, TCG)),
    ],
)
def test_what_was_asked_for_is_what_comes_and_nothing_is_said(
    asked: Hypervisor | None, accelerator: Accelerator | None, expected: tuple[Hypervisor, Accelerator]
) -> None:
    chosen = choose(asked, accelerator)
    assert (chosen.hypervisor, chosen.accelerator) == expected
    assert chosen.why is None


@pytest.mark.usefixtures("no_qemu")
def test_firecracker_where_qemu_is_not_installed() -> None:
    chosen = choose(None, None)
    assert (chosen.hypervisor, chosen.accelerator) == (FIRECRACKER, KVM)
    assert chosen.why is not None
    assert "QEMU is not installed" in chosen.why


@pytest.mark.usefixtures("no_qemu", "no_kvm")
def test_nothing_works_for_lack_of_kvm() -> None:
    with pytest.raises(
        UnsupportedError, match=r"qemu-system-x86_64.*Firecracker needs KVM, and there is no /dev/kvm"
    ) as caught:
        choose(None, None)
    assert "apt-get install qemu-system-x86" in str(caught.value)


@pytest.mark.usefixtures("no_qemu", "no_firecracker")
def test_nothing_works_for_lack_of_both() -> None:
    with pytest.raises(UnsupportedError, match=r"'qemu-system-x86_64'.*'firecracker'"):
        choose(None, None)


@pytest.mark.usefixtures("no_kvm")
def test_kvm_that_was_asked_for_and_does_not_work() -> None:
    with pytest.raises(UnsupportedError, match="there is no /dev/kvm") as caught:
        choose(FIRECRACKER, None)
    assert "--hypervisor qemu" in str(caught.value)
    with pytest.raises(UnsupportedError, match="there is no /dev/kvm") as caught:
        choose(QEMU, KVM)
    assert "--accelerator tcg" in str(caught.value)


@pytest.mark.usefixtures("no_firecracker")
def test_firecracker_that_was_asked_for_and_is_missing() -> None:
    with pytest.raises(UnsupportedError, match="'firecracker'"):
        choose(FIRECRACKER, None)


@pytest.mark.usefixtures("on")
def test_firecracker_emulates_nothing() -> None:
    with pytest.raises(ConfigError, match="needs KVM"):
        choose(FIRECRACKER, TCG)
