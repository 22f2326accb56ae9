"""Frames over real sockets on loopback: who gets in, and what garbage and slow readers do (nothing)."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psutil
import pytest
import zmq
import zmq.asyncio

from p2ptrain.errors import LocalError, UserError
from p2ptrain.ids import PeerId, blob_id
from p2ptrain.net import transport
from p2ptrain.net.keys import OPEN_GROUP, Group, Identity
from p2ptrain.net.link import TokenBucket
from p2ptrain.net.transport import LANES, Transport
from p2ptrain.net.ways.knock import knock
from p2ptrain.net.zap import Gate
from p2ptrain.protocol.session.effects import Dial, Effect, HangUp, PeerAdmitted, SendFrames
from p2ptrain.protocol.session.sessions import Sessions
from p2ptrain.wire.addresses import make_address
from p2ptrain.wire.messages import Chunk, Lane, Message, Ping

GROUP = Group(b"0123456789abcdef")
WAIT_S = 60.0
"""Generous: a loaded machine is slow."""


class Peer:
    """A transport that keeps what it receives."""

    def __init__(self, group: Group = GROUP, host: str = "127.0.0.1", **options: object) -> None:
        self.identity = Identity(*zmq.curve_keypair())
        self.host = host
        self.received: list[tuple[Lane, bytes, list[bytes]]] = []
        self.slow_s = 0.0
        self.transport = Transport(self.identity, group, self._keep, [host], **options)  # type: ignore[arg-type]

    async def _keep(self, lane: Lane, key: bytes, frames: list[bytes]) -> None:
        if self.slow_s:
            await asyncio.sleep(self.slow_s)
        self.received.append((lane, key, frames))

    @property
    def address(self) -> str:
        return make_address(self.host, self.transport.port)

    @property
    def bulk_address(self) -> str:
        return make_address(self.host, self.transport.bulk_port)

    def dial(self, other: Peer) -> None:
        self.transport.dial(other.address)
        self.transport.dial(other.address, other.bulk_address)


@asynccontextmanager
async def running(*peers: Peer) -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    for peer in peers:
        await peer.transport.start()
    try:
        yield
    finally:
        for peer in peers:
            await asyncio.wait_for(peer.transport.close(), WAIT_S)
        assert asyncio.all_tasks() <= before, "nothing is left"


async def until(done: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "timed out"
        await asyncio.sleep(0.01)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 3 * WAIT_S))  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_frames_arrive_with_their_senders_key(host: str) -> None:
    async def test() -> None:
        a, b = Peer(host=host), Peer(host=host)
        async with running(a, b):
            a.dial(b)
            b.dial(a)
            for lane in LANES:
                assert a.transport.send(b.address, lane, [b"header", bytes(10_000)])
                assert b.transport.send(a.address, lane, [b"back"])
            await until(lambda: len(a.received) == len(b.received) == 2)
            assert {(lane, key) for lane, key, _ in b.received} == {(lane, a.identity.public) for lane in LANES}
            assert b.received[0][2] == [b"header", bytes(10_000)]
            assert all(key == b.identity.public and frames == [b"back"] for _, key, frames in a.received)
            assert a.transport.bytes_sent == b.transport.bytes_received == 2 * 10_006

    try:
        run(test)
    except UserError:
        pytest.skip(f"no {host} here")


def test_order_is_kept_on_a_lane() -> None:
    async def test() -> None:
        a, b = Peer(), Peer()
        async with running(a, b):
            a.dial(b)
            for number in range(3000):
                a.transport.send(b.address, "control", [b"%d" % number])
            await until(lambda: len(b.received) == 3000)
            assert [int(frames[0]) for _, _, frames in b.received] == list(range(3000))

    run(test)


def test_a_neighbour_that_comes_later_and_again() -> None:
    async def test() -> None:
        a, b = Peer(), Peer()
        async with running(a):
            async with running_alone(b):
                port = b.transport.port
                a.dial(b)
                a.transport.send(b.address, "control", [b"first"])
                await until(lambda: len(b.received) == 1)
            again = Peer(port=port)
            async with running_alone(again):
                await until(lambda: a.transport.send(again.address, "control", [b"x"]) and bool(again.received))

    run(test)


@asynccontextmanager
async def running_alone(peer: Peer) -> AsyncIterator[None]:
    await peer.transport.start()
    try:
        yield
    finally:
        await peer.transport.close()


# --- who gets in ------------------------------------------------------------------------------------------------------


def test_a_stranger_without_the_code_gets_nothing_through() -> None:
    async def test() -> None:
        a, stranger, lab = Peer(), Peer(Group(b"another code....")), Peer(OPEN_GROUP)
        async with running(a, stranger, lab):
            for each in (stranger, lab):
                each.dial(a)
                each.transport.send(a.address, "control", [b"let me in"])
            await asyncio.sleep(1)
            assert not a.received and a.transport.bytes_received == 0

    run(test)


def test_a_banned_key_is_cut_off_and_let_in_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "HANDSHAKE_MS", 1_000)  # after which the banned one tries again
    asked: list[bool] = []
    is_banned = Gate.is_banned
    monkeypatch.setattr(Gate, "is_banned", lambda self, key: asked.append(is_banned(self, key)) or asked[-1])

    async def test() -> None:
        a, b = Peer(), Peer()
        async with running(a, b):
            b.dial(a)
            b.transport.send(a.address, "control", [b"1"])
            await until(lambda: len(a.received) == 1)
            a.transport.ban(b.identity.public, 3600.0)
            b.transport.send(a.address, "control", [b"2"])
            await until(lambda: True in asked)
            asked.clear()
            b.transport.hang_up(a.address)
            b.dial(a)
            b.transport.send(a.address, "control", [b"3"])
            await until(lambda: asked.count(True) >= 2)
            assert [frames for _, _, frames in a.received] == [[b"1"]]
            a.transport.ban(b.identity.public, 0.0)  # it is over
            await until(lambda: len(a.received) == 2)
            assert [frames for _, _, frames in a.received] == [[b"1"], [b"3"]], "libzmq dials again by itself"

    run(test)


def test_who_has_closed_dials_nobody() -> None:
    """What was under way when it closed may still come: it makes no socket, and is no error."""

    async def test() -> None:
        a, b = Peer(), Peer()
        async with running(a, b):
            closing = asyncio.ensure_future(a.transport.close(0.0))
            await asyncio.sleep(0)
            a.dial(b)
            await closing
            a.dial(b)
            assert not a.transport.send(b.address, "control", [b"x"])

    run(test)


def test_a_plain_transport_knows_nobody() -> None:
    async def test() -> None:
        a, b = Peer(plain=True), Peer(plain=True)
        async with running(a, b):
            a.dial(b)
            a.transport.send(b.address, "bulk", [b"x"])
            await until(lambda: bool(b.received))
            assert b.received[0][1] == b"0" * 40

    run(test)


# --- ports ------------------------------------------------------------------------------------------------------------


def test_a_busy_port_is_named() -> None:
    async def test() -> None:
        a = Peer()
        async with running(a):
            b = Peer(port=a.transport.port)
            with pytest.raises(UserError, match=rf"port {a.transport.port} .*in use.*--port"):
                await b.transport.start()
            await b.transport.close()

    run(test)


def taken_after_a_free_one() -> socket.socket:
    """A listening socket whose port's neighbour below nobody has."""
    while True:
        taken = socket.socket()
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with socket.socket() as below:
            try:
                below.bind(("127.0.0.1", taken.getsockname()[1] - 1))
                return taken
            except OSError:
                taken.close()


def test_a_busy_bulk_port_is_named() -> None:
    async def test() -> None:
        with taken_after_a_free_one() as taken:
            port = taken.getsockname()[1]
            with pytest.raises(UserError, match=rf"port {port} \(for bulk\)"):
                await Peer(port=port - 1).transport.start()

    run(test)


def test_a_host_that_is_not_ours() -> None:
    async def test() -> None:
        with pytest.raises(UserError, match="--interface"):
            await Peer(host="192.0.2.1").transport.start()

    run(test)


def test_names_are_not_dialled() -> None:
    async def test() -> None:
        a = Peer()
        async with running(a):
            with pytest.raises(LocalError):
                a.transport.dial("tcp://localhost:1")

    run(test)


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_a_full_queue_drops_the_oldest() -> None:
    async def test() -> None:
        a, b = Peer(max_queued_bytes={"control": 1000, "bulk": 1000}), Peer()
        async with running(a, b):
            a.transport.dial(b.address)  # nothing is sent before the loop runs
            sent = [a.transport.send(b.address, "control", [b"%03d" % number + bytes(97)]) for number in range(15)]
            assert sent == [True] * 10 + [False] * 5 and a.transport.num_dropped == 5
            assert not a.transport.send(b.address, "control", [bytes(1001)])
            assert not a.transport.send(b.address, "bulk", [b"never dialled"])
            await until(lambda: len(b.received) == 10)
            assert [int(frames[0][:3]) for _, _, frames in b.received] == list(range(5, 15))

    run(test)


def test_a_dead_address_costs_no_more_than_its_queue() -> None:
    async def test() -> None:
        a = Peer(max_queued_bytes={"control": 10_000, "bulk": 10_000})
        async with running(a):
            with socket.socket() as nobody:
                nobody.bind(("127.0.0.1", 0))
                address = make_address("127.0.0.1", nobody.getsockname()[1])
                a.transport.dial(address)
                for _ in range(1000):
                    a.transport.send(address, "control", [bytes(100)])
                    await asyncio.sleep(0)
                assert a.transport.queued_bytes(address) <= 10_000
                assert a.transport.bytes_sent == 0

    run(test)


def rss() -> int:
    return psutil.Process().memory_info().rss


def test_bulk_to_a_slow_reader_stays_bounded_and_control_passes() -> None:
    async def test() -> None:
        a, b = Peer(), Peer()
        async with running(a, b):
            a.dial(b)
            gate = asyncio.Event()

            async def slow(lane: Lane, key: bytes, frames: list[bytes]) -> None:
                b.received.append((lane, key, []))
                if lane == "bulk":
                    await gate.wait()

            b.transport._on_frames = slow
            a.transport.send(b.address, "bulk", [b"h", bytes(1 << 20)])
            await until(lambda: bool(b.received))
            before = rss()
            block = bytes(1 << 20)
            for _ in range(128):
                a.transport.send(b.address, "bulk", [b"h", bytes(block)])
                await asyncio.sleep(0)
            await asyncio.sleep(0.3)
            a.transport.send(b.address, "control", [b"passes"])
            await until(lambda: len(b.received) == 2)
            assert b.received[-1][0] == "control"
            assert a.transport.num_dropped > 50
            assert a.transport.queued_bytes(b.address) <= 32 << 20
            assert rss() - before < 64 << 20
            gate.set()
            await until(lambda: a.transport.queued_bytes(b.address) == 0)

    run(test)


DEAF = """
import asyncio, sys, zmq
from p2ptrain.net.keys import Identity, read_code
from p2ptrain.net.transport import Transport

async def never(lane, key, frames):
    await asyncio.Event().wait()

async def main():
    transport = Transport(Identity(*zmq.curve_keypair()), read_code(sys.argv[1]), never, ["127.0.0.1"])
    await transport.start()
    print(transport.port, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_who_hangs_up_on_one_that_does_not_read_does_it_no_harm() -> None:
    """With libzmq's heartbeats the one was aborted: https://github.com/zeromq/libzmq/issues/4364."""

    async def test() -> None:
        with subprocess.Popen(
            [sys.executable, "-c", DEAF, str(GROUP)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as deaf:
            try:
                assert deaf.stdout is not None and deaf.stderr is not None
                address = make_address("127.0.0.1", int(deaf.stdout.readline()))
                sender = Peer()
                async with running(sender):
                    sender.transport.dial(address)
                    while sender.transport.num_dropped == 0:  # until libzmq's and the kernel's queues are full, too
                        sender.transport.send(address, "control", [bytes(20_000)])
                        await asyncio.sleep(0.002)
                await asyncio.sleep(12)  # a first heartbeat would be answered with a reset, a second abort
                assert deaf.poll() is None, deaf.stderr.read()
            finally:
                deaf.kill()

    run(test)


def test_64_megabytes_arrive_when_the_reader_keeps_up_with_credits() -> None:
    async def test() -> None:
        a, b = Peer(), Peer()
        async with running(a, b):
            a.dial(b)
            block = os.urandom(1 << 20)
            for number in range(64):
                await until(lambda number=number: len(b.received) > number - 16)  # type: ignore[misc]
                assert a.transport.send(b.address, "bulk", [b"%d" % number, block])
            await until(lambda: len(b.received) == 64)
            assert all(frames[1] == block for _, _, frames in b.received)

    run(test)


def test_the_rate_limit() -> None:
    async def test() -> None:
        a, b = Peer(bulk_bytes_per_s=1_000_000), Peer()
        async with running(a, b):
            a.dial(b)
            a.transport.send(b.address, "bulk", [bytes(100)])
            await until(lambda: len(b.received) == 1)
            started = time.monotonic()
            for _ in range(10):
                a.transport.send(b.address, "bulk", [bytes(50_000)])
            await until(lambda: len(b.received) == 11)
            assert time.monotonic() - started > 0.3

    run(test)


def test_token_bucket() -> None:
    bucket = TokenBucket(1000)
    assert bucket.delay_s(100, now=10.0) == 0.0
    assert bucket.delay_s(500, now=10.0) == 0.0
    assert bucket.delay_s(1, now=10.0) == pytest.approx(0.5)
    assert TokenBucket(None).delay_s(1 << 40, now=0.0) == 0.0


# --- garbage ----------------------------------------------------------------------------------------------------------


def dealer(context: zmq.asyncio.Context, group: Group | None) -> zmq.asyncio.Socket:
    made = context.socket(zmq.DEALER)
    made.linger = 0
    if group:
        made.curve_publickey, made.curve_secretkey = zmq.curve_keypair()
        made.curve_serverkey = group.server_public
    return made


def test_garbage_from_a_member_and_from_strangers() -> None:
    async def test() -> None:
        a, b = Peer(), Peer()
        async with running(a, b):
            context = zmq.asyncio.Context()
            try:
                before = rss()
                for address in (a.address, a.bulk_address):
                    member, stranger = dealer(context, GROUP), dealer(context, None)
                    for each in (member, stranger):
                        each.sndhwm = 10
                        each.connect(address)
                    wanted, deadline = a.transport.num_refused + 100, time.monotonic() + WAIT_S
                    while a.transport.num_refused < wanted:
                        for each in (member, stranger):
                            for frames in ([os.urandom(300)], [b""], [b"x"] * 50, [b"", b""]):
                                with_room(each, frames)
                        assert time.monotonic() < deadline, "the garbage is neither refused nor blocked"
                        await asyncio.sleep(0)
                    with_room(member, [bytes(17 << 20)])  # too large: libzmq cuts the connection
                    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as raw:
                        raw.sendall(os.urandom(100_000)[: 64 * 1024])
                    await asyncio.sleep(0.1)
                assert all(len(frames) <= 2 for _, _, frames in a.received)
                a.received.clear()
                assert rss() - before < 40 << 20
                b.dial(a)
                b.transport.send(a.address, "control", [b"still here"])
                await until(lambda: any(frames == [b"still here"] for _, _, frames in a.received))
            finally:
                context.destroy(linger=0)

    run(test)


def with_room(sender: zmq.asyncio.Socket, frames: list[bytes]) -> None:
    future = sender.send_multipart(frames, flags=zmq.DONTWAIT)
    if future.done():
        future.exception()


# --- with sessions ----------------------------------------------------------------------------------------------------


class Met(Peer):
    """A transport whose frames go through Sessions, as in a node."""

    def __init__(self, group: Group = GROUP) -> None:
        super().__init__(group)
        self.messages: list[Message] = []
        self.peers: set[PeerId] = set()

    async def begin(self) -> None:
        await self.transport.start()
        self.sessions = Sessions(
            self.identity.public, GROUP.proof_key, [self.address], self.transport.bulk_port, random.SystemRandom()
        )

    async def _keep(self, lane: Lane, key: bytes, frames: list[bytes]) -> None:
        received, effects = self.sessions.frames_received(lane, key, frames, time.monotonic())
        self.do(effects)
        if received:
            self.messages.append(received.event.message)

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Dial):
                self.transport.dial(effect.address, effect.bulk_address)
            elif isinstance(effect, SendFrames):
                self.transport.send(effect.address, effect.lane, effect.frames)
            elif isinstance(effect, HangUp):
                self.transport.hang_up(effect.address)
            elif isinstance(effect, PeerAdmitted):
                self.peers.add(effect.peer)

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(min(0.05, max(0.0, self.sessions.next_deadline() - time.monotonic())))
            self.do(self.sessions.tick(time.monotonic()))


def test_peers_meet_over_sockets() -> None:
    async def test() -> None:
        peers = [Met() for _ in range(3)]
        for peer in peers:
            await peer.begin()
        ticking = [asyncio.create_task(peer.tick()) for peer in peers]
        for peer in peers[1:]:
            peer.do(peer.sessions.propose(peers[0].address, time.monotonic(), source="given"))
        peers[1].do(peers[1].sessions.propose(peers[2].address, time.monotonic()))
        peers[2].do(peers[2].sessions.propose(peers[1].address, time.monotonic()))
        await until(lambda: all(len(peer.peers) == 2 for peer in peers))
        chunk = Chunk(blob_id(b"x"), 0, os.urandom(1 << 20))
        for peer in peers:
            for to in peer.peers:
                for message in (Ping(1, ()), chunk):
                    peer.do(peer.sessions.send(to, message, "job", 0, time.monotonic()))
        await until(lambda: all(len(peer.messages) == 4 for peer in peers))
        assert all(peer.messages.count(chunk) == 2 and not peer.sessions.refused for peer in peers)
        for task in ticking:
            task.cancel()
        await asyncio.gather(*ticking, return_exceptions=True)
        for peer in peers:
            await peer.transport.close()

    run(test)


def test_whose_connection_closes_is_told_and_who_listens_is_found_out() -> None:
    async def test() -> None:
        gone: list[bytes] = []
        a, b = Peer(on_gone=gone.append), Peer()
        async with running(a, b):
            b.dial(a)
            assert b.transport.send(a.address, "control", [b"hello"])
            await until(lambda: bool(a.received))
            assert not gone and await knock(b.address) == "open"
            await b.transport.close()
            await until(lambda: gone == [b.identity.public])
            assert await knock(b.address) == "refused"
            assert await knock("tcp://[::1%nowhere]:9") == await knock("no address") == "unknown"

    run(test)
