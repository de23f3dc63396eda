"""All benchmarks, in the order in which they are run: the first finds a guest that has never slept, the later ones sleeping."""

from __future__ import annotations

from collections.abc import Sequence

from ramet import spelling
from ramet.bench.benchmarks import fork, idle, many, pause, pool, restore, save, scatter, share, sizes, sleep, writes
from ramet.bench.work import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    one.BENCHMARK.name: one.BENCHMARK
    for one in (save, fork, pool, pause, restore, many, idle, share, sleep, writes, scatter, sizes)
}


def summaries() -> dict[str, str]:
    """Each benchmark and what it measures."""
    return {name: one.summary for name, one in BENCHMARKS.items()}


def named(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks with these names, or all; in their own order.

    Raises:
        ConfigError: if there is none of a name.
    """
    return spelling.named(BENCHMARKS, names, what="benchmark", listed_by="ramet bench --list")
