"""The ``ramet`` command as a user runs it: a process of its own, judged by its status, its output and what it leaves behind."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm import preloaded

ARGV = (sys.executable, "-m", "ramet.cli")
TIMEOUT_S = 180.0
PROGRAMS = ("RAMET_QEMU", "RAMET_FIRECRACKER")
INTERNAL_STATUS = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A command that has ended."""

    argv: tuple[str, ...]
    status: int
    out: bytes
    err: str

    def ok(self) -> Done:
        """Itself, if its status was 0 and it complained of nothing."""
        assert (self.status, self.err) == (0, ""), self
        return self

    def refused(self, status: int) -> str:
        """What it said on stderr; it must have had that status and a message for a person."""
        assert self.status == status, self
        assert self.err.startswith("ramet: error: "), self
        assert "Traceback" not in self.err, self
        return self.err


@dataclass(frozen=True, slots=True)
class CommandLine:
    """``ramet`` with a store and, where a test says so, another environment."""

    home: Path
    changes: Mapping[str, str] | None = None

    def environment(self) -> dict[str, str]:
        """Ours, with the store and the VMMs that are tested; nothing of ours that changes what is printed."""
        kept = {key: value for key, value in os.environ.items() if key in PROGRAMS or not key.startswith("RAMET_")}
        return {**kept, "RAMET_HOME": str(self.home), **(self.changes or {})}

    def start(self, *argv: str, terminal_fd: int | None = None) -> subprocess.Popen[bytes]:
        """Begin a command: stdin empty, stdout and stderr pipes; or all three a terminal that becomes the controlling one."""
        if terminal_fd is None:
            return subprocess.Popen(
                [*ARGV, *argv],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        return subprocess.Popen(
            [*ARGV, *argv],
            env=self.environment(),
            stdin=terminal_fd,
            stdout=terminal_fd,
            stderr=terminal_fd,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def run(self, *argv: str, stdin: bytes = b"", timeout_s: float = TIMEOUT_S) -> Done:
        """Run a command to its end. It is a process that begins with Ramet imported (``preloaded.py``), unless a test has changed
        the environment, which a Python reads as it starts.
        """
        if self.changes is None:
            quick = preloaded.run("ramet", argv, env=self.environment(), stdin=stdin, timeout_s=timeout_s)
            return Done(argv=argv, status=quick.returncode, out=quick.stdout, err=quick.stderr.decode())
        ended = subprocess.run(
            [*ARGV, *argv], env=self.environment(), input=stdin, capture_output=True, timeout=timeout_s, check=False
        )
        return Done(argv=argv, status=ended.returncode, out=ended.stdout, err=ended.stderr.decode())

    def text(self, *argv: str, stdin: bytes = b"") -> str:
        """What a command that must succeed printed."""
        return self.run(*argv, stdin=stdin).ok().out.decode()

    def json(self, *argv: str) -> Any:
        """What a command that must succeed printed with ``--json``."""
        return json.loads(self.run(*with_json(argv)).ok().out)

    def error(self, *argv: str, status: int) -> dict[str, Any]:
        """The error object of a command that must fail with that status, in its message and in its JSON."""
        done = self.run(*with_json(argv))
        message = done.refused(status)
        found = json.loads(done.out)
        error = found[0]["error"] if isinstance(found, list) else found["error"]
        assert isinstance(error, dict)
        assert error["exit_status"] == status, done
        assert error["message"].splitlines()[0] in message, done
        return error


def with_json(argv: Sequence[str]) -> list[str]:
    """``--json`` where it is the verb's, and not the guest's command's."""
    return ["exec", "--json", *argv[1:]] if argv[0] == "exec" else [*argv, "--json"]


def listing(home: Path) -> dict[str, list[str]]:
    """Everything in a store that a verb may make or delete, by name: what a refused one must leave as it was."""
    places = ("instances", "snapshots", "tmp", "locks", "names/instances", "names/snapshots", "images")
    return {place: sorted(path.name for path in (home / place).iterdir()) for place in places}
