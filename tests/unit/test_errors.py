"""The tree of errors: as its docstring draws it, each with a code and an exit status, each OSError translated once."""

from __future__ import annotations

import errno
import inspect
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from ramet import errors
from ramet.cli.catalogue import EPILOG_STATUSES
from ramet.errors import HostError, NoSpaceError, RametError, host_errors

DRAWN = re.compile(r"^( {4,})(\w+)(?:\(([^)]*)\))?(?: +(\d+))?(?: .*)?$", re.MULTILINE)
OBJECTS: dict[str, Any] = {
    "actual": "standby",
    "required": ["running"],
    "dependents": ["instance a"],
    "capability": "reflink",
    "why": "ext4",
    "argv": ["prog", "an arg"],
    "status": 3,
    "stderr_tail": "the reason\n",
    "log_tail": "the log\n",
    "request": "stop",
    "reply": "no",
    "fits": 3,
    "wanted": 10,
}


def all_classes() -> list[type[RametError]]:
    return [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, RametError)]


def drawn() -> Iterator[tuple[int, str, list[str], int | None]]:
    """Depth, name, objects and status of each line of the tree in the module's docstring."""
    tree = (errors.__doc__ or "").partition("do next.")[2]
    for match in DRAWN.finditer(tree):
        indent, name, objects, status = match.groups()
        depth = (len(indent) - 4) // 2
        yield (
            depth,
            name,
            [part.strip() for part in (objects or "").split(",") if part],
            int(status) if status else None,
        )


def make(kind: type[RametError], **more: Any) -> RametError:
    wanted = inspect.signature(kind).parameters
    return kind("It failed.", **{name: OBJECTS[name] for name in wanted if name in OBJECTS}, **more)


def test_the_docstring_draws_the_tree_that_is() -> None:
    parents: list[type[RametError]] = []
    seen = []
    for depth, name, objects, status in drawn():
        kind = getattr(errors, name)
        seen.append(name)
        if depth:
            assert kind.__bases__ == (parents[depth - 1],), f"{name} is drawn in the wrong place"
        parents[depth:] = [kind]
        wanted = [name for name in inspect.signature(kind).parameters if name in OBJECTS]
        assert wanted == objects, f"{name} carries other objects than drawn"
        if status is not None:
            assert kind.exit_status == status, name
    assert sorted(seen) == sorted(kind.__name__ for kind in all_classes())


def test_codes_are_distinct_and_plain() -> None:
    codes = [kind.code for kind in all_classes()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z-]+", code) for code in codes)


def test_exit_statuses_are_distinct_except_within_a_family_that_shares_one() -> None:
    """StateError is a conflict like any other to a script; a failed command is a host error, a refused request a VMM error."""
    by_status: dict[int, set[str]] = {}
    for kind in all_classes():
        by_status.setdefault(kind.exit_status, set()).add(kind.__name__)
    shared = {status: names for status, names in by_status.items() if len(names) > 1}
    assert shared == {
        4: {"ConflictError", "StateError"},
        8: {"HostError", "CommandError"},
        9: {"NoSpaceError", "RoomError"},
        10: {"VmmError", "LaunchError", "RejectedError"},
        13: {"CorruptError", "FormatVersionError"},
    }
    assert all(0 < status < 126 or status == 130 for status in by_status), "the shell's own are not ours"
    assert 70 not in by_status
    assert 124 not in by_status


def test_the_help_lists_every_exit_status() -> None:
    listed: set[int] = set()
    for text, _ in EPILOG_STATUSES:
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        listed.update(range(numbers[0], numbers[-1] + 1) if "-" in text else numbers)
    assert {kind.exit_status for kind in all_classes() if kind is not RametError} <= listed


@pytest.mark.parametrize("kind", all_classes(), ids=lambda kind: kind.__name__)
def test_every_error_carries_what_it_was_given_and_says_the_next_step(kind: type[RametError]) -> None:
    err = make(kind, hint="Do that.")
    for name, value in OBJECTS.items():
        if name in inspect.signature(kind).parameters:
            assert getattr(err, name) == (tuple(value) if isinstance(value, list) else value)
    assert err.message.startswith("It failed.")
    assert str(err) == f"{err.message}\nDo that."
    assert str(make(kind)) == make(kind).message
    assert kind.__doc__


def test_a_failed_command_can_be_replayed_from_its_message() -> None:
    message = make(errors.CommandError).message
    assert "command: prog 'an arg'" in message
    assert "status:  3" in message
    assert "the reason" in message


def test_details_that_are_not_there_are_not_announced() -> None:
    command = errors.CommandError("It failed.", argv=["true"], status=1, stderr_tail=" \n")
    launch = errors.LaunchError("It failed.", argv=[], status=None, log_tail="\n")
    assert "stderr" not in command.message
    assert launch.message == "It failed."


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (1, "ended with status 1"),
        (-signal.SIGSEGV, "was killed by SIGSEGV"),
        (
            -signal.SIGKILL,
            r"was killed by SIGKILL \(by the kernel for want of memory, unless somebody sent it: see `dmesg`\)",
        ),
        (-signal.SIGRTMIN - 1, "was killed by signal 35"),
    ],
)
def test_a_launch_that_failed_says_how_the_process_ended(status: int, words: str) -> None:
    launch = errors.LaunchError("It failed.", argv=[], status=status, log_tail="said\n")
    assert re.fullmatch(rf"It failed\.\n  its process: {words}\n  log: said", launch.message)
    assert launch.status == status


# -- OSErrors, translated once ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_errno_is_translated_and_stays_visible(number: int) -> None:
    with pytest.raises(HostError) as caught, host_errors("do it"):
        raise OSError(number, os.strerror(number), "/some/file")
    assert isinstance(caught.value, NoSpaceError) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert caught.value.message == f"Could not do it: {os.strerror(number)} (/some/file)."
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == number


def test_an_os_error_without_an_errno_keeps_its_words() -> None:
    with pytest.raises(HostError, match=r"Could not do it: odd\."), host_errors("do it"):
        raise OSError("odd")


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "Free some room"), (errno.EROFS, "RAMET_HOME")])
def test_what_a_user_can_mend_has_a_hint(number: int, words: str) -> None:
    with pytest.raises(HostError) as caught, host_errors("do it"):
        raise OSError(number, os.strerror(number))
    assert words in str(caught.value.hint)


@pytest.mark.parametrize("other", [ZeroDivisionError(), KeyboardInterrupt(), errors.LockedError("locked")], ids=repr)
def test_nothing_but_os_errors_is_translated(other: BaseException) -> None:
    with pytest.raises(type(other)) as caught, host_errors("do it"):
        raise other
    assert caught.value is other


def test_a_path_that_is_said_already_is_not_said_again() -> None:
    for doing, said in (("read /a", "Could not read /a: gone."), ("do it", "Could not do it: gone (/a).")):
        with pytest.raises(HostError) as caught, host_errors(doing):
            raise OSError(errno.ENOENT, "gone", "/a")
        assert caught.value.message == said
