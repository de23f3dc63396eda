"""Breaking isolation on purpose, from outside, each in one known way: a check that nothing here can fail does not ship.

Each strikes at one named point of one scenario, on the real files and processes of a real run, and names the checks that must
catch it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ramet import spelling
from ramet.model import Hypervisor, MemoryPolicy
from ramet.verify.needs import Need
from ramet.verify.strikes import files, guests, vmms
from ramet.verify.world import CutShortError, Point, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Sabotage:
    """One way to break isolation."""

    name: str
    summary: str
    scenario: str
    caught_by: tuple[str, ...]
    """The checks that must FAIL; others may fail, or not be reached, besides."""
    strikes: dict[Point, Callable[[World], None]]
    needs: Need | None = None
    hypervisors: tuple[Hypervisor, ...] = tuple(Hypervisor)
    """Those that can be made to do it."""
    memory_policies: tuple[MemoryPolicy, ...] = tuple(MemoryPolicy)
    """Those under which there is what it breaks."""

    def why_not(
        self, hypervisor: Hypervisor, lacks: Mapping[Need, str], memory_policy: MemoryPolicy = MemoryPolicy.CLONE
    ) -> str | None:
        """Why it cannot be committed on a host that ``lacks`` something, None if it can."""
        if memory_policy not in self.memory_policies:
            wanted = " or ".join(policy.value for policy in self.memory_policies)
            return f"it is of forks made with --memory-policy {wanted}"
        if hypervisor not in self.hypervisors:
            return f"{hypervisor.value} has no option that does it"
        return lacks.get(self.needs) if self.needs is not None else None


SABOTAGES: dict[str, Sabotage] = {
    sabotage.name: sabotage
    for sabotage in (
        Sabotage(
            name="hard-linked-memory",
            summary="the fork's memory file is a hard link to the source's",
            scenario="base",
            caught_by=("fork-own-inodes",),
            strikes={Point.FORKED: files.hard_link_memory},
        ),
        Sabotage(
            name="in-place-diff",
            summary="the fork's diff snapshot is written into the source's memory file",
            scenario="base",
            caught_by=("source-memory-unchanged", "source-restores"),
            strikes={Point.FORK_SLEPT: files.diff_in_place},
        ),
        Sabotage(
            name="shared-disk",
            summary="the fork's VMM opens the source's disk instead of its own",
            scenario="base",
            caught_by=("vmm-cannot-write-others", "source-disk-unchanged"),
            strikes={Point.FORK_RESTORING: vmms.share_disk, Point.FORK_RESTORED: vmms.unwrap_vmm},
        ),
        Sabotage(
            name="opened-for-a-moment",
            summary="while the fork is restored the source's disk is opened for writing, and closed again",
            scenario="base",
            caught_by=("vmm-cannot-write-others",),
            strikes={Point.FORK_RESTORING: vmms.open_for_a_moment, Point.FORK_RESTORED: vmms.unwrap_vmm},
        ),
        Sabotage(
            name="reboot",
            summary="the fork is booted afresh and made up to look restored",
            scenario="base",
            caught_by=("fork-same-boot",),
            strikes={Point.FORK_RESTORED: guests.reboot},
        ),
        Sabotage(
            name="shared-mapping",
            summary="the fork's VMM maps its memory file MAP_SHARED",
            scenario="base",
            caught_by=("vmm-maps-privately",),
            strikes={Point.FORK_RESTORING: vmms.share_mapping, Point.FORK_RESTORED: vmms.unwrap_vmm},
            hypervisors=(Hypervisor.QEMU,),
        ),
        Sabotage(
            name="writable-shared-memory",
            summary="the fork's VMM opens the memory file that it shares for writing",
            scenario="base",
            caught_by=("vmm-maps-privately", "vmm-cannot-write-others"),
            strikes={Point.FORK_RESTORING: vmms.open_shared_for_writing, Point.FORK_RESTORED: vmms.unwrap_vmm},
            hypervisors=(Hypervisor.QEMU,),
            memory_policies=(MemoryPolicy.SHARE,),
        ),
        Sabotage(
            name="unsealed-copy",
            summary="the copy in RAM that forks share is not sealed",
            scenario="base",
            caught_by=("vmm-maps-privately",),
            strikes={Point.FORK_RESTORING: vmms.leave_unsealed, Point.FORK_RESTORED: vmms.seal_again},
            needs=Need.COPY_IN_RAM,
            memory_policies=(MemoryPolicy.SHARE,),
        ),
        Sabotage(
            name="unconfined",
            summary="the fork's VMM is started without confinement",
            scenario="base",
            caught_by=("vmm-confined",),
            strikes={Point.FORK_RESTORING: vmms.set_free, Point.FORK_RESTORED: vmms.confine_again},
            needs=Need.COUNTED_FILTERS,
        ),
        Sabotage(
            name="shared-user",
            summary="the fork's VMM runs as the user who runs Ramet",
            scenario="base",
            caught_by=("vmm-confined",),
            strikes={Point.FORK_RESTORING: vmms.share_user, Point.FORK_RESTORED: vmms.confine_again},
            needs=Need.VMM_USERS,
        ),
        Sabotage(
            name="mergeable-memory",
            summary="the kernel may merge the memory of the fork's VMM with that of other processes (KSM)",
            scenario="base",
            caught_by=("vmm-confined",),
            strikes={Point.FORK_RESTORING: vmms.let_memory_be_merged, Point.FORK_RESTORED: vmms.keep_from_merging},
            needs=Need.INHERITED_MERGING,
        ),
        Sabotage(
            name="other-disk",
            summary="the fork gets a disk that is not the source's",
            scenario="base",
            caught_by=("fork-sees-source",),
            strikes={Point.FORKED: files.other_disk},
        ),
        Sabotage(
            name="broken-vmstate",
            summary="a byte of the fork's device state is flipped",
            scenario="base",
            caught_by=("fork-wakes",),
            strikes={Point.FORKED: files.break_fork_vmstate},
        ),
        Sabotage(
            name="flipped-byte",
            summary="a host process flips a byte of the source's device state while the fork runs",
            scenario="base",
            caught_by=("source-state-unchanged",),
            strikes={Point.FORK_RESTORED: files.flip_vmstate},
        ),
        Sabotage(
            name="lost-diff",
            summary="a dirty page is missing from the fork's diff snapshot",
            scenario="base",
            caught_by=("fork-diff-complete",),
            strikes={Point.FORK_SLEPT: files.lose_fork_diff},
        ),
        Sabotage(
            name="full-copy",
            summary="the fork's memory file is a plain copy where a reflink is claimed",
            scenario="base",
            caught_by=("fork-disk-usage",),
            strikes={Point.FORK_SLEPT: files.full_copy},
            needs=Need.REFLINKS,
        ),
        Sabotage(
            name="nothing-dirtied",
            summary="the source's memory is left almost empty, so that a copy would cost nothing",
            scenario="base",
            caught_by=("source-dirtied",),
            strikes={Point.FILLING: guests.fill_nothing},
        ),
        Sabotage(
            name="loose-modes",
            summary="a published file is readable by everybody",
            scenario="base",
            caught_by=("snapshot-modes",),
            strikes={Point.FORKED: files.loosen_modes},
        ),
        Sabotage(
            name="same-identity",
            summary="the fork keeps the source's host name and machine-id",
            scenario="base",
            caught_by=("own-identity",),
            strikes={Point.FORK_RESTORED: guests.take_identity},
        ),
        Sabotage(
            name="stale-clock",
            summary="the fork's wall clock still shows the time of the snapshot",
            scenario="base",
            caught_by=("wall-clock",),
            strikes={Point.FORK_RESTORED: guests.stop_clock},
        ),
        Sabotage(
            name="same-randomness",
            summary="the kernel's random UUID is the same in every fork",
            scenario="base",
            caught_by=("own-randomness",),
            strikes={Point.BOOTED: guests.fix_randomness},
        ),
        Sabotage(
            name="leaky-delete",
            summary="a deleted fork leaves a directory behind",
            scenario="base",
            caught_by=("nothing-left",),
            strikes={
                Point.FORK_SLEPT: files.remember_fork_dir,
                Point.FORK_DELETED: files.leave_something,
            },
        ),
        Sabotage(
            name="late-write",
            summary="the source's memory file is written after the last look, before the source wakes",
            scenario="base",
            caught_by=("source-restores",),
            strikes={Point.SOURCE_RESTORING: files.write_late},
        ),
        Sabotage(
            name="reverse-in-place-diff",
            summary="the source's second snapshot is written into the sleeping fork's memory file",
            scenario="reverse",
            caught_by=("sleeping-fork-unchanged",),
            strikes={Point.SOURCE_SLEPT: files.write_into_sleeper},
        ),
        Sabotage(
            name="written-under-a-running-fork",
            summary="the file that a running fork maps is written in place",
            scenario="reverse",
            caught_by=("running-fork-unnoticed",),
            strikes={
                Point.RUNNER_RESTORING: vmms.leave_unsealed,  # or the kernel would refuse it
                Point.SOURCE_SLEPT: files.write_under_runner,
            },
        ),
        Sabotage(
            name="late-write-to-a-fork",
            summary="the sleeping fork's memory file is written after the last look, before it wakes",
            scenario="reverse",
            caught_by=("sleeping-fork-wakes",),
            strikes={Point.SLEEPER_RESTORING: files.write_late_into_sleeper},
        ),
        Sabotage(
            name="lost-source-diff",
            summary="a dirty page is missing from the source's second snapshot",
            scenario="reverse",
            caught_by=("source-diff-complete",),
            strikes={Point.SOURCE_WAKING_AGAIN: files.lose_what_source_wrote},
        ),
        Sabotage(
            name="unshared-source",
            summary="a sibling starts with other memory than its source slept with",
            scenario="siblings",
            caught_by=("siblings-see-source",),
            strikes={Point.SIBLINGS_FORKED: files.write_into_sibling},
        ),
        Sabotage(
            name="crossed-siblings",
            summary="one sibling's diff holds the page that another one wrote",
            scenario="siblings",
            caught_by=("siblings-keep-apart",),
            strikes={Point.SIBLINGS_SLEPT: files.cross_siblings},
        ),
        Sabotage(
            name="lost-inheritance",
            summary="a page that a fork wrote is missing from what its own forks start with",
            scenario="chain",
            caught_by=("chain-inherits",),
            strikes={Point.CHAIN_GREW: files.lose_first_generation},
        ),
        Sabotage(
            name="deletion-reaches-a-descendant",
            summary="deleting an ancestor damages the memory file of a fork further down",
            scenario="chain",
            caught_by=("chain-outlives", "chain-wakes"),
            strikes={Point.CHAIN_CUT: files.damage_descendant},
        ),
        Sabotage(
            name="unfrozen-disk",
            summary="the disk of a live fork is taken while its source writes to it",
            scenario="live",
            caught_by=("live-disk-clean",),
            strikes={Point.LIVE_FORKED: files.take_disk_of_running_source},
        ),
        Sabotage(
            name="torn-pair",
            summary="the disk of a live fork is that of a later capture than its memory",
            scenario="live",
            caught_by=("live-pair-agrees",),
            strikes={Point.LIVE_FORKED: files.tear_pair},
        ),
        Sabotage(
            name="source-left-paused",
            summary="the source of a live fork is left paused",
            scenario="live",
            caught_by=("source-runs-on",),
            strikes={Point.LIVE_FORKED: guests.pause_source},
        ),
        Sabotage(
            name="written-between-restores",
            summary="the snapshot that is gone back to is written in between",
            scenario="rewind",
            caught_by=("rewind-is-exact", "rewind-changes-nothing"),
            strikes={Point.REWOUND: files.write_into_golden},
        ),
        Sabotage(
            name="resurrected-pages",
            summary="pages that the guest zeroed are taken for holes, and the snapshot before shows through",
            scenario="sleeps",
            caught_by=("zeroed-pages-stay-zero",),
            strikes={Point.ZEROED_SLEPT: files.resurrect_pages},
        ),
        Sabotage(
            name="lost-generation",
            summary="a page of the second snapshot is missing from the third",
            scenario="sleeps",
            caught_by=("sleeps-add-up",),
            strikes={Point.SLEPT_AGAIN: files.lose_what_source_wrote},
        ),
        Sabotage(
            name="lost-in-swap",
            summary="a page that was swapped out is missing from the snapshot",
            scenario="swapped",
            caught_by=("swapped-pages-are-kept",),
            strikes={Point.SWAPPED_SLEPT: files.lose_what_source_wrote},
            needs=Need.SWAP,
        ),
        Sabotage(
            name="crossed-commands",
            summary="a fork made while its source goes to sleep gets the disk of an earlier instant",
            scenario="together",
            caught_by=("together-pair-agrees",),
            strikes={Point.COUNTING: files.keep_earlier, Point.TOGETHER_SLEPT: files.give_fork_earlier_disk},
        ),
        Sabotage(
            name="undone-sleep",
            summary="a source that is forked while it goes to sleep keeps the disk of an earlier instant",
            scenario="together",
            caught_by=("together-source-wakes",),
            strikes={Point.COUNTING: files.keep_earlier, Point.TOGETHER_SLEPT: files.give_source_earlier_disk},
        ),
        Sabotage(
            name="deaf-fork",
            summary="the VMM of a fork made with requests in flight stands still when it is asked",
            scenario="flight",
            caught_by=("answers-after-flight",),
            strikes={Point.FLIGHT_RESTORED: vmms.stop_flight},
        ),
        Sabotage(
            name="unfrozen-workload",
            summary="the workload of a pool's source is not among what is frozen",
            scenario="pool",
            caught_by=("parked-stands-still",),
            strikes={Point.TICKING: guests.let_workload_escape},
        ),
        Sabotage(
            name="borrowed-name",
            summary="one claimed fork has the host name and the machine-id of another",
            scenario="pool",
            caught_by=("claimed-somebody-else",),
            strikes={Point.CLAIMED: guests.borrow_name},
        ),
        Sabotage(
            name="fixed-pool-randomness",
            summary="the kernel's random UUIDs are the same in all forks of a pool",
            scenario="pool",
            caught_by=("claimed-somebody-else",),
            strikes={Point.TICKING: guests.fix_randomness},
        ),
        Sabotage(
            name="replayed-randomness",
            summary="the kernel's random UUIDs come in the same order in all of twenty forks",
            scenario="draws",
            caught_by=("forks-draw-apart",),
            strikes={Point.DRAWING: guests.replay_randomness},
        ),
    )
}


def named(name: str) -> Sabotage:
    """The sabotage of this name.

    Raises:
        ConfigError: if there is none.
    """
    (found,) = spelling.named(SABOTAGES, [name], what="sabotage", listed_by="ramet verify --list")
    return found


def strike_of(sabotage: Sabotage | None, *, stop_when_caught: bool = False) -> Callable[[World, Point], None]:
    """What ``World.reach`` calls. ``stop_when_caught``: the scenario ends at the first point at which all checks that must catch
    the sabotage have.
    """

    def strike(world: World, point: Point) -> None:
        if stop_when_caught and sabotage is not None and set(sabotage.caught_by) <= set(world.ledger.failed()):
            raise CutShortError("The sabotage was caught, and nothing else was asked for.")
        act = sabotage.strikes.get(point) if sabotage is not None else None
        if act is not None:
            act(world)

    return strike
