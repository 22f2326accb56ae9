"""The node of someone who only looks: an observer, and where the blobs lie that it fetches.

Invariant: who fetches nothing needs no room on any disk.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2ptrain.core.effects import AbandonBlob, VerifyBlob
from p2ptrain.errors import NobodyError, RemoteError, UserError
from p2ptrain.net.group.admission import visitors_door
from p2ptrain.net.keys import Group, new_identity
from p2ptrain.net.signing import signing_of
from p2ptrain.protocol.blobs.serving import ReadChunk
from p2ptrain.protocol.blobs.transfer import WriteChunk
from p2ptrain.protocol.session.door import Door
from p2ptrain.protocol.session.effects import Knocked, NoticeTold
from p2ptrain.runtime.node.journal import Journal
from p2ptrain.runtime.node.node import NetworkConfig, Node
from p2ptrain.runtime.node.observer import Observer
from p2ptrain.runtime.store.blobs import Blobs
from p2ptrain.runtime.store.disk import Disk, StorageError
from p2ptrain.wire import messages as m

MAX_BLOB_BYTES = 1 << 40
GOODBYE_S = 0.5
"""At most, for the last words to go out."""
SETTLE_S, TOLD_SETTLE_S = 0.5, 0.1
"""News that comes in bunches: look a little longer after the last; less long when nothing is missing."""
PATIENCE_S = 3.0
"""After the first answer, for everyone to answer for itself."""


class ObserverNode(Node):
    """An observer with a key of its own for this one visit; what it fetches lies in a folder that goes with it.

    It looks for peers and is not announced itself: it may be gone before they have heard of it.
    """

    announces = False
    linger_s = GOODBYE_S

    def __init__(self, group: Group, network: NetworkConfig, door: Callable[[bytes], Door] | None = None) -> None:
        """``door``: of the visit with that key, where the group lets devices in one by one. Raises ``UserError``."""
        super().__init__(new_identity(), group, network, Journal(None))
        self._door = (door or visitors_door(group, None))(self.identity.public)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._blobs: Blobs | None = None
        self._observer: Observer | None = None

    async def close(self) -> None:
        """Say goodbye first, so that no peer keeps anything of this visit."""
        if self._observer is not None:
            self.feed(self._observer.leave)
        await super().close()
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def blobs(self) -> Blobs:
        """Raises ``UserError`` where no file can be written for a while."""
        if self._blobs is None:
            try:
                self._folder = tempfile.TemporaryDirectory(prefix="p2ptrain-")
            except OSError as error:
                raise UserError(
                    f"no folder for what is fetched ({error.strerror or error}): make room on this device's disks, or "
                    "name a folder that can be written to with TMPDIR"
                ) from None
            folder = Path(self._folder.name)
            self._blobs = Blobs(folder, quota_bytes=1 << 62, ephemeral_bytes=1 << 20, disk=Disk())
        return self._blobs

    @property
    def observer(self) -> Observer:
        if self._observer is None:
            raise UserError("the observer was not started")
        return self._observer

    def make_core(self) -> Observer:
        self._observer = Observer(
            self.identity.public,
            self.group.proof_key,
            self.addresses(),
            self.transport.bulk_port,
            self.rng,
            signing_of(self.identity),
            self._door,
        )
        return self._observer

    def carry_out_other(self, effect: object) -> None:
        if isinstance(effect, (WriteChunk, VerifyBlob)):
            try:
                self._store(effect)
            except StorageError as error:
                self.failure = self.failure or error
        elif isinstance(effect, AbandonBlob):
            self.blobs.abandon(effect.blob)
        elif isinstance(effect, ReadChunk):
            self.answer_read(effect, None)
        elif isinstance(effect, (NoticeTold, Knocked)):
            return  # who only looks follows nobody, and lets nobody in
        else:
            super().carry_out_other(effect)

    def _store(self, effect: WriteChunk | VerifyBlob) -> None:
        if isinstance(effect, WriteChunk):
            self.blobs.write(effect.blob, effect.offset, effect.data)
        else:
            sound = self.blobs.finish(effect.blob)
            self.feed(lambda now: self.observer.blob_checked(effect.blob, sound, now))

    async def _pause(self, seconds: float) -> None:
        """Let things happen. Raises what ended this node, if anything did."""
        await asyncio.sleep(seconds)
        if self.failure is not None:
            raise self.failure

    async def look_around(self, wait_s: float, need_job: bool = False) -> None:
        """Until everyone that is alive has been heard of. Raises ``NobodyError``."""
        observer, start = self.observer, self.now()
        while self.now() < start + wait_s:
            await self._pause(0.05)
            settle_s = TOLD_SETTLE_S if observer.misses_nothing() else SETTLE_S
            settled = self.now() - observer.changed_at > settle_s
            heard = observer.complete() or (observer.relayed() and self.now() - observer.first_answer_at > PATIENCE_S)
            if heard and settled and not (need_job and (observer.job is None or observer.plan() is None)):
                return
        if not observer.answered:
            tried = f" ({finding})" if (finding := observer.finding()) else ""
            raise NobodyError(
                f"no peer of this group answered within {wait_s:g} s{tried}; is one running, with this very code? "
                "`p2ptrain doctor` tells what this device sees; --peer HOST:PORT reaches one without discovery"
            )

    async def fetch(
        self, holding: m.SnapshotRef, timeout_s: float, progress: Callable[[], None] = lambda: None
    ) -> bytes | None:
        """A blob's bytes, or ``None`` if nobody delivers it in time. Raises ``UserError`` when the disk is full."""
        observer = self.observer
        if holding.num_bytes > MAX_BLOB_BYTES:
            return None  # whoever said so, it is no part of a model
        if holding.blob not in self.blobs:
            try:
                self.blobs.begin(holding.blob, holding.num_bytes)
            except RemoteError:
                return None
            self.feed(lambda now: observer.fetch(holding, now))
            deadline = time.monotonic() + timeout_s
            while holding.blob not in observer.blobs and time.monotonic() < deadline:
                await self._pause(0.02)
                progress()
            if holding.blob not in observer.blobs:
                self.feed(lambda now: observer.give_up(holding, now))
            if observer.blobs.get(holding.blob, "timeout"):
                return None
        data: Any = self.blobs.map(holding.blob)
        return bytes(data) if data is not None else None
