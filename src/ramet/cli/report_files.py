"""Files that reports are written to: options that name them, and whether they can be written, asked before anything is done."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import click

from ramet.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., object])


def option(name: str, parameter: str, what: str) -> Callable[[Function], Function]:
    """An option that names a file for a report."""
    return click.option(
        name, parameter, type=click.Path(), callback=_file, metavar="FILE", help=f"Also write {what} to FILE."
    )


def directory_option(name: str, parameter: str, what: str) -> Callable[[Function], Function]:
    """An option that names a directory for reports, which is made after the run if it is not there."""
    text = f"Also write {what} in DIR, which is made if need be."
    return click.option(name, parameter, type=click.Path(), callback=_directory, metavar="DIR", help=text)


def _directory(_ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    """Option callback: a directory's path.

    Raises:
        ConfigError: for what names none.
    """
    if value in ("", "-"):
        raise ConfigError(f"{param.opts[0]} needs the name of a directory.", hint="--json prints the JSON.")
    return None if value is None else Path(value)


def _file(_ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    """Option callback: a file's path.

    Raises:
        ConfigError: for what names no file.
    """
    if value == "":
        raise ConfigError(f"{param.opts[0]} needs the name of a file.")
    if value == "-":
        raise ConfigError(
            f"{param.opts[0]} writes a file, and - would be one of that name.",
            hint="--json prints the JSON; a file that is called so is ./-",
        )
    return None if value is None else Path(value)


def check(reports: Mapping[str, Path]) -> None:
    """Refuse before the minutes that a run takes what could not be written after them.

    Raises:
        ConfigError: with what the system says to an attempt, or if two are the same file.
    """
    taken: dict[str, str] = {}
    for option, path in reports.items():
        try:
            _check_place(option, path)
        except OSError as err:
            hint = f"Name another file for {option}."
            raise ConfigError(f"{path} cannot be written: {err.strerror}.", hint=hint) from err
        other = taken.setdefault(os.path.realpath(path), option)
        if other != option:
            raise ConfigError(f"{other} and {option} are the same file: {path}.", hint="Name two.")


def check_directory(option: str, directory: Path, names: Sequence[str]) -> None:
    """Refuse before a run a directory that could not take these files after it; it may be missing, its parent may not.

    Raises:
        ConfigError: with what the system says to an attempt; it is not made yet, and its files are what they were.
    """
    if directory.is_dir():
        check({f"{option} ({name})": directory / name for name in names})
        return
    if directory.exists() or directory.is_symlink():
        raise ConfigError(f"{directory} is not a directory.", hint=f"Name another one for {option}.")
    if not directory.absolute().parent.is_dir():
        raise ConfigError(f"There is no directory {directory.absolute().parent} for {option}.")
    try:
        directory.mkdir()
        directory.rmdir()
    except OSError as err:
        hint = f"Name another directory for {option}."
        raise ConfigError(f"{directory} cannot be made: {err.strerror}.", hint=hint) from err


def _check_place(option: str, path: Path) -> None:
    directory = path.absolute().parent
    if not directory.is_dir():
        raise ConfigError(f"There is no directory {directory} for {option}.")
    if path.is_dir():
        raise ConfigError(f"{path} is a directory.", hint=f"Name a file for {option}.")
    if path.exists() and not path.is_file():  # to open a pipe or a device means something to who reads it
        if not os.access(path, os.W_OK):
            hint = f"Name another file for {option}."
            raise ConfigError(f"{path} cannot be written: {os.strerror(errno.EACCES)}.", hint=hint)
        return
    target = os.path.realpath(path)  # of a link that leads nowhere, what writing would make
    with suppress(FileExistsError):
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        Path(target).unlink()
        return
    os.close(os.open(target, os.O_WRONLY | os.O_CLOEXEC))
