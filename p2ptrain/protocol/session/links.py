"""Which links are dialled, and which of them nobody needs any more.

Invariant: a link is dialled once, and once more when its bulk address is known.
"""

from __future__ import annotations

from collections.abc import Collection

from p2ptrain.protocol.session.effects import Dial, HangUp
from p2ptrain.wire.addresses import with_port


class Links:
    """By control address."""

    def __init__(self) -> None:
        self._bulk: dict[str, str] = {}
        """The bulk address of each; "" until it is known."""

    def link(self, address: str, bulk_port: int = 0) -> list[Dial]:
        """Dial what is not linked yet."""
        bulk_address = with_port(address, bulk_port) if bulk_port else self._bulk.get(address, "")
        if self._bulk.get(address) == bulk_address:
            return []
        self._bulk[address] = bulk_address
        return [Dial(address, bulk_address)]

    def hang_up(self, address: str) -> HangUp:
        self._bulk.pop(address, None)
        return HangUp(address)

    def hang_ups(self, needed: Collection[str]) -> list[HangUp]:
        """All but those."""
        return [self.hang_up(address) for address in list(self._bulk) if address not in needed]
