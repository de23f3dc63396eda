"""Strikes: what one does reaches what it is for, and is over once it is taken back."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ramet import helpers, process
from ramet.errors import HostError
from ramet.linux import ksm
from ramet.verify import needs
from ramet.verify.strikes import vmms
from ramet.verify.world import World
from tests.capabilities import requires
from tests.unit.children import run_in_child

SLEEPER = ["sleep", "600"]


@pytest.fixture
def world() -> World:
    """As much of one as a strike needs that leaves a note."""
    return cast(World, SimpleNamespace(notes={}))


@requires("ksm")
@pytest.mark.parametrize("is_wanted", [False, True], ids=["an ordinary process", "a service with MemoryKSM="])
def test_memory_may_be_merged_of_vmms_that_start_until_it_is_taken_back(
    world: World, tmp_path: Path, is_wanted: bool
) -> None:
    if needs.why_no_inherited_merging() is not None:
        pytest.skip("execve(2) does not keep it")

    def mergeable_bytes_of_a_vmm() -> int:
        vmm = process.spawn(SLEEPER, log_path=tmp_path / "vmm.log", pass_fds=(), cwd=tmp_path, mark=tmp_path)
        try:
            return ksm.mergeable_bytes(vmm.pid)
        finally:
            process.kill_and_wait(vmm)

    def strike_and_take_it_back() -> None:
        if is_wanted:
            ksm.allow()
        vmms.let_memory_be_merged(world)
        assert mergeable_bytes_of_a_vmm() > 0
        vmms.keep_from_merging(world)
        assert mergeable_bytes_of_a_vmm() == 0
        assert ksm.is_wanted() is is_wanted, "ours is as it was"
        vmms.keep_from_merging(world)
        assert ksm.is_wanted() is is_wanted, "there was nothing to take back"

    assert run_in_child(strike_and_take_it_back) == 0


@requires("ksm")
def test_what_a_program_inherits_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_inherited(argv: list[str], *, timeout_s: float) -> helpers.Completed:
        assert timeout_s > 0
        assert ksm.is_wanted()
        return helpers.Completed(argv=tuple(argv), stdout=b"Size: 4 kB\nVmFlags: rd mr mw me\n", stderr="")

    def fail(_argv: list[str], *, timeout_s: float) -> helpers.Completed:
        raise HostError(f"cat did not end within {timeout_s:g} s and was killed.")

    def refuse() -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(helpers, "run", nothing_inherited)
    assert "ends with execve(2) here" in str(needs.why_no_inherited_merging())
    monkeypatch.setattr(helpers, "run", fail)
    assert "cat did not end within 10 s" in str(needs.why_no_inherited_merging())
    assert not ksm.is_wanted(), "ours is as it was"
    monkeypatch.setattr(ksm, "allow", refuse)
    assert "Linux 6.4: Invalid argument" in str(needs.why_no_inherited_merging())
