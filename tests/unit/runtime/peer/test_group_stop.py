"""Who is asked to end a job that is not its own says so, and trains on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2ptrain.core.group_view import GroupView
from p2ptrain.core.stages.early_end import EarlyEnd
from p2ptrain.ids import JobId, PeerId
from p2ptrain.protocol.machine import Send
from p2ptrain.runtime.peer.stopping import GroupStop, round_under_way
from p2ptrain.wire.messages import Stop, StopReply

OWN, OTHER = JobId("0123456789abcdef"), JobId("f" * 16)
ASKER, FRIEND = PeerId("asker00000000000"), PeerId("friend0000000000")


def peer() -> GroupStop:
    group: Any = SimpleNamespace(job=OWN, own=SimpleNamespace(phase="training"), alive=lambda: [FRIEND])
    return GroupStop(cast(GroupView, group), lambda: None, may=True)


def test_who_trains_another_job_says_so_and_goes_on() -> None:
    stopping = peer()
    assert stopping.received(ASKER, Stop(OTHER, 3, "a laptop"), 0.0) == [Send(ASKER, StopReply("other job"))]
    assert not stopping.is_over


@pytest.mark.parametrize(
    ("own", "others", "after"),
    [
        (4, [4, 4], 4),
        (4, [5, 4], 5),
        (4, [5, 5], 5),
        (4, [10**9, 4], 4),
        (4, [39, 4], 5),
        (4, [39], 5),
        (6, [4, 3], 6),
        (4, [], 4),
    ],
)
def test_no_single_member_says_how_far_the_group_is(own: int, others: list[int], after: int) -> None:
    members: Any = [SimpleNamespace(peer=str(n), round=round) for n, round in enumerate([own, *others])]
    assert round_under_way(members, members[0], 40) == after


def test_of_several_times_to_stop_the_fewest_rounds_count() -> None:
    group: Any = SimpleNamespace(say=lambda now, ends_after: [ends_after])
    end = EarlyEnd(group, 9)
    assert [*end.ask(12, 0.0), *end.ask(5, 0.0), *end.ask(7, 0.0), *end.ask(3, 0.0)] == [9, 5, 5, 3]
    assert end.last_round == 3


def test_after_another_job_s_stop_its_own_is_still_followed() -> None:
    stopping = peer()
    stopping.received(ASKER, Stop(OTHER, 3, "a laptop"), 0.0)
    effects = stopping.received(ASKER, Stop(OWN, 3, "a laptop"), 1.0)
    assert Send(ASKER, StopReply("ends")) in effects
    assert Send(FRIEND, Stop(OWN, 3, "a laptop")) in effects, "and the others hear of it"
