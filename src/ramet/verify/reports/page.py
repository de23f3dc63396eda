"""The report, or the detection matrix, as one page of HTML that needs nothing else: no script, no font, no network.

It is made from the documents that ``--json`` prints, so it can show nothing that they do not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from xml.etree import ElementTree as Xml

from ramet.verify.reports.documents import (
    CheckDocument,
    MatrixDocument,
    ReportDocument,
    SabotageDocument,
    ScenarioDocument,
)
from ramet.verify.reports.figures import costs, family, memory_maps
from ramet.verify.reports.markup import element

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What the browser may load: nothing, and the styles of the page itself."""


def encode(document: ReportDocument | MatrixDocument) -> bytes:
    """The page, as UTF-8."""
    return _report(document) if isinstance(document, ReportDocument) else _matrix(document)


def whole(title: str, *content: Xml.Element, kind: str = "", more_style: str = "") -> bytes:
    """A page around its content, as UTF-8; it may load nothing at all."""
    page = _page(title, *content, kind=kind, more_style=more_style)
    return b"<!doctype html>\n" + bytes(Xml.tostring(page, encoding="utf-8", method="html")) + b"\n"


def _page(title: str, *content: Xml.Element, kind: str, more_style: str) -> Xml.Element:
    style = files("ramet.verify.reports").joinpath("page.css").read_text(encoding="utf-8") + more_style
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", **{"http-equiv": "Content-Security-Policy", "content": POLICY}),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    )
    return element("html", head, element("body", *content, class_=kind), lang="en")


# -- a report -----------------------------------------------------------------------------------------------------


def _report(document: ReportDocument) -> bytes:
    counts = {
        word: sum(check.verdict == word for check in document.checks) for word in ("PASS", "FAIL", "INCONCLUSIVE")
    }
    told = f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['INCONCLUSIVE']} inconclusive, in {document.seconds:.1f} s"
    about = dict(document.host)
    if document.sabotage:
        about["sabotage"] = f"{document.sabotage}: isolation was broken on purpose, and this report must end in FAIL"
    return whole(
        f"{document.verdict}: ramet verify",
        element(
            "header",
            element("h1", "ramet verify ", _verdict(document.verdict)),
            element("p", told),
            facts(about),
            element("nav", element("ul", *(_link(run, document.checks) for run in document.scenarios))),
            *(_attention(check) for check in document.checks if check.verdict != "PASS"),
        ),
        element("main", *(_scenario(run, document.checks) for run in document.scenarios)),
        _footer(),
    )


def _footer() -> Xml.Element:
    return element(
        "footer",
        element(
            "p",
            "A check passes only if it was looked at, to the end, and every look agreed. ",
            element("b", "enforced"),
            ": the kernel would refuse the opposite. ",
            element("b", "held"),
            ": it was so, and nothing but Ramet's code made it so. H numbers: the hazards of docs/isolation.md.",
        ),
    )


def facts(pairs: dict[str, str]) -> Xml.Element:
    """Names and what they stand for, one below the other."""
    rows = [part for name, value in pairs.items() for part in (element("dt", name), element("dd", value))]
    return element("dl", *rows, class_="about")


def _verdict(word: str) -> Xml.Element:
    return element("span", word, class_=f"verdict {word.lower()}")


def _link(run: ScenarioDocument, checks: Sequence[CheckDocument]) -> Xml.Element:
    mine = [check for check in checks if check.scenario == run.name]
    passed = sum(check.verdict == "PASS" for check in mine)
    return element("li", element("a", run.name, href=f"#{run.name}"), f" {passed} of {len(mine)} passed")


def _attention(check: CheckDocument) -> Xml.Element:
    """What has not passed is said first."""
    link = element("a", f"{check.scenario}: {check.title}", href=f"#{check.id}")
    note = "" if check.required else " (this host need not show it)"
    return element("p", _verdict(check.verdict), " ", link, note)


def _scenario(run: ScenarioDocument, checks: Sequence[CheckDocument]) -> Xml.Element:
    trouble = [element("p", f"It was cut short: {run.cut_short}", class_="trouble")] if run.cut_short else []
    trouble += [element("p", f"Could not be removed: {what}", class_="trouble") for what in run.left_behind]
    return element(
        "section",
        element("h2", run.name),
        element("p", run.summary),
        *trouble,
        element("h3", "Who lived when"),
        family(run.steps),
        element("h3", "What each step cost"),
        costs(run.steps),
        element("h3", "Where the memory files lie"),
        memory_maps(run.steps),
        element("h3", "Checks"),
        *(_check(check) for check in checks if check.scenario == run.name),
        id=run.name,
    )


def _check(check: CheckDocument) -> Xml.Element:
    summary = element("summary", _verdict(check.verdict), " ", element("b", check.title))
    if check.verdict == "PASS":
        summary.append(element("span", check.strength, class_="strength"))
    looks = [
        element(
            "li",
            element("span", f"{fact.at}:", class_="at"),
            " ",
            fact.found,
            class_="" if fact.agrees else "disagrees",
        )
        for fact in check.evidence
    ]
    reason = [element("p", check.reason or "", class_="reason")] if check.verdict != "PASS" else []
    if not check.required:
        reason.append(element("p", "This host need not show it."))
    about = {"claim": check.claim, "fails if": check.fails_if, "hazards": ", ".join(check.hazards), "id": check.id}
    return element(
        "details",
        summary,
        *reason,
        element("ol", *looks, class_="looks") if looks else element("p", "Nobody looked."),
        facts({name: value for name, value in about.items() if value}),
        class_=f"check {check.verdict.lower()}",
        id=check.id,
        open="open",
    )


# -- the detection matrix -----------------------------------------------------------------------------------------


def _matrix(document: MatrixDocument) -> bytes:
    here = [row for row in document.sabotages if row.not_applicable is None]
    caught = sum(row.caught for row in here)
    claims = sorted({claim for row in document.sabotages for claim in (*row.must_fail, *row.failed)})
    head = element(
        "tr", element("th", "sabotage"), *(element("th", element("span", one), scope="col") for one in claims)
    )
    word = "PASS" if document.all_caught else "FAIL" if document.exit_status == 1 else "INCONCLUSIVE"
    marks = (
        "● must fail, and did    ○ failed as well    ✗ must fail, and did not    ? cut short before it could be known"
    )
    return whole(
        f"{caught} of {len(here)} caught: ramet verify --sabotage all",
        element(
            "header",
            element("h1", "ramet verify --sabotage all ", _verdict(word)),
            element("p", f"{caught} of {len(here)} caught, in {document.seconds:.1f} s"),
            *(_not_caught(row) for row in here if not row.caught),
            facts(document.host),
            element("p", marks, class_="legend"),
            *(element("p", f"undecided without sabotage: {what}", class_="trouble") for what in document.undecided),
        ),
        element(
            "main",
            element(
                "div",
                element(
                    "table",
                    element("thead", head),
                    element("tbody", *(_matrix_row(row, claims) for row in document.sabotages)),
                    class_="matrix",
                ),
                class_="wide",
            ),
        ),
        kind="full-width",
    )


def _not_caught(row: SabotageDocument) -> Xml.Element:
    """It is said first."""
    link = element("a", row.name, href=f"#{row.name}")
    return element("p", _how_not(row), " ", link, f": {row.summary}", class_="trouble")


def _how_not(row: SabotageDocument) -> Xml.Element:
    """Nothing noticed it, or its run was cut short before anything could."""
    word, kind = ("MISSED", "fail") if row.cut_short is None else ("UNKNOWN", "inconclusive")
    return element("span", word, class_=f"verdict {kind}")


def _matrix_row(row: SabotageDocument, claims: Sequence[str]) -> Xml.Element:
    """What is in the columns is said in words too: nobody need follow a column up to its heading."""
    about = [element("small", row.summary), element("small", *_outcome(row), class_="outcome")]
    name = element("th", element("b", row.name), *about, scope="row")
    if row.not_applicable is not None:
        return element("tr", name, element("td", f"not here: {row.not_applicable}", colspan=str(len(claims))))
    marks = (_mark(row, claim) for claim in claims)
    return element("tr", name, *marks, class_="" if row.caught else "missed", id=row.name)


def _outcome(row: SabotageDocument) -> Iterator[Xml.Element | str]:
    """Which checks caught it, or ought to have."""
    if row.not_applicable is not None:
        return
    if row.caught:
        yield f"caught by {', '.join(row.must_fail)}"
    else:
        silent = [claim for claim in row.must_fail if claim not in row.failed]
        yield _how_not(row)
        yield f" by {', '.join(silent)}" if row.cut_short is None else f", cut short: {row.cut_short}"
    also = [claim for claim in row.failed if not row.caught or claim not in row.must_fail]
    if also:
        yield f"; {'also failed' if row.caught else 'failed'}: {', '.join(also)}"


def _mark(row: SabotageDocument, claim: str) -> Xml.Element:
    must, did = claim in row.must_fail, claim in row.failed
    mark, word = {
        (True, True): ("●", "caught"),
        (False, True): ("○", "also"),
        (True, False): ("✗", "missed") if row.cut_short is None else ("?", "unknown"),
        (False, False): ("", "none"),
    }[must, did]
    return element("td", mark, class_=word, title=f"{row.name} / {claim}")
