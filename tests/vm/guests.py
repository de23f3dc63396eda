"""Short ways to ask a guest."""

from __future__ import annotations

from ramet import Host

TIMEOUT_S = 180.0


def sh(host: Host, name: str, script: str) -> str:
    """What a shell script in the guest wrote; it must end with status 0."""
    result = host.exec(name, ["sh", "-c", script], timeout_s=TIMEOUT_S)
    assert result.exit_status == 0, (
        f"{script!r} in {name}: {result.exit_status}: {result.stderr.decode(errors='replace')}"
    )
    return result.stdout.decode().strip()


def marks(host: Host, name: str) -> tuple[str, str]:
    """The marks in RAM and on disk, the latter read from the disk and not from the guest's page cache."""
    ram, disk = sh(host, name, "sync; echo 3 >/proc/sys/vm/drop_caches; cat /ram/mark /data/mark").splitlines()
    return ram, disk


def set_marks(host: Host, name: str, ram: str, disk: str) -> None:
    sh(host, name, f"echo {ram} >/ram/mark; echo {disk} >/data/mark; sync")
