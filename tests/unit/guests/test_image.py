"""Images: built whole or not at all, addressed by their content, removed only when nobody needs them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet import config, helpers
from ramet.errors import (
    CommandError,
    ConfigError,
    CorruptError,
    InUseError,
    NoSpaceError,
    NotFoundError,
    UnsupportedError,
)
from ramet.guests import agent_build, image, kernel, recipe
from ramet.guests.kernel import Kernel
from ramet.model import Image
from ramet.store import atomic
from tests.capabilities import requires
from tests.unit.guests.test_initramfs import read

KERNEL = Kernel(
    version="6.1.9",
    package="linux-image-6.1.0-9-amd64",
    tick_hz=250,
    vmlinux=b"\x7fELF kernel",
    modules=(("ext4.ko", b"module"),),
)
PROGRAMS = {"ramet-agent": b"\x7fELF agent", "ramet-fill": b"\x7fELF fill"}


@pytest.fixture
def images_dir(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.fixture
def build(images_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Image]:
    """``image.build`` with its inputs played: a kernel, a busybox and programs of a few bytes."""
    monkeypatch.setattr(helpers, "find_program", lambda name, package: f"/usr/bin/{name}")
    monkeypatch.setattr(kernel, "obtain", lambda cache_dir, say: KERNEL)
    monkeypatch.setattr(
        recipe, "busybox", lambda cache_dir: b"#!/bin/sh\necho bin/sh; echo bin/busybox; echo linuxrc\n"
    )
    monkeypatch.setattr(agent_build, "compile_programs", lambda: PROGRAMS)
    return lambda: image.build(images_dir, cache_dir=tmp_path / "cache")


def entries(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_image_is_published_whole_and_read_only(build: Callable[[], Image], images_dir: Path) -> None:
    built = build()
    assert entries(images_dir) == sorted(
        [built.digest, *(f"{built.digest}/{name}" for name in ("image.json", "initrd", "kernel")), "tags", "tags/micro"]
    )
    for name in ("image.json", "initrd", "kernel"):
        assert stat.S_IMODE((images_dir / built.digest / name).stat().st_mode) == 0o400
    assert (images_dir / built.digest / "kernel").read_bytes() == KERNEL.vmlinux
    assert built.inputs["kernel"] == KERNEL.package
    assert built.size_bytes == sum((images_dir / built.digest / name).stat().st_size for name in ("kernel", "initrd"))


def test_what_the_guest_needs_is_inside(build: Callable[[], Image], images_dir: Path) -> None:
    files = {entry.path: entry for entry in read((images_dir / build().digest / "initrd").read_bytes())}
    assert files["init"].data == b"bin/busybox"
    assert files["bin/sh"].data == b"/bin/busybox"
    assert "linuxrc" not in files
    assert (files["sbin/ramet-agent"].data, files["sbin/ramet-agent"].mode & 0o777) == (PROGRAMS["ramet-agent"], 0o755)
    assert files["bin/ramet-fill"].data == PROGRAMS["ramet-fill"]
    assert files["lib/modules/ext4.ko"].data == b"module"
    assert files["lib/modules/order"].data == b"ext4.ko\n"
    assert files["etc/init.d/rcS"].mode & 0o111
    assert files["etc/ramet/resume.d"].mode == stat.S_IFDIR | 0o755
    parents = {str(Path(path).parent) for path in files} - {"."}
    assert parents <= set(files), "the kernel makes no directories by itself"


def test_console_and_commands_are_of_the_workload(build: Callable[[], Image], images_dir: Path) -> None:
    """What is not in the cgroup is not frozen, and could use random bytes before the identity is given."""
    files = {entry.path: entry for entry in read((images_dir / build().digest / "initrd").read_bytes())}
    [console] = [line for line in files["etc/inittab"].data.decode().splitlines() if line.startswith("ttyS0")]
    program = console.rpartition(":/")[2]
    assert "echo 0 >/sys/fs/cgroup/workload/cgroup.procs\nexec " in files[program].data.decode()
    assert files[program].mode & 0o111


def test_building_again_keeps_the_image(build: Callable[[], Image], images_dir: Path) -> None:
    first = build()
    inode = (images_dir / first.digest / "kernel").stat().st_ino
    assert build() == first
    assert (images_dir / first.digest / "kernel").stat().st_ino == inode


def test_building_again_tells_what_an_earlier_build_did_not_know(
    build: Callable[[], Image], images_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "obtain", lambda cache_dir, say: dataclasses.replace(KERNEL, tick_hz=None))
    first = build()
    assert first.tick_hz is None
    monkeypatch.setattr(kernel, "obtain", lambda cache_dir, say: KERNEL)
    second = build()
    assert (second.digest, second.tick_hz) == (first.digest, 250)
    assert image.resolve(images_dir, "micro")[0] == second


@pytest.mark.parametrize("damage", ["kernel", "initrd", "image.json"])
@pytest.mark.parametrize("how", ["gone", "changed"])
def test_building_again_mends_a_damaged_image(
    build: Callable[[], Image], images_dir: Path, damage: str, how: str
) -> None:
    digest = build().digest
    path = images_dir / digest / damage
    path.unlink()
    if how == "changed":
        path.write_bytes(b"damaged")
    assert build().digest == digest
    assert image.resolve(images_dir, "micro")[0].digest == digest
    assert (images_dir / digest / "kernel").read_bytes() == KERNEL.vmlinux
    assert not [name for name in entries(images_dir) if name.startswith(".")]


def test_digest_is_of_the_content(
    build: Callable[[], Image], images_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {build().digest}
    monkeypatch.setitem(PROGRAMS, "ramet-agent", b"another agent")
    digests.add(build().digest)
    monkeypatch.setattr(image, "CMDLINE", "another command line")
    digests.add(build().digest)
    assert len(digests) == 3
    assert len(image.list_images(images_dir)) == 3
    assert [names for _, names in image.list_images(images_dir)] == [(), (), ("micro",)]


def test_unknown_recipe_is_refused_before_anything(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe for an image 'ubuntu'") as caught:
        image.build(tmp_path / "images", name="ubuntu", cache_dir=tmp_path / "cache")
    assert "micro" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("program", "package"), [("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("cc", "gcc libc6-dev")])
def test_missing_tool_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, package: str
) -> None:
    which = shutil.which
    monkeypatch.setattr(
        "ramet.helpers.shutil.which", lambda name, path=None: None if name == program else which("true", path=path)
    )
    with pytest.raises(UnsupportedError) as caught:
        image.build(tmp_path / "images", cache_dir=tmp_path / "cache")
    assert caught.value.capability == program
    assert caught.value.hint == f"Install it: apt-get install {package}"
    assert list(tmp_path.iterdir()) == []


def test_build_that_fails_leaves_nothing(
    build: Callable[[], Image], images_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(path: Path, value: object, *, durable: bool = True) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "write_json", no_room)
    with pytest.raises(NoSpaceError):
        build()
    assert entries(images_dir) == []


def test_what_killed_builds_left_is_swept(build: Callable[[], Image], images_dir: Path) -> None:
    with subprocess.Popen(["true"]) as child:
        pass
    for name in (f".build-{child.pid}-abc", ".trash-0123", f".build-{os.getpid()}-def"):
        (images_dir / name / "inner").mkdir(parents=True)
    build()
    assert [path.name for path in images_dir.glob(".*")] == [f".build-{os.getpid()}-def"]


def test_an_image_that_is_half_deleted_is_not_listed(build: Callable[[], Image], images_dir: Path) -> None:
    built = build()
    left = images_dir / ".trash-0123"
    shutil.copytree(images_dir / built.digest, left)
    (left / built.initrd).unlink()
    assert [found for found, _ in image.list_images(images_dir)] == [built]


def test_found_by_name_digest_and_first_digits(build: Callable[[], Image], images_dir: Path) -> None:
    built = build()
    for name in ("micro", built.digest, built.digest[:8]):
        assert image.resolve(images_dir, name) == (built, images_dir / built.digest)
    for name in (built.digest[:7], "absent", "f" * 32):
        with pytest.raises(NotFoundError, match="no image"):
            image.resolve(images_dir, name)
    with pytest.raises(ConfigError):
        image.resolve(images_dir, "../../etc")


def test_digits_that_two_images_share_find_neither(build: Callable[[], Image], images_dir: Path) -> None:
    built = build()
    other = images_dir / (built.digest[:20] + "0" * 12)
    other.mkdir()
    with pytest.raises(NotFoundError):
        image.resolve(images_dir, built.digest[:10])


def test_image_of_another_format_is_refused(build: Callable[[], Image], images_dir: Path) -> None:
    path = images_dir / build().digest / "image.json"
    text = path.read_text().replace('"format_version": 1', '"format_version": 9')
    path.unlink()
    path.write_text(text)
    with pytest.raises(CorruptError, match="format version 9"):
        image.resolve(images_dir, "micro")


def test_lost_kernel_is_said(build: Callable[[], Image], images_dir: Path) -> None:
    (images_dir / build().digest / "kernel").unlink()
    with pytest.raises(CorruptError, match="lost its kernel") as caught:
        image.resolve(images_dir, "micro")
    assert "ramet image build" in str(caught.value)


def test_image_in_use_is_not_removed(build: Callable[[], Image], images_dir: Path) -> None:
    before = entries(images_dir) if build() else []
    with pytest.raises(InUseError, match="web, db") as caught:
        image.remove(images_dir, "micro", in_use_by=("web", "db"))
    assert caught.value.dependents == ("web", "db")
    assert entries(images_dir) == before


@pytest.mark.parametrize("damaged", [False, True])
def test_image_is_removed_with_its_names(build: Callable[[], Image], images_dir: Path, damaged: bool) -> None:
    digest = build().digest
    if damaged:
        (images_dir / digest / "kernel").unlink()
    image.remove(images_dir, digest[:12], in_use_by=())
    assert entries(images_dir) == ["tags"]
    with pytest.raises(NotFoundError):
        image.remove(images_dir, "micro", in_use_by=())


# -- the programs inside --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def programs() -> dict[str, bytes]:
    return agent_build.compile_programs()


@requires("gcc")
def test_programs_are_static_and_know_no_path_of_this_host(programs: dict[str, bytes]) -> None:
    """With warnings as errors. They must run in any image, and their bytes are part of its digest."""
    assert set(programs) == {"ramet-agent", "ramet-fill"}
    for program in programs.values():
        assert recipe._is_static(program)
        assert b"ramet-cc-" not in program
        assert str(agent_build.sources()[0].parent).encode() not in program


@requires("gcc")
def test_compiler_without_a_static_libc(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], **_: object) -> helpers.Completed:
        raise CommandError("cc failed.", argv=argv, status=1, stderr_tail="/usr/bin/ld: cannot find -lc: No such file")

    monkeypatch.setattr(helpers, "run", run)
    with pytest.raises(UnsupportedError) as caught:
        agent_build.compile_programs()
    assert caught.value.hint == "Install it: apt-get install libc6-dev"


@requires("gcc")
def test_filler_writes_what_its_seed_says(tmp_path: Path, programs: dict[str, bytes]) -> None:
    program = tmp_path / "fill"
    program.write_bytes(programs["ramet-fill"])
    program.chmod(0o755)

    def fill(name: str, size: int, seed: int) -> bytes:
        subprocess.run([program, tmp_path / name, str(size), str(seed)], check=True)
        return (tmp_path / name).read_bytes()

    def total(name: str) -> bytes:
        return subprocess.run([program, "--sum", tmp_path / name], check=True, capture_output=True).stdout

    one = fill("one", (1 << 20) + 13, 1)
    assert len(one) == (1 << 20) + 13
    assert fill("again", (1 << 20) + 13, 1) == one
    assert fill("two", 1 << 20, 2) != one[: 1 << 20]
    assert total("one") == total("again") != total("two")
    assert total("one").split()[1] == b"%d" % len(one)
    assert len(zlib.compress(one)) > 0.99 * len(one), "it can be compressed"
    for bad in (["x"], ["a", "-1", "2"], ["a", "1x", "2"], ["--sum"]):
        assert subprocess.run([program, *bad], capture_output=True, check=False).returncode == 2
    assert subprocess.run([program, "/no/dir/x", "1", "1"], capture_output=True, check=False).returncode == 1


def elf(*program_header_types: int) -> bytes:
    """An ELF file as far as its program headers go."""
    head = bytearray(64)
    head[:5] = b"\x7fELF\x02"
    head[32:40] = (64).to_bytes(8, "little")
    head[54:56] = (56).to_bytes(2, "little")
    head[56:58] = len(program_header_types).to_bytes(2, "little")
    return bytes(head) + b"".join(kind.to_bytes(4, "little") + bytes(52) for kind in program_header_types)


@pytest.mark.parametrize(
    ("program", "static"),
    [
        (elf(1, 1, 4), True),
        (elf(6, 3, 1), False),
        (b"#!/bin/sh", False),
        (b"", False),
        (b"\x7fELF\x01" + bytes(60), False),
    ],
)
def test_static_programs_are_told_apart(program: bytes, static: bool) -> None:
    assert recipe._is_static(program) is static


@requires("qemu", "gcc")
@pytest.mark.timeout(300)
def test_two_builds_give_the_same_digest(tmp_path: Path) -> None:
    """From different caches into different stores: nothing of this host's paths or of the time is inside."""
    digests = []
    for name in ("one", "two"):
        images_dir, packages = tmp_path / name / "images", tmp_path / name / "cache/packages"
        images_dir.mkdir(parents=True)
        packages.mkdir(parents=True)
        for deb in (config.cache_dir() / "packages").glob("*.deb"):
            shutil.copy(deb, packages)  # apt still checks it; this saves the download
        digests.append(image.build(images_dir, cache_dir=tmp_path / name / "cache").digest)
    assert digests[0] == digests[1]
