"""ramet pause, resume, standby, restore, stop, start: the verbs that move instances from state to state"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from ramet.cli import completion, output, stale
from ramet.cli.context import App, seconds, verb
from ramet.cli.several import each
from ramet.errors import ConfigError

if TYPE_CHECKING:
    from ramet.instances.host import Host
    from ramet.model import InstanceInfo

STOP_TIMEOUT_S = 30.0
several_names = click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=completion.instances)


def _move(
    app: App,
    names: Sequence[str],
    *,
    doing: str,
    done: str,
    step: Callable[[Host, str], InstanceInfo],
    ages_pool: bool = True,
) -> int:
    """Take each instance to its new state and print ``web: running (restored in 84 ms)``, or the note of the Host; and,
    of those that age it, that its pool is stale.
    """
    host = app.host()
    took_s = 0.0

    def action(name: str) -> InstanceInfo:
        nonlocal took_s
        began = time.monotonic()
        info = step(host, name)
        took_s = time.monotonic() - began
        return info

    def show(_name: str, info: InstanceInfo) -> str:
        state = output.coloured(output.instance_state(info))
        moved = f"{info.name}: {state} ({host.last_note or f'{done} in {output.duration(took_s)}'})"
        return stale.lines(moved, stale.after_move(host, info) if ages_pool else None)

    return each(app, names, doing=doing, action=action, show=show)


@verb("pause", examples=["ramet pause web"])
@several_names
def pause(app: App, names: tuple[str, ...]) -> int:
    """Freeze the guest and stop its vCPUs.

    The workload is frozen and its file systems are synced first; a guest that does not answer in time is thawed, runs
    on, and the verb fails. With --json: an array, one element a NAME.
    """
    return _move(app, names, doing="Pausing", done="paused", step=lambda host, name: host.pause(name), ages_pool=False)


@verb("resume", examples=["ramet resume web"])
@several_names
def resume(app: App, names: tuple[str, ...]) -> int:
    """Let a paused guest run on.

    The vCPUs start, then the workload is thawed. With --json: an array, one element a NAME.
    """
    return _move(
        app, names, doing="Resuming", done="resumed", step=lambda host, name: host.resume(name), ages_pool=False
    )


@verb("standby", examples=["ramet standby web", "ramet standby web-1 web-2 web-3"])
@several_names
def standby(app: App, names: tuple[str, ...]) -> int:
    """Put instances to sleep: memory and disk to a snapshot, VMM gone.

    If it fails, the instance runs on as before and nothing of the attempt is kept. With --json: an array, one element a
    NAME.
    """
    return _move(app, names, doing="Saving", done="asleep", step=lambda host, name: host.standby(name))


@verb(
    "restore",
    examples=[
        "ramet restore web",
        "ramet restore web --snapshot before-upgrade --discard-memory --discard-disk",
        "ramet restore --verified web",
    ],
)
@several_names
@click.option(
    "--snapshot",
    metavar="ID",
    help="Roll one instance back to this snapshot (id or name).",
    shell_complete=completion.snapshots,
)
@click.option("--discard-memory", is_flag=True, help="Give up the memory of an instance that is running.")
@click.option("--discard-disk", is_flag=True, help="Give up a disk that is newer than the snapshot.")
@click.option("--verified", is_flag=True, help="Read memory and disk first; wake only if they are what was published.")
def restore(
    app: App, names: tuple[str, ...], snapshot: str | None, discard_memory: bool, discard_disk: bool, verified: bool
) -> int:
    """Wake instances from standby, or roll one back to a snapshot.

    Before the workload runs on, the guest has fresh randomness, the right time and its own name. Memory never comes
    back beside a newer disk: both are rolled back. What a live VM has, and a disk that is newer than the last sleep
    of one whose VMM was lost, have to be given up by name, with the --discard options; --snapshot of one that sleeps,
    is stopped or has failed gives up what it has. If it fails, the instance is what it was and the snapshot is
    untouched. With --json: an array, one element a NAME.

    With --verified each page of memory and disk is compared with what the snapshot's sums say, in the very files that
    the VMM then maps and opens, before a vCPU runs. That reads all of them: without it a restore reads what the guest
    touches. Of an instance that runs already nothing is compared.
    """
    if snapshot is not None and len(set(names)) > 1:
        raise ConfigError("--snapshot rolls back one instance, and there are several.", hint="Name one.")

    def step(host: Host, name: str) -> InstanceInfo:
        return host.restore(
            name, snapshot=snapshot, discard_memory=discard_memory, discard_disk=discard_disk, verified=verified
        )

    return _move(app, names, doing="Restoring", done="restored", step=step)


@verb("stop", examples=["ramet stop web", "ramet stop web --discard-memory   # it sleeps"])
@several_names
@click.option("--discard-memory", is_flag=True, help="Give up the memory of an instance in standby.")
@click.option("--force", is_flag=True, help="End the VMM if the guest does not shut down in time.")
@click.option(
    "--timeout",
    type=float,
    default=STOP_TIMEOUT_S,
    show_default=True,
    callback=seconds,
    metavar="S",
    help="Seconds for the guest to shut down.",
)
def stop(app: App, names: tuple[str, ...], discard_memory: bool, force: bool, timeout: float) -> int:
    """Shut the guest down and keep its disk.

    `ramet start` boots that disk again. With --json: an array, one element a NAME.
    """

    def step(host: Host, name: str) -> InstanceInfo:
        return host.stop(name, discard_memory=discard_memory, timeout_s=timeout, force=force)

    return _move(app, names, doing="Stopping", done="stopped", step=step)


@verb("start", examples=["ramet start web"])
@several_names
def start(app: App, names: tuple[str, ...]) -> int:
    """Boot the disk of a stopped or failed instance.

    It boots with the image that it was created with. One whose VMM was lost gives up its last sleep with that, to which
    `ramet restore --discard-disk` would have gone back. With --json: an array, one element a NAME.
    """
    return _move(app, names, doing="Booting", done="booted", step=lambda host, name: host.start(name))
