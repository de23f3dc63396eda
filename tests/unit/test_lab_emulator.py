"""Which QEMU the lab runs on: a new enough one of the host, or a newer one that is fetched whole or not at all."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import emulator
from ramet.errors import HostError, UnsupportedError

OLD = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"
NEW = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"

UNPACK = f"""
mkdir -p "$3/usr/bin"
printf '#!/bin/sh\necho "{NEW}"\n' >"$3/usr/bin/qemu-system-x86_64"
chmod +x "$3/usr/bin/qemu-system-x86_64"
"""

Programs = Callable[..., Path]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Puts shell scripts of these names, and nothing else but the shell's own tools, into PATH."""

    def put(**bodies: str) -> Path:
        directory = tmp_path / "bin"
        directory.mkdir()
        for name, body in bodies.items():
            program = directory / name.replace("__", "-")
            program.write_text(f"#!/bin/sh\n{body}\n")
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
        return directory

    monkeypatch.delenv(emulator.VARIABLE, raising=False)
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"VERSION_CODENAME": "bookworm"})
    return put


@pytest.mark.parametrize(
    ("said", "fits"),
    [
        (OLD, False),
        ("QEMU emulator version 8.1.5", False),
        ("QEMU emulator version 8.2.2 (Debian 1:8.2.2+ds-0ubuntu1)", True),
        (NEW, True),
        ("", False),
    ],
)
def test_which_versions_fit(said: str, fits: bool) -> None:
    assert emulator.is_new_enough(said) is fits


def test_a_new_one_of_the_host_is_used(programs: Programs, tmp_path: Path) -> None:
    directory = programs(qemu__system__x86_64=f"echo '{NEW}'", apt__get="exit 9")
    assert emulator.command(tmp_path / "cache") == [str(directory / "qemu-system-x86_64")]


def test_the_variable_names_one_of_any_version(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = programs(mine=f"echo '{OLD}'", apt__get="exit 9")
    monkeypatch.setenv(emulator.VARIABLE, str(directory / "mine"))
    assert emulator.command(tmp_path / "cache") == [str(directory / "mine")]


def test_an_old_one_of_another_release_is_refused(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"VERSION_CODENAME": "jammy"})
    programs(qemu__system__x86_64=f"echo '{OLD}'", apt__get="exit 9")
    with pytest.raises(UnsupportedError, match=r"7\.2\.22") as caught:
        emulator.command(tmp_path / "cache")
    assert emulator.VARIABLE in str(caught.value.hint)
    assert not (tmp_path / "cache").exists()


def test_a_newer_one_is_fetched_once(programs: Programs, tmp_path: Path) -> None:
    programs(
        qemu__system__x86_64=f"echo '{OLD}'",
        apt__get='for last; do :; done; [ "$last" = update ] || touch a.deb b.deb; echo "$last" >>../said',
        dpkg__deb=UNPACK,
    )
    first = emulator.command(tmp_path)
    assert first == emulator.command(tmp_path)
    assert Path(first[0]).is_relative_to(tmp_path / "lab")
    assert Path(first[0]).exists()
    assert (tmp_path / "lab/said").read_text().split() == ["update", "seabios"]


@pytest.mark.parametrize("fails", ["update", "seabios"])
def test_a_failed_download_keeps_nothing(programs: Programs, tmp_path: Path, fails: str) -> None:
    programs(
        qemu__system__x86_64=f"echo '{OLD}'",
        apt__get=f'for last; do :; done; [ "$last" != {fails} ] || {{ echo no such host >&2; exit 100; }}',
    )
    with pytest.raises(HostError, match="no such host"):
        emulator.command(tmp_path)
    assert list((tmp_path / "lab").iterdir()) == []


def test_what_does_not_run_here_is_not_kept(programs: Programs, tmp_path: Path) -> None:
    programs(
        qemu__system__x86_64=f"echo '{OLD}'",
        apt__get='for last; do :; done; [ "$last" = update ] || touch a.deb',
        dpkg__deb=UNPACK.replace(f'echo "{NEW}"', "echo no libfoo.so >&2; exit 127"),
    )
    with pytest.raises(HostError, match=r"no libfoo\.so") as caught:
        emulator.command(tmp_path)
    assert emulator.VARIABLE in str(caught.value.hint)
    assert list((tmp_path / "lab").iterdir()) == []


def test_two_at_once_are_no_error(programs: Programs, tmp_path: Path) -> None:
    programs(
        qemu__system__x86_64=f"echo '{OLD}'",
        apt__get='for last; do :; done; [ "$last" = update ] || touch a.deb',
        dpkg__deb=f'{UNPACK}\ncp -r "$3" {tmp_path}/lab/qemu-bookworm-backports',
    )
    assert Path(emulator.command(tmp_path)[0]).exists()
    assert [entry.name for entry in (tmp_path / "lab").iterdir()] == ["qemu-bookworm-backports"]
