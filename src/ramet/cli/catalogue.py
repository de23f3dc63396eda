"""The list of verbs, and the group that loads one when it is asked for."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import click

from ramet.spelling import did_you_mean


class Entry(NamedTuple):
    """A verb before it is loaded: where it lives, and the first sentence of its help (a test compares them)."""

    section: str
    module: str
    attribute: str
    summary: str


LIFE, INSIDE, LOOKING, KEEPING, PROOF = "Life", "Inside the guest", "Looking", "Images and snapshots", "Proof"

VERBS: dict[str, Entry] = {
    "create": Entry(LIFE, "create", "create", "Create an instance and boot it."),
    "fork": Entry(LIFE, "fork", "fork", "Fork an instance or a snapshot into one or many new instances."),
    "pool": Entry(LIFE, "pool", "pool", "Park forks of a source, loaded and paused, to be claimed in an instant."),
    "pause": Entry(LIFE, "state", "pause", "Freeze the guest and stop its vCPUs."),
    "resume": Entry(LIFE, "state", "resume", "Let a paused guest run on."),
    "standby": Entry(LIFE, "state", "standby", "Put instances to sleep: memory and disk to a snapshot, VMM gone."),
    "restore": Entry(LIFE, "state", "restore", "Wake instances from standby, or roll one back to a snapshot."),
    "stop": Entry(LIFE, "state", "stop", "Shut the guest down and keep its disk."),
    "start": Entry(LIFE, "state", "start", "Boot the disk of a stopped or failed instance."),
    "rm": Entry(LIFE, "rm", "rm", "Delete instances and what nothing else needs of them."),
    "exec": Entry(INSIDE, "exec", "exec", "Run a command in the guest."),
    "cp": Entry(INSIDE, "cp", "cp", "Copy a file into or out of the guest."),
    "console": Entry(INSIDE, "console", "console", "Attach to the guest's serial console."),
    "logs": Entry(INSIDE, "logs", "logs", "Print the log of the guest's console, or of its VMM."),
    "ls": Entry(LOOKING, "ls", "ls", "List the instances."),
    "show": Entry(LOOKING, "show", "show", "Show all that is known of one instance."),
    "tree": Entry(LOOKING, "tree", "tree", "Show who was forked from whom."),
    "du": Entry(LOOKING, "du", "du", "Show the disk and memory that instances, snapshots and images use."),
    "image": Entry(KEEPING, "image", "image", "Build, list and delete guest images."),
    "snapshot": Entry(KEEPING, "snapshot", "snapshot", "Take, list, show, check and delete snapshots."),
    "verify": Entry(PROOF, "verify", "verify", "Prove on this host that forks are isolated."),
    "guard": Entry(PROOF, "guard", "guard", "Run a command and say which of your files it changed."),
    "bench": Entry(PROOF, "bench", "bench", "Measure on this host what forks, wakes and sleeps cost."),
    "doctor": Entry(PROOF, "doctor", "doctor", "Say what this host can do, and what mends the rest."),
}

EPILOG_STATUSES = (
    ("0", "done, or there was nothing to do"),
    ("2", "bad input, nothing was touched"),
    ("3", "no such instance, snapshot, image or file"),
    ("4", "conflict: wrong state, or the name is taken"),
    ("5", "in use by others"),
    ("6", "locked by another command"),
    ("7", "this host lacks something"),
    ("8, 9", "the host refused, or has no space left"),
    ("10, 11", "the VMM failed, or died"),
    ("12 - 14", "the snapshot is unusable, damaged or incompatible"),
    ("15, 16", "the guest refused, or did not answer"),
    ("70", "internal error"),
    ("130", "interrupted"),
    ("141", "the reader of the output went away"),
)


class LazyGroup(click.Group):
    """A group that imports a verb's module when that verb is run, and lists them all without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = VERBS.get(cmd_name)
        if entry is None:
            return None
        found = getattr(importlib.import_module(f"ramet.cli.{entry.module}"), entry.attribute)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if word not in VERBS and not word.startswith("-"):
            raise click.UsageError(f"There is no verb {word!r}. {did_you_mean(word, VERBS)}".rstrip(), ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, VERBS))
        for section in dict.fromkeys(entry.section for entry in VERBS.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [(name.ljust(width), entry.summary) for name, entry in VERBS.items() if entry.section == section]
                )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit status"):
            formatter.write_dl(list(EPILOG_STATUSES))
            formatter.write_paragraph()
            formatter.write_text(
                "exec exits as the guest's command does, or with 127 or 126 if it cannot be run; "
                "verify and guard with 0 (no FAIL), 1 (FAIL), 2 (could not run; guard: or INCONCLUSIVE); snapshot check and "
                "doctor --store with 1 if something is wrong."
            )
