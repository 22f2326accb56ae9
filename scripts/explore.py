#!/usr/bin/env python3
"""Groups in virtual time to which anything happens at any moment, on all cores: one group a seed.

scripts/explore.py 10000                    # seeds 0 to 9999; one that fails is named at once, with the reason
scripts/explore.py 10000 --first 10000      # the next ones
scripts/explore.py 1000 --mode split        # of split training, in place of pipelines
scripts/explore.py --replay 4711            # one of them again, with all that happened to it
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
EXPLORERS = {"pipeline": "explorer", "split": "unit_explorer"}
"""Of each mode, in the folder of tests in virtual time."""
MOST_CHARACTERS = 4000
"""Of why a seed failed; ``--replay`` tells all."""
SEEDS_A_PROCESS = 200
"""Seeds of one process, before another takes its place."""


def prepare(mode: str) -> None:
    """As the tests are run: a pipeline's models are so small that passing messages on would be most of the work."""
    sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "virtual")]
    from p2ptrain.planning.pipeline import fleet

    if mode == "pipeline":
        fleet.MESSAGE_FLOPS = fleet.BYTE_FLOPS = 0.0


def try_seed(mode: str, seed: int) -> tuple[int, float, str]:
    """The seed, seconds it took, and what did not hold; "" = everything did."""
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            importlib.import_module(EXPLORERS[mode]).explore(seed)
        except Exception:  # noqa: BLE001  whatever it is, it is what this script is for
            return seed, time.perf_counter() - began, traceback.format_exc(limit=-3)[:MOST_CHARACTERS]
    return seed, time.perf_counter() - began, ""


def explore_all(mode: str, seeds: Sequence[int], processes: int) -> list[int]:
    """The seeds that failed."""
    failed, done, began = [], 0, time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(
        processes, prepare, (mode,), maxtasksperchild=SEEDS_A_PROCESS
    ) as pool:
        for seed, took_s, problem in pool.imap_unordered(functools.partial(try_seed, mode), seeds):
            done += 1
            if problem:
                failed.append(seed)
                print(f"seed {seed} failed after {took_s:.1f} s:\n{problem}", flush=True)
            if done % 100 == 0:
                rate = done / (time.perf_counter() - began)
                print(f"{done} of {len(seeds)} seeds, {len(failed)} failed, {rate:.2f} a second", flush=True)
    return sorted(failed)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="?", default=1000, help="how many (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: 0)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="at once (default: all cores)")
    parser.add_argument("--mode", choices=sorted(EXPLORERS), default="pipeline", help="(default: pipeline)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run this one alone and tell what happened")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.processes < 1:
        parser.error("seeds and processes are 1 at least")
    if options.replay is not None:
        prepare(options.mode)
        explorer = importlib.import_module(EXPLORERS[options.mode]).Explorer(options.replay)
        try:
            explorer.run()
        finally:
            print("\n".join(explorer.log), flush=True)
        return 0
    failed = explore_all(options.mode, range(options.first, options.first + options.seeds), options.processes)
    print(f"{options.seeds} seeds, {len(failed)} failed" + (f": {', '.join(map(str, failed))}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
