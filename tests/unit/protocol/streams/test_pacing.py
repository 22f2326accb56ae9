"""Stage messages held back by the share of the link that a plan grants."""

from __future__ import annotations

from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import NEVER
from p2ptrain.protocol.streams.pacing import BURST_S, Pacing

A, B, C = map(PeerId, "abc")
MB = 1_000_000


def test_a_neighbour_gets_its_rate_in_the_long_run_and_keeps_its_order() -> None:
    pacing: Pacing[int] = Pacing({A: 10 * MB})
    sent: list[tuple[float, int]] = []
    now = 0.0
    for number in range(100):
        sent += [(now, each) for each in pacing.add(A, number, MB // 10, now)]
    while (due := pacing.next_deadline()) != NEVER:
        now = due
        sent += [(now, each) for each in pacing.due(now)]
    assert [each for _, each in sent] == list(range(100))
    assert abs(now - (99 * MB / 10 / (10 * MB) - BURST_S)) < 1e-6
    assert pacing.queued_bytes == 0


def test_who_was_idle_does_not_make_up_for_it() -> None:
    pacing: Pacing[int] = Pacing({A: MB})
    assert pacing.add(A, 0, MB, 100.0) == [0]
    assert pacing.add(A, 1, MB, 100.1) == [] and pacing.queued_bytes == MB
    assert pacing.due(100.9) == []
    assert pacing.due(101.0 - BURST_S) == [1]


def test_neighbours_do_not_wait_for_each_other() -> None:
    pacing: Pacing[int] = Pacing({A: 1.0, B: 1e9, C: 0.0})
    assert pacing.add(A, 1, MB, 0.0) == [1]
    assert pacing.add(A, 2, MB, 0.0) == []
    assert pacing.add(B, 3, MB, 0.0) == [3] and pacing.add(B, 4, MB, 0.0) == [4]
    assert [pacing.add(C, n, MB, 0.0) for n in (5, 6)] == [[5], [6]], "nothing in particular is granted"
    assert pacing.queued_bytes == MB
