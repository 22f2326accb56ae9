"""Records as peers publish them."""

from __future__ import annotations

from typing import Any

from p2ptrain.ids import peer_id
from p2ptrain.protocol.group.records import blank_record
from p2ptrain.simulation.names import key
from p2ptrain.wire.messages import Record


def record(number: int = 0, **changes: Any) -> Record:
    """Of the peer of this number, which has said nothing yet but what ``changes`` says, by field."""
    own = key(number)
    plain: dict[str, Any] = {"peer": peer_id(own), "key": own, "version": 1, "name": f"peer {number}"}
    return blank_record(**(plain | changes))
