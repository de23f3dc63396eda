"""A peer: libvirt's save and restore, of a transient domain that boots the same image on QEMU's machine ``pc``, with a console.

Nothing of libvirt is linked: it is asked by virsh(1).
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree as Xml

from ramet import helpers
from ramet.bench.samples import watch
from ramet.closing import Closing
from ramet.errors import CommandError, GuestError, GuestTimeoutError, HostError, UnsupportedError, host_errors
from ramet.hypervisors import kvm
from ramet.linux.unixsock import connect_in
from ramet.model import MIB, Image
from ramet.signals import signals_held

NOTE = "libvirt's guest is the same image and memory on QEMU's machine pc; no disk; its command is one of the console's shell."
PACKAGES = "libvirt-clients libvirt-daemon-system"
DESCRIPTION = "libvirt.xml"
SAVED = "libvirt.save"
CONSOLE = "console.sock"
VIRSH_S = 600.0
BOOT_S = 120.0
ASK_AGAIN_S = 1.0
"""A shell that is not there yet does not hear what is typed."""


def _uri() -> str:
    return os.environ.get("LIBVIRT_DEFAULT_URI") or ("qemu:///system" if os.geteuid() == 0 else "qemu:///session")


def _virsh(*arguments: str) -> str:
    program = helpers.find_program("virsh", package=PACKAGES)
    return helpers.run([program, "-q", "-c", _uri(), *arguments], timeout_s=VIRSH_S).stdout.decode(errors="replace")


def version() -> str:
    """Of its library and of the QEMU that it runs.

    Raises:
        UnsupportedError: if it is not here, or its daemon does not answer.
    """
    try:
        lines = _virsh("version").splitlines()
    except HostError as err:
        why = err.message.strip().splitlines()[-1].strip()
        raise UnsupportedError(
            "libvirt does not answer.",
            capability="libvirt",
            why=f"virsh is here, and {_uri()} does not answer: {why}",
            hint=f"apt-get install {PACKAGES}; systemctl start libvirtd",
        ) from err
    told = [
        line.partition(":")[2].strip() for line in lines if line.startswith(("Using library", "Running hypervisor"))
    ]
    return ", ".join(told)


def destroy_abandoned(directory: Path) -> None:
    """End the domain that a run has left which was killed; ``directory`` is that run's.

    Raises:
        HostError: if libvirt refuses.
    """
    if (directory / "scratch" / DESCRIPTION).exists():
        _destroy(_name(directory / "scratch"))


def _name(scratch: Path) -> str:
    return f"ramet-{scratch.parent.name}"


def _destroy(name: str) -> None:
    try:
        _virsh("destroy", name)
    except CommandError:
        if name in _virsh("list", "--all", "--name").split():
            raise


def _asking(token: str) -> str:
    """What a shell answers with the token and the last status; the token is cut in two, so that its echo is no answer."""
    return f"echo {token[:4]}''{token[4:]}-$?\n"


@dataclass(slots=True)
class Console(Closing):
    """The shell on a guest's serial console."""

    sock: socket.socket
    heard: bytes = b""

    def run(self, command: str, timeout_s: float) -> None:
        """Run a command to its end, and see that it succeeded.

        Raises:
            GuestError: if it did not, or the console was closed.
            GuestTimeoutError: if it did not end in time.
        """
        token = secrets.token_hex(4)
        typed = f"{command}; {_asking(token)}".encode()
        self._answer(typed, token, timeout_s, again=False)

    def wait_for_shell(self, timeout_s: float) -> None:
        """Until the guest has booted and its shell answers.

        Raises:
            GuestError, GuestTimeoutError: if it does not.
        """
        token = secrets.token_hex(4)
        self._answer(f"\n{_asking(token)}".encode(), token, timeout_s, again=True)

    def _answer(self, typed: bytes, token: str, timeout_s: float, *, again: bool) -> None:
        end = time.monotonic() + timeout_s
        answer = re.compile(rf"(?:^|[\r\n]){token}-(\d+)[\r\n]".encode())  # what merely repeats what was typed is none
        self.heard = b""
        try:
            self.sock.sendall(typed)
            while (found := answer.search(self.heard)) is None:
                left = end - time.monotonic()
                if left <= 0:
                    raise GuestTimeoutError(f"libvirt's guest did not answer {typed!r} within {timeout_s:g} s.")
                self.sock.settimeout(min(left, ASK_AGAIN_S) if again else left)
                self._hear(typed if again else b"")
        except OSError as err:
            raise GuestError(f"The console of libvirt's guest was closed: {err}") from err
        if found[1] != b"0" and not again:  # the first that a shell hears may have lost its beginning
            raise GuestError(f"In libvirt's guest, {typed!r} ended with status {int(found[1])}.")

    def _hear(self, typed: bytes) -> None:
        try:
            data = self.sock.recv(65536)
        except TimeoutError:
            self.sock.sendall(typed)
            return
        if not data:
            raise GuestError("The console of libvirt's guest was closed.")
        self.heard += data

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


@dataclass(slots=True, kw_only=True)
class Domain:
    """A domain of libvirt's that exists for one block."""

    name: str
    saved: Path
    directory: Path
    """Where the socket of its console is: short, since its path has a limit of 108 bytes."""
    is_running: bool = True

    def save(self) -> float:
        """``virsh save``, until all is on the disk; seconds. It has ended then.

        Raises:
            HostError: if libvirt refuses.
        """
        self.saved.unlink(missing_ok=True)
        clock = watch()
        _virsh("save", self.name, str(self.saved))
        self.is_running = False
        with host_errors(f"sync {self.saved}"), self.saved.open("rb") as stream:
            os.fsync(stream.fileno())
        return clock.total()

    def restore(self) -> float:
        """``virsh restore`` of what was saved, until a command has been answered; seconds. What runs of it is ended first.

        Raises:
            HostError: if libvirt refuses.
            GuestError: if the guest does not answer.
        """
        self.destroy()
        clock = watch()
        self.is_running = True
        _virsh("restore", str(self.saved))
        with self.console() as console:
            console.run("true", BOOT_S)
            return clock.total()

    def console(self) -> Console:
        """A connection to its console.

        Raises:
            HostError: if there is none.
        """
        with host_errors("connect to the console of libvirt's guest"):
            return Console(connect_in(self.directory, CONSOLE))

    def destroy(self) -> None:
        """End it, if it runs.

        Raises:
            HostError: if libvirt refuses.
        """
        if self.is_running:
            _destroy(self.name)
            self.is_running = False


@contextmanager
def guest(scratch: Path, image_dir: Path, image: Image, memory_mib: int, filled_mib: int) -> Iterator[Domain]:
    """A running domain, booted and filled as the guest that is measured is; gone after the block, with what it saved.

    Raises:
        HostError: if libvirt refuses.
        GuestError: if it does not boot.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="ramet-")))
        name = _name(scratch)
        description = scratch / DESCRIPTION
        description.write_bytes(_domain(name, image_dir, image, memory_mib, directory / CONSOLE))
        stack.callback(description.unlink)
        found = Domain(name=name, saved=scratch / SAVED, directory=directory)
        stack.callback(lambda: found.saved.unlink(missing_ok=True))
        stack.callback(_end, found)
        _virsh("create", str(description))
        with found.console() as console:
            console.wait_for_shell(BOOT_S)
            console.run(f"ramet-fill /ram/fill {filled_mib * MIB} 1", BOOT_S)
        yield found


def _end(domain: Domain) -> None:
    with signals_held():
        domain.destroy()


def _domain(name: str, image_dir: Path, image: Image, memory_mib: int, console: Path) -> bytes:
    """Its XML (https://libvirt.org/formatdomain.html)."""
    by_kvm = kvm.why_not_usable() is None
    root = Xml.Element("domain", type="kvm" if by_kvm else "qemu")
    _add(root, "name", name)
    _add(root, "memory", str(memory_mib), unit="MiB")
    _add(root, "vcpu", "1")
    system = _add(root, "os")
    _add(system, "type", "hvm", arch="x86_64", machine="pc")
    _add(system, "kernel", str(image_dir / image.kernel))
    _add(system, "initrd", str(image_dir / image.initrd))
    _add(system, "cmdline", image.cmdline)
    _add(_add(root, "features"), "acpi")
    cpu = _add(root, "cpu", mode="host-passthrough" if by_kvm else "maximum")
    for slow in () if by_kvm else ("erms", "fsrm"):  # as Ramet's guest has them under TCG
        _add(cpu, "feature", policy="disable", name=slow)
    devices = _add(root, "devices")
    serial = _add(devices, "serial", type="unix")
    _add(serial, "source", mode="bind", path=str(console))
    _add(devices, "memballoon", model="none")
    if os.geteuid() == 0:  # QEMU stays root: it may enter the store, which nobody else may
        label = _add(root, "seclabel", type="static", model="dac", relabel="no")
        _add(label, "label", "+0:+0")
    return bytes(Xml.tostring(root, encoding="utf-8"))


def _add(parent: Xml.Element, tag: str, text: str = "", **attributes: str) -> Xml.Element:
    made = Xml.SubElement(parent, tag, attributes)
    made.text = text or None
    return made
