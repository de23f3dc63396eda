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


def test_what_is_read_in_parts_is_whole_up_to_the_end_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(DATA)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:100]], offset))
    buffer = memoryview(bytearray(200))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert whole.pread(fd, buffer, 10) == 200
        assert buffer == DATA[10:210]
        assert whole.pread(fd, buffer, 156) == 100
        assert buffer[:100] == DATA[156:]
    finally:
        os.close(fd)
