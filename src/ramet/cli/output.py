"""What verbs print: JSON for programs, tables and short lines for people, plain columns where stdout is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, TextIO

import click

from ramet.errors import HostError

if TYPE_CHECKING:
    from ramet.model import InstanceInfo

GAP = "  "
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_COLOURS = {
    "running": "green",
    "paused": "yellow",
    "standby": "cyan",
    "parked": "cyan",
    "failed": "red",
    "PASS": "green",
    "FAIL": "red",
    "yes": "green",
    "no": "red",
}


@contextmanager
def _writing(stream: TextIO | None, name: str) -> Iterator[TextIO]:
    if stream is None:
        raise HostError(f"Could not write to {name}: it is closed.")
    try:
        yield stream
    except BrokenPipeError:
        raise  # the reader has had enough: main ends quietly
    except OSError as err:
        raise HostError(f"Could not write to {name}: {err.strerror}.") from err


def _stdout() -> AbstractContextManager[TextIO]:
    return _writing(sys.stdout, "standard output")


def line(text: str) -> None:
    """Print one line; control characters of foreign text are the caller's business.

    Raises:
        HostError: if stdout takes no more (a full disk).
    """
    with _stdout():
        click.echo(text)


def error_line(text: str) -> None:
    """Print one line to stderr.

    Raises:
        HostError: if stderr takes no more.
    """
    with _writing(sys.stderr, "standard error") as stream:
        click.echo(text, file=stream)


def raw(data: bytes) -> None:
    """Write bytes to stdout as they are, at once.

    Raises:
        HostError: if stdout takes no more.
    """
    with _stdout() as stream:
        stream.buffer.write(data)
        stream.buffer.flush()


def text(shown: str) -> None:
    """Write text to stdout, at once; what its encoding lacks becomes a question mark.

    Raises:
        HostError: if stdout takes no more.
    """
    raw(shown.encode(sys.stdout.encoding or "ascii", "replace"))


def raw_error(data: bytes) -> None:
    """Write bytes to stderr as they are, at once.

    Raises:
        HostError: if stderr takes no more.
    """
    with _writing(sys.stderr, "standard error") as stream:
        stream.buffer.write(data)
        stream.buffer.flush()


def json(value: object) -> None:
    """Print a value as indented JSON: structs become objects, enums their values, bytes base64."""
    import msgspec

    try:
        encoded = msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2)
    except UnicodeEncodeError:
        # A path that is not UTF-8: its bytes become lone surrogates, which ASCII JSON can escape.
        import json as standard_json

        encoded = standard_json.dumps(msgspec.to_builtins(value, enc_hook=str), indent=2).encode()
    raw(encoded + b"\n")


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), if_empty: str = ""
) -> None:
    """Print rows under headers; columns named in ``right`` are right-aligned. ``if_empty`` is what a person is told in the
    place of a table without rows, on stderr: what there is none of, and how one is made.

    On a terminal through rich, coloured by state. Elsewhere fixed columns without colours, never cut and never wrapped.
    """
    if on_terminal() and if_empty and not rows:
        error_line(if_empty)
    elif on_terminal():
        _rich_table(headers, rows, right)
    else:
        for text in columns([headers, *rows], right=[header in right for header in headers]):
            line(text)


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[bool]) -> list[str]:
    """Pad the cells of all rows to the width of their column."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(right))]
    return [
        GAP.join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]


def _rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        shown.add_column(header, justify="right" if header in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell, style=_COLOURS.get(cell.partition("(")[0], "")) for cell in row))
    with _stdout():
        Console(highlight=False).print(shown)


def fields(pairs: Sequence[tuple[str, str]]) -> None:
    """Print ``label  value`` lines, values aligned."""
    width = max(len(label) for label, _ in pairs)
    for label, value in pairs:
        line(f"{label.ljust(width)}{GAP}{value}".rstrip())


def coloured(word: str) -> str:
    """``word`` in its colour on a terminal, and as it is elsewhere (click removes the codes)."""
    return click.style(word, fg=_COLOURS.get(word.partition("(")[0]))


def on_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def can_print(text: str) -> bool:
    """Whether stdout's encoding has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def size(size_bytes: int) -> str:
    """``1536`` as ``1.5 KiB``; whole numbers without a fraction."""
    amount = float(size_bytes)
    unit = 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount /= 1024
        unit += 1
    return f"{size_bytes} B" if unit == 0 else f"{amount:.1f}".removesuffix(".0") + f" {_UNITS[unit]}"


def memory(memory_mib: int) -> str:
    """A guest's memory as a size."""
    return size(memory_mib * 1024 * 1024)


def duration(elapsed_s: float) -> str:
    """``84 ms``, ``2.3 s``, ``3 min 5 s``."""
    if elapsed_s < 1:
        return f"{elapsed_s * 1000:.0f} ms"
    if elapsed_s < 100:
        return f"{elapsed_s:.1f} s"
    return f"{int(elapsed_s) // 60} min {int(elapsed_s) % 60} s"


def age(unix_s: float) -> str:
    """How long ago, in the largest unit: ``5s``, ``12min``, ``3h``, ``40d``."""
    seconds = max(0, int(time.time() - unix_s))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def moment(unix_s: float) -> str:
    """Local time with its offset, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(unix_s))


def instance_state(info: InstanceInfo) -> str:
    """``running``, ``failed(vmm-lost)`` or ``parked(stale)``: one word, so that columns stay columns."""
    why = info.failure or ("stale" if info.stale else None)
    return f"{info.state}({why})" if why else str(info.state)
