"""ramet verify"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ramet.cli import output
from ramet.cli.context import App, verb
from ramet.cli.create import parse_memory
from ramet.errors import ConfigError, InterruptedByUserError, RametError, host_errors

if TYPE_CHECKING:
    from ramet.verify.report import Matrix, Report

COULD_NOT_RUN_STATUS = 2
ALL = "all"


@verb(
    "verify",
    examples=[
        "ramet verify",
        "ramet verify --scenario base --memory 1G --json",
        "ramet verify --sabotage in-place-diff     # must end in FAIL",
        "ramet verify --sabotage all               # each must be caught",
    ],
)
@click.option("--list", "listing", is_flag=True, help="List scenarios and sabotages.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the reports, guard's too.")
@click.option("--scenario", "scenarios", multiple=True, metavar="NAME", help="Only this scenario. Repeatable.")
@click.option("--sabotage", metavar="NAME|all", help="Break isolation on purpose, to see that it is noticed.")
@click.option(
    "--memory", default="256M", show_default=True, metavar="SIZE", help="Memory of the guests, at least 224M."
)
@click.option(
    "--hypervisor",
    type=click.Choice(["qemu", "firecracker"]),
    default="qemu",
    show_default=True,
    help="What runs the guests.",
)
@click.option("--keep", is_flag=True, help="Keep the instances, to look at them.")
@click.option(
    "--output", "report_path", type=click.Path(path_type=Path), metavar="FILE", help="Also write the JSON here."
)
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Also write JUnit's XML here.")
def verify(
    app: App,
    listing: bool,
    schema: bool,
    scenarios: tuple[str, ...],
    sabotage: str | None,
    memory: str,
    hypervisor: str,
    keep: bool,
    report_path: Path | None,
    junit: Path | None,
) -> int:
    """Prove on this host that forks are isolated.

    Boots guests of its own in the store, forks them, lets them diverge, and judges by evidence from outside: files,
    extents, /proc, and the guests' answers. It removes what it made. Status 0: no check failed. 1: a check failed. 2:
    it could not run. With --sabotage NAME the broken run must end in 1; with --sabotage all, 0 says that each was
    caught by the check that names it.
    """
    try:
        if schema:
            from ramet.verify import documents

            output.json(documents.schema())
            return 0
        if listing:
            return _list(app)
        return _run(app, scenarios, sabotage, parse_memory(memory), hypervisor, keep, report_path, junit)
    except InterruptedByUserError:
        raise
    except RametError as err:
        err.exit_status = COULD_NOT_RUN_STATUS
        raise


def _list(app: App) -> int:
    from ramet import verify as verifier

    known = {"scenario": verifier.scenario_names(), "sabotage": verifier.sabotage_names()}
    if app.json:
        output.json({"scenarios": known["scenario"], "sabotages": known["sabotage"]})
    else:
        rows = [(kind, name, summary) for kind, names in known.items() for name, summary in names.items()]
        output.table(("KIND", "NAME", "WHAT IT DOES"), rows)
    return 0


def _run(
    app: App,
    scenarios: tuple[str, ...],
    sabotage: str | None,
    memory_mib: int,
    hypervisor: str,
    keep: bool,
    report_path: Path | None,
    junit: Path | None,
) -> int:
    from ramet import verify as verifier
    from ramet.config import default_home

    for name in scenarios:
        _check_known(name, verifier.scenario_names(), "scenario")
    if sabotage is not None and sabotage != ALL:
        _check_known(sabotage, verifier.sabotage_names(), "sabotage")
    if sabotage == ALL and scenarios:
        raise ConfigError("--sabotage all chooses the scenarios itself.", hint="Leave out --scenario.")
    if sabotage == ALL and junit is not None:
        raise ConfigError("The detection matrix has no form in JUnit's XML.", hint="Use --output, which is JSON.")
    for option, path in (("--output", report_path), ("--junit", junit)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"There is no directory {path.absolute().parent} for {option}.")
    home = app.home_dir() or default_home()
    with app.working("Verifying", lines=True) as say:
        report: Report | Matrix
        if sabotage == ALL:
            report = verifier.run_all_sabotages(home, hypervisor=hypervisor, memory_mib=memory_mib, on_progress=say)
        else:
            report = verifier.run(
                home,
                hypervisor=hypervisor,
                memory_mib=memory_mib,
                scenarios=scenarios,
                sabotage=sabotage,
                on_progress=say,
                keep=keep,
            )
    _show(app, report, report_path, junit)
    return report.exit_status


def _check_known(name: str, known: dict[str, str], what: str) -> None:
    if name not in known:
        raise ConfigError(f"There is no {what} {name!r}.", hint=f"There are: {', '.join(known)}.")


def _show(app: App, report: Report | Matrix, report_path: Path | None, junit_path: Path | None) -> None:
    from ramet.verify import junit
    from ramet.verify import report as reports

    encoded = reports.encode(report)
    if report_path is not None:
        with host_errors(f"write {report_path}"):
            report_path.write_bytes(encoded)
    if junit_path is not None and isinstance(report, reports.Report):
        with host_errors(f"write {junit_path}"):
            junit_path.write_bytes(junit.encode(report))
    if app.json:
        output.raw(encoded)
        return
    on_terminal = output.on_terminal()
    width = shutil.get_terminal_size().columns if on_terminal else None
    output.line(reports.render(report, width=width, color=on_terminal))
