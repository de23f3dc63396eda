"""What sabotages do in and with guests: what they hold, who they are, what they draw, whether they run."""

from __future__ import annotations

from ramet.verify.world import Identity, World


def fill_nothing(world: World) -> None:
    """The source's memory stays as empty as after its boot."""
    world.fill_bytes = 0


def reboot(world: World) -> None:
    """A fresh boot of the fork's disk, made up to look like a restore: the sentinels are put back into its RAM."""
    name = world.name("fork")
    world.host.stop(name, force=True)
    world.host.start(name)
    world.guest("fork", 'printf %s "$1" >/ram/sentinel', arguments=[world.tokens["source"]])
    world.fill("fork", seed=1, size_bytes=world.fill_bytes)


def pause_source(world: World) -> None:
    """Nobody resumes the source after the capture."""
    world.host.pause(world.name("source"))


def take_identity(world: World) -> None:
    """The fork calls itself what the source does."""
    _be(world, "fork", world.identities["source"])


def borrow_name(world: World) -> None:
    """One fork of a pool calls itself what another does."""
    _be(world, "parked-b", world.identity("parked-a"))


def _be(world: World, role: str, who: Identity) -> None:
    script = 'hostname "$1"; echo "$2" >/etc/machine-id'
    world.guest(role, script, arguments=[who.hostname, who.machine_id])


def let_workload_escape(world: World) -> None:
    """The workload moves to the group that nobody freezes."""
    world.guest("source", "cat /ram/ticking >/sys/fs/cgroup/cgroup.procs")


def stop_clock(world: World) -> None:
    """The time of the snapshot, as if nobody had set the clock."""
    world.guest("fork", "date -s @$(($(date +%s) - 3600))")


def fix_randomness(world: World) -> None:
    """A generator that says the same to everybody."""
    world.guest(
        "source",
        "echo 00000000-0000-4000-8000-000000000000 >/run/uuid; mount --bind /run/uuid /proc/sys/kernel/random/uuid",
    )


def replay_randomness(world: World) -> None:
    """A generator that says something else each time, and the same in every fork."""
    fix_randomness(world)
    draw = "printf '%08d-0000-4000-8000-000000000000\\n' $i | dd of=/run/uuid conv=notrunc 2>/dev/null"
    script = f"i=0; while :; do i=$((i+1)); {draw}; done"
    world.host.exec(world.name("source"), ["sh", "-c", script], detach=True)
