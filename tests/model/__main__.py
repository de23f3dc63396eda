"""``python -m tests.model``: many random sequences over played VMs, on all CPUs; prints how many took how long."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time

import pytest

from tests.model.frame import Frame
from tests.model.played_stage import build_vmm, play
from tests.model.sequences import run, stores_in_memory


def main() -> int:
    """Returns 1 if a sequence failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--sequences", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=12, help="of one sequence, at most")
    parser.add_argument("--seed", type=int, help="to have the same sequences again")
    options = parser.parse_args()
    first = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "big")
    workers = os.cpu_count() or 1
    play(pytest.MonkeyPatch())
    forking = multiprocessing.get_context("fork")
    played = forking.Value("l", 0)
    began = time.monotonic()
    with stores_in_memory() as base:
        program = build_vmm(base)

        def take(share: int, number: int) -> None:
            run(base, program, sequences=share, steps=options.steps, number=number)
            with played.get_lock():
                played.value += Frame.played

        shares = [options.sequences // workers + (number < options.sequences % workers) for number in range(workers)]
        children = [forking.Process(target=take, args=(share, first + number)) for number, share in enumerate(shares)]
        for child in children:
            child.start()
        for child in children:
            child.join()
    took_s = time.monotonic() - began
    failed = any(child.exitcode != 0 for child in children)
    print(
        f"{'FAILED' if failed else 'passed'}: {options.sequences} sequences of up to {options.steps} steps and "
        f"{played.value - options.sequences} that Hypothesis made of them, {workers} at once, seed {first}: "
        f"{took_s:.1f} s, {took_s / max(played.value, 1) * 1000:.0f} ms each"
    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
