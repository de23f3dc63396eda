"""What `ramet verify` refuses before it touches anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.errors import ConfigError, RametError, VmmError
from ramet.model import Hypervisor
from ramet.verify import run, run_all_sabotages, runner
from ramet.verify.checks import Verdict
from ramet.verify.runner import MEMORY_MIN_MIB
from ramet.verify.sabotage import SABOTAGES
from ramet.verify.scenarios import catalogue
from ramet.verify.scenarios.scenario import Scenario
from ramet.verify.world import CutShortError, World


def test_guests_too_small_to_prove_anything_are_refused(tmp_path: Path) -> None:
    """Most of their memory is in use when they have booted: a sound host would fail the check that copies stand out."""
    home = tmp_path / "home"
    with pytest.raises(ConfigError, match="cannot prove anything") as caught:
        run(home, memory_mib=MEMORY_MIN_MIB - 1)
    assert f"{MEMORY_MIN_MIB}M" in str(caught.value)
    with pytest.raises(ConfigError, match="cannot prove anything"):
        run_all_sabotages(home, memory_mib=MEMORY_MIN_MIB - 1)
    assert not home.exists()


def test_a_sabotage_that_there_is_not_is_refused_before_any_is_committed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(ConfigError, match="There is no sabotage 'nope'"):
        run_all_sabotages(home, names=("reboot", "nope"))
    assert not home.exists()


class EmptyHost:
    """A store in which there is nothing."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "locks").mkdir()

    def exists(self, name: str) -> bool:
        return False

    def why_no_vmm_users(self, hypervisor: Hypervisor) -> str | None:
        return f"{hypervisor} is not there"

    def shares_files(self, hypervisor: Hypervisor) -> bool:
        return False

    def snapshots(self) -> list[object]:
        return []

    def pools(self) -> list[object]:
        return []


def played(name: str, *, works: bool, error: RametError | None) -> Scenario:
    """A scenario of one step, which ends with an error, in the step or after it."""

    def run_it(world: World) -> None:
        with world.step("booting the source"):
            if not works and error is not None:
                raise error
        if error is not None:
            raise error
        world.ledger.look("fork-wakes", "here", [], found="it does")

    return Scenario(name=name, summary="", claims=("fork-wakes",), run=run_it)


@pytest.fixture
def scenarios(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Scenario]:
    """What there is to run, over no host."""
    found: dict[str, Scenario] = {}
    monkeypatch.setattr(catalogue, "SCENARIOS", found)
    monkeypatch.setattr(runner, "prepare", lambda *_: EmptyHost(tmp_path))
    monkeypatch.setattr(runner, "describe", lambda *_: {})
    return found


def test_nothing_that_works_is_an_error(scenarios: dict[str, Scenario], tmp_path: Path) -> None:
    scenarios["first"] = played("first", works=False, error=VmmError("There is no VMM."))
    with pytest.raises(VmmError, match="There is no VMM"):
        run(tmp_path)


@pytest.mark.parametrize("works", [True, False])
def test_a_later_scenario_that_fails_costs_no_report(
    scenarios: dict[str, Scenario], tmp_path: Path, works: bool
) -> None:
    scenarios["first"] = played("first", works=True, error=None)
    scenarios["second"] = played("second", works=works, error=VmmError("It did not come up."))
    report = run(tmp_path)
    assert [result.verdict for result in report.results] == [Verdict.PASS, Verdict.INCONCLUSIVE]
    assert report.scenarios[1].cut_short == "It did not come up."
    assert report.exit_status == 2


def test_a_scenario_that_cannot_go_on_is_no_error_even_if_it_is_the_first(
    scenarios: dict[str, Scenario], tmp_path: Path
) -> None:
    scenarios["first"] = played("first", works=False, error=CutShortError("The guest says nothing."))
    assert run(tmp_path).scenarios[0].cut_short == "The guest says nothing."


def test_a_run_that_chose_its_scenarios_says_how_many_it_left_out(
    scenarios: dict[str, Scenario], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scenarios["first"] = played("first", works=True, error=None)
    scenarios["second"] = played("second", works=True, error=None)
    monkeypatch.setattr(runner, "SCENARIOS", scenarios)
    assert "scenarios" not in run(tmp_path).host
    (tmp_path / "locks").rmdir()
    assert run(tmp_path, scenarios=["second"]).host["scenarios"] == "second: 1 of 2"


def test_the_report_of_a_sabotage_says_which_checks_it_must_fail(
    scenarios: dict[str, Scenario], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scenarios["base"] = played("base", works=True, error=None)
    monkeypatch.setattr(runner, "SCENARIOS", scenarios)
    assert run(tmp_path, sabotage="reboot").must_fail == SABOTAGES["reboot"].caught_by
    (tmp_path / "locks").rmdir()
    assert run(tmp_path).must_fail == ()
