"""The verifier: proves on the host at hand, by evidence from outside, that forks are isolated."""

from ramet.verify.matrix import run_all_sabotages
from ramet.verify.runner import run, sabotage_names, scenario_names

__all__ = ["run", "run_all_sabotages", "sabotage_names", "scenario_names"]
