"""A lab that does not come up is told with what its console said, and leaves no process."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import machine
from lab.image import Image
from ramet.errors import LaunchError

HARDWARE = machine.Hardware(memory_mib=1024, cpus=1, file_system=None, disk_mib=0)


@pytest.mark.parametrize("end", ["exec sleep 60", "exit 3"], ids=["it hangs", "it ends"])
def test_the_console_of_a_lab_that_does_not_come_up_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\necho $$ >>{tmp_path}/pid\necho Kernel panic\n{end}\n")
    program.chmod(0o755)
    monkeypatch.setattr(machine, "READY_S", 1.0)
    monkeypatch.setattr(machine, "BOOTS", 2)
    image = Image(kernel=tmp_path / "kernel", initrd=tmp_path / "initrd")
    with pytest.raises(LaunchError) as caught, machine.lab([str(program)], image, HARDWARE):
        pass
    assert "did not come up" in caught.value.message
    assert "Kernel panic" in caught.value.log_tail
    pids = (tmp_path / "pid").read_text().split()
    assert len(pids) == (2 if "sleep" in end else 1), "one that hangs is tried again, one that fails is not"
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
