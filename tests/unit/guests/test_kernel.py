"""Taking a kernel package apart, on synthetic inputs."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet import helpers
from ramet.errors import CommandError, HostError, UnsupportedError
from ramet.guests import debian, kernel

ELF = b"\x7fELF" + bytes(range(256)) * 100


SIZE_WORD = struct.pack("<I", len(ELF))


def bz_image(payload: bytes, *, setup_sectors: int = 3, offset: int = 40, length: int | None = None) -> bytes:
    """A bzImage as far as boot.rst describes what is read: setup_sects, HdrS, payload_offset and payload_length."""
    size = len(payload) if length is None else length
    image = bytearray((max(setup_sectors, 4 if setup_sectors == 0 else 0) + 1) * 512 + offset)
    image[0x1F1] = setup_sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, offset, size)
    return bytes(image) + payload


def filtered(program: str, *flags: str) -> Callable[[bytes], bytes]:
    return lambda data: subprocess.run([program, *flags], input=data, capture_output=True, check=True).stdout


COMPRESSORS = {
    "none": lambda data: data,
    "xz": lzma.compress,
    "gzip": gzip.compress,
    "zstd": filtered("zstd", "-q", "-c"),
    "lz4": filtered("lz4", "-q", "-l", "-c"),
}


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("setup_sectors", [0, 3, 27])
def test_vmlinux_is_cut_out(compression: str, setup_sectors: int) -> None:
    if compression in ("zstd", "lz4") and shutil.which(compression) is None:
        pytest.skip(f"{compression} is not installed")
    payload = COMPRESSORS[compression](ELF)
    if compression not in ("none", "gzip"):
        payload += SIZE_WORD
    assert kernel.extract_vmlinux(bz_image(payload, setup_sectors=setup_sectors) + b"trailing") == ELF


def test_elf_is_taken_as_it_is() -> None:
    assert kernel.extract_vmlinux(ELF) is ELF


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"MZ" * 1000, id="no header"),
        pytest.param(bytes(0x202) + b"HdrS", id="cut in the header"),
        pytest.param(bz_image(lzma.compress(b"no kernel") + SIZE_WORD), id="payload is no ELF"),
        pytest.param(bz_image(lzma.compress(ELF) + SIZE_WORD)[:-1], id="payload cut"),
        pytest.param(bz_image(b"x", length=1 << 31), id="length beyond the end"),
        pytest.param(bz_image(lzma.compress(ELF)[:-40]), id="xz cut"),
        pytest.param(bz_image(lzma.compress(ELF)[:40] + bytes(40) + lzma.compress(ELF)[80:]), id="xz damaged"),
        pytest.param(bz_image(gzip.compress(ELF)[:-10]), id="gzip cut"),
        pytest.param(bz_image(gzip.compress(ELF)[:30] + b"\xff" * 100), id="gzip damaged"),
    ],
)
def test_damaged_kernels_are_refused(image: bytes) -> None:
    with pytest.raises(HostError):
        kernel.extract_vmlinux(image)


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")
def test_damaged_zstd_is_refused() -> None:
    with pytest.raises(CommandError):
        kernel.extract_vmlinux(bz_image(COMPRESSORS["zstd"](ELF)[:-20] + SIZE_WORD))


def test_unknown_compression_is_named() -> None:
    with pytest.raises(UnsupportedError, match="42 5a 68".replace(" ", "")):
        kernel.extract_vmlinux(bz_image(b"BZh91AY&SY"))


def test_missing_decompressor_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ramet.helpers.shutil.which", lambda name, path=None: None)
    with pytest.raises(UnsupportedError, match="zstd") as caught:
        kernel.extract_vmlinux(bz_image(b"\x28\xb5\x2f\xfd" + bytes(20)))
    assert caught.value.hint == "Install it: apt-get install zstd"


def test_modules_are_loaded_behind_what_they_need() -> None:
    depends = {"ext4": ("jbd2", "mbcache", "crc16"), "jbd2": (), "mbcache": (), "crc16": (), "crc32c_generic": ()}
    order = kernel.load_order(depends, ("ext4", "not_there", "jbd2"))
    assert order == ["crc32c_generic", "jbd2", "mbcache", "crc16", "ext4"]


def test_each_module_is_loaded_once() -> None:
    depends = {"a": ("c",), "b": ("c",), "c": ("d",), "d": ()}
    assert kernel.load_order(depends, ("a", "b", "c")) == ["d", "c", "a", "b"]


def test_built_in_dependencies_are_left_out() -> None:
    assert kernel.load_order({"a": ("built_in",)}, ("a",)) == ["a"]


def test_circle_of_modules_ends() -> None:
    assert sorted(kernel.load_order({"a": ("b",), "b": ("a",)}, ("a",))) == ["a", "b"]


@pytest.mark.parametrize(
    ("modinfo", "expected"),
    [
        (b"\0license=GPL\0depends=jbd2,mb-cache\0name=ext4\0", ("jbd2", "mb_cache")),
        (b"\0license=GPL\0depends=\0name=x\0", ()),
        (b"\0license=GPL\0", ()),
        (b"\0softdepends=no\0depends=yes\0", ("yes",)),
    ],
)
def test_module_dependencies(modinfo: bytes, expected: tuple[str, ...]) -> None:
    assert kernel.module_dependencies(b"\x7fELF" + modinfo + b"\0" * 8) == expected


# -- the package, with programs that a test plays -------------------------------------------------------------------


def module(name: str, depends: str) -> bytes:
    return b"\x7fELF\0depends=" + depends.encode() + b"\0name=" + name.encode() + b"\0"


class Host:
    """apt-cache, apt-get and dpkg-deb of a host whose one kernel package holds ``tree``."""

    def __init__(self, tree: Path, *, depends: str = "Depends: linux-image-6.1.0-9-amd64") -> None:
        self.tree = tree
        self.depends = depends
        self.ran: list[list[str]] = []

    def run(self, argv: list[str], *, timeout_s: float, cwd: Path | None = None) -> helpers.Completed:
        self.ran.append(argv)
        program = Path(argv[0]).name
        if program == "apt-get":
            assert cwd is not None
            (cwd / f"{argv[-1]}_6.1.9_amd64.deb").touch()
        if program == "dpkg-deb":
            shutil.copytree(self.tree, argv[-1])
        out = f"meta\n  {self.depends}\n".encode() if program == "apt-cache" else b""
        return helpers.Completed(argv=tuple(argv), stdout=out, stderr="")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An unpacked kernel package."""
    base = tmp_path / "tree"
    modules = base / "lib/modules/6.1.9/kernel/drivers"
    modules.mkdir(parents=True)
    (base / "boot").mkdir()
    (base / "boot/vmlinuz-6.1.9").write_bytes(bz_image(gzip.compress(ELF)))
    (base / "boot/config-6.1.9").write_text("# CONFIG_HZ_100 is not set\nCONFIG_HZ_250=y\nCONFIG_HZ=250\n")
    (modules / "virtio-blk.ko").write_bytes(module("virtio_blk", "virtio-ring"))
    (modules / "virtio_ring.ko.xz").write_bytes(lzma.compress(module("virtio_ring", "")))
    (modules / "unwanted.ko").write_bytes(module("unwanted", ""))
    return base


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helpers, "find_program", lambda name, package: f"/usr/bin/{name}")


@pytest.mark.usefixtures("programs")
def test_obtain(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helpers, "run", Host(tree).run)
    said: list[str] = []
    found = kernel.obtain(tmp_path / "cache", say=said.append)
    assert (found.version, found.package, found.vmlinux) == ("6.1.9", "linux-image-6.1.0-9-amd64", ELF)
    assert found.tick_hz == 250
    assert found.modules == (
        ("virtio_ring.ko", module("virtio_ring", "")),
        ("virtio_blk.ko", module("virtio_blk", "virtio-ring")),
    )
    assert said == ["fetching linux-image-6.1.0-9-amd64", "taking kernel 6.1.9 apart"]
    assert [path.name for path in (tmp_path / "cache/packages").iterdir()] == [
        "linux-image-6.1.0-9-amd64_6.1.9_amd64.deb"
    ]


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("config", [None, "CONFIG_NO_HZ=y\n"])
def test_a_package_that_does_not_say_how_often_its_kernel_ticks(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str | None
) -> None:
    path = tree / "boot/config-6.1.9"
    path.unlink() if config is None else path.write_text(config)
    monkeypatch.setattr(helpers, "run", Host(tree).run)
    assert kernel.obtain(tmp_path / "cache", say=lambda _: None).tick_hz is None


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")
@pytest.mark.usefixtures("programs")
def test_modules_may_be_compressed_with_zstd(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = module("virtio_console", "")
    (tree / "lib/modules/6.1.9/virtio_console.ko.zst").write_bytes(COMPRESSORS["zstd"](data))
    run = helpers.run
    host = Host(tree)
    monkeypatch.setattr(helpers, "run", lambda argv, **rest: (run if "-d" in argv else host.run)(argv, **rest))
    found = kernel.obtain(tmp_path / "cache", say=lambda text: None)
    assert ("virtio_console.ko", data) in found.modules


@pytest.mark.usefixtures("programs")
def test_ubuntu_keeps_its_modules_in_a_package_of_their_own(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tree, depends="Depends: linux-image-unsigned-6.8.0-1-generic")
    monkeypatch.setattr(helpers, "run", host.run)
    with pytest.raises(HostError, match="2 files like boot/vmlinuz"):  # both packages are the same tree here
        kernel.obtain(tmp_path / "cache", say=lambda text: None)
    downloads = [argv[-1] for argv in host.ran if argv[0].endswith("apt-get")]
    assert downloads == ["linux-image-unsigned-6.8.0-1-generic", "linux-modules-6.8.0-1-generic"]


@pytest.mark.usefixtures("programs")
def test_host_without_package_lists(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helpers, "run", Host(tree, depends="").run)
    with pytest.raises(UnsupportedError) as caught:
        kernel.obtain(tmp_path / "cache", say=lambda text: None)
    assert "apt-get update" in str(caught.value)


@pytest.mark.usefixtures("programs")
def test_download_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], **_: object) -> helpers.Completed:
        raise CommandError("apt-get failed.", argv=argv, status=100, stderr_tail="E: Failed to fetch")

    monkeypatch.setattr(helpers, "run", run)
    with pytest.raises(HostError, match="Failed to fetch") as caught:
        debian.download("linux-image", tmp_path)
    assert "apt-get update" in str(caught.value)
