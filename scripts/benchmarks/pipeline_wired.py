"""``pipeline`` over links of 1 Gbit/s: what is left where they hardly hold anybody up. Without compression."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.common import Sample, Settings
from benchmarks.pipeline import BASELINE, CASES, COLUMNS, compare

__all__ = ["BASELINE", "COLUMNS", "run"]

WIRED = {name: case for name, case in CASES.items() if case.crossing == "none" and case.strategy != "data-parallel"}
RATE_MBIT = 1000.0


def run(settings: Settings) -> Iterator[Sample]:
    yield from compare("vgg11", settings, WIRED, RATE_MBIT)
