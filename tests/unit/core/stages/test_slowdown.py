"""How slow a device is, and when its group is told of it."""

from __future__ import annotations

import math

import pytest

from p2ptrain.core.stages.slowdown import (
    APART_S,
    MOST_REST_S,
    REST_S,
    SOON_S,
    STEP,
    SlowdownReport,
    differs,
    slowdown_of,
)
from p2ptrain.protocol.machine import NEVER


def test_work_for_messages_is_no_slowdown_whether_or_not_it_held_the_trainer_up() -> None:
    assert slowdown_of(1.0, 1.0, 3.0, 1) == slowdown_of(2.5, 1.0, 3.0, 1) == slowdown_of(4.0, 1.0, 3.0, 1) == 1.0
    assert slowdown_of(8.0, 1.0, 3.0, 1) == slowdown_of(8.0, 1.0, 3.0, 0.1) == 2.0
    assert slowdown_of(0.0, 0.0, 0.0, 1) == 1.0


def test_a_device_with_pauses_is_not_taken_for_faster_than_it_is_without() -> None:
    """A tenth of a core that was idle for a while does a short pass as fast as a whole one."""
    assert slowdown_of(0.5, 1.0, 3.0, 0.95) == 0.5
    assert slowdown_of(0.5, 1.0, 3.0, 0.6) == 1.0


def told(*looks: float) -> list[float]:
    """What the group knows after each look."""
    known = SlowdownReport()
    return [known.told for index, look in enumerate(looks) if known.seen(look, index * APART_S) or True]


def test_a_change_is_told_once_two_looks_show_it_and_as_the_second_says() -> None:
    assert told(1.7, 4.0, 4.1) == [1.0, 4.0, 4.0]
    assert told(4.0, 4.0, 1.0, 1.0) == [1.0, 4.0, 4.0, 1.0]
    assert told(0.8, 0.7) == [1.0, 0.7]


def test_a_stall_is_not_told_nor_what_looks_do_not_agree_on() -> None:
    assert set(told(3.0, 1.0, 3.0, 1.05, 0.95)) == {1.0}
    assert set(told(1.3, 0.7, 1.3, 0.7)) == {1.0}
    assert set(told(1.1, 1.12, 1.14)) == {1.0}


def test_a_stall_of_less_than_some_seconds_is_not_told_however_often_it_is_looked_at() -> None:
    known = SlowdownReport()
    assert not any(known.seen(5.0, now) for now in (0.0, 0.5, 1.0, 2.0, APART_S - 0.1))
    assert not known.seen(1.0, APART_S) and not known.seen(5.0, APART_S + 0.5)
    assert known.told == 1.0
    assert known.seen(5.0, 2 * APART_S + 0.5) and known.told == 5.0


@pytest.mark.parametrize("nonsense", [0.0, -1.0, math.nan, math.inf])
def test_a_figure_that_makes_no_sense_is_passed_over(nonsense: float) -> None:
    assert told(nonsense, nonsense) == [1.0, 1.0]
    assert told(2.0, nonsense, 2.0) == [1.0, 1.0, 2.0]


def test_what_differs_is_a_ratio() -> None:
    assert differs(1.0, 1 + STEP + 1e-9) and differs(1 + STEP + 1e-9, 1.0)
    assert not differs(4.0, 4.0 + 3 * STEP)


def slow(now: float = 0.0) -> SlowdownReport:
    """A device that was slow, and has no stage since then."""
    known = SlowdownReport()
    assert [known.seen(4.0, now - APART_S), known.seen(4.0, now)] == [False, True]
    known.stand_by(now)
    return known


def test_who_stands_by_because_it_was_slow_looks_again_and_tells_when_two_looks_say_that_it_is_not() -> None:
    known = slow()
    assert not known.is_due(REST_S - 1) and known.is_due(REST_S)
    assert not known.seen(1.0, REST_S) and known.look_at == REST_S + SOON_S
    assert known.is_due(REST_S + SOON_S)
    assert known.seen(1.0, REST_S + SOON_S) and known.told == 1.0
    assert known.look_at == NEVER


def test_it_looks_less_and_less_often() -> None:
    known, waits, now = slow(), [], 0.0
    for _ in range(8):
        waits.append(known.look_at - now)
        now = known.look_at
        assert known.is_due(now) and not known.is_due(now)
        assert not known.seen(4.2, now)
    assert waits == sorted(waits) and waits[0] == REST_S and waits[-1] == MOST_REST_S
    known.train()
    assert known.look_at == NEVER
    known.stand_by(now)
    assert known.look_at == now + MOST_REST_S, "it was taken in, and is slow again"


def test_who_stands_by_and_was_not_slow_need_not_look() -> None:
    known = SlowdownReport()
    known.stand_by(0.0)
    assert known.look_at == NEVER
