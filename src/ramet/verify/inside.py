"""One look each into a guest: what it answers, compared and entered in the ledger. Shared by the scenarios."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ramet.errors import GuestError, SnapshotError, VmmError
from ramet.verify.isolation import mib
from ramet.verify.looks import MANY
from ramet.verify.world import CutShortError, World

CLOCK_TOLERANCE_S = 2.0
BROKEN = (SnapshotError, VmmError, GuestError)
"""Errors that say that what was put to sleep did not come back. Others (no space, a lock) say nothing of isolation."""


def restores(world: World, role: str) -> None:
    """Restore a fork.

    Raises:
        CutShortError: if it does not wake: there is nothing more to look at.
    """
    try:
        world.host.restore(world.name(role))
        tick = world.host.ping(world.name(role)).tick
    except BROKEN as err:
        world.ledger.look("fork-wakes", f"{role} restored", [err.message], found="")
        raise CutShortError(f"{role} did not wake: {err.message}") from err
    world.ledger.look("fork-wakes", f"{role} restored", [], found=f"its agent answered (tick {tick})")


def same_boot(world: World, role: str) -> None:
    """The nonce in the guest's RAM is the one that the source had."""
    problems, found = _boot(world, role)
    world.ledger.look("fork-same-boot", f"{role} restored", problems, found=found)


def _boot(world: World, role: str) -> tuple[list[str], str]:
    ping = world.host.ping(world.name(role))
    before = world.boots[role]
    problems = []
    if ping.nonce != before.nonce:
        problems.append(f"the nonce is {ping.nonce}, before the snapshot it was {before.nonce}: another boot")
    if ping.tick <= before.tick:
        problems.append(f"the tick is {ping.tick}, before the snapshot it was {before.tick}")
    return problems, f"nonce {before.nonce[:12]}… as before the snapshot, tick {before.tick} → {ping.tick}"


def sees(world: World, claim: str, role: str, token: str, *, at: str) -> None:
    """Both sentinels are ``token``."""
    problems = _sentinel_problems(world, role, token)
    world.ledger.look(claim, at, problems, found=f"RAM and disk hold {token[:12]}…")


def _sentinel_problems(world: World, role: str, token: str) -> list[str]:
    ram, disk = world.read_sentinels(role)
    return [
        f"{where} holds {text[:16]!r}, not {token[:16]!r}"
        for where, text in (("RAM", ram), ("the disk", disk))
        if text != token
    ]


def own_identity(world: World, role: str, source: str) -> None:
    """Host name, machine-id and generation are not the source's."""
    who, theirs = world.identity(role), world.identities[source]
    parts = (
        ("host name", who.hostname, theirs.hostname),
        ("machine-id", who.machine_id, theirs.machine_id),
        ("generation", who.generation, theirs.generation),
    )
    problems = [f"the {what} is the source's: {mine}" for what, mine, other in parts if mine == other]
    world.ledger.look("own-identity", f"{role} restored", problems, found=f"{who.hostname}, {who.machine_id[:12]}…")


def wall_clock(world: World, role: str) -> None:
    """The guest's clock against ours; the time that the question takes is allowed for."""
    before = time.time()
    guest_s = float(world.guest(role, "date +%s"))
    after = time.time()
    off = max(before - (guest_s + 1), guest_s - after, 0.0)
    problems = [f"it is off by {off:.0f} s"] if off > CLOCK_TOLERANCE_S else []
    world.ledger.look("wall-clock", f"{role} restored", problems, found=f"within {CLOCK_TOLERANCE_S:g} s of the host's")


def own_randomness(world: World, role: str, other: str) -> None:
    """Two VMs that woke from the same memory must not have drawn the same."""
    world.randomness[role] = world.draw_randomness(role)
    same = world.randomness[role] & world.randomness[other]
    problems = [f"both drew {draw}" for draw in sorted(same)]
    drawn = len(world.randomness[role] | world.randomness[other])
    world.ledger.look("own-randomness", f"{role} restored", problems, found=f"{drawn} different draws")


def wakes_as_it_was(world: World, claim: str, role: str, *, token: str, at: str) -> None:
    """Restore, and compare all that the guest can tell with what it was; ``token`` is what its sentinels must hold."""
    _look_inside(world, claim, role, token, at, first=lambda: world.host.restore(world.name(role)))


def rolls_back(world: World, claim: str, role: str, snapshot: str, *, token: str, at: str) -> None:
    """The same, of an instance that goes back to a snapshot, and gives up what it has become."""
    restore = partial(world.host.restore, world.name(role), snapshot=snapshot, discard_memory=True, discard_disk=True)
    _look_inside(world, claim, role, token, at, first=restore)


def still_reads(world: World, claim: str, role: str, *, token: str, at: str) -> None:
    """The same, of a guest that has been running all the time."""
    _look_inside(world, claim, role, token, at, first=lambda: None)


def _look_inside(world: World, claim: str, role: str, token: str, at: str, *, first: Callable[[], object]) -> None:
    try:
        first()
        problems, found = _boot(world, role)
        problems += _sentinel_problems(world, role, token)
        total, expected = world.memory_sum(role), world.sums[role]
        if total != expected:
            problems.append(f"the memory that it filled sums up to {total}, not {expected}")
    except BROKEN as err:
        world.ledger.look(claim, at, [err.message.splitlines()[0]], found="")
        return
    filled = f"{mib(world.fill_bytes)} sum up to {total.split()[0]}"
    world.ledger.look(claim, at, problems, found=f"{found}; RAM and disk hold {token[:12]}…; {filled}")


def zeroed(world: World, claim: str, role: str, size_bytes: int, *, at: str) -> None:
    """The beginning of what the guest filled, which it has zeroed since, reads as zeros."""
    script = 'set -e; head -c "$1" /ram/fill >/ram/zeroed; wc -c </ram/zeroed; tr -d "\\000" </ram/zeroed | wc -c; rm /ram/zeroed'
    there, others = (int(word) for word in world.guest(role, script, arguments=[str(size_bytes)]).split())
    problems = [] if there == size_bytes else [f"{there} bytes are left of {mib(size_bytes)}"]
    problems += [f"{others} bytes of {mib(size_bytes)} that it had zeroed are not zero"] if others else []
    world.ledger.look(claim, at, problems, found=f"{mib(size_bytes)} read as zeros")


def wakes_and_answers(world: World, claim: str, role: str, *, token: str, woken: Callable[[], None]) -> None:
    """A guest is restored, which asks its agent for the first time, and answers a ping and a command."""
    try:
        world.host.restore(world.name(role))
        woken()
        tick = world.host.ping(world.name(role)).tick
        told = world.guest(role, 'echo "$1"', arguments=[token])
        problems = [] if told == token else [f"its command said {told[:70]!r}"]
    except BROKEN as err:
        world.ledger.look(claim, f"{role} restored", [err.message.splitlines()[0]], found="")
        return
    world.ledger.look(claim, f"{role} restored", problems, found=f"tick {tick}; its first command was answered")


def all_differ(world: World, claim: str, drawn: Mapping[str, Sequence[str]], *, at: str) -> None:
    """No two guests have drawn the same."""
    owners: dict[str, str] = {}
    problems = []
    for role, draws in drawn.items():
        for draw in dict.fromkeys(draws):
            if draw in owners:
                problems.append(f"{role} drew {draw}, as {owners[draw]} did")
            owners.setdefault(draw, role)
    world.ledger.look(claim, at, problems[:MANY], found=f"{len(owners)} draws, all different")
