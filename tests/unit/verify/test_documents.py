"""The published schema is that of what is printed."""

from __future__ import annotations

import json

import msgspec

from ramet.verify.reports.conversion import encode
from ramet.verify.reports.documents import GuardDocument, MatrixDocument, ReportDocument, schema
from ramet.verify.reports.results import Matrix, MatrixRow
from tests.style.sources import ROOT
from tests.unit.verify.test_report import report

PUBLISHED = ROOT / "docs" / "schemas" / "reports.schema.json"
Document = ReportDocument | MatrixDocument | GuardDocument


def test_the_published_schema_is_up_to_date() -> None:
    """Made by: ramet verify --schema >docs/schemas/reports.schema.json"""
    assert json.loads(PUBLISHED.read_text()) == json.loads(msgspec.json.encode(schema()))


def test_every_document_has_its_kind_and_can_be_read_back() -> None:
    for made in (report(fail=True), report(cut_short="early", sabotage="reboot")):
        assert isinstance(msgspec.json.decode(encode(made), type=Document), ReportDocument)
    row = MatrixRow(sabotage="reboot", summary="", must_fail=("fork-same-boot",), failed=(), not_applicable=None)
    read = msgspec.json.decode(encode(Matrix(host={}, rows=(row,), seconds=1)), type=Document)
    assert isinstance(read, MatrixDocument)
    assert not read.all_caught


def test_every_type_says_what_it_is() -> None:
    definitions = schema()["$defs"]
    assert {"ReportDocument", "MatrixDocument", "GuardDocument", "CheckDocument"} <= set(definitions)
    assert [name for name, one in definitions.items() if not one.get("description")] == []
