"""When the rounds of a split group count as late."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.modes.split.rounds import progress
from p2ptrain.modes.split.rounds.progress import LATE_S, Progress


def under_a_plan(monkeypatch: pytest.MonkeyPatch, round_s: float) -> tuple[Progress, Any]:
    saved: Any = SimpleNamespace(newest_round=lambda: 0)
    monkeypatch.setattr(progress, "body_of", lambda plan: plan)
    found = Progress(SimpleNamespace(), saved, 100)  # type: ignore[arg-type]
    plan: Any = SimpleNamespace(from_round=0, shut_out=(), seen=(), stretch=1.0, split=SimpleNamespace(round_s=round_s))
    found.begin(plan, "a plan", 0.0)
    return found, plan


def late(found: Progress, seconds: list[float]) -> list[bool]:
    """After each of these rounds."""
    said = []
    for each in seconds:
        found._seconds.append(each)
        said.append(found.is_late())
    return said


def test_rounds_that_stay_slow_are_late_until_they_are_what_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    found, plan = under_a_plan(monkeypatch, 10.0)
    assert late(found, [10.0, 11.0, 30.0]) == [False, False, True]
    assert sum(late(found, [30.0] * 20)) == 1, "the median was 11 when the first was late"
    assert late(found, [60.0]) == [True], "slower still"
    found.begin(plan, "another", 0.0)
    assert late(found, [30.0]) == [True]


def test_one_slow_round_does_not_hide_that_they_become_slow_later(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = under_a_plan(monkeypatch, 10.0)
    assert late(found, [40.0, 10.0, 10.0, 10.0]) == [True, False, False, False]
    assert any(late(found, [35.0] * 3))


def test_of_a_short_round_a_part_of_a_second_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = under_a_plan(monkeypatch, 0.1)
    assert late(found, [0.1 + 0.9 * LATE_S, 0.1 + 1.1 * LATE_S]) == [False, True]
