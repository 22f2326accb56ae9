"""Why what must arrive is sent again above TCP: libzmq makes a new connection by itself, and says not what it lost."""

from __future__ import annotations

import asyncio
import contextlib

from test_transport import Peer, run, running, until

from p2ptrain.wire.addresses import make_address

NUM, SIZE = 64, 1 << 16


class Relay:
    """A TCP port before another one. ``cut`` breaks its connections with whatever they hold."""

    def __init__(self, port: int) -> None:
        self.num_connections = 0
        self.num_bytes = 0
        self.holds = asyncio.Event()
        self.holds.set()
        self._to = port
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._joined, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers += [writer, far_writer]
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pass(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while data := await source.read(1 << 16):
                await self.holds.wait()
                self.num_bytes += len(data)
                sink.write(data)
                await sink.drain()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        for task in list(self._tasks):
            task.cancel()

    async def close(self) -> None:
        self.cut()
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def test_a_connection_that_breaks_loses_messages_in_the_middle_and_says_nothing() -> None:
    """All are handed to a socket that goes on as if nothing had been: only an acknowledgement can tell."""

    async def test() -> None:
        a, b = Peer(), Peer()
        async with running(a, b):
            relay = Relay(b.transport.bulk_port)
            port = await relay.start()
            try:
                a.transport.dial(b.address)
                a.transport.dial(b.address, make_address("127.0.0.1", port))
                assert a.transport.send(b.address, "bulk", [b"first"])
                await until(lambda: len(b.received) == 1)
                relay.holds.clear()
                for number in range(NUM):
                    assert a.transport.send(b.address, "bulk", [b"%d" % number, bytes(SIZE)])
                await until(lambda: a.transport.bytes_sent > 8 * SIZE)
                assert len(b.received) == 1, "they are on their way"
                relay.cut()
                relay.holds.set()
                await until(lambda: relay.num_connections == 2)
                assert a.transport.send(b.address, "bulk", [b"last"])
                await until(lambda: any(frames == [b"last"] for _, _, frames in b.received))
            finally:
                await relay.close()
            came = [int(frames[0]) for _, _, frames in b.received if len(frames) == 2]
            assert len(came) < NUM and came == sorted(came)
            assert {key for _, key, _ in b.received} == {a.identity.public}, "the same peer, in the same session"
            assert a.transport.num_dropped == 0

    run(test)
