"""Firecracker's driver: which program, launch, load.

Its working directory is the instance's, and every path that lands in a device state is relative to it: a fork's resolves inside
the fork's own directory.
"""

from __future__ import annotations

import functools
import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ramet import helpers, process
from ramet.errors import UnsupportedError, VmmDiedError, VmmError, host_errors
from ramet.hypervisors import confinement, kvm
from ramet.hypervisors.base import DirtySince, Hardware, LaunchSpec
from ramet.hypervisors.confinement import Confinement
from ramet.hypervisors.launch import LOG_READ_BYTES, inherited, last_run, launched
from ramet.linux import foreign, procfs
from ramet.model import Accelerator, Hypervisor, VmmBuild, VmmProcess
from ramet.paths import API_SOCKET, VSOCK_SOCKET
from ramet.phases import phase

if TYPE_CHECKING:
    from ramet.hypervisors.firecracker.api import FirecrackerMonitor

OLDEST = (1, 12)
NEXT_MAJOR = 2
GET_IT = "Put a release of Firecracker into PATH, or name it with RAMET_FIRECRACKER."
KNOWN = "from 1.12 on and below 2"
GUEST_CID = 3
"""The smallest that a guest can have (vsock(7)); each Firecracker has its own address space of them."""
LOAD_DEADLINE_S = 30.0
NEEDS_CALLS = ("memfd_create",)
"""For a ring of its vsock that it maps twice (src/vmm/src/devices/virtio/iov_deque.rs)."""
LOG = "firecracker.log"
TRIPLE_FAULT = "Received KVM_EXIT_SHUTDOWN"
METRICS = "firecracker-metrics.json"
BOOT_ARGS = "reboot=k ramet.poweroff=reboot pci=off i8042.noaux i8042.nomux i8042.dumbkbd"
"""A reset by the keyboard controller is what ends Firecracker; it has no power that a guest could switch off."""
_VERSION = re.compile(r"Firecracker v(\d+)\.(\d+)\.(\S+)")


def program() -> str:
    """Firecracker's path: ``$RAMET_FIRECRACKER``, else from PATH.

    Raises:
        UnsupportedError: if there is none.
    """
    return helpers.find_program("firecracker", hint=GET_IT, variable="RAMET_FIRECRACKER")


def version(path: str) -> tuple[int, int, str]:
    """Major, minor and patch; asked once per process and per file.

    Raises:
        UnsupportedError: for a version that this driver does not know.
    """
    stat = Path(path).stat()
    return _version_of(path, stat.st_mtime_ns, stat.st_size)


@functools.cache
def _version_of(path: str, mtime_ns: int, size: int) -> tuple[int, int, str]:
    out = helpers.run([path, "--version"], timeout_s=20).stdout.decode(errors="replace")
    match = _VERSION.search(out)
    if match is None:
        raise UnsupportedError(
            f"{path} --version did not answer like Firecracker: {out.strip()[:80]!r}.",
            capability="firecracker",
            why="not Firecracker",
        )
    found = (int(match[1]), int(match[2]), match[3])
    if found[:2] < OLDEST or found[0] >= NEXT_MAJOR:
        raise UnsupportedError(
            f"{path} is Firecracker {'.'.join(map(str, found))}. This version of Ramet knows those {KNOWN}.",
            capability="firecracker",
            why=f"only those {KNOWN} are known",
            hint="Name another one with RAMET_FIRECRACKER, or use --hypervisor qemu.",
        )
    return found


def tracking_option() -> str:
    """What ``PUT /snapshot/load`` calls dirty tracking: 1.12 refuses the later name, later versions the earlier one."""
    return "enable_diff_snapshots" if version(program())[:2] == OLDEST else "track_dirty_pages"


class FirecrackerDriver:
    """The driver; it holds no state of any VM."""

    dirty_since = DirtySince.LAST_CAPTURE

    @property
    def opens_memory_read_only(self) -> bool:
        return True

    def build(self, hardware: Hardware) -> VmmBuild:
        return VmmBuild(
            hypervisor=Hypervisor.FIRECRACKER,
            version=".".join(map(str, version(program()))),
            accelerator=Accelerator.KVM,
            machine="firecracker",
            cpu_model=kvm.host_cpu(),
            devices=_devices_digest(hardware),
        )

    def boot(self, spec: LaunchSpec) -> VmmProcess:
        if spec.boot is None:
            raise ValueError("boot() needs boot files")
        files = (spec.boot.kernel, spec.boot.initrd)
        with self._launched(spec, files) as (vmm, monitor, (kernel, initrd)):
            disk = str(spec.disk.relative_to(spec.work_dir.parent))
            for path, body in _configuration(spec.hardware, disk=disk).items():
                monitor.request("PUT", path, body)
            boot_source = {
                "kernel_image_path": str(kernel),
                "initrd_path": str(initrd),
                "boot_args": f"{spec.boot.cmdline} {BOOT_ARGS}",
            }
            monitor.request("PUT", "/boot-source", boot_source)
            monitor.request("PUT", "/actions", {"action_type": "InstanceStart"}, timeout_s=LOAD_DEADLINE_S)
            return vmm

    def load(self, spec: LaunchSpec) -> VmmProcess:
        if spec.vmstate is None:
            raise ValueError("load() needs a vmstate")
        with ExitStack() as stack:
            with phase("start"):
                launched_one = self._launched(spec, (spec.vmstate, spec.memory))
                vmm, monitor, (vmstate, memory) = stack.enter_context(launched_one)
            with phase("load"):
                monitor.load_snapshot(vmstate=str(vmstate), memory=str(memory), tracking=tracking_option())
                _require_private(vmm, spec.memory)
            return vmm

    def connect(self, run_dir: Path, *, deadline_s: float = 10.0) -> FirecrackerMonitor:
        from ramet.hypervisors.firecracker.api import FirecrackerMonitor  # and http: who only looks does not pay for it

        return FirecrackerMonitor(run_dir, deadline_s=deadline_s)

    def log_of(self, vmm_log: Path) -> Path:
        """Of its latest launch: Firecracker writes from the start of the file that it is given."""
        return vmm_log.with_name(LOG)

    def ended_by_guest(self, run_dir: Path, vmm_log: Path) -> bool:
        """Its last words, if nobody has killed it; a triple fault, with which memory is lost, it names besides."""
        said = _own_log(vmm_log)
        return "Firecracker exiting successfully" in said and TRIPLE_FAULT not in said

    @contextmanager
    def _launched(
        self, spec: LaunchSpec, files: tuple[Path, ...]
    ) -> Iterator[tuple[VmmProcess, FirecrackerMonitor, list[Path]]]:
        """A Firecracker, its monitor, and the paths by which it opens ``files``."""
        log, path = spec.vmm_log, program()
        confined = confinement.of(
            spec, path, kvm=True, memory_is_written=False, ends_at_file_limit=True, needs_calls=NEEDS_CALLS
        )
        with ExitStack() as stack:
            with host_errors(f"open the files of {spec.name!r}"):
                opened = [inherited(stack, file) for file in files]
            vmm = stack.enter_context(
                launched(
                    "Firecracker",
                    confined,
                    lambda: _spawn(path, confined, [fd for fd, _ in opened]),
                    last_words=lambda: _own_log(log) + last_run(log),
                    hint=f"The whole log is {self.log_of(log)}, its command line and what it said on stderr {log}."
                    f"{confinement.hint()}",
                )
            )
            monitor = stack.enter_context(_connected(spec.run_dir, vmm))
            yield vmm, monitor, [by_descriptor for _, by_descriptor in opened]


def _spawn(path: str, confined: Confinement, fds: Sequence[int]) -> tuple[list[str], VmmProcess]:
    spec = confined.spec
    directory = spec.work_dir.parent
    logs = spec.vmm_log.parent
    with host_errors(f"prepare {directory}"):
        for name in (API_SOCKET, VSOCK_SOCKET):
            (spec.run_dir / name).unlink(missing_ok=True)
        for name in (LOG, METRICS):  # Firecracker writes from the start of what it is given
            (logs / name).unlink(missing_ok=True)
            (logs / name).touch(mode=0o600, exist_ok=False)
    command = [
        path,
        *("--id", re.sub(r"[^A-Za-z0-9-]", "-", spec.name)[:64]),
        *("--api-sock", f"{spec.run_dir.name}/{API_SOCKET}"),
        *("--log-path", f"{logs.name}/{LOG}", "--level", "Info"),
        *("--metrics-path", f"{logs.name}/{METRICS}"),
    ]
    confined.hand_over()
    vmm = process.spawn(
        command,
        log_path=spec.vmm_log,
        pass_fds=fds,
        cwd=directory,
        mark=spec.run_dir,
        stdout_path=spec.console_log,
        limits=confined.limits,
        starter=confined.start,
    )
    return command, vmm


@contextmanager
def _connected(run_dir: Path, vmm: VmmProcess) -> Iterator[FirecrackerMonitor]:
    from ramet.hypervisors.firecracker.api import FirecrackerMonitor

    end_s = time.monotonic() + LOAD_DEADLINE_S
    while True:
        try:
            monitor = FirecrackerMonitor(run_dir, deadline_s=LOAD_DEADLINE_S)
        except VmmDiedError:
            if not process.is_alive(vmm) or time.monotonic() > end_s:
                raise
            time.sleep(0.002)  # it makes its socket itself
            continue
        with monitor:
            yield monitor
        return


def _configuration(hardware: Hardware, *, disk: str) -> dict[str, object]:
    """The requests that make the machine, in order; ``disk`` is relative to the instance's directory."""
    return {
        "/machine-config": {
            "vcpu_count": hardware.cpus,
            "mem_size_mib": hardware.memory_mib,
            "smt": False,
            "track_dirty_pages": True,
        },
        "/drives/disk": {
            "drive_id": "disk",
            "path_on_host": disk,
            "is_root_device": False,
            "is_read_only": False,
            "cache_type": "Writeback",
        },
        "/vsock": {"guest_cid": GUEST_CID, "uds_path": f"run/{VSOCK_SOCKET}"},
    }


def _devices_digest(hardware: Hardware) -> str:
    return hashlib.sha256(msgspec.json.encode(_configuration(hardware, disk=""))).hexdigest()[:16]


def _require_private(vmm: VmmProcess, memory: Path) -> None:
    """Refuse a VMM that could write into the memory file: what came of the options is looked at, not assumed (H06, H60)."""
    with host_errors(f"see how Firecracker maps {memory}"):
        mappings = procfs.mappings_of_file(vmm.pid, memory)
        writable = [one.fd for one in procfs.descriptors_of_file(vmm.pid, memory) if one.writable]
        size_bytes = memory.stat().st_size
    mapped_bytes = sum(mapping.end - mapping.start for mapping in mappings)
    if mapped_bytes != size_bytes or any("s" in mapping.perms for mapping in mappings) or writable:
        raise VmmError(
            f"Firecracker does not map {memory} as it should: {mapped_bytes} of {size_bytes} bytes, "
            f"{', '.join(mapping.perms for mapping in mappings) or 'not at all'}, writable descriptors: {writable}."
        )


def _own_log(vmm_log: Path) -> str:
    return foreign.read_tail(vmm_log.with_name(LOG), limit=LOG_READ_BYTES).decode(errors="replace")
