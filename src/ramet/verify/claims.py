"""What is claimed: each check before it is run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ramet.model import MemoryPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One check before it is run."""

    id: str
    title: str
    claim: str
    fails_if: str
    hazards: tuple[str, ...] = ()
    continuous: bool = False
    """It is looked at throughout the scenario, so a scenario that was cut short cannot pass it."""


CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claim in (
        Claim(
            id="source-dirtied",
            title="the source's memory is full enough to tell",
            claim="More than half of the source's RAM is data, most of it incompressible: a plain copy would cost as much.",
            fails_if="the memory file holds less data than half of the guest's RAM",
            hazards=("H65",),
        ),
        Claim(
            id="fork-own-inodes",
            title="the fork's files are inodes of their own",
            claim="Each file of the fork's snapshot is another inode than the source's, and has one link.",
            fails_if="a file of the fork is the source's, by hard link, symlink or rename",
            hazards=("H01", "H20"),
        ),
        Claim(
            id="snapshot-modes",
            title="snapshots are read-only and private",
            claim="Snapshot files are 0400 and their directory is closed to others.",
            fails_if="a published file can be written, or read by others",
            hazards=("H54", "H08"),
        ),
        Claim(
            id="fork-wakes",
            title="the fork wakes",
            claim="The fork is restored and its guest answers.",
            fails_if="the restore fails, or the guest does not answer",
        ),
        Claim(
            id="fork-same-boot",
            title="the fork is the source's memory, not a reboot",
            claim="The guest's boot nonce, kept only in RAM, is the source's, and its tick has moved on.",
            fails_if="the nonce is another one, or the tick went back",
            hazards=("H63",),
        ),
        Claim(
            id="fork-sees-source",
            title="the fork sees what the source left, in RAM and on disk",
            claim="The sentinels that the source wrote before its sleep are there, the disk's read anew from the disk.",
            fails_if="a sentinel is missing or another one",
            hazards=("H23", "H16"),
        ),
        Claim(
            id="own-identity",
            title="the fork has a name of its own",
            claim="Host name, machine-id and generation differ from the source's.",
            fails_if="one of them is the source's",
            hazards=("H52",),
        ),
        Claim(
            id="wall-clock",
            title="the fork's clock is right",
            claim="The wall clock in the guest is within two seconds of the host's.",
            fails_if="it still shows the time of the snapshot",
            hazards=("H51",),
        ),
        Claim(
            id="own-randomness",
            title="the fork and the source draw different randomness",
            claim="Two VMs woken from the same memory draw different bytes from the kernel.",
            fails_if="a draw of one is a draw of the other",
            hazards=("H50",),
        ),
        Claim(
            id="vmm-maps-privately",
            title="every VMM maps its own memory file, privately",
            claim="Each large file mapping of a live VMM is an inode of its own instance, and MAP_PRIVATE.",
            fails_if="a VMM maps a file of another instance, or maps one shared",
            hazards=("H06", "H07", "H60", "H74"),
            continuous=True,
        ),
        Claim(
            id="vmm-cannot-write-others",
            title="no VMM can write another instance's files",
            claim="No open descriptor and no shared mapping of a live VMM (in `base` also of one that is being "
            "restored) can write a file of another instance.",
            fails_if="a descriptor on another instance's file is open for writing",
            hazards=("H20", "H21", "H68"),
            continuous=True,
        ),
        Claim(
            id="vmm-confined",
            title="the kernel confines every VMM",
            claim="A VMM has no_new_privs, Ramet's filter of system calls beside its own, limits of what it may use, no memory "
            "that the kernel may merge with others', and, where VMMs can have users, no capability and a user that no other VMM "
            "of the scenario has.",
            fails_if="a VMM may do what the user may do who started it, or tell by timing what another has in memory",
            hazards=("H70", "H76"),
            continuous=True,
        ),
        Claim(
            id="source-memory-unchanged",
            title="the source's memory file is byte-identical throughout",
            claim="Inode, size, mode, links and SHA-256 of the source's memory file never change.",
            fails_if="a step of the fork's life writes to, truncates or replaces it",
            hazards=("H01", "H03", "H19", "H64"),
            continuous=True,
        ),
        Claim(
            id="source-disk-unchanged",
            title="the source's disk is byte-identical throughout",
            claim="Inode, size, mode, links and SHA-256 of the source's disk never change.",
            fails_if="a write of the fork's guest reaches it",
            hazards=("H19", "H20"),
            continuous=True,
        ),
        Claim(
            id="source-state-unchanged",
            title="the source's device state and manifest are byte-identical",
            claim="Inode, size, mode, links and SHA-256 of the source's vmstate and manifest never change.",
            fails_if="anything writes to them",
            hazards=("H08",),
            continuous=True,
        ),
        Claim(
            id="fork-diff-complete",
            title="the fork's diff snapshot is whole",
            claim="Woken from its own diff, the fork has what it wrote since the fork, in RAM and on disk, and the rest besides.",
            fails_if="a dirty page was missed, or the base shows through",
            hazards=("H09",),
        ),
        Claim(
            id="fork-disk-usage",
            title="the fork's life costs far less disk than its memory",
            claim="What the fork occupies and does not share with the source stays under a quarter of the guest's RAM.",
            fails_if="a reflink silently became a copy",
            hazards=("H30", "H65"),
        ),
        Claim(
            id="nothing-left",
            title="a deleted fork leaves nothing",
            claim="Its process, directories, snapshot and name are gone.",
            fails_if="one of them is still there",
        ),
        Claim(
            id="source-restores",
            title="the source wakes as it slept",
            claim="Same boot; its sentinels are there and the fork's are not; all memory that it had filled sums up as before.",
            fails_if="anything of the fork shows, or anything of the source is lost",
            hazards=("H01", "H64"),
        ),
        Claim(
            id="sleeping-fork-unchanged",
            title="a sleeping fork does not change while its source lives on",
            claim="Every file of the sleeping fork keeps its fingerprint while the source wakes, diverges and sleeps again.",
            fails_if="the source's life reaches the fork's files",
            hazards=("H01", "H07"),
            continuous=True,
        ),
        Claim(
            id="running-fork-unnoticed",
            title="a running fork does not notice what its source does",
            claim="After the source diverged and slept, the fork reads the old sentinels and memory that sums up as before.",
            fails_if="a page that the fork has not written shows what the source wrote later",
            hazards=("H01", "H07", "H20"),
        ),
        Claim(
            id="sleeping-fork-wakes",
            title="the fork that slept meanwhile wakes as it was",
            claim="It has the source's old sentinels, none of the new ones, and the same boot.",
            fails_if="anything that the source did since shows",
            hazards=("H01", "H23"),
        ),
        Claim(
            id="source-diff-complete",
            title="the source's second snapshot is whole",
            claim="Woken from it, the source has its new sentinels and the memory that it filled since.",
            fails_if="a dirty page was missed",
            hazards=("H02", "H09", "H15"),
        ),
        Claim(
            id="siblings-see-source",
            title="every sibling starts with what the source left",
            claim="Each of three forks of one source finds its sentinels, in RAM and on disk.",
            fails_if="a sibling starts with anything else",
            hazards=("H23",),
        ),
        Claim(
            id="siblings-keep-apart",
            title="siblings that write the same places keep apart",
            claim="Three forks write over the same page and block: each reads its own, while all run, and after its own sleep.",
            fails_if="one shows what another wrote",
            hazards=("H01", "H20"),
        ),
        Claim(
            id="parked-stands-still",
            title="the workload of a parked fork stands still",
            claim="A fork that waits in a pool has the same VMM, and a workload that has come no further, when it is claimed.",
            fails_if="the workload runs on before the fork is claimed and has its identity",
            hazards=("H50", "H71"),
        ),
        Claim(
            id="claimed-somebody-else",
            title="each claimed fork is somebody else",
            claim="Host name, machine-id and what the kernel draws, when it is parked, when it is claimed and since, differ in "
            "all, and from the source's; what that draws is compared once it has woken.",
            fails_if="two forks of one pool, or one and its source, are called the same or draw the same",
            hazards=("H50", "H52"),
        ),
        Claim(
            id="chain-inherits",
            title="a fork of a fork starts with what its parent wrote",
            claim="Down a chain of five, each starts with the sentinels that the one before it wrote last.",
            fails_if="a generation's own pages are missing from what its forks start with",
            hazards=("H09", "H23"),
        ),
        Claim(
            id="chain-outlives",
            title="deleting ancestors changes no descendant's files",
            claim="The source and the middle of the chain are deleted: all other files keep their fingerprints.",
            fails_if="a descendant's file was the ancestor's, or goes with it",
            hazards=("H41",),
        ),
        Claim(
            id="chain-wakes",
            title="what is left of the chain wakes as it was",
            claim="Each remaining generation has its own sentinels, the same boot, and memory that sums up as before.",
            fails_if="anything of it was in a file of an ancestor",
            hazards=("H41",),
        ),
        Claim(
            id="live-pair-agrees",
            title="memory and disk of a live fork are of one instant",
            claim="A number that goes to the disk and then to RAM, on and on, differs by one at most, looked at before the fork "
            "runs on, and is none that the source counted later.",
            fails_if="disk and memory were taken at different instants, or of a guest that ran",
            hazards=("H07", "H22"),
        ),
        Claim(
            id="live-disk-clean",
            title="the disk of a live fork is a clean file system",
            claim="e2fsck finds nothing to mend and no journal to replay on the published disk of a guest that was writing.",
            fails_if="the file system was not frozen when its disk was taken",
            hazards=("H24",),
        ),
        Claim(
            id="source-runs-on",
            title="the source of a live fork runs on",
            claim="After the fork its state is running, and its workload goes on.",
            fails_if="it was left paused or frozen",
            hazards=("H43", "H71"),
        ),
        Claim(
            id="rewind-is-exact",
            title="going back to a snapshot again and again is exact",
            claim="Each of three rollbacks finds the sentinels and the memory of the snapshot, whatever was written since.",
            fails_if="anything written after the snapshot shows",
            hazards=("H02", "H16"),
        ),
        Claim(
            id="rewind-changes-nothing",
            title="a snapshot that is gone back to does not change",
            claim="Its files keep their fingerprints while VMs run from it, one after the other.",
            fails_if="a VM that was restored writes into the snapshot",
            hazards=("H02", "H05"),
            continuous=True,
        ),
        Claim(
            id="sleeps-add-up",
            title="snapshots of snapshots lose nothing",
            claim="After three sleeps in a row, the last with nothing written before it, the source has the same boot, its last "
            "sentinels, and memory that sums up as before.",
            fails_if="pages of an earlier generation are missing from a later one",
            hazards=("H09", "H15"),
        ),
        Claim(
            id="zeroed-pages-stay-zero",
            title="pages that the guest zeroed are zero when it wakes",
            claim="What the source filled, slept with and zeroed since reads as zeros two sleeps later.",
            fails_if="a zeroed page is taken for a hole, and the base shows through",
            hazards=("H10",),
        ),
        Claim(
            id="swapped-pages-are-kept",
            title="pages that were swapped out are in the snapshot",
            claim="A VMM whose pages are in swap is put to standby, twice: the guest has its sentinels and its memory.",
            fails_if="the dirty scan misses pages that are not in RAM",
            hazards=("H14",),
        ),
        Claim(
            id="together-pair-agrees",
            title="a fork made while its source goes to sleep is of one instant",
            claim="Forked by one command while another puts the source to standby, memory and disk of the fork agree.",
            fails_if="the one command takes files that the other is at work on",
            hazards=("H22", "H42"),
        ),
        Claim(
            id="together-source-wakes",
            title="a source that was forked while it went to sleep wakes whole",
            claim="Its memory and its disk agree, it has counted as far as before, and it counts on.",
            fails_if="the fork reaches what the sleep publishes, or undoes it",
            hazards=("H22", "H42"),
        ),
        Claim(
            id="answers-after-flight",
            title="with requests in flight, all answer afterwards",
            claim="A source is forked and put to standby while commands talk, pings are answered and its disk is written: both "
            "forks and the source answer their first request.",
            fails_if="a guest waits for the rest of a request that its VMM never hears",
            hazards=("H53", "H72"),
        ),
        Claim(
            id="forks-draw-apart",
            title="twenty forks draw different randomness at once",
            claim="Twenty forks of one snapshot draw before their workload runs on, which then draws on: no two are the same.",
            fails_if="a fork draws before its kernel was given a seed of its own",
            hazards=("H50",),
        ),
    )
}


UNDER_SHARE: dict[str, Claim] = {
    claim.id: claim
    for claim in (
        replace(
            CLAIMS["fork-own-inodes"],
            title="what the fork shares nobody can write, and after its first sleep it shares nothing",
            claim="Until its first sleep the fork refers to the source's published files, which have one link and which no "
            "process has open for writing; then each file of its snapshot is another inode than the source's.",
            fails_if="a shared file has another name or a writer, or a file of the fork's own snapshot is the source's",
        ),
        replace(
            CLAIMS["snapshot-modes"],
            claim="Snapshot files are 0400, or, shared by VMMs that have users, 0440 of the group of the instance that they "
            "are of; their directory is closed to others.",
        ),
        replace(
            CLAIMS["vmm-maps-privately"],
            title="every VMM maps its own memory file or the one that it shares, privately",
            claim="Each large file mapping of a live VMM is MAP_PRIVATE, and an inode of its own instance, or the source's "
            "published file, not open for writing, or a copy of that in RAM: sealed, ours, and with the same SHA-256.",
            fails_if="a VMM maps anything else, or shared, or could write what others map",
        ),
    )
}
"""What is claimed in the place of these where forks share their source's memory."""


def claim_of(claim_id: str, memory_policy: MemoryPolicy) -> Claim:
    """What is claimed under a memory policy."""
    shared = UNDER_SHARE.get(claim_id) if memory_policy is MemoryPolicy.SHARE else None
    return shared or CLAIMS[claim_id]
