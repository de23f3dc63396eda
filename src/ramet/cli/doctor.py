"""ramet doctor"""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING

import click

from ramet.cli import output
from ramet.cli.context import App, verb
from ramet.errors import ConfigError

if TYPE_CHECKING:
    from ramet.model import Capability, StoreReport

NOT_WHOLE_STATUS = 1
MEANING_WIDTH = 100
"""Columns."""
WIDTH_MIN = 30
"""On a terminal that is too narrow for anything."""


@verb(
    "doctor",
    examples=[
        "ramet doctor",
        "ramet doctor --json | jq '.[] | select(.available | not) | .mend'",
        "ramet doctor --store --repair",
    ],
)
@click.option("--store", is_flag=True, help="Instead: say whether names, records, manifests and VMMs fit together.")
@click.option("--repair", is_flag=True, help="With --store: mend what can be mended.")
def doctor(app: App, store: bool, repair: bool) -> int:
    """Say what this host can do, and what mends the rest.

    Everything is probed, nothing is guessed from versions: KVM counts if guest code really runs, reflinks if
    a clone was made in the store. The status is 0 whatever the answers are. With --json: an array of {name available
    why meaning mend}.

    With --store every name, record, manifest, device state and VMM is looked at, and each file's size, owner and mode;
    no memory and no disk is read: `ramet snapshot check` does that. 0 if all is whole, 1 if something is wrong and was
    not mended. --repair loses nothing that something may need: it frees names that lead nowhere, sets modes, brings
    records up to what is true, ends VMMs that no record knows, and deletes snapshots that nothing refers to and whose
    instance is gone, lives, or has a later one that is whole. With --json: {instances snapshots vmms problems busy}.
    """
    if repair and not store:
        raise ConfigError("--repair mends the store: say so.", hint="ramet doctor --store --repair")
    host = app.host()
    if store:
        with app.working("Looking at the store"):
            report = host.check_store(repair=repair)
        _show_store(app, report)
        return 0 if report.whole else NOT_WHOLE_STATUS
    with app.working("Probing"):
        capabilities = host.doctor()
    _show_host(app, capabilities)
    return 0


def _show_host(app: App, capabilities: list[Capability]) -> None:
    if app.json:
        output.json(capabilities)
        return
    width = max((len(capability.name) for capability in capabilities), default=0)
    indent = " " * (width + 7)
    columns = max(shutil.get_terminal_size().columns - len(indent), WIDTH_MIN) if output.on_terminal() else None
    for capability in capabilities:
        word = output.coloured("yes") if capability.available else output.coloured("no") + " "
        first, *rest = _wrapped(capability.why, columns) if columns else [capability.why]
        output.line(f"{word}  {capability.name.ljust(width)}  {first}")
        for part in rest:
            output.line(f"{indent}{part}")
        about = [capability.meaning]
        if capability.mend and not capability.available:
            about.append(f"Mend: {capability.mend}")
        for text in about:
            for part in _wrapped(text, min(columns or MEANING_WIDTH, MEANING_WIDTH)):
                output.line(f"{indent}{part}")


def _wrapped(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False) or [""]


def _show_store(app: App, report: StoreReport) -> None:
    if app.json:
        output.json(report)
        return
    for problem in report.problems:
        output.line(f"{problem.where}: {problem.text}")
        if problem.mended:
            output.line(f"  mended: {problem.mend}")
        elif problem.can_be_mended:
            output.line(f"  --repair: {problem.mend}")
        else:
            output.line(f"  {problem.mend}")
    for where in report.busy:
        output.line(f"{where}: another command is at work on it; look again when it has ended")
    left = sum(1 for problem in report.problems if not problem.mended)
    judged = (
        "whole, as far as it was read (ramet snapshot check reads the rest)"
        if report.whole
        else f"{left} {'problem' if left == 1 else 'problems'} left"
    )
    output.line(f"instances {report.instances}, snapshots {report.snapshots}, VMMs {report.vmms}: {judged}")
