"""What strangers and members do to a listening socket that libzmq itself does not bound, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from pathlib import Path

import psutil
import pytest
from test_transport import GROUP, Peer, run, running, until

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from attackers.raw import CurveClient, greeting, push, strangers

from p2ptrain.net.guard import budget, doorkeeper
from p2ptrain.net.keys import new_identity
from p2ptrain.net.pieces import MAX_PIECE_BYTES, in_pieces
from p2ptrain.net.transport import Transport
from p2ptrain.wire.codec import MAX_DATA_BYTES

MIB = 1 << 20
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what came over a connection")


def rss() -> int:
    return int(psutil.Process().memory_info().rss)


def num_sockets(port: int) -> int:
    """Accepted by this process."""
    found = psutil.Process().net_connections("tcp")
    return sum(each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED for each in found)


def test_idle_connections_are_few_and_members_still_come_in() -> None:
    async def test() -> None:
        ann, bob = Peer(), Peer()
        async with running(ann, bob):
            with strangers(ann.transport.port, 400):
                await until(lambda: ann.transport.num_hung_up >= 400 - doorkeeper.MAX_PENDING)
                await until(lambda: num_sockets(ann.transport.port) <= doorkeeper.MAX_PENDING + 1)
                bob.dial(ann)
                bob.transport.send(ann.address, "control", [b"hello"])
                await until(lambda: bool(ann.received))

    run(test)


def test_those_that_hang_up_at_once_do_not_end_the_watch() -> None:
    """Before we look who it is: there is no other end any more then, or the descriptor is closed, or another's."""

    async def test() -> None:
        ann = Peer()
        async with running(ann):
            watch = ann.transport._doorkeepers["control"]
            with strangers(ann.transport.port, 60) as made:
                for each in made:
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            before = psutil.Process().num_fds()
            with open(os.devnull, "rb") as file, socket.socket() as unconnected:
                for fd in (file.fileno(), unconnected.fileno(), 10**6):
                    watch._accepted(fd)
            assert psutil.Process().num_fds() <= before
            with strangers(ann.transport.port, 200):
                await until(lambda: watch.num_hung_up >= 200 - doorkeeper.MAX_PENDING)

    run(test)


def test_one_other_device_has_few_connections_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an outsider, who is on none of this device's own addresses."""
    monkeypatch.setattr(doorkeeper, "_is_own", lambda host: False)

    async def test() -> None:
        ann = Peer()
        async with running(ann):
            with strangers(ann.transport.bulk_port, 100):
                await until(lambda: ann.transport.num_hung_up >= 100 - doorkeeper.MAX_PENDING_OF_ONE)
                await until(lambda: num_sockets(ann.transport.bulk_port) <= doorkeeper.MAX_PENDING_OF_ONE)

    run(test)


def test_connections_are_so_many_in_all_and_who_talks_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whom, is not known before they talk: a member may open as many as it likes."""
    monkeypatch.setattr(doorkeeper, "MAX_CONNECTIONS", 40)

    async def test() -> None:
        ann, bob = Peer(), Peer()
        async with running(ann, bob):
            bob.dial(ann)
            bob.transport.send(ann.address, "control", [b"hello"])
            await until(lambda: len(ann.received) == 1)
            with strangers(ann.transport.port, 100):
                await until(lambda: ann.transport.num_hung_up >= 61)
                bob.transport.send(ann.address, "control", [b"hello again"])
                await until(lambda: len(ann.received) == 2)
                assert len(ann.transport._doorkeepers["control"]._connections) <= 40

    run(test)


def test_handshakes_that_never_end_cost_little_memory() -> None:
    """A command of 16 MiB, all but its end, on each of many connections."""

    async def test() -> None:
        ann = Peer()
        async with running(ann):
            before = rss()
            part = greeting(b"CURVE") + b"\x06" + MAX_DATA_BYTES.to_bytes(8) + bytes(4 * MIB)
            with strangers(ann.transport.bulk_port, 60) as made:
                for each in made:
                    await asyncio.to_thread(push, each, part)
                await asyncio.sleep(0.3)
                assert rss() - before < 100 * MIB

    run(test)


@linux_only
def test_a_message_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a member, in parts of a size that is fine: libzmq keeps them all until the last one comes."""
    monkeypatch.setattr(doorkeeper, "MAX_UNREAD_BYTES", 24 * MIB)

    async def test() -> None:
        ann, bob = Peer(), Peer()
        async with running(ann, bob):
            before = rss()
            key = GROUP.server_public
            member = await asyncio.to_thread(CurveClient, ann.transport.bulk_port, key, new_identity())

            def send_parts() -> int:
                sent = 0
                with contextlib.suppress(OSError), contextlib.closing(member):
                    while sent < 2000:
                        member.socket.sendall(member.message(bytes(MIB), more=True))
                        sent += 1
                return sent

            assert await asyncio.to_thread(send_parts) < 2000
            assert ann.transport.num_hung_up == 1
            assert rss() - before < 1000 * MIB
            bob.dial(ann)
            bob.transport.send(ann.address, "bulk", [b"header", b"still here"])
            await until(lambda: bool(ann.received))

    run(test)


@linux_only
def test_what_was_read_is_counted_to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or who talks for days would be cut off for it."""
    monkeypatch.setattr(doorkeeper, "MAX_UNREAD_BYTES", 8 * MIB)

    async def test() -> None:
        ann, bob = Peer(), Peer()
        async with running(ann, bob):
            bob.dial(ann)
            sizes = [0, 1, 200, 221, 222, 223, 255, 256, 5000, 60_000]
            for number in range(600):
                lane = "control" if number % 2 else "bulk"
                behind = bytes(sizes[number % len(sizes)] if lane == "control" else number * 500)
                bob.transport.send(ann.address, lane, [bytes(number % 300), behind])
                if number % 20 == 19:
                    await until(lambda number=number: len(ann.received) == number + 1)  # type: ignore[misc]
            doors = ann.transport._doorkeepers.values()
            connections = [each for door in doors for each in door._connections.values()]
            assert len(connections) == 2
            for door in doors:
                for each in door._connections.values():
                    assert 0 <= door._unread_bytes(each) < 2000, "greeting and handshake, and nothing of what was read"

    run(test)


@pytest.mark.parametrize("size", [0, 1, MAX_PIECE_BYTES, MAX_PIECE_BYTES + 1, 5 * MAX_PIECE_BYTES - 3, MAX_DATA_BYTES])
def test_what_is_larger_than_a_frame_may_be_comes_whole(size: int) -> None:
    async def test() -> None:
        ann, bob = Peer(), Peer()
        data = os.urandom(size)
        async with running(ann, bob):
            bob.dial(ann)
            assert max(map(len, in_pieces([b"header", data]))) <= max(MAX_PIECE_BYTES, 6)
            bob.transport.send(ann.address, "bulk", [b"header", data])
            await until(lambda: bool(ann.received))
            assert ann.received[0][2] == [b"header", data]

    run(test)


def test_more_pieces_than_a_message_has_are_refused() -> None:
    async def test() -> None:
        ann, bob = Peer(), Peer()
        async with running(ann, bob):
            bob.dial(ann)
            bob.transport.send(ann.address, "bulk", [b"header", *[b"x"] * 40])
            bob.transport.send(ann.address, "bulk", [b"header", b"fine"])
            await until(lambda: bool(ann.received))
            assert ann.received[0][2] == [b"header", b"fine"] and ann.transport.num_refused == 1

    run(test)


def test_who_reads_nothing_holds_up_itself_and_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MAX_QUEUED_BYTES", 20 * MIB)
    monkeypatch.setattr(budget, "MAX_SERVED_BYTES_IN_ALL", 8 * MIB)

    async def test() -> None:
        ann, reader = Peer(), Peer()
        async with running(ann, reader):
            ann.dial(reader)
            deaf = [f"tcp://127.0.0.1:{port}" for port in range(1, 5)]  # nobody is there: nothing leaves the queue
            for address in deaf:
                ann.transport.dial(address, address)
                assert ann.transport.has_room(address)
                for _ in range(16):
                    ann.transport.send(address, "bulk", [b"header", bytes(MIB)])
                assert not ann.transport.has_room(address)
            links: Transport = ann.transport
            assert sum(links.queued_bytes(address) for address in deaf) <= 20 * MIB
            assert links.has_room(reader.address)
            links.send(reader.address, "bulk", [b"header", bytes(MIB)])
            await until(lambda: bool(reader.received))

    run(test)
