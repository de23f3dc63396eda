"""QEMU's command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.hypervisors.base import BootFiles, Hardware
from ramet.hypervisors.qemu import argv
from ramet.model import Accelerator

HARDWARE = Hardware(memory_mib=256, cpus=1, accelerator=Accelerator.TCG)
SOCKETS = argv.Sockets(qmp=3, console=4, agents=tuple(range(5, 13)))


def build(*, boot: bool = False, memory: str = "/store/work/memory", read_only: bool = False) -> list[str]:
    return argv.build_argv(
        "qemu",
        name="web",
        hardware=HARDWARE,
        memory=Path(memory),
        disk=Path("/store/work/disk.raw"),
        alive=Path("run/qemu.alive"),
        console_log=Path("/store/logs/console.log"),
        sockets=SOCKETS,
        boot=BootFiles(kernel=Path("/k"), initrd=Path("/i"), cmdline="quiet") if boot else None,
        read_only_memory=read_only,
        tsc_khz=2_600_000 if boot else None,
    )


def test_guest_memory_is_private_and_neither_merged_nor_dumped() -> None:
    """H06, H76."""
    memory = next(word for word in build() if word.startswith("memory-backend-file"))
    assert {"share=off", "merge=off", "dump=off"} <= set(memory.split(","))
    for words in (build(), build(boot=True)):  # the guest's other blocks: 2 MiB of ACPI tables, say
        assert words[words.index("-machine") + 1] == "mem-merge=off,dump-guest-core=off"


def test_memory_is_opened_read_only_where_qemu_can() -> None:
    """H06: ``readonly=on`` alone would be a ROM, and an older QEMU refuses ``rom``."""
    for boot in (True, False):
        assert any(word.endswith(",readonly=on,rom=off") for word in build(boot=boot, read_only=True))
        assert not any("readonly" in word or "rom=" in word for word in build(boot=boot))


def test_the_sandbox_is_on_and_nothing_of_the_host_is_added() -> None:
    words = build()
    assert words[words.index("-sandbox") + 1].startswith("on,")
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert not any("balloon" in word for word in words), "H04: page discards would punch holes into the file"


def test_a_restore_waits_stopped_and_boots_nothing() -> None:
    words = build()
    assert words[-3:] == ["-S", "-incoming", "defer"]
    assert "-kernel" not in words


def test_a_boot_waits_stopped_too() -> None:
    """Until its VMM is limited, and has been looked at."""
    assert "-S" in build(boot=True)


def test_a_boot_tells_the_kernel_its_tsc_frequency() -> None:
    words = build(boot=True)
    assert words[words.index("-append") + 1] == "quiet tsc_early_khz=2600000 tsc=reliable"
    assert "-incoming" not in words


@pytest.mark.parametrize(("path", "written"), [("/a,b/memory", "/a,,b/memory"), ("/plain", "/plain")])
def test_a_comma_in_a_path_is_escaped(path: str, written: str) -> None:
    assert any(f"mem-path={written},share=off" in word for word in build(memory=path))


def test_the_digest_follows_what_the_guest_sees_and_nothing_else() -> None:
    """H61."""
    digest = argv.hardware_digest(HARDWARE)
    assert digest == argv.hardware_digest(Hardware(memory_mib=256, cpus=1, accelerator=Accelerator.TCG))
    others = [
        Hardware(memory_mib=512, cpus=1, accelerator=Accelerator.TCG),
        Hardware(memory_mib=256, cpus=2, accelerator=Accelerator.TCG),
        Hardware(memory_mib=256, cpus=1, accelerator=Accelerator.KVM),
    ]
    assert digest not in {argv.hardware_digest(other) for other in others}
    assert set(argv.hardware_argv(HARDWARE)) <= set(build())
