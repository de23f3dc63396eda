"""Writes that the kernel does in parts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ramet.linux import whole

DATA = bytes(range(256))


def test_what_is_written_in_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:100]))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:100], offset))
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    try:
        whole.write(fd, DATA)
        whole.pwrite(fd, DATA, 300)
    finally:
        os.close(fd)
    assert (tmp_path / "file").read_bytes() == DATA + bytes(44) + DATA
