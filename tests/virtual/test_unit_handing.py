"""Slow devices for which handing on stage messages and blocks is dear: plans count with it, and hold.

Rounds wait for no second copy here: in this world a device keeps one in no time.
"""

from __future__ import annotations

import itertools
import statistics

import pytest
from test_units import all_at, body_of, check_done, group, in_epoch, owners_by_round, state_of

from p2ptrain.simulation.room import Room


def round_s(room: Room) -> float:
    """Of a round, as the first device saw them pass: the median."""
    ends = [now for now, note in room.devices[0].notes if note.kind == "round"]
    return statistics.median(later - before for before, later in itertools.pairwise(ends))


@pytest.mark.parametrize("helpers", [1, 0], ids=["a helper", "all alone"])
def test_rounds_take_what_the_plan_says_and_it_stays(helpers: int) -> None:
    """One averager takes in what all others hand on: of three that train alone that is most of a round."""
    room = group(0, 3, helpers, rounds=4, handing=1.0, replicas=0, strategy="planned" if helpers else "alone")
    assert room.run(300, room.all_done), state_of(room)
    split = body_of(room.devices[0]).split
    assert room.epochs() - {0} == {1} and len(split.helpers) == helpers
    assert split.exchange_s > 0.3 * split.round_s
    assert 0.9 * split.round_s <= round_s(room) <= 1.15 * split.round_s + 0.2
    assert set(owners_by_round(check_done(room, 3)).values()) == {3}


def test_where_it_is_dearer_than_planned_no_plan_follows_that_is_no_better() -> None:
    room = group(0, 3, 1, rounds=6, handing=3.0, replicas=0)
    assert room.run(600, room.all_done), state_of(room)
    assert round_s(room) > 1.5 * body_of(room.devices[0]).split.round_s
    assert room.epochs() - {0} == {1}, "all alone, each would hand on the whole model"


def test_a_helper_that_comes_late_is_worth_the_change_of_plan() -> None:
    room = group(0, 3, 1, rounds=6, handing=1.0, replicas=0, min_peers=3)
    helper = room.devices[3]
    helper.kill()
    assert room.run(120, all_at(room, 1)), state_of(room)
    alone_s = body_of(room.devices[0]).split.round_s
    room.restart(3)
    assert room.run(120, in_epoch(room, 2)), state_of(room)
    assert body_of(helper).split.helpers == (helper.id,) and body_of(helper).split.round_s < 0.5 * alone_s
    assert room.run(300, room.all_done), state_of(room)
    assert room.epochs() == {2}
