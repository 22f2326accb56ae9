"""Payloads of ours: whose bytes are still needed."""

from __future__ import annotations

from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.tasks.averaging.payloads import ASKED_AGAIN_S, Payloads

PARTNER = PeerId("a" * 16)
BLOB, OTHER = BlobId("0" * 64), BlobId("1" * 64)
MASSES = (("all", 1.0),)


def test_what_was_served_whole_is_spent_once_nobody_asks_for_its_end_again() -> None:
    payloads = Payloads()
    payloads.publish(1, BLOB, 100, PARTNER, MASSES)
    payloads.served(PARTNER, BLOB, 60)
    assert payloads.spent(0.0) == [] and payloads.spent(10 * ASKED_AGAIN_S) == []
    payloads.served(PARTNER, BLOB, 100)
    start = 20 * ASKED_AGAIN_S
    assert payloads.spent(start) == []
    assert payloads.spent(start + 0.9 * ASKED_AGAIN_S) == []
    assert payloads.spent(start + ASKED_AGAIN_S) == [BLOB]
    assert payloads.spent(start + 9 * ASKED_AGAIN_S) == []


def test_what_was_taken_back_is_spent_too() -> None:
    payloads = Payloads()
    payloads.publish(1, BLOB, 100, PARTNER, MASSES)
    payloads.publish(2, OTHER, 100, PARTNER, MASSES)
    assert payloads.ended(1, False, 0.0) == [MASSES] and not payloads.may_serve(PARTNER, BLOB)
    assert payloads.ended(2, True, 50.0) == [] and payloads.spent(0.0) == []
    assert payloads.expire(50.0) == [MASSES]
    assert payloads.spent(50.0) == [BLOB]
    assert payloads.spent(50.0 + ASKED_AGAIN_S) == [OTHER]
