"""What `verify --json` and `guard --json` print, as types: the published schema (docs/schemas/) is made from them.

A field may be added at any time; one that goes, or changes its meaning, takes another ``schema_version`` with it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

SCHEMA_VERSION = 1
GUARD_SCHEMA_VERSION = 2
"""Since 2, ``pages`` are half-open, and PASS is said only with exit status 0."""

VerdictWord = Annotated[
    Literal["PASS", "FAIL", "INCONCLUSIVE"],
    Meta(description="Not looked is not PASS: a check that could not be decided is INCONCLUSIVE."),
]
ExitStatus = Annotated[int, Meta(description="What the command exited with.")]
Seconds = Annotated[float, Meta(ge=0)]


class FactDocument(Struct, frozen=True, kw_only=True):
    """One piece of evidence: the step at which it was taken, what was found, and whether that agrees with the claim."""

    at: str
    found: str
    agrees: bool


class CheckDocument(Struct, frozen=True, kw_only=True):
    """A check after it was run. ``id`` is ``scenario.claim``; ``strength`` says whether the kernel would refuse the opposite
    (enforced) or it merely held; ``required`` is false where this host need not show it; ``hazards`` are numbers of
    docs/isolation.md.
    """

    id: str
    title: str
    verdict: VerdictWord
    evidence: tuple[FactDocument, ...]
    scenario: str
    strength: Literal["enforced", "held"]
    required: bool
    reason: str | None
    claim: str
    fails_if: str
    hazards: tuple[str, ...]


class InstanceDocument(Struct, frozen=True, kw_only=True):
    """An instance, by its role: its state, or ``snapshot`` for a named one; ``parent`` is the role that it was forked from."""

    role: str
    state: str
    parent: str | None


class MemoryMapDocument(Struct, frozen=True, kw_only=True):
    """Where a memory file's bytes lie. ``own`` and ``shared`` give the bytes of each of so many equal parts of the file; the rest
    of a part is holes. Shared is what another memory file of the run occupies too, by physical address.
    """

    role: str
    bytes: int
    extents: int
    own: tuple[int, ...]
    shared: tuple[int, ...]


class StepDocument(Struct, frozen=True, kw_only=True):
    """What a scenario did, how long that took, and what was there then: the instances; what all their files occupy on the disk,
    each block counted once, in how many extents; and the memory maps that changed. ``unseen`` says why nobody looked.
    """

    step: str
    seconds: Seconds
    unseen: str | None
    instances: tuple[InstanceDocument, ...]
    disk_bytes: int | None
    extents: int | None
    memory_maps: tuple[MemoryMapDocument, ...]


class ScenarioDocument(Struct, frozen=True, kw_only=True):
    """A scenario: ``cut_short`` says why it did not get to its end, ``left_behind`` what could not be removed."""

    name: str
    summary: str
    cut_short: str | None
    left_behind: tuple[str, ...]
    steps: tuple[StepDocument, ...]


class ReportDocument(Struct, frozen=True, kw_only=True, tag_field="kind", tag="report"):
    """A run of `ramet verify`; with ``sabotage`` it had to end in FAIL."""

    schema_version: int = SCHEMA_VERSION
    verdict: VerdictWord
    exit_status: ExitStatus
    sabotage: str | None
    seconds: Seconds
    host: dict[str, str]
    checks: tuple[CheckDocument, ...]
    scenarios: tuple[ScenarioDocument, ...]


class SabotageDocument(Struct, frozen=True, kw_only=True):
    """One sabotage: the checks that must fail, those that did and do not without it; why the run did not get to its end, which a
    sabotage may bring about; and why it cannot be committed here.
    """

    name: str
    summary: str
    must_fail: tuple[str, ...]
    failed: tuple[str, ...]
    caught: bool
    cut_short: str | None
    not_applicable: str | None


class MatrixDocument(Struct, frozen=True, kw_only=True, tag_field="kind", tag="matrix"):
    """The detection matrix of `ramet verify --sabotage all`; ``undecided`` are the required checks that the run which nobody
    sabotaged could not decide.
    """

    schema_version: int = SCHEMA_VERSION
    all_caught: bool
    exit_status: ExitStatus
    seconds: Seconds
    host: dict[str, str]
    undecided: tuple[str, ...]
    sabotages: tuple[SabotageDocument, ...]


class CommandDocument(Struct, frozen=True, kw_only=True):
    """The command that was run under guard, and how it ended: by a status, or by a signal. ``still_running`` are processes of it
    that had not ended when the files had been compared: what they do later is not in the report.
    """

    argv: tuple[str, ...]
    status: int | None
    signal: int | None
    still_running: tuple[str, ...]


class ChangeDocument(Struct, frozen=True, kw_only=True):
    """What became of one entry: ``what`` it was, or is if it is new. ``pages`` are half-open ranges, [first, the one after
    the last], of 4 KiB pages whose content changed; ``writers`` who wrote, or could have; ``held_by`` who can write to it still;
    a ``harmless`` one has the content, inode, size, mode, owner, links and extended attributes that it had.
    """

    path: str
    what: str
    harmless: bool
    is_new: bool
    is_gone: bool
    differences: tuple[str, ...]
    pages: tuple[tuple[int, int], ...]
    writers: tuple[str, ...]
    held_by: tuple[str, ...]


class GuardDocument(Struct, frozen=True, kw_only=True, tag_field="kind", tag="guard"):
    """A run of `ramet guard`. ``reason`` says why nothing changed and it is INCONCLUSIVE: the command failed, or left a process
    that can write to a file. ``not_read`` are sockets, FIFOs and devices, whose kind, mode, owner and presence were compared;
    ``bytes`` are those of the files; ``writers_unseen`` says why those who wrote may have been missed.
    """

    schema_version: int = GUARD_SCHEMA_VERSION
    verdict: VerdictWord
    exit_status: ExitStatus
    reason: str | None
    command: CommandDocument
    paths: tuple[str, ...]
    files: int
    directories: int
    symlinks: int
    not_read: tuple[str, ...]
    bytes: int
    seconds: Seconds
    writers_unseen: str | None
    changes: tuple[ChangeDocument, ...]


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of all that is printed."""
    made = msgspec.json.schema(ReportDocument | MatrixDocument | GuardDocument)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Reports of Ramet", **made}


def encoded(document: ReportDocument | MatrixDocument | GuardDocument | dict[str, Any]) -> bytes:
    """As indented JSON, with a newline at its end. A path that is not UTF-8 has its bytes escaped as lone surrogates."""
    try:
        return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
    except UnicodeEncodeError:
        import json

        return json.dumps(msgspec.to_builtins(document), indent=2).encode() + b"\n"
