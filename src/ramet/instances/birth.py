"""From work in progress to an instance with a name: what create and fork share."""

from __future__ import annotations

from pathlib import Path

from ramet.errors import host_errors
from ramet.hypervisors.users import user_number
from ramet.instances.context import Store
from ramet.model import InstanceRecord
from ramet.paths import InstancePaths
from ramet.signals import signals_held
from ramet.store import atomic, layout, names
from ramet.store.layout import discard


def new_ids(store: Store, count: int) -> list[str]:
    """Ids for new instances, whose VMMs' users are no other instance's, unless another command makes one at this very moment."""
    taken = {user_number(path.name) for path in store.paths.instances.iterdir() if layout.is_id(path.name)}
    found: list[str] = []
    while len(found) < count:
        one = layout.new_id()
        if user_number(one) not in taken:
            taken.add(user_number(one))
            found.append(one)
    return found


def make_directories(directory: Path) -> None:
    """The directories of a new instance."""
    paths = InstancePaths(dir=directory)
    with host_errors(f"make {directory}"):
        for path in (paths.work, paths.run, paths.logs):
            path.mkdir(mode=0o700)


def establish(store: Store, work: Path, record: InstanceRecord) -> None:
    """Turn work in progress into an instance and claim its name; if the name is taken meanwhile, nothing is left.

    Raises:
        ConflictError: if somebody else got the name.
    """
    final = store.paths.instance(record.id).dir
    with signals_held():  # never a directory without a name; whoever calls this has noted what to do if it is killed
        with host_errors(f"create the instance {record.name!r}"):
            atomic.write_json(work / "instance.json", record)
            work.rename(final)
            atomic.fsync_directory(final.parent)
        try:
            names.claim(store.paths.instance_names, record.name, record.id, what="instance")
        except BaseException:
            discard(store.paths, final)
            raise
