"""Who may finish the CURVE handshake: every key that is not banned.

Invariant: a ZAP request is always answered (libzmq waits for it), and the answer's user id is the client's public key,
which every frame of that connection then carries. Start it before any socket of the context is bound.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

import zmq
import zmq.asyncio
from zmq.utils import z85

DOMAIN = b"p2ptrain"
MAX_BANNED = 512


class Gate:
    """The context's ZAP handler, with its list of banned keys."""

    def __init__(self, context: zmq.asyncio.Context) -> None:
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind("inproc://zeromq.zap.01")
        self._banned: OrderedDict[bytes, float] = OrderedDict()
        self._task = asyncio.create_task(self._serve(), name="zap")

    def ban(self, key: bytes, seconds: float) -> None:
        self._banned[key] = time.monotonic() + seconds
        if len(self._banned) > MAX_BANNED:
            self._banned.popitem(last=False)

    def is_banned(self, key: bytes) -> bool:
        return time.monotonic() < self._banned.get(key, 0.0)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._socket.close(linger=0)

    async def _serve(self) -> None:
        while True:
            await self._socket.send_multipart(self._answer(await self._socket.recv_multipart()))

    def _answer(self, request: list[bytes]) -> list[bytes]:
        """RFC 27: version, request id, domain, address, identity, mechanism, credentials (a 32-byte key)."""
        version, request_id = (request[0], request[1]) if len(request) > 1 else (b"1.0", b"")
        refuse = [version, request_id, b"400", b"not allowed", b"", b""]
        # After a 400 libzmq never dials again, after a 300 ("for now") it does: a ban ends.
        for_now = [version, request_id, b"300", b"banned", b"", b""]
        if len(request) != 7 or request[2] != DOMAIN or request[5] != b"CURVE" or len(request[6]) != 32:
            return refuse
        key = z85.encode(request[6])
        if self.is_banned(key):
            return for_now
        return [version, request_id, b"200", b"OK", key, b""]
