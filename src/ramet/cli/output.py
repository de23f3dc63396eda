"""What verbs print: JSON for programs, tables and short lines for people, plain columns where stdout is no terminal."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

import click

from ramet.errors import HostError

GAP = "  "
NARROWEST = 8
"""No column is folded below it."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_COLOURS = {
    "running": "green",
    "paused": "yellow",
    "standby": "cyan",
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


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print rows under headers; columns named in ``right`` are right-aligned.

    On a terminal coloured by state, and folded where they are too wide for it. Elsewhere never cut and never wrapped.
    """
    width = shutil.get_terminal_size().columns if on_terminal() else None
    for text in columns([headers, *rows], right=[header in right for header in headers], width=width):
        line(text)


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[bool], width: int | None = None) -> list[str]:
    """Pad the cells of all rows to the width of their column. With ``width`` cells are folded so that a line fits, the widest
    columns first, and words are coloured.
    """
    widths = [max(len(row[index]) for row in rows) for index in range(len(right))]
    if width is None:
        return [_row(row, widths, right, paint=False) for row in rows]
    while sum(widths) + len(GAP) * (len(widths) - 1) > width and max(widths) > NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return [text for row in rows for text in _folded(row, widths, right)]


def _folded(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> Iterator[str]:
    cells = [textwrap.wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
    for parts in itertools.zip_longest(*cells, fillvalue=""):
        yield _row(parts, widths, right, paint=True)


def _row(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool], *, paint: bool) -> str:
    padded = []
    for cell, width, to_right in zip(cells, widths, right, strict=True):
        shown, padding = coloured(cell) if paint else cell, " " * (width - len(cell))
        padded.append(padding + shown if to_right else shown + padding)
    return GAP.join(padded).rstrip()


def fields(pairs: Sequence[tuple[str, str]]) -> None:
    """Print ``label  value`` lines, values aligned."""
    width = max(len(label) for label, _ in pairs)
    for label, value in pairs:
        line(f"{label.ljust(width)}{GAP}{value}".rstrip())


def coloured(word: str) -> str:
    """``word`` in its colour, if it has one, on a terminal, and as it is elsewhere (click removes the codes)."""
    colour = _COLOURS.get(word.partition("(")[0])
    return click.style(word, fg=colour) if colour and "NO_COLOR" not in os.environ else word


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


def instance_state(state: str, failure: str | None) -> str:
    """``running``, or ``failed(vmm-lost)``: one word, so that columns stay columns."""
    return f"{state}({failure})" if failure else state
