"""Debian's generic kernel: downloaded by apt (which checks its signature chain), unpacked, never installed.

Only the kernel itself and the few modules that a guest needs are kept, in a cache keyed by the package.
"""

from __future__ import annotations

import lzma
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ramet import helpers
from ramet.errors import CommandError, HostError, UnsupportedError, host_errors
from ramet.guests import debian

META_PACKAGES = ("linux-image-amd64", "linux-image-generic", "linux-image-virtual")
GUEST_MODULES = (
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "ext4",
    "crc32c_generic",
    "vmw_vsock_virtio_transport",
)
SOFT_DEPENDENCIES: Mapping[str, tuple[str, ...]] = dict.fromkeys(("ext4", "jbd2", "libcrc32c"), ("crc32c_generic",))
FILTER_TIMEOUT_S = 300
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_CONFIG_HZ = re.compile(r"^CONFIG_HZ=(\d+)$", re.MULTILINE)
_ELF = b"\x7fELF"
_GZIP = b"\x1f\x8b"
SIZE_WORD = 4
"""What the kernel's build appends to its payload, unless gzip has done so (scripts/Makefile.lib, size_append)."""
HEADER_END = 0x250
"""Of the parts of a bzImage's header that are read here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """``vmlinux`` is an ELF; ``modules`` are (file name, bytes) in the order in which they must be loaded."""

    version: str
    package: str
    tick_hz: int | None
    """How often it ticks (CONFIG_HZ); None if its package does not say."""
    vmlinux: bytes
    modules: tuple[tuple[str, bytes], ...]


def obtain(cache_dir: Path, *, modules: tuple[str, ...] = GUEST_MODULES, say: Callable[[str], None]) -> Kernel:
    """Download (unless it is cached), unpack and take apart the kernel package; keep ``modules`` and what they need.

    Raises:
        UnsupportedError: where apt or a decompressor is missing.
        CommandError, HostError: if the download or the unpacking failed; the cache holds no half of it.
    """
    package = _image_package()
    debs = cache_dir / "packages"
    with host_errors(f"make {debs}"):
        debs.mkdir(parents=True, exist_ok=True)
    say(f"fetching {package}")
    with _unpacked(debs, package) as trees:
        vmlinuz = _only(trees, "boot/vmlinuz-*")
        version = vmlinuz.name.removeprefix("vmlinuz-")
        say(f"taking kernel {version} apart")
        with host_errors(f"read {vmlinuz}"):
            vmlinux = extract_vmlinux(vmlinuz.read_bytes())
        return Kernel(
            version=version,
            package=package,
            tick_hz=_tick_hz(trees, version),
            vmlinux=vmlinux,
            modules=_modules(trees, version, modules),
        )


def extract_vmlinux(image: bytes) -> bytes:
    """Cut the ELF kernel out of a bzImage (Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length).

    Raises:
        HostError: if it is no bzImage.
        UnsupportedError: for a compression that cannot be undone here.
    """
    if image[:4] == _ELF:
        return image
    if image[0x202:0x206] != b"HdrS" or len(image) < HEADER_END:
        raise HostError("The kernel is neither an ELF file nor a bzImage.")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if len(payload) != length:
        raise HostError("The kernel is shorter than its header says.")
    if not payload.startswith((_GZIP, _ELF)):
        payload = payload[:-SIZE_WORD]
    kernel = _decompress(payload)
    if kernel[:4] != _ELF:
        raise HostError("The kernel's payload is no ELF file.")
    return kernel


def _tick_hz(trees: Sequence[Path], version: str) -> int | None:
    for tree in trees:
        config = tree / "boot" / f"config-{version}"
        if config.is_file():
            with host_errors(f"read {config}"):
                found = _CONFIG_HZ.search(config.read_text(errors="replace"))
            return int(found[1]) if found else None
    return None


def load_order(depends: Mapping[str, tuple[str, ...]], wanted: tuple[str, ...]) -> list[str]:
    """Modules with their dependencies before them; what ``depends`` does not know is built in."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen or name not in depends:
            return
        seen.add(name)
        for needed in (*SOFT_DEPENDENCIES.get(name, ()), *depends[name]):
            visit(needed)
        order.append(name)

    for name in wanted:
        visit(name)
    return order


def _image_package() -> str:
    """The package with the current kernel: what the meta package depends on."""
    apt_cache = helpers.find_program("apt-cache", package="apt")
    for meta in META_PACKAGES:
        try:
            listing = helpers.run([apt_cache, "depends", meta], timeout_s=60).stdout.decode()
        except CommandError:
            continue
        for line in listing.splitlines():
            kind, _, name = line.strip().partition(": ")
            if kind.endswith("Depends") and name.startswith("linux-image-"):
                return name
    raise UnsupportedError(
        f"apt knows none of the kernel packages {', '.join(META_PACKAGES)}.",
        capability="kernel-package",
        why="the package lists are empty, or this is not Debian or Ubuntu",
        hint="Run `apt-get update` and try again.",
    )


@contextmanager
def _unpacked(debs: Path, package: str) -> Iterator[tuple[Path, ...]]:
    """The kernel's package, and Ubuntu's separate package of modules, unpacked for the block."""
    names = [package]
    if package.endswith("-generic"):
        names.append(
            package.replace("linux-image-unsigned-", "linux-modules-").replace("linux-image-", "linux-modules-")
        )
    with ExitStack() as stack:
        yield tuple(stack.enter_context(debian.unpacked(name, debs)) for name in names)


def _only(trees: tuple[Path, ...], pattern: str) -> Path:
    found = [path for tree in trees for path in tree.glob(pattern)]
    if len(found) != 1:
        raise HostError(f"The kernel package holds {len(found)} files like {pattern}; one was expected.")
    return found[0]


def _modules(trees: tuple[Path, ...], version: str, wanted: tuple[str, ...]) -> tuple[tuple[str, bytes], ...]:
    files: dict[str, Path] = {}
    for tree in trees:
        for base in (tree / "lib/modules" / version, tree / "usr/lib/modules" / version):
            for path in base.rglob("*.ko*"):
                files[path.name.split(".ko")[0].replace("-", "_")] = path
    contents: dict[str, bytes] = {}
    depends: dict[str, tuple[str, ...]] = {}
    queue = [name for name in wanted if name in files]
    while queue:
        name = queue.pop()
        if name in depends:
            continue
        contents[name] = _read_module(files[name])
        depends[name] = tuple(n for n in module_dependencies(contents[name]) if n in files)
        queue += [*depends[name], *(n for n in SOFT_DEPENDENCIES.get(name, ()) if n in files)]
    return tuple((f"{name}.ko", contents[name]) for name in load_order(depends, wanted))


def module_dependencies(module: bytes) -> tuple[str, ...]:
    """The ``depends=`` entry of a module's .modinfo."""
    match = _DEPENDS.search(module)
    names = match.group(1).decode().split(",") if match else []
    return tuple(name.replace("-", "_") for name in names if name)


def _read_module(path: Path) -> bytes:
    with host_errors(f"read {path}"):
        data = path.read_bytes()
    return data if path.suffix == ".ko" else _decompress(data)


def _decompress(data: bytes) -> bytes:
    """Undo the compression that the first bytes name.

    Raises:
        HostError: if the data are damaged or end too soon.
        UnsupportedError: for a compression that cannot be undone here.
    """
    if data.startswith(b"\xfd7zXZ\0"):
        return _stream(lzma.LZMADecompressor(), data)
    if data.startswith(_GZIP):
        return _stream(zlib.decompressobj(wbits=31), data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        return _filter("zstd", data)
    if data.startswith(b"\x02\x21\x4c\x18"):
        return _filter("lz4", data)
    if data[:4] == _ELF:
        return data
    raise UnsupportedError(
        f"The kernel is compressed in a way that Ramet does not know ({data[:6].hex()}).",
        capability="kernel-compression",
        why="neither xz, gzip, zstd nor lz4",
    )


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _stream(decompressor: _Decompressor, data: bytes) -> bytes:
    try:
        found = decompressor.decompress(data)
    except (lzma.LZMAError, zlib.error) as err:
        raise HostError(f"The kernel or a module of it is damaged: {err}.") from err
    if not decompressor.eof:
        raise HostError("The kernel or a module of it is damaged: it ends too soon.")
    return found


def _filter(program: str, data: bytes) -> bytes:
    path = helpers.find_program(program, package=program)
    return helpers.run([path, "-d", "-q", "-c"], timeout_s=FILTER_TIMEOUT_S, stdin=data).stdout
