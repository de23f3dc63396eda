"""What a user meets with Firecracker that is not as with QEMU: attached commands, the console, the log, the end of a guest."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import pytest

from ramet import Host
from ramet.errors import ConfigError, RametError, UnsupportedError, VmmDiedError
from ramet.hypervisors.qemu import driver as qemu
from ramet.model import MIB, Accelerator, Failure, Hypervisor, InstanceInfo, State
from ramet.process import wait_until
from tests.capabilities import requires
from tests.kept import Kept
from tests.vm.guests import marks, set_marks, sh

pytestmark = [
    requires("firecracker", "kvm"),
    pytest.mark.parametrize("file_system", ["xfs"], indirect=True),
]
FIRECRACKER = Hypervisor.FIRECRACKER


@pytest.fixture
def web(host: Host, kept: Kept) -> InstanceInfo:
    kept.put_into(host)
    info = host.restore("web")
    set_marks(host, "web", "ram", "disk")
    return info


def test_what_is_attached_is_told_of_a_capture_and_what_is_detached_lives_on(host: Host, web: InstanceInfo) -> None:
    """A capture resets every connection of the guest's vsock, and the host's end hears nothing of it by itself."""
    count = "i=0; while :; do i=$((i+1)); echo $i >/ram/new; mv /ram/new /ram/count; sleep 0.1; done"
    host.exec("web", ["sh", "-c", count], detach=True)  # it is read meanwhile, and so never empty
    errors: list[RametError] = []

    def attached() -> None:
        try:
            host.exec("web", ["sh", "-c", "echo >/ram/began; exec sleep 1000"])
        except RametError as err:
            errors.append(err)

    thread = threading.Thread(target=attached)
    thread.start()
    both = "cat /ram/began /ram/count >/dev/null && echo both || true"
    wait_until(lambda: sh(host, "web", both) != "", 60, what="both commands to run")
    host.fork("web", ["kid"])
    thread.join(60)
    assert not thread.is_alive(), "the command waits for ever"
    assert [type(err) for err in errors] == [VmmDiedError]
    assert "--detach" in str(errors[0])
    before = int(sh(host, "web", "cat /ram/count"))
    wait_until(lambda: int(sh(host, "web", "cat /ram/count")) > before, 60, what="the detached command to go on")


def test_a_guest_that_prints_for_ever_does_not_fill_the_hosts_disk(host: Host, web: InstanceInfo) -> None:
    """Its log grows up to a limit, and no further; it does not lose its VMM by that, though Firecracker would end itself."""
    assert web.pid is not None
    assert resource.prlimit(web.pid, resource.RLIMIT_FSIZE) == (128 * MIB, 128 * MIB)
    log = Path(web.logs["console"])
    most = log.stat().st_size + 3000  # to get there by itself takes an emulated guest too long
    resource.prlimit(web.pid, resource.RLIMIT_FSIZE, (most, most))
    sh(host, "web", "for i in $(seq 200); do echo the same line again and again; done >/dev/ttyS0; echo done")
    assert log.stat().st_size == most
    info = host.get("web")
    assert (info.state, info.pid) == (State.RUNNING, web.pid)
    assert Path(info.logs["vmm"]).stat().st_size <= most


def test_a_guest_that_powers_off_or_reboots_ends_its_vmm(host: Host, web: InstanceInfo) -> None:
    for command in ("poweroff", "reboot"):
        host.exec("web", [command], detach=True)
        wait_until(lambda: host.get("web").state is State.STOPPED, 60, what=f"the guest to end after {command}")
        host.start("web")
        assert sh(host, "web", "cat /data/mark") == "disk"
    assert host.stop("web").state is State.STOPPED
    assert host.last_note is None, "it shut down by itself"


def test_a_guest_whose_kernel_panics_has_failed(host: Host, web: InstanceInfo) -> None:
    host.exec("web", ["sh", "-c", "echo c >/proc/sysrq-trigger"], detach=True)
    wait_until(lambda: host.get("web").state is State.FAILED, 60, what="the guest to end")
    info = host.get("web")
    assert info.failure is Failure.GUEST_PANICKED
    assert "panicked (sysrq triggered crash)" in (info.failure_detail or "")
    host.start("web")
    assert sh(host, "web", "cat /data/mark") == "disk"


def test_its_console_and_its_logs(host: Host, web: InstanceInfo) -> None:
    with pytest.raises(UnsupportedError, match="takes no input") as caught:
        host.console_socket("web")
    assert "ramet exec -t web" in str(caught.value)
    console, vmm = (host.logs("web")[kind].read_text(errors="replace") for kind in ("console", "vmm"))
    assert "built-in shell" in console
    assert "Running Firecracker v" in vmm
    assert (Path(web.logs["vmm"]).parent / "firecracker-metrics.json").stat().st_size > 0


def test_its_state_is_its_own_and_its_disk_is_anybody_s(host: Host, web: InstanceInfo) -> None:
    host.standby("web")
    for source in ("web", f"snapshot:{host.snapshot_create('web', 'golden').id}"):
        with pytest.raises(UnsupportedError, match="no other VMM can load"):
            host.fork(source, ["kid"], hypervisor=Hypervisor.QEMU)
    assert [info.name for info in host.list()] == ["web"]
    host.stop("web", discard_memory=True)
    (kid,) = host.fork("web", ["kid"], hypervisor=Hypervisor.QEMU).instances
    assert (kid.hypervisor, kid.accelerator) == (Hypervisor.QEMU, Accelerator.KVM)
    (back,) = host.fork("kid", ["back"], hypervisor=FIRECRACKER, start=True).instances
    assert back.hypervisor is FIRECRACKER
    assert sh(host, "back", "cat /data/mark") == "disk"
    set_marks(host, "back", "ram-back", "disk-back")
    host.standby("back")
    host.restore("back")
    assert marks(host, "back") == ("ram-back", "disk-back")


def test_it_needs_kvm_and_is_chosen_where_qemu_is_missing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="needs KVM"):
        host.create("web", hypervisor=FIRECRACKER, accelerator=Accelerator.TCG)

    def missing() -> str:
        raise UnsupportedError("There is no QEMU.", capability="qemu", why="not installed")

    monkeypatch.setattr(qemu, "program", missing)
    assert host.create("web", memory_mib=128, disk_bytes=32 * MIB).hypervisor is FIRECRACKER
    assert host.last_note == "Firecracker: KVM works here, and QEMU is not installed"
