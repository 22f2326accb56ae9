"""Who only looks needs no disk; who fetches says what is missing."""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any

import pytest

from p2ptrain.errors import NobodyError, UserError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.net.keys import new_group
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.observer_node import ObserverNode
from p2ptrain.wire.messages import SnapshotRef

REF = SnapshotRef(
    part=0, trainer=PeerId("a" * 16), epoch=1, round=1, step=1, samples=1, blob=BlobId("a" * 64), num_bytes=8
)


def test_on_disks_without_any_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp', '/']")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", none)

    async def look() -> None:
        node = ObserverNode(new_group(), NetworkConfig(("127.0.0.1",), discover=False))
        await node.start()
        try:
            with pytest.raises(NobodyError):
                await node.look_around(0.0)
            with pytest.raises(UserError, match=r"no folder for what is fetched .No usable temporary.* TMPDIR"):
                await node.fetch(REF, 1.0)
        finally:
            await node.close()

    asyncio.run(look())
