"""What a peer answers to who asks how it is."""

from __future__ import annotations

import math
import random

from records import book, membership, record

from p2ptrain.runtime.peer.core import Core
from p2ptrain.runtime.peer.status import status_reply
from p2ptrain.simulation.names import key
from p2ptrain.wire.codec import decode, encode


def test_figures_that_no_message_can_hold_are_left_out_and_the_answer_comes() -> None:
    core = Core(key(0), b"c" * 32, (), 5711, random.Random(0), "test")
    core.figures = {"computes": 0.5, "batch_s": math.inf, "other_s": -math.inf, "odd": math.nan, "most": 1e300}
    own = record(0)
    members = membership(own.peer, random.Random(0), 0.0)
    reply = status_reply(core, book(own, random.Random(0)), members, has_left=False)
    assert [(figure.name, figure.value) for figure in reply.figures] == [("computes", 0.5)]
    assert decode(encode(reply), "control")[1] == reply
