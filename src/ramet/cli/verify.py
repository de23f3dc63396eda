"""ramet verify"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ramet.cli import completion, output, report_files
from ramet.cli.context import HYPERVISORS, MEMORY_POLICIES, App, verb
from ramet.cli.create import parse_memory
from ramet.cli.failures import could_not_run
from ramet.errors import ConfigError, HostError, host_errors

if TYPE_CHECKING:
    from ramet.verify.reports.results import Matrix, Report

ALL = "all"


@verb(
    "verify",
    examples=[
        "ramet verify",
        "ramet verify --scenario base --memory 1G --json",
        "ramet verify --sabotage in-place-diff     # must end in FAIL",
        "ramet verify --sabotage all               # each must be caught",
        "ramet verify --memory-policy share        # of forks that share memory",
    ],
)
@click.option("--list", "listing", is_flag=True, help="List scenarios and sabotages.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the reports, guard's too.")
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    metavar="NAME",
    help="Only this scenario. Repeatable.",
    shell_complete=completion.scenarios,
)
@click.option(
    "--sabotage",
    metavar="NAME|all",
    help="Break isolation on purpose, to see that it is noticed.",
    shell_complete=completion.sabotages,
)
@click.option(
    "--memory", default="256M", show_default=True, metavar="SIZE", help="Memory of the guests, at least 224M."
)
@click.option(
    "--hypervisor",
    type=HYPERVISORS,
    default="qemu",
    show_default=True,
    help="What runs the guests.",
)
@click.option(
    "--memory-policy",
    type=MEMORY_POLICIES,
    default="clone",
    show_default=True,
    help="Memory policy of all forks (see ramet fork).",
)
@click.option("--keep", is_flag=True, help="Keep the instances, to look at them.")
@report_files.option("--output", "report_path", "the JSON")
@report_files.option("--html", "html", "one page of HTML")
@report_files.option("--junit", "junit", "JUnit's XML")
@could_not_run()
def verify(
    app: App,
    listing: bool,
    schema: bool,
    scenarios: tuple[str, ...],
    sabotage: str | None,
    memory: str,
    hypervisor: str,
    memory_policy: str,
    keep: bool,
    report_path: Path | None,
    html: Path | None,
    junit: Path | None,
) -> int:
    """Prove on this host that forks are isolated.

    Boots guests of its own in the store, forks them, lets them diverge, and judges by evidence from outside: files,
    extents, /proc, and the guests' answers. It removes what it made. A check that passed is [enforced] if the kernel would
    refuse the opposite, and [held] if nothing but Ramet's own code made it so. Status 0: no check failed. 1: a check failed. 2:
    it could not run to its end, or nothing could be looked at. With --sabotage NAME the broken run must end in 1; with
    --sabotage all, 0 says that each that can be committed here was caught by the checks that it names.
    """
    if schema:
        from ramet.verify.reports import documents

        output.json(documents.schema())
        return 0
    if listing:
        _check_names(scenarios, sabotage)
        return _list(app)
    places = {"--output": report_path, "--html": html, "--junit": junit}
    reports = {option: path for option, path in places.items() if path is not None}
    return _run(app, scenarios, sabotage, parse_memory(memory), hypervisor, memory_policy, keep, reports)


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
    memory_policy: str,
    keep: bool,
    reports: dict[str, Path],
) -> int:
    from ramet import verify as verifier
    from ramet.config import default_home
    from ramet.model import MemoryPolicy

    policy = MemoryPolicy(memory_policy)
    _check_names(scenarios, sabotage)
    if sabotage == ALL and scenarios:
        raise ConfigError("--sabotage all chooses the scenarios itself.", hint="Leave out --scenario.")
    if sabotage == ALL and keep:
        raise ConfigError("--sabotage all keeps nothing.", hint="Use --keep with the sabotage that is to be looked at.")
    if sabotage == ALL and "--junit" in reports:
        raise ConfigError("The detection matrix has no form in JUnit's XML.", hint="Use --output, or --html.")
    report_files.check(reports)
    home = app.home_dir() or default_home()
    with app.working("Verifying", lines=True) as say:
        report: Report | Matrix
        if sabotage == ALL:
            report = verifier.run_all_sabotages(
                home, hypervisor=hypervisor, memory_mib=memory_mib, memory_policy=policy, on_progress=say
            )
        else:
            report = verifier.run(
                home,
                hypervisor=hypervisor,
                memory_mib=memory_mib,
                memory_policy=policy,
                scenarios=scenarios,
                sabotage=sabotage,
                on_progress=say,
                keep=keep,
            )
    _show(app, report, reports)
    return report.exit_status


def _check_names(scenarios: tuple[str, ...], sabotage: str | None) -> None:
    from ramet.verify import sabotage as sabotages
    from ramet.verify.scenarios import catalogue

    catalogue.named(scenarios)
    if sabotage is not None and sabotage != ALL:
        sabotages.named(sabotage)


def _show(app: App, report: Report | Matrix, places: dict[str, Path]) -> None:
    from ramet.verify.reports import conversion, text

    failed: HostError | None = None
    for option, path in places.items():
        try:
            with host_errors(f"write {path}"):
                path.write_bytes(_encoded(option, report))
        except HostError as err:  # the others are written, and the report is told, all the same
            failed = failed or err
    if app.json:
        output.raw(conversion.encode(report))
    else:
        on_terminal = output.on_terminal()
        width = shutil.get_terminal_size().columns if on_terminal else None
        output.line(text.render(report, width=width, color=on_terminal))
    if failed is not None:
        raise failed


def _encoded(option: str, report: Report | Matrix) -> bytes:
    """The report in the form that an option asks for."""
    from ramet.verify.reports import conversion, junit, page
    from ramet.verify.reports.results import Report

    if option == "--html":
        return page.encode(conversion.document(report))
    if option == "--junit" and isinstance(report, Report):
        return junit.encode(report)
    return conversion.encode(report)
