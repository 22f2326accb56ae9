"""Samples a second: over enough time, and of a round over the whole of it."""

from __future__ import annotations

from p2ptrain.learning.pace import Pace


def test_a_last_batch_right_after_a_figure_does_not_look_fast() -> None:
    now = [100.0]
    pace = Pace(lambda: now[0])
    pace.begin(1000)
    now[0] = 100.4
    assert not pace.is_due
    now[0] = 104.0
    assert pace.is_due and pace.progress(2000) == 250
    now[0] = 104.002
    assert not pace.is_due and round(pace.round_ended(2064)) == round(1064 / 4.002)
    now[0] = 106.002
    assert round(pace.round_ended(2564)) == 250
