"""Records as peers publish them: the one place that builds a whole one."""

from __future__ import annotations

from typing import Any

from p2ptrain.ids import PeerId, peer_id
from p2ptrain.protocol.group.records import blank_record
from p2ptrain.simulation.names import key
from p2ptrain.wire.messages import Record


def record(who: int | PeerId = 0, **changes: Any) -> Record:
    """Of the peer of a number, with its key; or of a name alone, where nobody looks at keys. By field, what it says."""
    own = key(who) if isinstance(who, int) else b"k" * 40
    name = peer_id(own) if isinstance(who, int) else who
    return blank_record(**({"peer": name, "key": own, "version": 1, "name": f"peer {who}"} | changes))
