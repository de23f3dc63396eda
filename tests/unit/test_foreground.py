"""Orphans of a command are found, in whatever session, and what was there before is not taken for one."""

from __future__ import annotations

import os
import subprocess

from ramet.cli import foreground
from ramet.linux import procfs, subreaper
from tests.unit.children import run_in_child

ORPHAN = "(setsid sh -c 'echo $$; exec sleep 30' 2>/dev/null &)"


def test_what_a_command_leaves_behind_is_found_and_nothing_else() -> None:
    def adopt() -> None:
        with subprocess.Popen(["sleep", "30"]) as mine:
            read, write = os.pipe()
            with foreground.adopting_orphans() as left_behind:
                assert subreaper.is_child_subreaper()
                assert foreground.run(["sh", "-c", ORPHAN], stdout=write) == 0
                with os.fdopen(read) as stream:
                    orphan = int(stream.readline())
                assert left_behind() == [orphan]
                assert {mine.pid, orphan} <= set(procfs.descendants(os.getpid()))
                os.kill(orphan, 9)
                os.waitid(os.P_PID, orphan, os.WEXITED | os.WNOWAIT)
                assert left_behind() == [], "a zombie does nothing any more"
            assert not subreaper.is_child_subreaper()
            mine.kill()

    assert run_in_child(adopt) == 0


def test_grandchildren_descend_too() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 30 & echo $!; wait"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert {child.pid, grandchild} <= set(procfs.descendants(os.getpid()))
        assert grandchild in procfs.descendants(child.pid)
        os.kill(grandchild, 9)
    assert child.pid not in procfs.descendants(os.getpid())
