"""When mDNS is asked again."""

from __future__ import annotations

import itertools
import random

from p2ptrain.net.asking import MISSING_S, PAUSE_S, QUIET_S, Asking


def times(num_missing: dict[float, int], until_s: float) -> list[float]:
    """When it asks, if from each time of ``num_missing`` on so many are missing; it is looked at every second."""
    asking, missing, asked = Asking(0.0, random.Random(1)), 0, []
    for second in range(int(until_s)):
        missing = num_missing.get(float(second), missing)
        if asking.is_due(missing, float(second)):
            asked.append(float(second))
    return asked


def test_often_while_anyone_is_missing() -> None:
    asked = times({0.0: 1}, 3600)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert asked[0] == PAUSE_S and len(asked) > 60
    assert all(MISSING_S[0] <= gap <= MISSING_S[1] + 1 for gap in gaps) and len(set(gaps)) > 5


def test_now_and_then_when_all_are_here() -> None:
    asked = times({}, 3600)
    assert 9 <= len(asked) <= 15 and asked[0] >= QUIET_S[0]


def test_soon_after_each_loss() -> None:
    asked = times({100.0: 1, 120.0: 2, 150.0: 0}, 300)
    assert asked[0] == 100.0, "the first that is lost"
    assert asked[1] == 120.0, "and the second"
    assert all(later - earlier >= PAUSE_S for earlier, later in itertools.pairwise(asked))
    assert not [each for each in asked if each > 151.0]
