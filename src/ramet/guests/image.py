"""Guest images: built from Debian packages and our agent, addressed by their content, never changed.

images/<digest>/{kernel, initrd, image.json}    0400, published by one rename
images/tags/<name>                              holds a digest, replaced atomically
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from ramet import config, process
from ramet.errors import ConfigError, CorruptError, InUseError, NotFoundError, UnsupportedError, host_errors
from ramet.guests import agent_build, initramfs, kernel
from ramet.model import IMAGE_FORMAT_VERSION, Image
from ramet.store import atomic

DIGEST_DIGITS = 32
CMDLINE = "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t random.trust_cpu=on"
BUSYBOX = Path("/bin/busybox")
KNOWN_NAMES = ("micro",)
MICRO_FILES = {"inittab": ("etc/inittab", 0o644), "rcS": ("etc/init.d/rcS", 0o755), "rcK": ("etc/init.d/rcK", 0o755),
               "profile": ("etc/profile", 0o644)}  # fmt: skip
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
Say = Callable[[str], None]


def build(images_dir: Path, *, name: str = "micro", cache_dir: Path, progress: Say | None = None) -> Image:
    """Build an image and let ``name`` mean it; if the same one is there already, it is kept.

    Raises:
        ConfigError: for a name that no recipe has.
        UnsupportedError: naming the missing tool and its package, before anything is touched.
        HostError: for a failed download or a full disk; nothing is left behind.
    """
    say = progress or (lambda text: None)
    if name not in KNOWN_NAMES:
        raise ConfigError(f"There is no recipe for an image {name!r}.", hint=f"Known: {', '.join(KNOWN_NAMES)}.")
    for program, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("cc", "gcc libc6-dev")):
        process.find_program(program, package=package)
    guest_kernel = kernel.obtain(cache_dir, say=say)
    busybox = _busybox(cache_dir)
    say("compiling the agent")
    programs = agent_build.compile_programs()
    initrd = initramfs.archive(_entries(guest_kernel, busybox, programs))
    digest = _digest(guest_kernel.vmlinux, initrd)
    image = Image(
        digest=digest,
        name=name,
        created_at_unix_s=time.time(),
        kernel_version=guest_kernel.version,
        kernel="kernel",
        initrd="initrd",
        cmdline=CMDLINE,
        inputs={
            "kernel": guest_kernel.package,
            "busybox": hashlib.sha256(busybox).hexdigest(),
            **{program: hashlib.sha256(data).hexdigest() for program, data in programs.items()},
        },
        size_bytes=len(guest_kernel.vmlinux) + len(initrd),
    )
    with host_errors("publish the image"):
        if not (images_dir / digest).is_dir():
            say(f"publishing {digest}")
            _publish(images_dir, image, guest_kernel.vmlinux, initrd)
        (images_dir / "tags").mkdir(mode=0o700, exist_ok=True)
        atomic.write_atomic(images_dir / "tags" / name, digest.encode() + b"\n")
    return _load(images_dir / digest)


def resolve(images_dir: Path, name_or_digest: str) -> tuple[Image, Path]:
    """An image by name, digest, or the digest's first digits (8 at least), and its directory.

    Raises:
        NotFoundError: saying how to build it.
        CorruptError: if its description is damaged.
    """
    config.check_name(name_or_digest, what="image")
    tag = images_dir / "tags" / name_or_digest
    digest = tag.read_text().strip() if tag.is_file() else name_or_digest
    if len(digest) >= 8 and not (images_dir / digest).is_dir():
        starts = [path.name for path in images_dir.glob(f"{digest}*") if path.is_dir()]
        digest = starts[0] if len(starts) == 1 else digest
    directory = images_dir / digest
    if not (directory / "image.json").exists():
        raise NotFoundError(f"There is no image {name_or_digest!r}.", hint="Build it: ramet image build")
    return _load(directory), directory


def list_images(images_dir: Path) -> list[tuple[Image, tuple[str, ...]]]:
    """Every image and the names that mean it, oldest first."""
    names: dict[str, list[str]] = {}
    if (images_dir / "tags").is_dir():
        for tag in sorted((images_dir / "tags").iterdir()):
            names.setdefault(tag.read_text().strip(), []).append(tag.name)
    found = [_load(path) for path in images_dir.iterdir() if (path / "image.json").exists()]
    ordered = sorted(found, key=lambda image: (image.created_at_unix_s, image.digest))
    return [(image, tuple(names.get(image.digest, ()))) for image in ordered]


def remove(images_dir: Path, name_or_digest: str, *, in_use_by: Sequence[str]) -> None:
    """Delete an image and its names.

    Raises:
        InUseError: if instances were created with it.
    """
    image, directory = resolve(images_dir, name_or_digest)
    if in_use_by:
        raise InUseError(
            f"Image {image.digest} is in use by {', '.join(in_use_by)}.",
            dependents=in_use_by,
            hint="They boot it when they are started: remove them first.",
        )
    with host_errors(f"delete the image {image.digest}"):
        for tag in (images_dir / "tags").iterdir():
            if tag.read_text().strip() == image.digest:
                tag.unlink()
        gone = images_dir / f".trash-{image.digest}"
        directory.rename(gone)
        atomic.remove_tree(gone)


def _digest(vmlinux: bytes, initrd: bytes) -> str:
    """Over the content alone: kernel, initramfs, command line and format."""
    digest = hashlib.sha256(f"ramet-image {IMAGE_FORMAT_VERSION}\n{CMDLINE}\n{len(vmlinux)}\n".encode())
    digest.update(vmlinux)
    digest.update(initrd)
    return digest.hexdigest()[:DIGEST_DIGITS]


def _publish(images_dir: Path, image: Image, vmlinux: bytes, initrd: bytes) -> None:
    with TemporaryDirectory(prefix=".build-", dir=images_dir) as scratch:
        work = Path(scratch) / image.digest
        work.mkdir(mode=0o700)
        (work / image.kernel).write_bytes(vmlinux)
        (work / image.initrd).write_bytes(initrd)
        atomic.write_json(work / "image.json", image)
        try:
            atomic.publish_directory(work, images_dir / image.digest)
        except FileExistsError:
            return  # another build of the same content was quicker


def _load(directory: Path) -> Image:
    image = atomic.read_json(directory / "image.json", Image)
    if image.format_version != IMAGE_FORMAT_VERSION:
        raise CorruptError(f"{directory} has image format {image.format_version}, unknown to this Ramet.")
    for name in (image.kernel, image.initrd):
        if not (directory / name).is_file():
            raise CorruptError(f"Image {image.digest} has lost its {name}.", hint="Build it again: ramet image build")
    return image


def _entries(guest_kernel: kernel.Kernel, busybox: bytes, programs: dict[str, bytes]) -> list[initramfs.Entry]:
    micro = files("ramet.guests") / "micro"
    entries = [initramfs.directory(path) for path in DIRECTORIES]
    entries.append(initramfs.character_device("dev/console", 5, 1))
    entries.append(initramfs.character_device("dev/null", 1, 3))
    entries.append(initramfs.file("bin/busybox", busybox, 0o755))
    entries.append(initramfs.symlink("init", "bin/busybox"))
    entries += [initramfs.symlink(path, "/bin/busybox") for path in _applets(busybox)]
    entries.append(initramfs.file("sbin/ramet-agent", programs["ramet-agent"], 0o755))
    entries.append(initramfs.file("bin/ramet-fill", programs["ramet-fill"], 0o755))
    for name, (path, mode) in MICRO_FILES.items():
        entries.append(initramfs.file(path, (micro / name).read_bytes(), mode))
    entries += [initramfs.file(path, text.encode()) for path, text in TEXT_FILES.items()]
    entries += [initramfs.file(f"lib/modules/{name}", data) for name, data in guest_kernel.modules]
    order = "".join(f"{name}\n" for name, _ in guest_kernel.modules)
    entries.append(initramfs.file("lib/modules/order", order.encode()))
    return entries


def _applets(busybox: bytes) -> list[str]:
    """The paths of busybox's applets, as it lists them itself."""
    with TemporaryDirectory(prefix="ramet-busybox-") as scratch:
        program = Path(scratch) / "busybox"
        program.write_bytes(busybox)
        program.chmod(0o700)
        listing = process.run([str(program), "--list-full"], timeout_s=20).stdout.decode().split()
    return sorted(path for path in set(listing) if path not in ("bin/busybox", "linuxrc", "init"))


def _busybox(cache_dir: Path) -> bytes:
    """A static busybox: the host's if it has one, else Debian's package, unpacked."""
    if BUSYBOX.is_file() and _is_static(BUSYBOX.read_bytes()):
        return BUSYBOX.read_bytes()
    packages = cache_dir / "packages"
    apt_get = process.find_program("apt-get", package="apt")
    deb = kernel.download(apt_get, packages, "busybox-static")
    with TemporaryDirectory(prefix=".unpack-", dir=packages) as scratch:
        process.run(["dpkg-deb", "-x", str(deb), scratch], timeout_s=60)
        found = [path for path in (Path(scratch) / "bin/busybox", Path(scratch) / "usr/bin/busybox") if path.exists()]
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
