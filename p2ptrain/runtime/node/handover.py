"""A peer's last snapshot, on its way to a replica holder before the peer says goodbye."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from p2ptrain.core.commands import SnapshotTaken
from p2ptrain.core.effects import Effects
from p2ptrain.core.mode import Role
from p2ptrain.ids import BlobId
from p2ptrain.protocol.replication.owner import Owner
from p2ptrain.protocol.replication.rules import freshness
from p2ptrain.runtime.peer.peer import Peer
from p2ptrain.wire.messages import SnapshotRef

POLL_S = 0.02
LET_GO_S = 15.0
"""Who leaves a group that divides its work among those who stay waits for that for so long at most."""


async def let_go(feed: Callable[[Callable[[float], Effects]], object], peer: Peer, role: Role) -> bool:
    """Say that this peer would go, and serve until the others train what it did. Whether they do."""
    feed(lambda now: peer.run(peer.group.say(now, leaving=True), now))
    try:
        async with asyncio.timeout(LET_GO_S):
            while not role.is_free_to_leave:
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        return False
    return True


class Handover:
    """From asking the trainer for a snapshot until a replica holder has acknowledged it, or a newer one."""

    def __init__(self) -> None:
        self._saved: asyncio.Future[SnapshotRef | None] = asyncio.get_running_loop().create_future()
        self._has_come = False
        """The trainer has given the snapshot that it was asked for."""
        self._blob: BlobId | None = None
        """The blob of the snapshot that was asked for."""

    async def done(self, owner: Owner) -> None:
        taken = await self._saved
        while taken is not None:
            holders = owner.holders().values()
            if not holders or any(a is not None and freshness(a) >= freshness(taken) for a in holders):
                return
            await asyncio.sleep(POLL_S)

    def settle(self, holding: SnapshotRef | None) -> None:
        """This is what is handed over, safe on disk; None: nothing is."""
        if not self._saved.done():
            self._saved.set_result(holding)

    def admits(self, event: SnapshotTaken) -> bool:
        """Whether a snapshot still counts: what is handed over shall be the newest that there is."""
        if self._has_come or self._saved.done():
            return False
        self._has_come = not event.round_finished
        return True

    def stored(self, event: SnapshotTaken, blob: BlobId | None) -> None:
        """A snapshot was written; no blob: it could not be."""
        if not event.round_finished:
            self._blob = blob
            if blob is None:
                self.settle(None)

    def saved(self, holding: SnapshotRef, error: BaseException | None) -> None:
        """A snapshot is in the manifest, if there is no error."""
        if holding.blob == self._blob:
            self.settle(holding if error is None else None)
