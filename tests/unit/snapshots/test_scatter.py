"""When a memory file is written whole again (H73)."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.model import MIB, Method
from ramet.snapshots import scatter
from ramet.snapshots.scatter import COPY, PIECES_MAX, Scatter
from ramet.store.derive import ANY_METHOD


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    path.write_bytes(bytes(MIB))
    return path


def test_it_is_cloned_until_there_are_too_many_pieces(base: Path) -> None:
    at_rest = Scatter(pieces=PIECES_MAX - 10, guest_waits=False)
    assert at_rest.how_to_derive(base, 10) == ANY_METHOD
    assert at_rest.how_to_derive(base, 11) == COPY


def test_a_guest_that_waits_is_spared_the_copy_for_longer(base: Path) -> None:
    assert Scatter(pieces=PIECES_MAX, guest_waits=True).how_to_derive(base, 10) == ANY_METHOD
    assert Scatter(pieces=4 * PIECES_MAX, guest_waits=True).how_to_derive(base, 10) == COPY


def test_a_larger_file_may_have_more_by_the_square_root_of_its_data(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scatter, "WORTH_BYTES", MIB // 4)
    assert Scatter(pieces=2 * PIECES_MAX - 100, guest_waits=False).how_to_derive(base, 0) == ANY_METHOD
    assert Scatter(pieces=2 * PIECES_MAX + 100, guest_waits=False).how_to_derive(base, 0) == COPY


def test_holes_count_for_nothing(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as stream:
        stream.truncate(1 << 40)
    assert Scatter(pieces=PIECES_MAX, guest_waits=False).how_to_derive(sparse, 1) == COPY


def test_pieces_add_up_over_clones_and_begin_anew_with_a_copy() -> None:
    before = Scatter(pieces=7)
    assert before.after(Method.REFLINK, 3) == 10
    assert before.after(Method.COPY, 3) == 0
    assert before.after(None, 3) == 0
