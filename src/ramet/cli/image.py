"""ramet image build, ls, rm"""

from __future__ import annotations

import time

import click

from ramet.cli import completion, output
from ramet.cli.context import App, verb
from ramet.cli.several import each


@click.group("image")
def image() -> None:
    """Build, list and delete guest images."""


@verb("build", examples=["ramet image build"])
@click.argument("name", default="micro")
def build(app: App, name: str) -> None:
    """Build the guest image, or find that it is built already.

    Images are named by what they were built from: same inputs, same digest. If it fails, nothing is left behind.
    """
    host = app.host()
    began = time.monotonic()
    with app.working(f"Building image {name}", lines=True):
        built = host.image_build(name)
    if app.json:
        output.json(built)
        return
    took = output.duration(time.monotonic() - began)
    output.line(f"{name}: {built.digest} (kernel {built.kernel_version}, {output.size(built.size_bytes)}, {took})")


@verb("ls", examples=["ramet image ls"])
def ls(app: App) -> None:
    """List the guest images.

    With --json: an array of images, each with its names in "tags".
    """
    found = app.host().image_list()
    if app.json:
        import msgspec

        output.json([msgspec.to_builtins(built) | {"tags": tags} for built, tags in found])
        return
    output.table(
        ("NAME", "DIGEST", "KERNEL", "SIZE", "AGE"),
        [
            (
                ",".join(tags) or "-",
                built.digest,
                built.kernel_version,
                output.size(built.size_bytes),
                output.age(built.created_at_unix_s),
            )
            for built, tags in found
        ],
        right=("SIZE", "AGE"),
        if_empty="No images. `ramet image build` makes one.",
    )


@verb("rm", examples=["ramet image rm micro"])
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...", shell_complete=completion.images)
def rm(app: App, names: tuple[str, ...]) -> int:
    """Delete guest images, by name or digest.

    An image that an instance was created with is refused, with the names of those instances. With --json: an array.
    """
    host = app.host()

    def action(name: str) -> dict[str, object]:
        host.image_remove(name)
        return {"name": name, "deleted": True}

    return each(app, names, doing="Deleting", action=action, show=lambda name, _: f"{name}: deleted")


for _command in (build, ls, rm):
    image.add_command(_command)
