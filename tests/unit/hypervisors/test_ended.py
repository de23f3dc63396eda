"""Whether a Firecracker that is gone ended because its guest did: what its log says is all there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.hypervisors.firecracker.driver import LOG, FirecrackerDriver

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
