"""What Ramet takes on the host at hand, beside what the raw mechanism and its peers take, in one run."""

from ramet.bench.benchmarks.catalogue import summaries
from ramet.bench.runner import run

__all__ = ["run", "summaries"]
