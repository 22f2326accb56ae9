"""The benchmark of what peers know of each other tells only of what came to pass."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))

from benchmarks.virtual_records import keep_records


@pytest.mark.parametrize(("give_up_s", "told"), [(0.0, set[str]()), (60.0, {"news_known_s", "news_known_p95_s"})])
def test_news_that_never_reached_so_many_has_no_time(give_up_s: float, told: set[str]) -> None:
    figures = keep_records(4, 1, warm_s=1.0, window_s=1.0, give_up_s=give_up_s)
    assert {name for name in figures if name.startswith("news")} == told
