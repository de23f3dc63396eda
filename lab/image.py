"""What the lab boots: Debian's generic kernel with the modules for KVM, and an initramfs of busybox, our agent and ``init``."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ramet.errors import host_errors
from ramet.guests import agent_build, initramfs, kernel, recipe

MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
    "loop",
    "crc32c_generic",
    "ext4",
    "xfs",
    "kvm_amd",
    "vhost_vsock",
    "tun",
)
INIT = files("lab") / "init"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Two files that QEMU loads."""

    kernel: Path
    initrd: Path


def obtain(cache_dir: Path) -> Image:
    """The lab's image, built if its sources have changed since it was last.

    Raises:
        RametError: if the kernel cannot be had, or a tool is missing.
    """
    directory = cache_dir / "lab" / _sources_digest()
    image = Image(kernel=directory / "kernel", initrd=directory / "initrd")
    if not image.initrd.exists():
        with host_errors(f"make {directory}"):
            directory.mkdir(parents=True, exist_ok=True)
        lab_kernel = kernel.obtain(cache_dir, modules=MODULES, say=lambda text: None)
        initrd = initramfs.archive(_entries(lab_kernel, recipe.busybox(cache_dir)))
        with host_errors(f"write the lab's kernel and initramfs to {directory}"):
            _replace(image.kernel, lab_kernel.vmlinux)
            _replace(image.initrd, initrd)
    return image


def _entries(lab_kernel: kernel.Kernel, busybox: bytes) -> list[initramfs.Entry]:
    order = "".join(f"{name}\n" for name, _ in lab_kernel.modules)
    return [
        *(initramfs.directory(path) for path in ("bin", "dev", "modules")),
        initramfs.character_device("dev/console", 5, 1),
        initramfs.file("init", INIT.read_bytes(), 0o755),
        initramfs.file("bin/busybox", busybox, 0o755),
        initramfs.file("bin/ramet-agent", agent_build.compile_programs()["ramet-agent"], 0o755),
        *(initramfs.file(f"modules/{name}", data) for name, data in lab_kernel.modules),
        initramfs.file("modules/order", order.encode()),
    ]


def _sources_digest() -> str:
    """Of what we put in; a newer kernel package alone is no reason to build anew."""
    digest = hashlib.sha256("\n".join(MODULES).encode())
    for source in (INIT, *agent_build.sources()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_bytes(data)
    temporary.rename(path)  # two labs may build at once, and either result will do
