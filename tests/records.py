"""Records as peers publish them, and the machines that keep them: the one place that builds whole ones."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from p2ptrain.ids import PeerId, peer_id
from p2ptrain.protocol.group.membership import Membership
from p2ptrain.protocol.group.record import blank_record
from p2ptrain.protocol.group.records import RecordBook
from p2ptrain.protocol.group.swim import MembershipConfig
from p2ptrain.protocol.signing import Statements
from p2ptrain.simulation.names import key
from p2ptrain.simulation.signing import TRUSTING
from p2ptrain.wire.messages import Record


def record(who: int | PeerId = 0, **changes: Any) -> Record:
    """Of the peer of a number, with its key; or of a name alone, where nobody looks at keys. By field, what it says."""
    own = key(who) if isinstance(who, int) else b"k" * 40
    name = peer_id(own) if isinstance(who, int) else who
    return blank_record(**({"peer": name, "key": own, "version": 1, "name": f"peer {who}"} | changes))


def book(own: Record, rng: random.Random, now: float = 0.0, **options: Any) -> RecordBook:
    """One that takes every record for signed, unless ``options`` say otherwise."""
    signed = {"statements": Statements(TRUSTING, b""), "refused": Counter()}
    return RecordBook(own, rng, now, **(signed | options))


def membership(own_id: PeerId, rng: random.Random, now: float, *config: MembershipConfig, **options: Any) -> Membership:
    """One that takes every word for signed, unless ``options`` say otherwise."""
    signed = {"statements": Statements(TRUSTING, b""), "key_of": lambda peer: b"", "refused": Counter()}
    return Membership(own_id, rng, now, *config, **(signed | options))
