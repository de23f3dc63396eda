"""``snapshot check``: whatever was published and is not any more is named, and what is right is not (H16, H18, H19)."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ramet import process
from ramet.errors import CorruptError, NotFoundError
from ramet.instances import snapshot_check
from ramet.instances.delete import remove
from ramet.instances.snapshot_check import check, held_intact, require_intact
from ramet.linux.mounts import file_system_of
from ramet.model import PAGE_BYTES, SnapshotCheck, State, VmmProcess
from ramet.snapshots import manifest as manifests
from ramet.snapshots import sums
from ramet.store import names
from tests.unit.children import Mapper
from tests.unit.instances.place import OTHER, Place
from tests.unit.linux.own_mapping import OwnMapping
from tests.unit.snapshots.flipping import flip


def only(place: Place) -> SnapshotCheck:
    (found,) = check(place.store, [])
    return found


def test_what_was_published_is_whole(place: Place) -> None:
    names.claim(place.store.paths.snapshot_names, "golden", place.snapshot_id, what="snapshot")
    found = only(place)
    assert (found.id, found.names, found.whole, found.damage) == (place.snapshot_id, ("golden",), True, ())
    assert found.read_bytes > 0
    assert check(place.store, ["golden"])[0].whole


DAMAGES: dict[str, tuple[Callable[[Place], object], str, str]] = {
    "memory": (lambda place: flip(place.snapshot.memory, 5 * PAGE_BYTES + 3), "memory", "page 5 changed"),
    "memory, where it was a hole": (
        lambda place: flip(place.snapshot.memory, 9 * PAGE_BYTES),
        "memory",
        "page 9 changed",
    ),
    "disk": (lambda place: flip(place.snapshot.disk, 2 * PAGE_BYTES), "disk.raw", "page 2 changed"),
    "device state": (lambda place: flip(place.snapshot.vmstate, 77), "vmstate", "its SHA-256 differs"),
    "manifest": (lambda place: flip(place.snapshot.manifest, 2), "manifest.json", "is damaged"),
    "a digit in the manifest": (
        lambda place: flip(place.snapshot.manifest, place.snapshot.manifest.read_bytes().index(b'"cpus": ') + 8),
        "manifest.json",
        "its seal does not fit",
    ),
    "sums": (lambda place: flip(place.snapshot.memory_sums, 5 * 16), "memory.sums", "nobody can tell"),
    "the root of the sums": (
        lambda place: flip(place.snapshot.disk_sums, sums.BLOCK_BYTES),
        "disk.sums",
        "not the one",
    ),
    "sums that are lost": (lambda place: place.snapshot.disk_sums.unlink(), "disk.sums", "It is lost"),
    "memory that is lost": (lambda place: place.snapshot.memory.unlink(), "memory", "has lost its file memory"),
    "a disk that was cut": (lambda place: cut(place.snapshot.disk), "disk.raw", "was published with"),
}


def cut(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, 4096)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(place: Place, name: str) -> None:
    break_it, file, text = DAMAGES[name]
    break_it(place)
    found = only(place)
    assert not found.whole
    assert file in [damage.file for damage in found.damage]
    assert any(text in damage.text for damage in found.damage if damage.file == file), found
    assert {damage.file for damage in found.damage} == {file}


def test_all_that_is_damaged_is_named(place: Place) -> None:
    flip(place.snapshot.memory, 0)
    flip(place.snapshot.memory, 255 * PAGE_BYTES)
    flip(place.snapshot.disk, 0)
    flip(place.snapshot.vmstate, 0)
    found = {damage.file: damage for damage in only(place).damage}
    assert set(found) == {"memory", "vmstate", "disk.raw"}
    assert found["memory"].pages == ((0, 1), (255, 256))
    assert found["memory"].text == "pages 0, 255 (2 in all) changed (the first of them at bytes 0 to 4095)."


def test_memory_of_another_generation_is_not_the_snapshot_s(place: Place, tmp_path: Path) -> None:
    """H16: the same size, whole in itself, and with sums that fit it."""
    other = Place(tmp_path / "other")
    flip(other.snapshot.memory, 0)
    for mine, theirs in (
        (place.snapshot.memory, other.snapshot.memory),
        (place.snapshot.memory_sums, other.snapshot.memory_sums),
    ):
        mine.unlink()
        shutil.copyfile(theirs, mine)
    assert [damage.file for damage in only(place).damage] == ["memory"]


def test_a_single_place_is_told_as_a_place(place: Place) -> None:
    flip(place.snapshot.memory, 5 * PAGE_BYTES)
    (damage,) = only(place).damage
    assert damage.text == "page 5 changed (at bytes 20480 to 24575)."


def test_it_is_said_of_which_instance_each_was_taken(place: Place) -> None:
    assert only(place).instance_name == place.record.name
    place.change(name="renamed")
    flip(place.snapshot.manifest, 2)
    assert only(place).instance_name == "renamed", "by the record of who sleeps on it"
    place.change(snapshot=None, state=State.STOPPED)
    assert only(place).instance_name is None


def test_a_manifest_that_cannot_be_read_is_told_in_words_with_what_removes_the_snapshot(place: Place) -> None:
    flip(place.snapshot.manifest, 2)
    found = only(place)
    (damage,) = found.damage
    assert damage.text.startswith(f"{place.snapshot.manifest} is damaged: it is not what Ramet wrote (")
    assert damage.text.endswith("Without it nothing else of the snapshot could be looked at.")
    assert found.read_bytes == 0
    assert (found.mend or "").endswith("with which it goes: ramet rm web")
    remove(place.store, "web", force=False)
    assert not place.snapshot.dir.exists()


def test_what_removes_it_depends_on_who_needs_it(place: Place) -> None:
    flip(place.snapshot.manifest, 2)
    names.claim(place.store.paths.snapshot_names, "golden", place.snapshot_id, what="snapshot")
    assert (only(place).mend or "").endswith(": ramet rm web; ramet snapshot rm golden")
    place.change(state=State.FAILED)
    assert (only(place).mend or "").endswith(": ramet start web; ramet snapshot rm golden"), "its disk is newer"
    place.change(snapshot=None, diff_base=place.snapshot_id, state=State.RUNNING, vmm=ourselves())
    assert (only(place).mend or "").endswith(": ramet stop web; ramet snapshot rm golden")
    place.change(diff_base=None)
    names.release(place.store.paths.snapshot_names, "golden", place.snapshot_id)
    assert (only(place).mend or "").endswith(f": ramet snapshot rm {place.snapshot_id}")


def test_a_manifest_of_another_version_is_no_reason_to_remove_anything(place: Place) -> None:
    content = place.snapshot.manifest.read_bytes()
    place.snapshot.manifest.chmod(0o600)
    place.snapshot.manifest.write_bytes(content.replace(b'"format_version": 2', b'"format_version": 99'))
    assert only(place).mend == "Use the version of Ramet that wrote it."


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "web is an instance; it sleeps on snapshot {0}: ramet snapshot check {0}"),
        ({"state": State.FAILED}, "web is an instance; it rolls back to snapshot {0}: ramet snapshot check {0}"),
        ({"snapshot": None, "state": State.STOPPED}, "web is an instance, and has no snapshot"),
    ],
)
def test_an_instance_is_no_snapshot_and_the_one_that_is_meant_is_named(
    place: Place, fields: dict[str, object], told: str
) -> None:
    place.change(**fields)
    with pytest.raises(NotFoundError, match="There is no snapshot 'web'") as found:
        check(place.store, ["web"])
    assert (found.value.hint or "").startswith(told.format(place.snapshot_id))
    with pytest.raises(NotFoundError) as found:
        check(place.store, ["none"])
    assert found.value.hint == "`ramet snapshot ls` lists them."


def test_one_that_does_not_exist_is_refused_before_any_is_read(place: Place) -> None:
    with pytest.raises(NotFoundError, match=OTHER):
        check(place.store, [place.snapshot_id, OTHER])


def test_what_is_not_ours_is_left_to_doctor(place: Place) -> None:
    (place.store.paths.snapshots / "notes").mkdir()
    assert only(place).whole


def test_what_a_vmm_maps_is_read_from_the_disk_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that are mapped stay in the page cache, and may be right where the disk is wrong."""
    direct: list[bool] = []

    def looking(content_fd: int, *arguments: Any, **options: Any) -> sums.Damage:
        direct.append(bool(fcntl.fcntl(content_fd, fcntl.F_GETFL) & os.O_DIRECT))
        return compare(content_fd, *arguments, **options)

    compare = sums.check
    monkeypatch.setattr(sums, "check", looking)
    with OwnMapping(place.snapshot.memory) as mapped:
        assert mapped.bytes[5 * PAGE_BYTES : 5 * PAGE_BYTES + 5] == b"guest"
        assert only(place).whole
    if file_system_of(place.snapshot.dir).startswith(("ext4", "xfs", "btrfs")):
        assert direct == [True, True]


def test_sums_that_the_disk_does_not_give_are_damage(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """And keep no other snapshot from being looked at."""

    def broken(*_arguments: Any, **_options: Any) -> sums.Damage:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sums, "check", broken)
    found = only(place)
    assert [damage.file for damage in found.damage] == ["memory.sums", "disk.sums"]
    assert "Input/output error" in found.damage[0].text


def test_a_size_that_is_no_whole_number_of_blocks_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"d" * (16 * 1024 + 1024))
    fd = snapshot_check._open_past_the_cache(path)
    with path.with_suffix(".sums").open("w+b") as stream, path.open("rb") as content:
        try:
            root = sums.update(content.fileno(), stream.fileno(), None)
            assert sums.check(fd, stream.fileno(), root).none
        finally:
            os.close(fd)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["fifo", "symlink", "directory"])
def test_what_is_no_sum_file_is_damage_and_keeps_no_other_from_being_looked_at(place: Place, kind: str) -> None:
    path = place.snapshot.memory_sums
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "symlink":
        path.symlink_to(place.snapshot.disk_sums)
    else:
        path.mkdir()
    flip(place.snapshot.disk, 0)
    assert {damage.file for damage in only(place).damage} == {"memory.sums", "disk.raw"}


def test_a_snapshot_can_be_deleted_while_it_is_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a verb that frees it meanwhile would leave it for ever."""
    place.change(snapshot=None, state=State.STOPPED)

    def looking(*arguments: Any, **options: Any) -> sums.Damage:
        place.store.delete_snapshot(place.snapshot_id, timeout_s=0.5)
        monkeypatch.undo()
        return compare(*arguments, **options)

    compare = sums.check
    monkeypatch.setattr(sums, "check", looking)
    assert only(place).whole
    assert not place.snapshot.dir.exists()


# -- restore --verified -------------------------------------------------------------------------------------------


def test_damage_is_refused_by_name(place: Place) -> None:
    manifest = manifests.load(place.snapshot)
    require_intact(place.snapshot, manifest)
    flip(place.snapshot.disk, 0)
    with pytest.raises(CorruptError, match=r"is not what was published\. disk\.raw: page 0 changed"):
        require_intact(place.snapshot, manifest)


def ourselves() -> VmmProcess:
    ticks = process.start_time_ticks(os.getpid())
    assert ticks is not None
    return VmmProcess(pid=os.getpid(), start_time_ticks=ticks, boot_id=process.boot_id())


def test_a_file_that_is_swapped_after_it_was_checked_is_noticed(place: Place, tmp_path: Path) -> None:
    """H18: the VMM must map the very inode that was read, and have the disk open that was."""
    manifest = manifests.load(place.snapshot)
    memory, disk = tmp_path / "memory", tmp_path / "disk.raw"
    shutil.copyfile(place.snapshot.memory, memory)
    shutil.copyfile(place.snapshot.disk, disk)
    with (
        Mapper(memory) as without_the_disk,
        held_intact(place.snapshot, manifest, instead="", memory=memory, disk=disk) as require_used,
    ):
        with pytest.raises(CorruptError, match="does not use the file that was checked"):
            require_used(without_the_disk.vmm)
        with pytest.raises(CorruptError, match="does not map the file that was checked"):
            require_used(ourselves())
        with OwnMapping(memory):
            require_used(ourselves())
            memory.rename(tmp_path / "aside")  # a name is nothing
            require_used(ourselves())
        shutil.copyfile(tmp_path / "aside", memory)
        with OwnMapping(memory), pytest.raises(CorruptError, match="does not map the file that was checked"):
            require_used(ourselves())
        with OwnMapping(tmp_path / "aside"):
            flip(place.snapshot.vmstate, 0)
            with pytest.raises(CorruptError, match="SHA-256"):
                require_used(ourselves())
