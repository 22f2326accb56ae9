"""How long a plan that works stays before it gives way to a faster one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from p2ptrain.modes.pipeline.stage.calm import MOST_REST_S, REST_S, Calm


def plan(number: int, *peers: str) -> Any:
    """The child of the one before; all its peers train."""
    return SimpleNamespace(
        hash=str(number),
        parent=str(number - 1),
        peers=[SimpleNamespace(peer=peer) for peer in peers],
        trainers=lambda: dict.fromkeys(peers, 0),
    )


def wait_of(calm: Calm, now: float) -> float:
    """Until a faster plan may come."""
    seconds = 0.0
    while not calm.is_over and not calm.ends(now + seconds):
        seconds += 1.0
    return seconds


def test_after_each_change_for_speed_the_group_waits_twice_as_long_and_again_as_at_first_when_all_was_calm() -> None:
    calm, now, waits = Calm(), 0.0, []
    calm.adopted(None, plan(0, "a", "b"), now)
    assert calm.is_over
    for number in range(1, 8):
        calm.adopted(plan(number - 1, "a", "b"), plan(number, "a", "b"), now)
        waits.append(wait_of(calm, now))
        now += waits[-1]
    assert waits == [REST_S, 60, 120, 240, 480, MOST_REST_S, REST_S]
    calm.adopted(plan(7, "a", "b"), plan(8, "a", "b"), now + MOST_REST_S)
    assert wait_of(calm, now + MOST_REST_S) == REST_S


def test_a_plan_for_want_of_a_peer_and_one_from_elsewhere_make_nobody_wait() -> None:
    calm = Calm()
    calm.adopted(plan(0, "a", "b"), plan(1, "a"), 5.0)
    assert calm.is_over
    calm.adopted(plan(1, "a"), plan(7, "a"), 5.0)
    assert calm.is_over


def test_the_end_of_a_wait_is_told_once() -> None:
    calm = Calm()
    calm.adopted(plan(0, "a"), plan(1, "a", "b"), 5.0)
    assert [calm.ends(now) for now in (6.0, 5.0 + REST_S, 6.0 + REST_S)] == [False, True, False]
