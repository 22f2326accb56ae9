"""Who is asked to end a job that is not its own says so, and trains on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from p2ptrain.core.group_view import GroupView
from p2ptrain.ids import JobId, PeerId
from p2ptrain.protocol.machine import Send
from p2ptrain.runtime.peer.stopping import GroupStop
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


def test_after_another_job_s_stop_its_own_is_still_followed() -> None:
    stopping = peer()
    stopping.received(ASKER, Stop(OTHER, 3, "a laptop"), 0.0)
    effects = stopping.received(ASKER, Stop(OWN, 3, "a laptop"), 1.0)
    assert Send(ASKER, StopReply("ends")) in effects
    assert Send(FRIEND, Stop(OWN, 3, "a laptop")) in effects, "and the others hear of it"
