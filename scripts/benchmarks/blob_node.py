"""A node that only serves and fetches blobs: what ``wire`` measures of a peer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from p2ptrain.core.effects import AbandonBlob, BlobArrived, BlobLost, VerifyBlob
from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.net.keys import Group, Identity, new_identity
from p2ptrain.protocol.blobs.serving import ReadChunk
from p2ptrain.protocol.blobs.transfer import WriteChunk
from p2ptrain.protocol.session.effects import PeerAdmitted
from p2ptrain.runtime.node.journal import Journal
from p2ptrain.runtime.node.node import NetworkConfig, Node
from p2ptrain.runtime.peer.core import Core
from p2ptrain.runtime.store.blobs import Blobs
from p2ptrain.runtime.store.disk import Disk
from p2ptrain.version import SOFTWARE


class _BlobCore(Core):
    """Sessions and transfers, nothing else."""

    def __init__(self, identity: Identity, group: Group, node: Node) -> None:
        super().__init__(
            identity.public, group.proof_key, node.addresses(), node.transport.bulk_port, node.rng, SOFTWARE
        )
        self.admitted: list[PeerId] = []
        self.ended: dict[str, str] = {}
        self.changed = asyncio.Event()
        self._handlers |= {
            PeerAdmitted: lambda e, now: self._changes(self.admitted.append(e.peer)),
            BlobArrived: lambda e, now: self._changes(self.ended.update({e.blob: ""})),
            BlobLost: lambda e, now: self._changes(self.ended.update({e.blob: e.reason})),
        }

    def _changes(self, _: None) -> list[Any]:
        self.changed.set()
        return []


class BlobNode(Node):
    """A node that serves and fetches blobs as a peer's does: every read, write and check in the disk's thread."""

    def __init__(self, group: Group, network: NetworkConfig, folder: Path) -> None:
        super().__init__(new_identity(), group, network, Journal(None))
        self.blobs = Blobs(folder, quota_bytes=1 << 40, ephemeral_bytes=1 << 30, disk=Disk())
        self.blob_core: _BlobCore | None = None

    def make_core(self) -> _BlobCore:
        self.blob_core = _BlobCore(self.identity, self.group, self)
        return self.blob_core

    def carry_out_other(self, effect: object) -> None:
        core = self.blob_core
        assert core is not None
        passing = self.blobs.passing
        if isinstance(effect, ReadChunk) and effect.blob in passing:
            data = passing.read(effect.blob, effect.offset, effect.length)
            asyncio.get_running_loop().call_soon(self.answer_read, effect, data)
        elif isinstance(effect, ReadChunk):
            self.on_disk(
                lambda: self.blobs.read(effect.blob, effect.offset, effect.length),
                lambda data, error: self.answer_read(effect, data),
            )
        elif isinstance(effect, WriteChunk):
            aside = self.in_memory if passing.is_incoming(effect.blob) else self.on_disk
            aside(lambda: self.blobs.write(effect.blob, effect.offset, effect.data), self._written)
        elif isinstance(effect, VerifyBlob):
            aside = self.in_memory if passing.is_incoming(effect.blob) else self.on_disk
            aside(
                lambda: self.blobs.finish(effect.blob),
                lambda sound, error: self.feed(lambda now: core.blob_checked(effect.blob, bool(sound), now)),
            )
        elif not isinstance(effect, AbandonBlob):
            super().carry_out_other(effect)

    @staticmethod
    def _written(_: Any, error: BaseException | None) -> None:
        if error is not None:
            raise error

    async def fetch(self, blob: BlobId, num_bytes: int, *, ephemeral: bool) -> None:
        """From whoever is admitted. Raises ``RemoteError`` if it does not come."""
        core = self.blob_core
        assert core is not None
        core.ended.clear()
        self.blobs.begin(blob, num_bytes, ephemeral=ephemeral)
        sources = core.admitted[:1]
        self.feed(lambda now: core.run(core.transfers.fetch(blob, num_bytes, sources, now), now))
        while blob not in core.ended:
            core.changed.clear()
            await core.changed.wait()
        if core.ended[blob]:
            raise RemoteError("fetch", core.ended[blob])
