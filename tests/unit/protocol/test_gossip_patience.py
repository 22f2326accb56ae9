"""How long a peer waits in an exchange, and what it learns that from."""

from __future__ import annotations

import random

from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.gossip import NOTHING, Gossip, GossipConfig, MakePayload
from p2ptrain.protocol.patience import Patience
from p2ptrain.wire.messages import GossipPush, ShardMass

ANN, BOB = (PeerId(name.ljust(16, "x")) for name in ("ann", "bob"))


def test_patience_follows_what_it_saw_between_its_bounds() -> None:
    patience = Patience(0.5, 60.0)
    assert patience.timeout_s() == 20.0
    for duration in (1.0, 1.2, 0.9, 1.1):
        patience.add(duration)
    assert 2.0 < patience.timeout_s() < 6.0
    before = patience.timeout_s()
    patience.timed_out()
    assert patience.timeout_s() == 2 * before
    for _ in range(9):
        patience.timed_out()
    assert patience.timeout_s() == 60.0
    for _ in range(40):
        patience.add(0.001)
    assert patience.timeout_s() == 0.5


def test_a_peer_that_has_none_soon_teaches_no_impatience_with_those_that_make_one() -> None:
    gossip, waits = Gossip(ANN, random.Random(1)), list[float]()
    gossip.shards({BOB: ("b",)}, ("b",), 1, 0.0)
    gossip.peers_alive({BOB}, 0.0)
    for number in range(6):
        now = 100.0 * number
        (make,) = gossip.round_finished(number, now)
        assert isinstance(make, MakePayload)
        gossip.payload_ready(make.exchange, BlobId("a" * 64), 100, (ShardMass("b", 2.0),), now)
        (waiting,) = gossip.waiting()
        waits.append(waiting.deadline - now)
        gossip.received(BOB, GossipPush(make.exchange, 1, (ShardMass("b", 0.0),), NOTHING, 0, False), now + 0.01)
        assert gossip.waiting() == ()
    assert set(waits) == {GossipConfig().ceiling_s / 3}
