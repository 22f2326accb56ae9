"""Where this node is, and how an address that somebody names is dialled from here.

Invariant: what others are told has no zone, and no more than ``MAX_OWN_ADDRESSES``; what is dialled has a zone wherever
it needs one, and only one of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from p2ptrain.protocol.session.guests import MAX_GUEST_ADDRESSES
from p2ptrain.wire.addresses import canonical_address, in_zones, split_address, without_zone, zone_of

MAX_OWN_ADDRESSES = 16


class OwnAddresses:
    """``addresses``: with zones, best first."""

    def __init__(self, addresses: Iterable[str] = ()) -> None:
        self._own = tuple(each for each in addresses if split_address(each))
        self._zones = tuple(dict.fromkeys(filter(None, map(zone_of, self._own))))
        self.told = tuple(dict.fromkeys(map(without_zone, self._own)))[:MAX_OWN_ADDRESSES]
        """What others are told."""

    def ways_to(self, address: str) -> list[str]:
        """How to dial what the user, mDNS or a peer named: in each zone where it may be meant; never ourselves."""
        return [way for way in in_zones(address, self._zones) if way not in self._own]

    def dialable(self, addresses: Sequence[str]) -> tuple[str, ...]:
        """Those of a peer's that make sense, without ours (two hosts may have the same one on a container bridge)."""
        named = filter(None, map(canonical_address, addresses))
        return tuple(way for address in named for way in self.ways_to(address))[:MAX_GUEST_ADDRESSES]
