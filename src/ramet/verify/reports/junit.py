"""The report as JUnit's XML, which continuous integration systems show: a suite for each scenario, a case for each check."""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from ramet.verify.checks import CheckResult, Verdict
from ramet.verify.reports.markup import printable
from ramet.verify.reports.results import Report, ScenarioRun

COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}
"""A suite's attributes, and the elements of its cases that they count."""


def encode(report: Report) -> bytes:
    """FAIL is a failure; INCONCLUSIVE an error, or skipped where the host need not show it."""
    root = Xml.Element("testsuites", name="ramet verify", time=f"{report.seconds:.3f}")
    for run in report.scenarios:
        _add_suite(root, run, report.host)
    Xml.indent(root)
    return bytes(Xml.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _add_suite(root: Xml.Element, run: ScenarioRun, host: dict[str, str]) -> None:
    tags = [_tag(result) for result in run.results]
    seconds = sum(step.seconds for step in run.steps)
    about = {"name": run.name, "tests": str(len(tags)), "time": f"{seconds:.3f}"}
    about |= {counted: str(tags.count(tag)) for counted, tag in COUNTED.items()}
    suite = Xml.SubElement(root, "testsuite", about)
    properties = Xml.SubElement(suite, "properties")
    for name, value in host.items():
        Xml.SubElement(properties, "property", name=name, value=printable(value))
    for result, tag in zip(run.results, tags, strict=True):
        case = Xml.SubElement(suite, "testcase", classname=f"ramet.verify.{run.name}", name=result.claim.id)
        if tag is not None:
            Xml.SubElement(case, tag, message=printable(result.reason or "")).text = printable(
                f"Claim: {result.claim.claim}"
            )
        evidence = "\n".join(f"{fact.at}: {fact.found}" for fact in result.facts)
        Xml.SubElement(case, "system-out").text = printable(evidence)
    if run.cut_short or run.left_behind:
        told = [run.cut_short or "", *(f"could not be removed: {what}" for what in run.left_behind)]
        Xml.SubElement(suite, "system-err").text = printable("\n".join(filter(None, told)))


def _tag(result: CheckResult) -> str | None:
    if result.verdict is Verdict.PASS:
        return None
    if result.verdict is Verdict.FAIL:
        return "failure"
    return "error" if result.required else "skipped"
