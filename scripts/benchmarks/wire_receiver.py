"""The receiving process of ``wire``: takes the bytes in the way that it is told, and says when it has them.

python -m benchmarks.wire_receiver        (started by ``wire``; reads its setting from stdin, writes JSON lines)
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.blob_node import BlobNode
from p2ptrain.experiment.processes import LOOPBACK
from p2ptrain.ids import BlobId
from p2ptrain.net.keys import OPEN_GROUP, new_identity
from p2ptrain.net.transport import Transport
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.wire import codec
from p2ptrain.wire.messages import Chunk, Lane

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def _receive_tcp(setting: dict[str, Any]) -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        _say(port=server.getsockname()[1])
        connection, _ = server.accept()
        with connection:
            buffer = memoryview(bytearray(setting["num_bytes"]))
            cpu = time.process_time()
            for _ in range(setting["count"]):
                got = 0
                while got < len(buffer):
                    got += connection.recv_into(buffer[got : got + CHUNK_BYTES])
                connection.sendall(b"!")
            _say(at=time.monotonic(), cpu_s=time.process_time() - cpu)


async def _receive_frames(setting: dict[str, Any]) -> None:
    done = asyncio.Event()
    wanted, got, cpu = setting["num_bytes"] * setting["count"], 0, 0.0

    async def on_frames(lane: Lane, key: bytes, frames: list[bytes]) -> None:
        nonlocal got, cpu
        if len(frames) == 1:
            cpu = time.process_time()
            _say(connected=True)
            return
        _, message = codec.decode(frames, lane)
        assert isinstance(message, Chunk)
        got += len(message.data)
        if got >= wanted:
            _say(at=time.monotonic(), cpu_s=time.process_time() - cpu)
            done.set()

    plain = setting["how"] == "frames-plain"
    transport = Transport(new_identity(), OPEN_GROUP, on_frames, (LOOPBACK,), plain=plain)
    await transport.start()
    try:
        _say(port=transport.port, bulk_port=transport.bulk_port)
        await done.wait()
    finally:
        await transport.close()


async def _receive_fetches(setting: dict[str, Any]) -> None:
    network = NetworkConfig((LOOPBACK,), peers=(f"{LOOPBACK}:{setting['port']}",), discover=False)
    node = BlobNode(OPEN_GROUP, network, Path(setting["folder"]))
    await node.start()
    try:
        core = node.blob_core
        assert core is not None
        while not core.admitted:
            core.changed.clear()
            await core.changed.wait()
        seconds = cpu_s = 0.0
        for i in range(setting["count"] + 1):
            cpu, start = time.process_time(), time.monotonic()
            await node.fetch(BlobId(setting["blob"]), setting["num_bytes"], ephemeral=setting["how"] == "fetch-memory")
            if i == 0:
                _say(warm=True)  # the rate of the source is known now, and its chunks have grown
            else:
                seconds, cpu_s = seconds + time.monotonic() - start, cpu_s + time.process_time() - cpu
        _say(s=seconds, cpu_s=cpu_s)
    finally:
        await node.close()


def main() -> None:
    setting = json.loads(sys.stdin.readline())
    if setting["how"] == "tcp":
        _receive_tcp(setting)
    else:
        receive = _receive_fetches if setting["how"].startswith("fetch") else _receive_frames
        asyncio.run(asyncio.wait_for(receive(setting), TIMEOUT_S))


if __name__ == "__main__":
    main()
