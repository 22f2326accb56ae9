"""How fast a group's batches go by."""

from __future__ import annotations

import pytest

from p2ptrain.modes.pipeline.stage.pace import NUM_TYPICAL, NUM_WARM_UP, Pace


def watched(pace: Pace, step: int, num: int, batch_s: float, now: float) -> tuple[int, float, int]:
    """So many batches go by; the step and the time then, and how often the pace was worth a look."""
    news = 0
    for _ in range(num):
        step, now = step + 1, now + batch_s
        news += pace.seen(step, now)
    return step, now, news


def test_a_typical_batch_is_known_after_a_few_and_said_again_after_as_many() -> None:
    pace = Pace()
    pace.seen(1, 0.0)
    step, now, news = watched(pace, 1, NUM_WARM_UP, 9.0, 0.0)
    assert (news, pace.typical_s, pace.seconds) == (0, 0.0, 9.0)
    step, now, news = watched(pace, step, NUM_TYPICAL - 1, 2.0, now)
    assert (news, pace.typical_s) == (0, 0.0)
    step, now, news = watched(pace, step, 1, 2.0, now)
    assert (news, pace.typical_s) == (1, 2.0)
    step, now, news = watched(pace, step, 2 * NUM_TYPICAL, 2.0, now)
    assert (news, pace.typical_s) == (2, 2.0)


def test_a_stall_is_not_typical() -> None:
    pace = Pace()
    pace.seen(1, 0.0)
    step, now, _ = watched(pace, 1, 20, 2.0, 0.0)
    pace.seen(step + 1, now + 300.0)
    assert pace.seconds == 300.0 and pace.typical_s == 2.0


def test_another_plan_begins_anew() -> None:
    pace = Pace()
    pace.seen(1, 0.0)
    step, now, _ = watched(pace, 1, 20, 2.0, 0.0)
    pace.begin(step + 2)
    assert pace.typical_s == 0.0 and pace.seconds == 2.0 and not pace.is_known
    for ahead, after_s in ((1, 2.0), (2, 4.0), (3, 60.0)):  # the old plan's last two, and the new one's first
        pace.seen(step + ahead, now + after_s)
        assert pace.seconds == 2.0 and not pace.is_known
    step, now, news = watched(pace, step + 3, NUM_WARM_UP + NUM_TYPICAL, 4.0, now + 60.0)
    assert (news, pace.typical_s, pace.is_known) == (1, 4.0, True)


def test_a_plan_that_goes_back_has_no_pace_before_its_own_batches() -> None:
    """Others' records say for a while how far they were."""
    pace = Pace()
    pace.seen(1, 0.0)
    step, now, _ = watched(pace, 1, 20, 2.0, 0.0)
    pace.begin(step - 5)
    pace.seen(step, now + 2.0)
    pace.seen(step - 5, now + 30.0)
    pace.seen(step - 4, now + 60.0)
    assert pace.seconds == 2.0 and not pace.is_known
    pace.seen(step - 3, now + 63.0)
    assert pace.seconds == 3.0 and pace.is_known


def test_many_batches_between_two_looks_count_each() -> None:
    pace = Pace()
    pace.seen(1, 0.0)
    assert not pace.seen(40, 0.5)  # too soon after the last look
    assert pace.seen(101, 10.0)
    assert pace.typical_s == pytest.approx(0.1)


def test_steps_ahead_are_generous() -> None:
    pace = Pace()
    assert pace.steps_in(10.0) == 2
    pace.seen(1, 0.0)
    pace.seen(3, 8.0)
    assert pace.steps_in(10.0) == 4
    pace.seen(2, 9.0)  # the last batches are done again
    assert pace.seconds == 4.0
