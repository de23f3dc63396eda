"""SIGKILL, or a disk that is full or broken, at any step of ``image build``; SIGKILL at any of ``image rm``: an image is there
whole or not at all, and the next build mends what is left. No guest is started.

The kernel is that of an image that is built already: to fetch and unpack Debian's takes half a minute.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import guest_images
from tests.artifacts import TOLD
from tests.capabilities import requires
from tests.file_systems import WHOLE
from tests.vm.command_line import CommandLine
from tests.vm.cut_short import check_told, cut_short
from tests.vm.verbs import Verb

BUILD = Verb(argv=("image", "build"), before=None, after=None)
REMOVE = Verb(argv=("image", "rm", "micro"), before=None, after=None)
ERRORS = ("ENOSPC", "EIO")
SAMPLE = 1
"""How many steps ``make test`` tries."""
pytestmark = [requires("gcc"), pytest.mark.timeout(1800 if WHOLE else 300)]


@pytest.fixture(scope="module")
def options() -> list[str]:
    (kernel,) = guest_images.built().glob("*/kernel")
    return ["--kernel", str(kernel)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> tuple[Path, list[str]]:
    """A store with that image alone, and the steps in which it was built."""
    command = CommandLine(tmp_path_factory.mktemp("image") / "home")
    command.text("ls")
    done = cut_short(command, BUILD, options=options)
    assert done.status == 0, done
    return command.home, done.steps


@pytest.fixture
def command(built: tuple[Path, list[str]], tmp_path: Path) -> CommandLine:
    """A store with no image."""
    command = CommandLine(tmp_path / "home")
    command.text("ls")
    return command


def chosen(count: int) -> range:
    return range(count) if WHOLE else range(count // (2 * SAMPLE), count, count // SAMPLE)


def begin_with(command: CommandLine, images: Path | None) -> None:
    """Make the store's images those of another store; or none."""
    shutil.rmtree(command.home / "images")
    if images is None:
        (command.home / "images").mkdir(mode=0o700)
    else:
        shutil.copytree(images, command.home / "images")


def check_after(command: CommandLine, built: tuple[Path, list[str]], options: list[str]) -> str:
    """What is listed is whole; the next build succeeds and leaves nothing else. Returns what there was."""
    home, _ = built
    (expected,) = CommandLine(home).json("image", "ls")
    found = command.json("image", "ls")
    assert [image["digest"] for image in found] in ([], [expected["digest"]])
    for image in found:
        assert files(command.home / "images" / image["digest"]) == files(home / "images" / expected["digest"])
    again = cut_short(command, BUILD, options=options)
    assert again.status == 0, again
    listed = command.json("image", "ls")
    assert [(image["digest"], image["tags"]) for image in listed] == [(expected["digest"], ["micro"])]
    assert sorted(path.name for path in (command.home / "images").iterdir()) == [expected["digest"], "tags"]
    return f"{len(found)} there{'' if not found or found[0]['tags'] else ' without its name'}"


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "image.json"}


def test_an_image_build_that_is_killed(
    command: CommandLine,
    built: tuple[Path, list[str]],
    options: list[str],
    record_property: Callable[[str, object], None],
) -> None:
    _, steps = built
    became = []
    for at in chosen(len(steps)):
        begin_with(command, None)
        killed = cut_short(command, BUILD, at=at, options=options)
        print(f"killed before step {at} ({steps[at]}): status {killed.status}")
        assert killed.status == -signal.SIGKILL
        became.append(check_after(command, built, options))
    tell(record_property, "image build", steps, "killed before", became)


def test_an_image_build_whose_disk_fails(
    command: CommandLine,
    built: tuple[Path, list[str]],
    options: list[str],
    record_property: Callable[[str, object], None],
) -> None:
    steps = cut_short(command, BUILD, options=[*options, "--errno", "EIO"]).steps
    became = []
    for count, at in enumerate(chosen(len(steps))):
        begin_with(command, None)
        error = ERRORS[count % 2]
        failed = cut_short(command, BUILD, at=at, options=[*options, "--errno", error])
        print(f"{error} at step {at} ({steps[at]}): status {failed.status}: {failed.stderr.strip()}")
        if failed.status != 0:
            check_told(failed, error)
        assert [path.name for path in (command.home / "images").rglob(".*")] == [], "nothing is left behind"
        became.append(check_after(command, built, options))
    tell(record_property, "image build", steps, "the disk failed at", became)


def test_an_image_rm_that_is_killed(
    command: CommandLine,
    built: tuple[Path, list[str]],
    options: list[str],
    record_property: Callable[[str, object], None],
) -> None:
    home, _ = built
    begin_with(command, home / "images")
    steps = cut_short(command, REMOVE).steps
    became = []
    for at in chosen(len(steps)):
        begin_with(command, home / "images")
        killed = cut_short(command, REMOVE, at=at)
        print(f"killed before step {at} ({steps[at]}): status {killed.status}")
        assert killed.status == -signal.SIGKILL
        became.append(check_after(command, built, options))
    tell(record_property, "image rm", steps, "killed before", became)


@pytest.mark.skipif(not WHOLE, reason="it unpacks Debian's kernel several times")
def test_an_image_build_that_is_killed_while_it_unpacks_a_kernel(tmp_path: Path) -> None:
    """What it had unpacked is in the cache, where the next build removes it."""
    command = CommandLine(tmp_path / "home", changes={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    steps = cut_short(command, BUILD).steps
    packages = tmp_path / "cache" / "ramet" / "packages"
    for program in ("apt-get", "dpkg-deb", "cc"):
        killed = cut_short(command, BUILD, at=steps.index(f"start {program}"))
        assert killed.status == -signal.SIGKILL
        command.text("image", "build")
        assert [path.name for path in packages.glob(".*")] == []


def tell(
    record_property: Callable[[str, object], None], name: str, steps: list[str], what: str, became: list[str]
) -> None:
    told = ", ".join(f"{one} {became.count(one)}" for one in dict.fromkeys(became))
    record_property(TOLD, f"{name}: {len(steps)} steps, {what} {len(became)} of them: {told}")
