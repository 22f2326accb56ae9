"""How slow a device is, and when its group is told of it."""

from __future__ import annotations

import math

import pytest

from p2ptrain.runtime.slowdown import STEP, ToldSlowdown, differs, slowdown_of


def test_work_for_parcels_is_no_slowdown_whether_or_not_it_held_the_trainer_up() -> None:
    assert slowdown_of(1.0, 1.0, 3.0, 1) == slowdown_of(2.5, 1.0, 3.0, 1) == slowdown_of(4.0, 1.0, 3.0, 1) == 1.0
    assert slowdown_of(8.0, 1.0, 3.0, 1) == slowdown_of(8.0, 1.0, 3.0, 0.1) == 2.0
    assert slowdown_of(0.0, 0.0, 0.0, 1) == 1.0


def test_a_device_with_pauses_is_not_taken_for_faster_than_it_is_without() -> None:
    """A tenth of a core that was idle for a while does a short pass as fast as a whole one."""
    assert slowdown_of(0.5, 1.0, 3.0, 0.95) == 0.5
    assert slowdown_of(0.5, 1.0, 3.0, 0.6) == 1.0


def told(*looks: float) -> list[float]:
    """What the group knows after each look."""
    known = ToldSlowdown()
    return [known.told for look in looks if known.seen(look) or True]


def test_a_change_is_told_once_two_looks_show_it_and_as_the_second_says() -> None:
    assert told(1.7, 4.0, 4.1) == [1.0, 4.0, 4.0]
    assert told(4.0, 4.0, 1.0, 1.0) == [1.0, 4.0, 4.0, 1.0]
    assert told(0.8, 0.7) == [1.0, 0.7]


def test_a_stall_is_not_told_nor_what_looks_do_not_agree_on() -> None:
    assert set(told(3.0, 1.0, 3.0, 1.05, 0.95)) == {1.0}
    assert set(told(1.3, 0.7, 1.3, 0.7)) == {1.0}
    assert set(told(1.1, 1.12, 1.14)) == {1.0}


@pytest.mark.parametrize("nonsense", [0.0, -1.0, math.nan, math.inf])
def test_a_figure_that_makes_no_sense_is_passed_over(nonsense: float) -> None:
    assert told(nonsense, nonsense) == [1.0, 1.0]
    assert told(2.0, nonsense, 2.0) == [1.0, 1.0, 2.0]


def test_what_differs_is_a_ratio() -> None:
    assert differs(1.0, 1 + STEP + 1e-9) and differs(1 + STEP + 1e-9, 1.0)
    assert not differs(4.0, 4.0 + 3 * STEP)
