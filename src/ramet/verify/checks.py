"""What was found of the claims: the ledger in which looks become verdicts.

A check passes only if it was looked at, to the end, and every look agreed. Not looked is not PASS: a check that a scenario
did not get to is INCONCLUSIVE, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ramet.model import MemoryPolicy
from ramet.verify.claims import Claim, claim_of


class Verdict(StrEnum):
    """What a check came to. Not looked is INCONCLUSIVE."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


class Strength(StrEnum):
    """``enforced``: the kernel would refuse the opposite. ``held``: it was so, and nothing but our code made it so."""

    ENFORCED = "enforced"
    HELD = "held"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One piece of evidence."""

    at: str
    """The step at which it was taken."""
    found: str
    agrees: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """A check after it was run."""

    scenario: str
    claim: Claim
    verdict: Verdict
    strength: Strength
    required: bool
    reason: str | None
    facts: tuple[Fact, ...]


@dataclass(slots=True)
class _Entry:
    facts: list[Fact] = field(default_factory=list)
    all_enforced: bool = True
    undecided: str | None = None
    required: bool = True


class Ledger:
    """What was found in one scenario, check by check."""

    def __init__(
        self, scenario: str, claim_ids: Sequence[str], *, memory_policy: MemoryPolicy = MemoryPolicy.CLONE
    ) -> None:
        self.scenario = scenario
        self._memory_policy = memory_policy
        self._entries = {claim_id: _Entry() for claim_id in claim_ids}
        self._cut_short: str | None = None

    def look(self, claim_id: str, at: str, problems: Iterable[str], *, found: str, enforced: bool = False) -> None:
        """Record one look at a check: it agrees if there are no ``problems``; ``found`` is what was seen."""
        entry = self._entries[claim_id]
        wrong = list(problems)
        entry.facts.append(Fact(at=at, found="; ".join(wrong) or found, agrees=not wrong))
        entry.all_enforced = entry.all_enforced and enforced and not wrong

    def undecided(self, claim_id: str, why: str, *, required: bool) -> None:
        """A check that cannot be decided on this host."""
        entry = self._entries[claim_id]
        entry.undecided, entry.required = why, required

    def cut_short(self, why: str) -> None:
        """The scenario did not get to its end."""
        self._cut_short = why

    def failed(self) -> list[str]:
        """The checks of which a look has not agreed so far."""
        return [claim for claim, entry in self._entries.items() if not all(fact.agrees for fact in entry.facts)]

    @property
    def why_cut_short(self) -> str | None:
        return self._cut_short

    def results(self) -> tuple[CheckResult, ...]:
        """The verdicts, in the order of the scenario's checks."""
        return tuple(
            self._result(claim_of(claim_id, self._memory_policy), entry) for claim_id, entry in self._entries.items()
        )

    def _why_not_reached(self) -> str:
        if self._cut_short is None:
            return "the scenario never looked"
        return f"not reached, or not to the end: the scenario was cut short ({self._cut_short.rstrip('.')})"

    def _result(self, claim: Claim, entry: _Entry) -> CheckResult:
        verdict, reason = Verdict.PASS, None
        wrong = next((fact for fact in entry.facts if not fact.agrees), None)
        if wrong is not None:
            verdict, reason = Verdict.FAIL, f"{wrong.at}: {wrong.found}"
        elif entry.undecided is not None:
            verdict, reason = Verdict.INCONCLUSIVE, entry.undecided
        elif not entry.facts or (self._cut_short is not None and claim.continuous):
            verdict, reason = Verdict.INCONCLUSIVE, self._why_not_reached()
        return CheckResult(
            scenario=self.scenario,
            claim=claim,
            verdict=verdict,
            strength=Strength.ENFORCED if entry.facts and entry.all_enforced else Strength.HELD,
            required=entry.required,
            reason=reason,
            facts=tuple(entry.facts),
        )


def overall(results: Sequence[CheckResult]) -> Verdict:
    """FAIL if any check failed; INCONCLUSIVE if a required one could not be decided, or none passed; else PASS."""
    verdicts = {result.verdict for result in results}
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    undecided = any(result.verdict is Verdict.INCONCLUSIVE and result.required for result in results)
    return Verdict.INCONCLUSIVE if undecided or Verdict.PASS not in verdicts else Verdict.PASS
