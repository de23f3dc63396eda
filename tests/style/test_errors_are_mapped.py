"""No exception of a lower layer reaches a user: each is mapped once, and whatever we raise ourselves is in one tree."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import qemu.qmp
from qemu.qmp import ExecuteError, QMPError

from ramet import errors
from ramet.errors import RametError, RejectedError, VmmError
from ramet.hypervisors.qemu.qmp import QmpMonitor
from tests.style.sources import SRC, exception_classes, name_of, python_files, tree_of

OUR_OWN_BUGS = {"ValueError", "AttributeError", "AssertionError"}
"""A call that our own code must not make; ``__getattr__`` has to raise AttributeError."""
SIGNALS = {"KeyboardInterrupt", "TerminatedError"}
BY_THE_LAYER = {
    "OSError": ("linux", "store/atomic.py", "store/layout.py", "verify/fingerprints.py"),
    "TimeoutError": ("process.py", "linux/unixsock.py"),
    "click.UsageError": ("cli",),
}
"""Raised as they are there, and translated by whoever calls: a TimeoutError is an OSError, which is all that linux/ raises."""


def test_every_exception_class_is_in_the_tree() -> None:
    """Outside errors.py only refinements of it; TerminatedError is a KeyboardInterrupt so that nobody handles it as an error."""
    known = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, RametError)}
    strays = [
        f"{name_of(path)}: {node.name}"
        for path, node, bases in exception_classes()
        if path != SRC / "errors.py" and not known & set(bases) and node.name != "TerminatedError"
    ]
    assert strays == []


def raised() -> Iterator[tuple[str, str]]:
    """File and class of every ``raise X(…)``."""
    for path in python_files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                yield str(path.relative_to(SRC)), ast.unparse(node.exc.func)


def test_every_raise_is_of_the_tree_or_of_its_layer() -> None:
    ours = {name for name in vars(errors) if name.endswith("Error")} | {node.name for _, node, _ in exception_classes()}
    helpers = {
        "_is_a_directory",
        "host_error",
        "lost_guest.told",
    }  # they return a ConfigError, a HostError, a VmmDiedError
    strays = [
        f"{path}: {name}"
        for path, name in raised()
        if name not in ours | OUR_OWN_BUGS | SIGNALS | helpers
        and not path.startswith(BY_THE_LAYER.get(name, ()) or "\0")
    ]
    assert strays == []


def test_no_except_swallows_everything_in_silence() -> None:
    """``except Exception`` exists once, at the very top; ``except BaseException`` only to undo and raise again."""
    broad = []
    for path in python_files():
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            kind = ast.unparse(node.type) if node.type else "everything"
            raises_again = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            if kind in ("everything", "Exception") or (kind == "BaseException" and not raises_again):
                broad.append(f"{path.relative_to(SRC)}: {kind}")
    assert broad == ["cli/main.py: Exception"]


# -- qemu.qmp -----------------------------------------------------------------------------------------------------


def qmp_errors() -> list[type[BaseException]]:
    """Every exception class that any module of qemu.qmp defines."""
    found: set[type[BaseException]] = set()
    for module in pkgutil.walk_packages(qemu.qmp.__path__, "qemu.qmp."):
        if "tui" in module.name or "shell" in module.name or module.name.endswith("__main__"):
            continue  # programs, with dependencies of their own
        for value in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(value) and issubclass(value, Exception) and value.__module__.startswith("qemu.qmp"):
                found.add(value)
    return sorted(found, key=lambda kind: kind.__name__)


def instance(kind: type[BaseException]) -> BaseException:
    """One of that class, without going through a constructor that wants half a conversation; ``str()`` needs the rest."""
    made = kind.__new__(kind)
    made.args = ("made up",)
    refusal = SimpleNamespace(error=SimpleNamespace(desc="made up"))
    made.__dict__.update(error_message="made up", exc=EOFError(), raw=b"{", msg={}, value={}, error=refusal)
    return made


@pytest.mark.parametrize(
    "error", [*map(instance, qmp_errors()), OSError(104, "reset"), EOFError(), TimeoutError()], ids=repr
)
def test_whatever_qemu_qmp_raises_is_a_vmm_error(error: BaseException) -> None:
    async def fail() -> None:
        raise error

    monitor = QmpMonitor.__new__(QmpMonitor)
    monitor._loop = asyncio.new_event_loop()
    monitor._timeout_s = 5.0
    try:
        with pytest.raises(VmmError) as caught:
            monitor._sync(fail(), "the request")
    finally:
        monitor._loop.close()
    assert caught.value.__cause__ is error
    assert isinstance(caught.value, RejectedError) == isinstance(error, ExecuteError)


def test_all_errors_of_qemu_qmp_were_looked_at() -> None:
    assert {QMPError, ExecuteError} < set(qmp_errors())
    assert len(qmp_errors()) >= 8
