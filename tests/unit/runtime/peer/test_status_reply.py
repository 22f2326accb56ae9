"""What a peer answers to who asks how it is."""

from __future__ import annotations

import math
import random

from records import book, membership, record

from p2ptrain.ids import PeerId, peer_id
from p2ptrain.runtime.peer.core import MOST_ASKED, Core
from p2ptrain.runtime.peer.status import status_reply
from p2ptrain.simulation.names import key
from p2ptrain.wire.codec import decode, encode
from p2ptrain.wire.messages import Rumour, StatusReply


def test_figures_that_no_message_can_hold_are_left_out_and_the_answer_comes() -> None:
    core = Core(key(0), b"c" * 32, (), 5711, random.Random(0), "test")
    core.figures = {"computes": 0.5, "batch_s": math.inf, "other_s": -math.inf, "odd": math.nan, "most": 1e300}
    own = record(0)
    members = membership(own.peer, random.Random(0), 0.0)
    reply = status_reply(core, book(own, random.Random(0)), members, has_left=False)
    assert [(figure.name, figure.value) for figure in reply.figures] == [("computes", 0.5)]
    assert decode(encode(reply), "control")[1] == reply


def test_all_of_a_large_room_are_asked_in_turn_and_who_was_asked_may_answer_late() -> None:
    core = Core(key(0), b"c" * 32, (), 5711, random.Random(0), "test")
    everyone = [peer_id(key(number)) for number in range(1, 100)]
    core.sessions.peers = lambda: everyone  # type: ignore[method-assign]
    asked: list[PeerId] = []
    core.run = lambda effects, now: asked.extend(each.to for each in effects) or []  # type: ignore[method-assign,func-returns-value]
    for second in range(4):
        core.ask_status(float(second))
        assert len(asked) == MOST_ASKED * (second + 1)
    assert set(asked) == set(everyone)
    reply = StatusReply((Rumour(everyone[0], "alive", 0),), ())
    for peer in everyone:
        core._status_came(peer, reply, 4.0)
    assert core.answers.keys() == set(everyone) and not core.refused
