"""Puts the guest agent, compiled, and the commit into a wheel: whoever installs that needs no compiler.

Without one here the wheel is made all the same, and compiles the agent when an image is built.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parents[1]
TAG = "py3-none-manylinux_2_17_x86_64.musllinux_1_1_x86_64"
"""The agent is static: no libc of the host's is needed."""


class AgentHook(BuildHookInterface[Any]):
    """Called by hatchling for each wheel."""

    _made: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files; an editable install uses the sources that it points at."""
        if version == "editable":
            return
        made = self._made = Path(mkdtemp(prefix="ramet-wheel-"))
        commit = _commit()
        if commit is not None:
            (made / "commit").write_text(f"{commit}\n")
            build_data["force_include"][str(made / "commit")] = "ramet/commit"
        programs = _programs()
        for name, data in programs.items():
            (made / name).write_bytes(data)
            (made / name).chmod(0o755)
            build_data["force_include"][str(made / name)] = f"ramet/guests/prebuilt/{name}"
        if programs:
            build_data["pure_python"] = False
            build_data["tag"] = TAG

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Nothing is left but the wheel."""
        if self._made is not None:
            shutil.rmtree(self._made)


def _programs() -> dict[str, bytes]:
    if platform.machine() != "x86_64":
        return {}
    sys.path.insert(0, str(ROOT / "src"))
    from ramet.errors import RametError
    from ramet.guests.agent_build import compile_programs

    try:
        return compile_programs()
    except RametError as err:
        sys.stderr.write(f"ramet: the wheel has no compiled agent: {err}\n")
        return {}


def _commit() -> str | None:
    """Of this checkout, and not of one that an unpacked source archive happens to lie in."""
    if not (ROOT / ".git").exists():
        return None
    ask = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
