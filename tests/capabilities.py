"""What tests need of the host, and why it lacks it."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.errors import RametError
from tests import browser
from tools import loopfs


def requires(*capabilities: str) -> pytest.MarkDecorator:
    """Mark a test with what it needs of the host."""
    return pytest.mark.requires(*capabilities)


def _qemu() -> str | None:
    from ramet.hypervisors.qemu import driver

    try:
        driver.program()
    except RametError as err:
        return err.message
    return None


def _firecracker() -> str | None:
    from ramet.hypervisors.firecracker import driver

    try:
        driver.version(driver.program())
    except RametError as err:
        return err.message
    return None


def why_no_kvm_here() -> str | None:
    """None if this host, or the lab that we run in, has KVM of its own."""
    from ramet.hypervisors import kvm

    return kvm.why_not_usable()


def _kvm() -> str | None:
    """Of this host, or in the lab."""
    here = why_no_kvm_here()
    lab_lacks = [why for why in (why_missing("qemu"), why_missing("gcc")) if why is not None]
    return f"{here}; and no lab: {'; '.join(lab_lacks)}" if here and lab_lacks else None


def _compiler() -> str | None:
    return None if shutil.which("gcc") else "gcc was not found"


def _clang() -> str | None:
    return None if shutil.which("clang") else "clang was not found"


def _browser() -> str | None:
    return None if browser.program() else f"none of {', '.join(browser.NAMES)} was found"


def _root() -> str | None:
    return None if os.geteuid() == 0 else "not root"


def _pagemap_scan() -> str | None:
    from ramet.linux.pagemap import has_pagemap_scan

    return None if has_pagemap_scan() else f"kernel {os.uname().release} lacks it"


def _landlock() -> str | None:
    from ramet.hypervisors import confinement

    return confinement.why_no_landlock()


def _seccomp() -> str | None:
    from ramet.linux import seccomp

    return seccomp.why_not()


def _vmm_users() -> str | None:
    from ramet.hypervisors import users

    return users.why_no_users(any_python(), kvm=False)


def any_python() -> str:
    """A Python that every user may run, if there is one: the one that runs the tests may be in somebody's home."""
    system = Path("/usr/bin/python3")
    return str((system if system.exists() else Path(sys.executable)).resolve())


def _ksm() -> str | None:
    from ramet.linux import ksm, libc

    try:
        libc.prctl(ksm.PR_GET_MEMORY_MERGE)
    except OSError as err:
        return f"kernel {os.uname().release} has no PR_SET_MEMORY_MERGE ({err.strerror})"
    return None


PROBES: dict[str, Callable[[], str | None]] = {
    "qemu": _qemu,
    "firecracker": _firecracker,
    "kvm": _kvm,
    "loopfs": loopfs.why_not,
    "root": _root,
    "gcc": _compiler,
    "clang": _clang,
    "browser": _browser,
    "pagemap-scan": _pagemap_scan,
    "landlock": _landlock,
    "seccomp": _seccomp,
    "vmm-users": _vmm_users,
    "ksm": _ksm,
}
NEVER_REQUIRED = frozenset({"pagemap-scan", "ksm"})
"""What ``--require=all`` does not mean: no package can bring it."""


@functools.cache
def why_missing(capability: str) -> str | None:
    return PROBES[capability]()


def needs(item: pytest.Item) -> set[str]:
    """The capabilities that a test needs of the host."""
    found = {str(name) for mark in item.iter_markers("requires") for name in mark.args}
    if "file_system" in getattr(item, "fixturenames", ()):
        found |= {"loopfs", "qemu"}
    return found
