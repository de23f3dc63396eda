"""The JSON of a bench: its published schema, and that it says all that was measured."""

from __future__ import annotations

import dataclasses
import json

import msgspec

from ramet.bench import text
from ramet.bench.documents import BenchDocument, document, encode, schema
from ramet.bench.peers import NOT_ASKED
from ramet.bench.results import Peer
from tests.style.sources import ROOT
from tests.unit.bench.made_up import report

PUBLISHED = ROOT / "docs" / "schemas" / "bench.schema.json"


def test_the_published_schema_is_up_to_date() -> None:
    """Made by: ramet bench --schema >docs/schemas/bench.schema.json"""
    assert json.loads(PUBLISHED.read_text()) == json.loads(msgspec.json.encode(schema()))


def test_every_type_says_what_it_is() -> None:
    definitions = schema()["$defs"]
    assert {"BenchDocument", "HostFacts", "RowDocument"} <= set(definitions)
    assert [name for name, one in definitions.items() if not one.get("description")] == []


def test_it_can_be_read_back_with_every_sample() -> None:
    read = msgspec.json.decode(encode(document(report())), type=BenchDocument)
    fork, scatter = read.benchmarks
    rows = {row.id: row for row in fork.figures[0].rows}
    ramet = rows["ramet"]
    assert (ramet.samples, ramet.median, ramet.min, ramet.max, ramet.count) == ((0.3, 0.2, 0.4), 0.3, 0.2, 0.4, 3)
    assert (ramet.against, ramet.ratio, ramet.role, ramet.unit) == ("floor", 1.5, "ramet", "s")
    assert rows["ramet-fork"].part
    assert rows["nothing"].ratio is None
    assert [target.met for target in fork.figures[0].targets] == [False, True]
    assert scatter.skipped == "Without reflinks nothing is scattered."
    assert read.host.file_system == "xfs"
    assert json.loads(encode(read))["kind"] == "bench"


def test_ids_are_said_once_in_a_figure() -> None:
    for one in document(report()).benchmarks:
        for figure in one.figures:
            assert len({row.id for row in figure.rows}) == len(figure.rows)


# -- for people ---------------------------------------------------------------------------------------------------


def test_people_read_scaled_units_ratios_and_what_was_missed() -> None:
    shown = text.render(document(report()))
    assert (
        "Ramet: fork, wake, exec true      300.0      200.0      400.0  ms     3  1.50 x floor: the VMM by hand"
        in shown
    )
    assert "    fork and wake" in shown, "a part is indented"
    assert "0.500      0.000      1.000  MiB    2" in shown
    assert "target: a fork, against the floor, at most 1.25: 1.50, MISSED" in shown
    assert "target: the peer, against Ramet, at least 2: 3.00, met" in shown
    assert "1 of 2 targets met, in 12 s (quick)\n  missed: a fork, against the floor, 1.50\n" in shown
    assert shown.endswith("for a host that has nothing else to do.")


def test_peers_that_nobody_asked_for_are_not_called_absent() -> None:
    unasked = tuple(
        Peer(name=name, version=None, why_absent=NOT_ASKED, mend="ramet bench --against") for name in ("one", "two")
    )
    shown = text.render(document(dataclasses.replace(report(), peers=unasked)))
    assert "not compared with one, two (ramet bench --against does)" in shown
    assert "absent" not in shown


def test_people_are_told_who_is_absent_and_what_was_skipped() -> None:
    shown = text.render(document(report()))
    assert "cp --sparse=always: cp (GNU coreutils) 9.1" in shown
    assert "absent: libvirt save and restore (virsh was not found in PATH; Install it: apt-get install x)" in shown
    assert "scatter: skipped: Without reflinks nothing is scattered." in shown
