"""QEMU with KVM, in the lab: a guest boots, sleeps, is forked, and both wake, each with its own memory."""

from __future__ import annotations

from pathlib import Path

from ramet import Host
from tests.conftest import requires
from tests.lab.file_systems import only_whole
from tests.lab.test_lab import run

SCRIPT = """
set -e
ramet ls -q
cp -a "$1"/. "$RAMET_HOME"/images/
step() { timeout -s KILL 120 ramet "$@"; }
step create web >/dev/null
step exec web -- sh -c 'echo warm >/ram/mark; echo disk >/data/mark; sync; dmesg' | grep -o 'Hypervisor detected: KVM'
step standby web >/dev/null
cd "$(ramet show web --json | python -c 'import json, sys; print(json.load(sys.stdin)["snapshot"]["dir"])')"
sha256sum memory disk.raw vmstate >/tmp/before
step fork web blue --start >/dev/null
step exec blue -- sh -c 'cat /ram/mark /data/mark; echo blue >/ram/mark; echo blue >/data/mark; sync'
step standby blue >/dev/null
sha256sum memory disk.raw vmstate | cmp - /tmp/before
step restore web >/dev/null
step exec web -- cat /ram/mark /data/mark
step exec web -- dmesg | grep -c 'unable to handle\\|Oops' || true
ramet show web --json | python -c 'import json, sys; print(json.load(sys.stdin)["accelerator"])'
ramet rm web blue --force >/dev/null
"""


@only_whole
@requires("qemu", "gcc", "loopfs")
def test_a_guest_under_kvm_sleeps_forks_and_wakes(tmp_path: Path) -> None:
    home = tmp_path / "home"
    Host(home).image_build("micro")
    done = run("--disk", "xfs:4G", "--timeout", "400", command=["sh", "-c", SCRIPT, "sh", str(home / "images")])
    assert done.stdout.split("\n") == [
        "Hypervisor detected: KVM",
        *("warm", "disk"),
        *("warm", "disk"),
        "0",
        "kvm",
        "",
    ], done.stderr
    assert done.returncode == 0, done.stderr
