"""Whoever is in the same network and has no join code: connections, handshakes, announcements.

``ACTS`` are what one does to the ports of one peer. Each sends a bounded amount and returns how many times it did what
it does. Some leave connections open, which ``Held`` keeps few enough for this process.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import zmq
from zeroconf import DNSOutgoing
from zeroconf.asyncio import AsyncServiceInfo

from attackers import raw
from p2ptrain.net.discovery import SERVICE
from p2ptrain.net.keys import new_identity
from p2ptrain.wire.codec import MAX_DATA_BYTES
from p2ptrain.wire.messages import WIRE_VERSION

LOOPBACK = "127.0.0.1"
MDNS = ("224.0.0.251", 5353)
MAX_HELD = 600
_RESPONSE = 0x8400
"""Flags of an authoritative answer in DNS."""


@dataclass(slots=True)
class Held:
    """Connections that stay open and say nothing more; the oldest is closed where they are too many."""

    open: deque[socket.socket] = field(default_factory=deque)

    def keep(self, connection: socket.socket) -> None:
        self.open.append(connection)
        while len(self.open) > MAX_HELD:
            self.open.popleft().close()

    def close(self) -> None:
        while self.open:
            self.open.popleft().close()


Act = Callable[[Sequence[int], Held, random.Random], int]


def connect(port: int) -> socket.socket:
    return socket.create_connection((LOOPBACK, port), timeout=raw.TIMEOUT_S)


def stay_silent(ports: Sequence[int], held: Held, rng: random.Random) -> int:
    for number in range(200):
        held.keep(connect(ports[number % len(ports)]))
    return 200


def send_garbage(ports: Sequence[int], held: Held, rng: random.Random) -> int:
    for number in range(60):
        connection = connect(ports[number % len(ports)])
        mechanism = rng.choice([b"NULL", b"PLAIN", b"CURVE", b"GSSAPI", rng.randbytes(20)])
        raw.push(connection, raw.greeting(mechanism) + raw.garbage(rng) if number % 3 == 1 else raw.garbage(rng))
        if number % 2:
            connection.close()
        else:
            held.keep(connection)
    return 60


def never_end_handshakes(ports: Sequence[int], held: Held, rng: random.Random) -> int:
    """A command of 16 MiB, of which the most never comes."""
    part = raw.greeting(b"CURVE") + raw.LONG_COMMAND + MAX_DATA_BYTES.to_bytes(8) + bytes(2 << 20)
    for number in range(20):
        connection = connect(ports[number % len(ports)])
        raw.push(connection, part)
        held.keep(connection)
    return 20


def begin_handshakes(ports: Sequence[int], held: Held, rng: random.Random) -> int:
    """As a client would that knows another server: the node has to open a box for each."""
    hello = raw.greeting(b"CURVE") + raw.command(b"\x05HELLO\x01\x00" + bytes(72) + rng.randbytes(120))
    for number in range(100):
        connection = connect(ports[number % len(ports)])
        raw.push(connection, hello)
        connection.close()
    return 100


def knock_with_zmq(ports: Sequence[int], held: Held, rng: random.Random) -> int:
    """As any ZeroMQ client would: without security, with a password, with the wrong server key."""
    context = zmq.Context()
    try:
        for port in ports:
            for mechanism in ("NULL", "PLAIN", "CURVE"):
                dealer = context.socket(zmq.DEALER)
                dealer.linger = 0
                if mechanism == "PLAIN":
                    dealer.plain_username, dealer.plain_password = b"admin", b"admin"
                if mechanism == "CURVE":
                    dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
                    dealer.curve_serverkey = zmq.curve_keypair()[0]
                dealer.connect(f"tcp://{LOOPBACK}:{port}")
                for _ in range(200):
                    with contextlib.suppress(zmq.Again):
                        dealer.send_multipart([rng.randbytes(rng.randrange(2000))], flags=zmq.DONTWAIT)
        time.sleep(1.5)
    finally:
        context.destroy(linger=0)
    return 3 * len(ports)


def greet_as_a_member_would(ports: Sequence[int], held: Held, rng: random.Random) -> int:
    """The whole handshake by the wire's description, with a guess of the group's key: it never gets through."""
    for port in ports:
        with contextlib.suppress(OSError):
            raw.CurveClient(port, new_identity().public, new_identity()).close()
            raise AssertionError("a stranger got through the handshake")
    return len(ports)


ACTS: dict[str, Act] = {
    "silent connections": stay_silent,
    "garbage": send_garbage,
    "handshakes of 16 MiB": never_end_handshakes,
    "handshakes begun": begin_handshakes,
    "ZeroMQ clients": knock_with_zmq,
    "handshakes with a wrong key": greet_as_a_member_would,
}


class Announcer:
    """Floods mDNS on loopback with peers of this group (its tag is there for all to see) that do not exist."""

    def __init__(self, tag: str, rng: random.Random) -> None:
        self._tag = tag
        self._rng = rng
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)

    def announce(self, count: int) -> int:
        for _ in range(count):
            for packet in self.packets():
                self._socket.sendto(packet, MDNS)
        return count

    def packets(self) -> list[bytes]:
        """An announcement of a dead address: of this network, of another, or of a port of somebody's on loopback."""
        name = f"{self._rng.randbytes(8).hex()}.{SERVICE}"
        host = self._rng.choice([bytes([127, 0, self._rng.randrange(256), 9]), b"\x7f\0\0\x01", self._rng.randbytes(4)])
        info = AsyncServiceInfo(
            SERVICE,
            name,
            addresses=[host],
            port=self._rng.randrange(1, 65536),
            properties={"g": self._tag, "v": str(WIRE_VERSION)},
            server=f"{self._rng.randbytes(6).hex()}.local.",
        )
        out = DNSOutgoing(_RESPONSE)
        for answer in (info.dns_pointer(), info.dns_service(), info.dns_text(), *info.dns_addresses()):
            out.add_answer_at_time(answer, 0)
        packets: list[bytes] = out.packets()
        return packets

    def close(self) -> None:
        self._socket.close()
