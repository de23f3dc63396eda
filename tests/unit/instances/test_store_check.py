"""``doctor --store``: each thing that can be wrong is seen, and mended where nothing can be lost by it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ramet import process
from ramet.hypervisors.users import user_number
from ramet.instances import observe
from ramet.instances.delete import remove
from ramet.instances.store_check import check
from ramet.model import UNSEALED, Failure, State, VmmProcess
from ramet.snapshots import manifest as manifests
from ramet.store import names
from ramet.store.chores import Kind
from ramet.store.locks import locked
from tests.capabilities import requires
from tests.unit.instances.place import INSTANCE, OTHER, Place


def test_a_store_that_is_whole(place: Place) -> None:
    report = check(place.store, repair=True)
    assert report.problems == ()
    assert (report.instances, report.snapshots, report.vmms, report.whole) == (1, 1, 0, True)


@requires("root")
def test_what_forks_share_is_their_groups_to_read(place: Place) -> None:
    """Another group's it is not, nor may the group read what no VMM opens."""
    for path in (place.snapshot.memory, place.snapshot.vmstate, place.snapshot.disk):
        os.chown(path, -1, user_number(INSTANCE))
        path.chmod(0o440)
    (told,) = check(place.store, repair=True).problems
    assert told.text == "disk.raw is 0440, not 0400."
    for group in (0, user_number(OTHER)):
        os.chown(place.snapshot.memory, -1, group)
        place.snapshot.memory.chmod(0o440)
        (told,) = check(place.store, repair=True).problems
        assert told.text == "memory is 0440, not 0400."
        assert place.problems() == ()


def lose_name(place: Place) -> None:
    names.release(place.store.paths.instance_names, "web", INSTANCE)


def take_name(place: Place) -> None:
    lose_name(place)
    names.claim(place.store.paths.instance_names, "web", OTHER, what="instance")


def stray_name(place: Place) -> None:
    names.claim(place.store.paths.snapshot_names, "golden", OTHER, what="snapshot")


def orphan(place: Place) -> None:
    """Its instance is gone."""
    place.change(snapshot=None, state=State.STOPPED)
    place.paths.disk.touch()
    say_it_is_of(place, OTHER)


def say_it_is_of(place: Place, instance_id: str) -> None:
    content = msgspec.json.decode(place.snapshot.manifest.read_bytes())
    changed = {**content, "instance_id": instance_id, "seal": UNSEALED}
    overwrite(place.snapshot.manifest, manifests.sealed(msgspec.json.encode(changed)))


def end_vmm(place: Place) -> None:
    place.paths.disk.touch()
    place.change(state=State.RUNNING, vmm=VmmProcess(pid=1, start_time_ticks=1, boot_id="b"))


MENDED: dict[str, tuple[Callable[[Place], object], str]] = {
    "a name that was lost": (lose_name, "The name 'web' does not lead to it."),
    "a name that leads nowhere": (stray_name, f"It leads to {OTHER}, which is not there."),
    "a verb that was killed": (lambda place: place.change(pending="standby"), "`ramet standby` did not end in order."),
    "a VMM that has ended": (
        end_vmm,
        "Its record says running, and its VMM has ended.",
    ),
    "files of a live VMM": (
        lambda place: place.paths.memory.touch(),
        "It sleeps, and files of a live VMM are left.",
    ),
    "half a record": (
        lambda place: (place.paths.dir / ".instance.json.0a1b2c3d").touch(),
        "A record is left whose writer was killed.",
    ),
    "a directory for all": (lambda place: place.paths.dir.chmod(0o755), f"{INSTANCE} is 0755, not 0700."),
    "a snapshot for all": (lambda place: place.snapshot.dir.chmod(0o750), "is 0750, not 0700."),
    "a file that can be written": (lambda place: place.snapshot.memory.chmod(0o600), "memory is 0600, not 0400."),
    "a snapshot that nothing refers to": (orphan, "Nothing refers to it."),
}


@pytest.mark.parametrize("name", MENDED)
def test_what_can_be_mended_is(place: Place, name: str) -> None:
    break_it, text = MENDED[name]
    break_it(place)
    found = place.problems()
    assert [problem for problem in found if text in problem.text], found
    assert all(problem.can_be_mended and not problem.mended for problem in found if text in problem.text)
    assert place.problems() == found, "nothing was touched"
    mended = check(place.store, repair=True)
    assert [problem.mended for problem in mended.problems if text in problem.text] == [True]
    assert [problem.text for problem in place.problems(repair=True) if text in problem.text] == []
    place.problems(repair=True)
    assert place.problems() == (), "and what follows from it"


def damage(path: Path) -> None:
    overwrite(path, path.read_bytes()[:20])


def overwrite(path: Path, data: bytes) -> None:
    """A published file, whose mode stays."""
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(0o400)


def link(place: Place) -> None:
    os.link(place.snapshot.memory, place.store.paths.home.parent / "elsewhere")


def lose_record(place: Place) -> None:
    """By hand, or fsck: its disk and its snapshot are all that is left, and stay."""
    place.paths.disk.touch()
    place.paths.record.unlink()


def lose_snapshot(place: Place) -> None:
    """Its live disk, which should not be there, may be all that is left."""
    place.change(snapshot="f" * 12)
    place.paths.disk.touch()


BY_HAND: dict[str, tuple[Callable[[Place], object], str]] = {
    "no record": (lose_record, "It has no record."),
    "no snapshot, and a disk": (lose_snapshot, "It needs the snapshot ffffffffffff, which is not there."),
    "a file among the instances": (lambda place: (place.store.paths.instances / OTHER).touch(), "It is not ours."),
    "a snapshot's name that is no id": (
        lambda place: (place.store.paths.snapshot_names / "x").write_bytes(b"../../etc"),
        "which is no id",
    ),
    "a damaged record": (lambda place: place.paths.record.write_bytes(b"{"), "is damaged"),
    "sums that are lost": (lambda place: place.snapshot.disk_sums.unlink(), "disk.sums is lost."),
    "a damaged manifest": (lambda place: damage(place.snapshot.manifest), "is damaged"),
    "a memory file of another size": (lambda place: damage(place.snapshot.memory), "memory has 20 bytes"),
    "a device state that was changed": (
        lambda place: overwrite(place.snapshot.vmstate, b"x" * place.snapshot.vmstate.stat().st_size),
        "its SHA-256 differs",
    ),
    "a second link": (link, "has 2 links"),
    "a file too many": (lambda place: (place.snapshot.dir / "notes").touch(), "notes is not ours."),
    "a snapshot that is gone": (
        lambda place: place.change(snapshot="f" * 12),
        "It needs the snapshot ffffffffffff, which is not there.",
    ),
    "a disk that is gone": (
        lambda place: place.change(snapshot=None, state=State.STOPPED),
        "It is stopped and has no disk.",
    ),
    "a name that is no id": (
        lambda place: (place.store.paths.instance_names / "x").write_bytes(b"../../etc"),
        "which is no id",
    ),
    "something else among the instances": (
        lambda place: (place.store.paths.instances / "notes").mkdir(),
        "It is not ours.",
    ),
    "a link among the snapshots": (
        lambda place: (place.store.paths.snapshots / OTHER).symlink_to("/tmp"),
        "It is not ours.",
    ),
    "something else among the work": (lambda place: (place.store.paths.tmp / "notes").touch(), "It is not ours."),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_could_lose_something_is_told_and_left(place: Place, name: str) -> None:
    break_it, text = BY_HAND[name]
    break_it(place)
    before = sorted(str(path) for path in place.store.paths.home.rglob("*"))
    report = check(place.store, repair=True)
    (problem,) = [problem for problem in report.problems if text in problem.text]
    assert not problem.mended
    assert not problem.can_be_mended
    assert problem.mend
    assert not report.whole
    assert sorted(str(path) for path in place.store.paths.home.rglob("*")) == before


def test_an_instance_is_called_by_its_name_where_anything_tells_it(place: Place) -> None:
    place.paths.dir.chmod(0o755)
    assert [one.where for one in place.problems()] == [f"instance web ({INSTANCE})"]
    place.paths.record.write_bytes(b"{")
    (problem,) = place.problems()
    assert problem.where == f"instance web ({INSTANCE})", "by its name's file"
    assert problem.text.startswith(f"{place.paths.record} is damaged: it is not what Ramet wrote (")
    assert problem.mend == f"Restore it from a backup, or remove it: ramet rm --force {INSTANCE}"
    lose_name(place)
    assert [one.where for one in place.problems()] == [f"instance {INSTANCE}"]
    remove(place.store, INSTANCE, force=True)
    assert not place.paths.dir.exists()


def test_what_gets_rid_of_a_damaged_manifest_is_said(place: Place) -> None:
    damage(place.snapshot.manifest)
    (problem,) = (one for one in place.problems() if "manifest" in one.text)
    assert problem.mend.endswith("ramet rm web")


def test_what_a_live_vm_was_given_up_for_is_told_and_left(place: Place) -> None:
    """Nothing refers to it, and its instance is there: it may be all that is left."""
    place.change(snapshot=None, state=State.STOPPED)
    place.paths.disk.touch()
    (problem,) = place.problems(repair=True)
    assert problem.text == "Nothing refers to it."
    assert f"--snapshot {place.snapshot_id}" in problem.mend
    assert place.snapshot.dir.is_dir()


def test_what_a_live_vm_has_left_behind_can_be_deleted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut takes the note of what was to be deleted with it."""
    place.change(snapshot=None, state=State.RUNNING)
    monkeypatch.setattr(observe, "observed", lambda _store, record: record)
    found = place.problems(repair=True)
    (problem,) = [one for one in found if one.text == "Nothing refers to it."]
    assert problem.mended
    assert f"--snapshot {place.snapshot_id}" in problem.mend
    assert not place.snapshot.dir.exists()


USED, BETWEEN, OTHER_ONE = "used", "between", "other"
CHAINS = [
    ({USED: OTHER_ONE}, True),
    ({USED: BETWEEN, BETWEEN: OTHER_ONE}, True),
    ({USED: BETWEEN}, False),
    ({OTHER_ONE: USED}, False),
    ({USED: BETWEEN, BETWEEN: USED}, False),
]


def lay_out(place: Place, parents: dict[str, str], ids: dict[str, str]) -> None:
    """Make the instance's snapshot, another one and what is in ``parents`` descend as those say. The clock was set back."""
    was = manifests.load(place.snapshot)
    for called in {USED, OTHER_ONE, *parents}:
        paths = place.store.paths.snapshot(ids[called])
        if called != USED:
            shutil.copytree(place.snapshot.dir, paths.dir)
        paths.manifest.unlink()
        created = was.created_at_unix_s + (9 if called == OTHER_ONE else 0)
        changed = msgspec.structs.replace(
            was, id=ids[called], parent=ids.get(parents.get(called, "")), created_at_unix_s=created
        )
        manifests.write(paths.manifest, changed)
        paths.manifest.chmod(0o400)


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("letters", ["bc", "cb"])
@pytest.mark.parametrize(("parents", "is_heir"), CHAINS)
def test_of_one_that_was_lost_only_what_its_snapshot_was_derived_from_is_not_needed(
    place: Place, parents: dict[str, str], is_heir: bool, letters: str, is_whole: bool
) -> None:
    """A standby that a power cut ended has published a snapshot that its instance does not refer to yet: it may be all that is
    left. What is deleted first does not matter.
    """
    ids = {USED: place.snapshot_id, OTHER_ONE: letters[0] * 12, BETWEEN: letters[1] * 12}
    lay_out(place, parents, ids)
    place.change(state=State.FAILED, failure=Failure.VMM_LOST)
    if not is_whole:
        place.snapshot.memory.unlink()
    goes = is_heir and is_whole
    (found,) = [one for one in place.problems(repair=True) if one.where == f"snapshot {ids[OTHER_ONE]}"]
    assert (found.text, found.mended) == ("Nothing refers to it.", goes)
    assert place.store.paths.snapshot(ids[OTHER_ONE]).dir.exists() != goes


@pytest.mark.parametrize("is_whole", [True, False])
def test_one_that_sleeps_on_a_whole_snapshot_needs_no_other(place: Place, is_whole: bool) -> None:
    ids = {USED: place.snapshot_id, OTHER_ONE: "b" * 12}
    lay_out(place, {}, ids)
    if not is_whole:
        place.snapshot.memory.unlink()
    (found,) = [one for one in place.problems(repair=True) if one.where == f"snapshot {ids[OTHER_ONE]}"]
    assert found.mended == is_whole
    assert place.store.paths.snapshot(ids[OTHER_ONE]).dir.exists() != is_whole


@requires("root")
def test_what_a_killed_start_left_to_the_vmms_user_is_taken_back_and_anybody_elses_is_told(place: Place) -> None:
    place.paths.dir.chmod(0o711)
    assert place.problems() == ()
    os.chown(place.snapshot.memory, user_number(place.record.id), -1)
    os.chown(place.snapshot.disk, 4711, -1)
    assert {problem.text for problem in place.problems(repair=True)} == {
        "memory belongs to a VMM, whose start was cut short.",
        "disk.raw belongs to uid 4711.",
    }
    assert [problem.text for problem in place.problems()] == ["disk.raw belongs to uid 4711."]
    assert place.snapshot.memory.stat().st_uid == os.geteuid()


def test_a_snapshot_that_a_command_is_about_to_delete_is_right(place: Place) -> None:
    """Nothing refers to it any more, and it has not been deleted yet."""
    with place.store.even_if_killed(Kind.COLLECT, place.snapshot_id):
        orphan(place)
        assert place.problems(repair=True) == ()
    assert len(place.problems()) == 1


def test_a_name_that_another_has_becomes_its_id(place: Place) -> None:
    take_name(place)
    place.store.paths.instance(OTHER).dir.mkdir(mode=0o700)  # so that the name leads somewhere
    place.problems(repair=True)
    assert names.lookup(place.store.paths.instance_names, INSTANCE) == INSTANCE
    assert [problem for problem in place.problems() if problem.where == f"instance web ({INSTANCE})"] == []


def test_a_vmm_that_no_record_knows_is_killed(place: Place) -> None:
    environment = {**os.environ, process.VMM_MARK: str(place.paths.run)}
    with subprocess.Popen(["sleep", "60"], env=environment) as stray:
        (problem,) = place.problems()
        assert problem.where == f"process {stray.pid}"
        assert problem.can_be_mended
        (problem,) = place.problems(repair=True)
        assert problem.mended
        assert stray.wait(timeout=10) == -9
    assert place.problems() == ()


def test_what_a_command_is_at_work_on_is_not_judged(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ramet.instances.store_check.LOCK_S", 0.05)
    place.change(pending="standby")
    with locked(place.store.paths.locks, f"instance-{INSTANCE}"):
        report = check(place.store, repair=True)
    assert (report.problems, report.busy, report.whole) == ((), (f"instance web ({INSTANCE})",), True)


def test_a_vmm_of_a_store_in_another_mount_namespace_is_none_of_ours(place: Place) -> None:
    """A container's store has the same path as ours."""
    environment = {**os.environ, process.VMM_MARK: str(place.paths.run)}
    argv = ["unshare", "--mount", "sh", "-c", "echo up; exec sleep 60"]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE) as stray:
        assert stray.stdout is not None
        assert stray.stdout.readline() == b"up\n"
        assert place.problems(repair=True) == ()
        stray.kill()


def test_what_cannot_be_looked_at_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("ramet.instances.store_check.manifests.check_files", fail)
    (problem,) = place.problems(repair=True)
    assert problem.where == f"snapshot {place.snapshot_id}"
    assert "could not be looked at" in problem.text


def test_a_guest_that_cannot_be_resumed_is_not_mended(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.change(pending="standby")
    monkeypatch.setattr("ramet.instances.observe.settle", lambda _store, record: record)
    (problem,) = place.problems(repair=True)
    assert not problem.mended
    assert "could not be resumed" in problem.text


def test_what_is_right_under_its_lock_was_a_command_at_work(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.change(pending="standby")

    def end_it(*_arguments: object, **_options: object) -> object:
        place.change(pending=None)
        return locked(place.store.paths.locks, "another")

    monkeypatch.setattr("ramet.instances.store_check.locked", end_it)
    assert place.problems() == ()


def test_a_repair_that_fails_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.snapshot.memory.chmod(0o600)

    def refuse(self: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "chmod", refuse)
    (problem,) = place.problems(repair=True)
    assert not problem.mended
    assert "It could not be mended: Could not set the mode of" in problem.text
