"""``pipeline`` with MobileNetV2: many small blocks, and little to average."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.common import Sample, Settings
from benchmarks.pipeline import BASELINE, COLUMNS, compare

__all__ = ["BASELINE", "COLUMNS", "run"]


def run(settings: Settings) -> Iterator[Sample]:
    yield from compare("mobilenetv2", settings)
