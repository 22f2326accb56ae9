"""Whether a process still listens at an address: for when a connection of its has closed.

Invariant: "refused" is only said where the other device itself, which is there, says that nobody listens on that port.
A device that is off, or a network in between that is cut, says nothing, or something else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from p2ptrain.ids import PeerId
from p2ptrain.wire.addresses import split_address

KNOCK_S = 2.0
PAUSES_S = (0.0, 0.02, 0.1, 0.4)

Answer = Literal["open", "refused", "unknown"]


async def knock(address: str) -> Answer:
    """Connect, and hang up again; a few times, as a process that ends closes one socket after the other."""
    answer: Answer = "unknown"
    for pause_s in PAUSES_S:
        await asyncio.sleep(pause_s)
        answer = await _knock(address)
        if answer != "open":
            break
    return answer


async def _knock(address: str) -> Answer:
    parts = split_address(address)
    if parts is None:
        return "unknown"
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(*parts), KNOCK_S)
    except ConnectionRefusedError:
        return "refused"
    except (OSError, TimeoutError):
        return "unknown"
    writer.close()
    return "open"


class Knocking:
    """At one address of a peer at a time."""

    def __init__(self) -> None:
        self._asked: set[PeerId] = set()

    async def ask(self, peer: PeerId, address: str, refused: Callable[[], None]) -> None:
        """Call ``refused`` if nobody listens there any more."""
        if peer in self._asked:
            return
        self._asked.add(peer)
        try:
            answer = await knock(address)
        finally:
            self._asked.discard(peer)
        if answer == "refused":
            refused()
