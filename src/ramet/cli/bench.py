"""ramet bench"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ramet.cli import completion, output, report_files
from ramet.cli.context import HYPERVISORS, MEMORY_POLICIES, App, verb
from ramet.cli.create import parse_memory
from ramet.errors import HostError, host_errors

if TYPE_CHECKING:
    from ramet.bench.documents import BenchDocument

JSON_NAME, HTML_NAME = "report.json", "report.html"


@verb(
    "bench",
    examples=[
        "ramet bench",
        "ramet bench --against --output figures    # figures/report.json and figures/report.html",
        "ramet bench --only fork --only many --memory 1G --memory-policy share",
        "ramet bench --full --json",
    ],
)
@click.option("--list", "listing", is_flag=True, help="List the benchmarks.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the report.")
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Only this benchmark. Repeatable.",
    shell_complete=completion.benchmarks,
)
@click.option("--full", is_flag=True, help="More rounds, 64 forks at once, 50 sleeps, up to 4 GiB of dirtied memory.")
@click.option("--against", is_flag=True, help="Measure peers too, where they are installed; absent ones are named.")
@click.option("--memory", default="256M", show_default=True, metavar="SIZE", help="Memory of the guest, at least 224M.")
@click.option("--hypervisor", type=HYPERVISORS, help="Default: qemu if installed, else firecracker.")
@click.option(
    "--memory-policy",
    type=MEMORY_POLICIES,
    default="clone",
    show_default=True,
    help="Memory policy of the forks (see ramet fork).",
)
@report_files.directory_option("--output", "directory", f"{JSON_NAME} and {HTML_NAME}")
def bench(
    app: App,
    listing: bool,
    schema: bool,
    only: tuple[str, ...],
    full: bool,
    against: bool,
    memory: str,
    hypervisor: str | None,
    memory_policy: str,
    directory: Path | None,
) -> None:
    """Measure on this host what forks, wakes and sleeps cost.

    Boots guests of its own in a store inside yours, and compares within the run with the raw mechanism (the same VMM,
    started by a minimal script) and, with --against, with peers. It removes what it made. Takes a minute or two; with
    --full many. Status 0: all was measured that this host can run, whatever the figures are.
    """
    if schema:
        from ramet.bench import documents

        output.json(documents.schema())
        return
    from ramet.bench import runner
    from ramet.bench.benchmarks import catalogue

    chosen = catalogue.named(only)
    if listing:
        if app.json:
            output.json({"benchmarks": {one.name: one.summary for one in chosen}})
        else:
            output.table(("NAME", "WHAT IT MEASURES"), [(one.name, one.summary) for one in chosen])
        return
    memory_mib = parse_memory(memory)
    runner.check_memory(memory_mib)
    if directory is not None:
        report_files.check_directory("--output", directory, (JSON_NAME, HTML_NAME))
    found = _measured(app, only, full, against, memory_mib, hypervisor, memory_policy)
    _show(app, found, directory)


def _measured(
    app: App,
    only: tuple[str, ...],
    full: bool,
    against: bool,
    memory_mib: int,
    hypervisor: str | None,
    memory_policy: str,
) -> BenchDocument:
    from ramet import bench as benchmarks
    from ramet.bench import documents
    from ramet.config import default_home
    from ramet.model import Hypervisor, MemoryPolicy

    home = app.home_dir() or default_home()
    with app.working("Measuring", lines=True) as say:
        report = benchmarks.run(
            home,
            hypervisor=Hypervisor(hypervisor) if hypervisor else None,
            memory_mib=memory_mib,
            memory_policy=MemoryPolicy(memory_policy),
            only=only,
            full=full,
            against=against,
            on_progress=say,
        )
    return documents.document(report)


def _show(app: App, found: BenchDocument, directory: Path | None) -> None:
    from ramet.bench import documents, page, text

    failed: HostError | None = None
    if directory is not None:
        for name, encoded in ((JSON_NAME, documents.encode(found)), (HTML_NAME, page.encode(found))):
            try:
                with host_errors(f"write {directory / name}"):
                    directory.mkdir(exist_ok=True)
                    (directory / name).write_bytes(encoded)
            except HostError as err:  # the other is written, and the figures are told, all the same
                failed = failed or err
    if app.json:
        output.raw(documents.encode(found))
    else:
        output.line(text.render(found))
    if failed is not None:
        raise failed
