"""The agent and the filler: as a wheel brings them, else compiled: static, warnings as errors, the same bytes each time."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory

from ramet import helpers
from ramet.errors import CommandError, UnsupportedError

FLAGS = (
    "-std=gnu11",
    "-Os",
    "-static",
    "-s",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Werror",
    "-fstack-protector-strong",
    "-Wl,--build-id=none",
)
FILLER = "fill.c"
PROGRAMS = ("ramet-agent", "ramet-fill")
COMPILE_TIMEOUT_S = 120


def sources() -> tuple[Path, ...]:
    """The C files of the agent, sorted; the filler is a program of its own."""
    with as_file(files("ramet.guests") / "agent") as directory:
        return tuple(sorted(directory.glob("*.c")))


def prebuilt() -> dict[str, bytes] | None:
    """``ramet-agent`` and ``ramet-fill``, as bytes, of the wheel that this was installed from; None where there was none."""
    directory = files("ramet.guests") / "prebuilt"
    return {name: (directory / name).read_bytes() for name in PROGRAMS} if directory.is_dir() else None


def compile_programs() -> dict[str, bytes]:
    """The same, compiled now.

    Raises:
        UnsupportedError: without a C compiler or a static libc.
        CommandError: with the compiler's words.
    """
    compiler = helpers.find_program("cc", package="gcc libc6-dev")
    agent = [path for path in sources() if path.name != FILLER]
    filler = [path for path in sources() if path.name == FILLER]
    return {"ramet-agent": _compile(compiler, agent), "ramet-fill": _compile(compiler, filler)}


def _compile(compiler: str, paths: list[Path]) -> bytes:
    directory = paths[0].parent
    with TemporaryDirectory(prefix="ramet-cc-") as scratch:
        out = Path(scratch) / "out"
        argv = [compiler, *FLAGS, f"-ffile-prefix-map={directory}=.", "-o", str(out), *(path.name for path in paths)]
        try:
            helpers.run(argv, timeout_s=COMPILE_TIMEOUT_S, cwd=directory)
        except CommandError as err:
            if "cannot find -lc" in err.stderr_tail or "stdio.h" in err.stderr_tail:
                raise UnsupportedError(
                    "The C library to link against is not on this host.",
                    capability="libc-dev",
                    why="the compiler found no libc",
                    hint="Install it: apt-get install libc6-dev",
                ) from err
            raise
        return out.read_bytes()
