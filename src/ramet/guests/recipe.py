"""What goes into the image ``micro``: busybox, modules, our programs and a few files (micro/README.md)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from ramet import helpers
from ramet.errors import UnsupportedError
from ramet.guests import debian, initramfs
from ramet.guests.kernel import Kernel

BUSYBOX = Path("/bin/busybox")
MICRO_FILES = {
    "inittab": ("etc/inittab", 0o644),
    "rcS": ("etc/init.d/rcS", 0o755),
    "rcK": ("etc/init.d/rcK", 0o755),
    "console": ("etc/init.d/console", 0o755),
    "profile": ("etc/profile", 0o644),
}
TEXT_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/hostname": "ramet\n",
    "etc/machine-id": "",
    "etc/hosts": "127.0.0.1 localhost\n",
}
DIRECTORIES = (
    "bin", "data", "dev", "etc", "etc/init.d", "etc/ramet", "etc/ramet/resume.d", "lib", "lib/modules", "proc", "ram",
    "root", "run", "sbin", "sys", "tmp", "usr", "usr/bin", "usr/sbin", "var",
)  # fmt: skip


def entries(guest_kernel: Kernel, busybox: bytes, programs: dict[str, bytes]) -> list[initramfs.Entry]:
    """The files of the image, in the order of the archive; ``programs`` are the agent and the filler."""
    micro = files("ramet.guests") / "micro"
    found = [initramfs.directory(path) for path in DIRECTORIES]
    found.append(initramfs.character_device("dev/console", 5, 1))
    found.append(initramfs.character_device("dev/null", 1, 3))
    found.append(initramfs.file("bin/busybox", busybox, 0o755))
    found.append(initramfs.symlink("init", "bin/busybox"))
    found += [initramfs.symlink(path, "/bin/busybox") for path in _applets(busybox)]
    found.append(initramfs.file("sbin/ramet-agent", programs["ramet-agent"], 0o755))
    found.append(initramfs.file("bin/ramet-fill", programs["ramet-fill"], 0o755))
    for name, (path, mode) in MICRO_FILES.items():
        found.append(initramfs.file(path, (micro / name).read_bytes(), mode))
    found += [initramfs.file(path, text.encode()) for path, text in TEXT_FILES.items()]
    found += [initramfs.file(f"lib/modules/{name}", data) for name, data in guest_kernel.modules]
    order = "".join(f"{name}\n" for name, _ in guest_kernel.modules)
    found.append(initramfs.file("lib/modules/order", order.encode()))
    return found


def _applets(busybox: bytes) -> list[str]:
    """The paths of busybox's applets, as it lists them itself."""
    with TemporaryDirectory(prefix="ramet-busybox-") as scratch:
        program = Path(scratch) / "busybox"
        program.write_bytes(busybox)
        program.chmod(0o700)
        listing = helpers.run([str(program), "--list-full"], timeout_s=20).stdout.decode().split()
    return sorted(path for path in set(listing) if path not in ("bin/busybox", "linuxrc", "init"))


def busybox(cache_dir: Path) -> bytes:
    """A static busybox: the host's if it has one, else Debian's package, unpacked."""
    if BUSYBOX.is_file() and _is_static(BUSYBOX.read_bytes()):
        return BUSYBOX.read_bytes()
    with debian.unpacked("busybox-static", cache_dir / "packages") as tree:
        found = [path for path in (tree / "bin/busybox", tree / "usr/bin/busybox") if path.exists()]
        if not found:
            raise UnsupportedError(
                "busybox-static holds no busybox.", capability="busybox", why="unknown package layout"
            )
        return found[0].read_bytes()


def _is_static(program: bytes) -> bool:
    """Whether an ELF program names no interpreter (PT_INTERP)."""
    if program[:5] != b"\x7fELF\x02":
        return False
    offset = int.from_bytes(program[32:40], "little")
    size = int.from_bytes(program[54:56], "little")
    count = int.from_bytes(program[56:58], "little")
    kinds = {int.from_bytes(program[offset + i * size : offset + i * size + 4], "little") for i in range(count)}
    return 3 not in kinds
