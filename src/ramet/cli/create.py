"""ramet create"""

from __future__ import annotations

import time

import click

from ramet.cli import completion, output
from ramet.cli.context import HYPERVISORS, App, seconds, verb
from ramet.errors import ConfigError


def parse_memory(text: str) -> int:
    """MiB in ``256M`` or ``2G``.

    Raises:
        ConfigError: if it is not a size, or not a whole number of MiB.
    """
    from ramet.config import parse_size
    from ramet.model import MIB

    size_bytes = parse_size(text, what="--memory")
    if size_bytes % MIB:
        raise ConfigError(f"--memory must be a whole number of MiB, not {text!r}.", hint="Write it like 256M or 2G.")
    return size_bytes // MIB


@verb(
    "create",
    examples=[
        "ramet create web",
        "ramet create db --memory 2G --cpus 2 --disk 10G",
    ],
)
@click.argument("name")
@click.option(
    "--image",
    default="micro",
    show_default=True,
    metavar="IMAGE",
    shell_complete=completion.images,
    help="Name or digest of a guest image.",
)
@click.option("--memory", default="256M", show_default=True, metavar="SIZE", help="Guest memory.")
@click.option("--cpus", type=int, default=1, show_default=True, metavar="N", help="Virtual CPUs.")
@click.option("--disk", default="1G", show_default=True, metavar="SIZE", help="Disk, sparse; /data in the guest.")
@click.option(
    "--hypervisor",
    type=HYPERVISORS,
    help="Default: qemu if installed, else firecracker.",
)
@click.option("--accelerator", type=click.Choice(["tcg", "kvm"]), help="Default: kvm where it is usable, else tcg.")
@click.option("--boot-timeout", type=float, callback=seconds, metavar="S", help="Seconds that the boot may take.")
def create(
    app: App,
    name: str,
    image: str,
    memory: str,
    cpus: int,
    disk: str,
    hypervisor: str | None,
    accelerator: str | None,
    boot_timeout: float | None,
) -> None:
    """Create an instance and boot it.

    Returns when the agent in the guest answers. If it fails, nothing is left behind. The instance outlives this
    command.
    """
    from ramet.config import parse_size
    from ramet.model import Accelerator, Hypervisor

    memory_mib = parse_memory(memory)
    disk_bytes = parse_size(disk, what="--disk")
    host = app.host()
    began = time.monotonic()
    with app.working(f"Booting {name}"):
        info = host.create(
            name,
            image=image,
            memory_mib=memory_mib,
            cpus=cpus,
            disk_bytes=disk_bytes,
            hypervisor=Hypervisor(hypervisor) if hypervisor else None,
            accelerator=Accelerator(accelerator) if accelerator else None,
            **({} if boot_timeout is None else {"boot_timeout_s": boot_timeout}),
        )
    if app.json:
        output.json(info)
    else:
        took = output.duration(time.monotonic() - began)
        output.line(f"{info.name}: {output.coloured(info.state)} (booted in {took})")
        if host.last_note:
            output.line(f"  {host.last_note}")
