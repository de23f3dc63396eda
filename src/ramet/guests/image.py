"""Guest images: built from Debian packages and our agent, addressed by their content, never changed.

images/<digest>/{kernel, initrd, image.json}    0400, published by one rename
images/tags/<name>                              holds a digest, replaced atomically
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ramet import config, helpers
from ramet.errors import ConfigError, CorruptError, InUseError, NotFoundError, host_errors
from ramet.guests import agent_build, initramfs, kernel, recipe, scratch
from ramet.model import IMAGE_FORMAT_VERSION, Image
from ramet.spelling import did_you_mean
from ramet.store import atomic

DIGEST_DIGITS = 32
DIGEST_ABBREVIATED = 8
DESCRIPTION = "image.json"
UNFINISHED = ".build-"
TRASH = ".trash-"
CMDLINE = "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t random.trust_cpu=on rcupdate.rcu_expedited=1"
KNOWN_NAMES = ("micro",)
Say = Callable[[str], None]


def build(images_dir: Path, *, name: str = "micro", cache_dir: Path, progress: Say | None = None) -> Image:
    """Build an image and let ``name`` mean it; if the same one is there already, whole, it is kept.

    Raises:
        ConfigError: for a name that no recipe has.
        UnsupportedError: naming the missing tool and its package, before anything is touched.
        HostError: for a failed download or a full disk; nothing is left behind.
    """
    say = progress or (lambda text: None)
    if name not in KNOWN_NAMES:
        raise ConfigError(f"There is no recipe for an image {name!r}.", hint=f"Known: {', '.join(KNOWN_NAMES)}.")
    needed = [("apt-get", "apt"), ("dpkg-deb", "dpkg")]
    if agent_build.prebuilt() is None:
        needed.append(("cc", "gcc libc6-dev"))
    for program, package in needed:
        helpers.find_program(program, package=package)
    guest_kernel = kernel.obtain(cache_dir, say=say)
    busybox = recipe.busybox(cache_dir)
    programs = agent_build.prebuilt()
    if programs is None:
        say("compiling the agent")
        programs = agent_build.compile_programs()
    initrd = initramfs.archive(recipe.entries(guest_kernel, busybox, programs))
    digest = _digest(guest_kernel.vmlinux, initrd)
    image = Image(
        digest=digest,
        name=name,
        created_at_unix_s=time.time(),
        kernel_version=guest_kernel.version,
        kernel="kernel",
        initrd="initrd",
        cmdline=CMDLINE,
        tick_hz=guest_kernel.tick_hz,
        inputs={
            "kernel": guest_kernel.package,
            "busybox": hashlib.sha256(busybox).hexdigest(),
            **{program: hashlib.sha256(data).hexdigest() for program, data in programs.items()},
        },
        size_bytes=len(guest_kernel.vmlinux) + len(initrd),
    )
    with host_errors("publish the image"):
        _sweep(images_dir)
        if not _is_whole(images_dir / digest, image, guest_kernel.vmlinux, initrd):
            say(f"publishing {digest}")
            _delete(images_dir / digest)
            _publish(images_dir, image, guest_kernel.vmlinux, initrd)
        _name(images_dir, digest, name)
    return _load(images_dir / digest)


def locate(images_dir: Path, name_or_digest: str) -> Path:
    """The directory of an image, damaged or not.

    Raises:
        NotFoundError: saying how to build it.
    """
    config.check_name(name_or_digest, what="image")
    tag = images_dir / "tags" / name_or_digest
    digest = tag.read_text().strip() if tag.is_file() else name_or_digest
    if len(digest) >= DIGEST_ABBREVIATED and not (images_dir / digest).is_dir():
        starts = [path.name for path in images_dir.glob(f"{digest}*") if path.is_dir()]
        digest = starts[0] if len(starts) == 1 else digest
    if not (images_dir / digest / DESCRIPTION).exists():
        tags = {tag.name for tag in (images_dir / "tags").glob("[!.]*")}
        instead = did_you_mean(name_or_digest, tags - {name_or_digest})  # that one leads nowhere
        raise NotFoundError(f"There is no image {name_or_digest!r}.", hint=instead or "Build it: ramet image build")
    return images_dir / digest


def resolve(images_dir: Path, name_or_digest: str) -> tuple[Image, Path]:
    """An image by name, digest, or the digest's first digits (8 at least), and its directory.

    Raises:
        NotFoundError: saying how to build it.
        CorruptError: if its description is damaged.
    """
    directory = locate(images_dir, name_or_digest)
    return _load(directory), directory


def list_images(images_dir: Path) -> list[tuple[Image, tuple[str, ...]]]:
    """Every image and the names that mean it, oldest first."""
    names: dict[str, list[str]] = {}
    if (images_dir / "tags").is_dir():
        for tag in sorted((images_dir / "tags").iterdir()):
            names.setdefault(tag.read_text().strip(), []).append(tag.name)
    found = [_load(path) for path in images_dir.iterdir() if _is_image(path)]
    ordered = sorted(found, key=lambda image: (image.created_at_unix_s, image.digest))
    return [(image, tuple(names.get(image.digest, ()))) for image in ordered]


def _is_image(directory: Path) -> bool:
    """Whether it is one, damaged or not, and not what is left of one that a killed command was deleting."""
    return not directory.name.startswith(TRASH) and (directory / DESCRIPTION).exists()


def remove(images_dir: Path, name_or_digest: str, *, in_use_by: Sequence[str]) -> None:
    """Delete an image and its names, also one that is damaged.

    Raises:
        InUseError: if anything boots it.
    """
    directory = locate(images_dir, name_or_digest)
    digest = directory.name
    if in_use_by:
        raise InUseError(
            f"Image {digest} is in use by {', '.join(in_use_by)}.",
            dependents=in_use_by,
            hint="They, or their forks, boot it when they are started: remove them first.",
        )
    with host_errors(f"delete the image {digest}"):
        for tag in (images_dir / "tags").glob("*"):
            if tag.read_text().strip() == digest:
                tag.unlink()
        _delete(directory)
        _sweep(images_dir)


def _is_whole(directory: Path, built: Image, vmlinux: bytes, initrd: bytes) -> bool:
    """Whether the image is there with just these bytes, and its description with what is known of them."""
    try:
        image = _load(directory)
    except (FileNotFoundError, CorruptError):
        return False
    if image.tick_hz != built.tick_hz:
        return False
    return (directory / image.kernel).read_bytes() == vmlinux and (directory / image.initrd).read_bytes() == initrd


def _delete(directory: Path) -> None:
    """Take an image out of sight at once, then delete it; nothing happens if there is none."""
    if directory.is_dir():
        gone = directory.parent / f"{TRASH}{directory.name}-{secrets.token_hex(4)}"
        directory.rename(gone)
        with suppress(FileNotFoundError):  # somebody else's sweep
            atomic.remove_tree(gone)


def _sweep(images_dir: Path) -> None:
    """Delete what killed commands have left: half-built images, and half-deleted ones."""
    scratch.sweep(images_dir, UNFINISHED)
    for path in images_dir.glob(f"{TRASH}*"):
        with suppress(FileNotFoundError):  # somebody else is at it
            atomic.remove_tree(path)


def _digest(vmlinux: bytes, initrd: bytes) -> str:
    """Over the content alone: kernel, initramfs, command line and format."""
    digest = hashlib.sha256(f"ramet-image {IMAGE_FORMAT_VERSION}\n{CMDLINE}\n{len(vmlinux)}\n".encode())
    digest.update(vmlinux)
    digest.update(initrd)
    return digest.hexdigest()[:DIGEST_DIGITS]


def _publish(images_dir: Path, image: Image, vmlinux: bytes, initrd: bytes) -> None:
    with scratch.scratch(images_dir, UNFINISHED) as directory:
        work = directory / image.digest
        work.mkdir(mode=0o700)
        (work / image.kernel).write_bytes(vmlinux)
        (work / image.initrd).write_bytes(initrd)
        atomic.write_json(work / DESCRIPTION, image)
        try:
            atomic.publish_directory(work, images_dir / image.digest)
        except FileExistsError:
            return  # another build of the same content was quicker


def _name(images_dir: Path, digest: str, name: str) -> None:
    """Let ``name`` mean an image. A kill leaves no half of it among the names."""
    tags = images_dir / "tags"
    tags.mkdir(mode=0o700, exist_ok=True)
    with scratch.scratch(images_dir, UNFINISHED) as directory:
        atomic.write_atomic(directory / name, digest.encode() + b"\n")
        (directory / name).rename(tags / name)
        atomic.fsync_directory(tags)


def _load(directory: Path) -> Image:
    image = atomic.read_json(directory / DESCRIPTION, Image, format_version=IMAGE_FORMAT_VERSION)
    for name in (image.kernel, image.initrd):
        if not (directory / name).is_file():
            raise CorruptError(f"Image {image.digest} has lost its {name}.", hint="Build it again: ramet image build")
    return image
