"""Which benchmarks are run, what is refused before any is, and what becomes of one that cannot be."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ramet.bench import runner
from ramet.bench.benchmarks import catalogue
from ramet.bench.place import Place
from ramet.bench.results import Figure, Report, Row
from ramet.bench.work import FULL, QUICK, Benchmark, Work
from ramet.errors import ConfigError, GuestError, NoSpaceError, UnsupportedError
from ramet.hypervisors.qemu import driver as qemu
from ramet.instances.choice import Choice
from ramet.model import Accelerator, Hypervisor, MemoryPolicy
from tests.unit.bench.stores import with_image

FIGURE = Figure(id="one", title="one", setting="", rows=[Row(id="row", label="row", values=[1.0])])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store, on a host that has QEMU as far as it is asked."""
    chosen = Choice(hypervisor=Hypervisor.QEMU, accelerator=Accelerator.TCG, why=None)
    monkeypatch.setattr(runner, "choose", lambda _hypervisor, _accelerator: chosen)
    monkeypatch.setattr(qemu, "program", lambda: "/usr/bin/qemu")
    monkeypatch.setattr(qemu, "version", lambda _path: "7.2")
    home = tmp_path / "home"
    with_image(home)
    return home


def run(home: Path, *measures: Callable[[Work], Sequence[Figure]], memory_mib: int = 256) -> Report:
    chosen = [Benchmark(name=f"b{n}", summary="", measure=measure) for n, measure in enumerate(measures)]
    return runner.measure(
        home,
        chosen,
        hypervisor=None,
        memory_mib=memory_mib,
        memory_policy=MemoryPolicy.CLONE,
        plan=QUICK,
        against=False,
        say=lambda _text: None,
    )


def test_benchmarks_are_named_in_any_order_and_run_in_their_own() -> None:
    assert [one.name for one in catalogue.named(["sizes", "fork"])] == ["fork", "sizes"]
    assert [one.name for one in catalogue.named([])] == list(catalogue.summaries())
    assert next(iter(catalogue.summaries())) == "save", "it needs a guest that has never slept"


def test_an_unknown_name_is_refused_with_what_was_meant(home: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        runner.run(home, only=["frok"])
    assert caught.value.message == "There is no benchmark 'frok'."
    assert caught.value.hint == "Did you mean 'fork'? `ramet bench --list` lists them."


@pytest.mark.parametrize("memory_mib", [0, 223, 1 << 20])
def test_guests_that_cannot_be_measured_are_refused_before_anything_is_touched(home: Path, memory_mib: int) -> None:
    before = sorted(path.name for path in home.iterdir())
    with pytest.raises(ConfigError):
        run(home, lambda _work: [FIGURE], memory_mib=memory_mib)
    assert sorted(path.name for path in home.iterdir()) == before


def test_a_benchmark_that_this_host_lacks_something_for_is_skipped_and_the_next_is_run(home: Path) -> None:
    def unsupported(_work: Work) -> Sequence[Figure]:
        raise UnsupportedError("No reflinks here.\n  more", capability="reflink", why="")

    def no_room(_work: Work) -> Sequence[Figure]:
        raise NoSpaceError("There is room for 3.")

    found = run(home, unsupported, no_room, lambda _work: [FIGURE])
    assert [one.skipped for one in found.outcomes] == ["No reflinks here.", "There is room for 3.", None]
    assert found.figures() == [FIGURE]


def test_a_benchmark_that_fails_ends_the_run_and_leaves_nothing(home: Path) -> None:
    def fails(_work: Work) -> Sequence[Figure]:
        raise GuestError("It does not answer.")

    with pytest.raises(GuestError):
        run(home, fails)
    assert [path for path in home.iterdir() if path.name.startswith("bench")] == []


def test_the_report_says_what_its_figures_depend_on(home: Path) -> None:
    places: list[Place] = []

    def look(work: Work) -> Sequence[Figure]:
        places.append(work.place)
        return [FIGURE]

    found = run(home, look).host
    assert (found.hypervisor, found.accelerator, found.vmm, found.memory_policy) == ("qemu", "tcg", "QEMU 7.2", "clone")
    assert found.copy_method == ("reflink" if places[0].reflinks else "copy")
    assert (found.guest_memory_mib, found.guest_filled_mib) == (256, 104)
    assert found.cpus == len(os.sched_getaffinity(0))
    assert found.kernel == os.uname().release
    assert found.image == "micro 0123456789ab"


def test_the_full_plan_measures_all_that_was_promised() -> None:
    assert (FULL.forks, max(FULL.sleeps)) == (64, 50)
    assert (min(FULL.sizes_mib), max(FULL.sizes_mib)) == (256, 4096)
    assert FULL.sharers >= 20
