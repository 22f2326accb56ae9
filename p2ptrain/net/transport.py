"""Moves frames between a node and its neighbours over ZeroMQ, and interprets none of them.

Invariant: memory is bounded by what is configured here, whatever others send or fail to read: every queue of ours in
bytes, for one neighbour and for all, every queue of libzmq in messages of limited size; what libzmq does not bound is
bounded by a ``doorkeeper``. (From holders of the join code libzmq does not protect: they can make it abort with a
heartbeat behind more than the node has read.)

Two lanes, two ports: *control* is small and never waits behind *bulk*, not even for an I/O thread. On each, one ROUTER
receives from everybody and sends nothing; one DEALER per neighbour sends and receives nothing. A neighbour is named by
its control address. Who sent a frame is the CURVE key that ZAP authenticated.

A socket that the system can't give now is no error: that link is missing, what is sent over it is not sent, and each
further message tries for the socket again.

A transport: made --start--> bound --close--> closed. A neighbour: dialled --hang_up--> gone.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import zmq
import zmq.asyncio

from p2ptrain.errors import LocalError, UserError
from p2ptrain.net.binding import bind_error, endpoint, reason
from p2ptrain.net.guard.budget import has_room, make_room
from p2ptrain.net.guard.doorkeeper import Doorkeeper
from p2ptrain.net.interfaces import ANY
from p2ptrain.net.keys import Group, Identity
from p2ptrain.net.limits import ADVICE, NONE_LEFT, check_room
from p2ptrain.net.link import Link, TokenBucket
from p2ptrain.net.pieces import MAX_PIECE_BYTES, in_pieces, put_together
from p2ptrain.net.zap import DOMAIN, Gate
from p2ptrain.protocol.session.address_book import MAX_ADDRESSES, MAX_WANTED
from p2ptrain.protocol.session.guests import MAX_GUEST_ADDRESSES, MAX_GUESTS
from p2ptrain.protocol.session.sessions import MAX_PEERS
from p2ptrain.wire.addresses import make_address, split_address
from p2ptrain.wire.codec import MAX_HEADER_BYTES
from p2ptrain.wire.messages import Lane
from p2ptrain.wire.schema import RawBytes

LANES: tuple[Lane, ...] = ("control", "bulk")

OnFrames = Callable[[Lane, bytes, Sequence[RawBytes]], Awaitable[None]]
"""Called for each message with its lane, the sender's public key (Z85) and its frames. The lane's reading waits for it,
and so in the end do its senders."""
OnRefused = Callable[[str, str], None]
"""Called now and then with the address of a neighbour for which the system has no socket, and what it says."""
OnGone = Callable[[bytes], None]
"""Called with the key of a sender whose connection for control messages has closed at its end, or on the way."""

CURVE_OVERHEAD_BYTES = 1024
MAX_WIRE_BYTES: dict[Lane, int] = {
    "control": MAX_HEADER_BYTES + CURVE_OVERHEAD_BYTES,
    "bulk": MAX_PIECE_BYTES + CURVE_OVERHEAD_BYTES,
}
MAX_QUEUED_BYTES: dict[Lane, int] = {"control": 1 << 20, "bulk": 32 << 20}
"""What may wait to be sent to one neighbour."""
HIGH_WATER_MARK: dict[Lane, int] = {"control": 64, "bulk": 4}
"""Messages of one connection in each libzmq queue.

Where one was full and is read from again, libzmq may abort at PINGs of who has hung up meanwhile (its issue 4364). It
does not with queues without a bound (tried, with 2,000 PINGs); but then all that keeps memory bounded is the
doorkeeper, which only Linux tells enough, and nothing holds back a neighbour that sends faster than is read."""
IO_THREAD: dict[Lane, int] = {"control": 0b01, "bulk": 0b10}
KEEPALIVE_S = 5
UNREACHABLE_S = 15
"""A connection whose other end does not answer for so long is closed: by TCP, for libzmq's own heartbeats abort the
process where a neighbour hangs up before all that it sent is read, as all do with one that was asleep
(https://github.com/zeromq/libzmq/issues/4364)."""
HANDSHAKE_MS = 15_000
"""TCP's, ZeroMQ's and CURVE's together take four round trips, and some links take seconds for one. Who was banned tries
again after as long."""
RECONNECT_MS = 200
MAX_RECONNECT_MS = 5_000
NO_KEY = b"0" * 40
"""The sender of everything on a ``plain`` transport."""
MAX_SOCKETS = len(LANES) * (MAX_PEERS + MAX_GUESTS * MAX_GUEST_ADDRESSES + MAX_ADDRESSES + MAX_WANTED) + 64
"""Of everybody that the protocol lets in, answers or dials, and some that are closing; libzmq's own bound is 1023."""
START_FILES = 32
"""Two routers, their doorkeepers, the gate and libzmq's threads take 16 (measured); the rest is to meet the first
neighbours with."""
RETRY_S = 1.0
"""After a refused socket, until a message may ask for one again."""
REFUSED_TOLD_S = 60.0
_BIND_TRIES = 20


class Transport:
    """``port=0``: two free ports, else ``port`` for control and the next one for bulk, on each of ``hosts``.

    ``plain`` (no CURVE: anybody gets in, nobody is known) is for benchmarks.
    """

    def __init__(
        self,
        identity: Identity,
        group: Group,
        on_frames: OnFrames,
        hosts: Sequence[str] = (ANY,),
        port: int = 0,
        *,
        bulk_bytes_per_s: float | None = None,
        max_queued_bytes: dict[Lane, int] | None = None,
        plain: bool = False,
        on_refused: OnRefused = lambda address, why: None,
        on_gone: OnGone = lambda key: None,
    ) -> None:
        self.port = port
        self.bulk_port = port + 1 if port else 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.num_dropped = 0
        """Messages pushed out of a full queue, for a neighbour that reads too slowly or not at all."""
        self.num_refused = 0
        """Messages with too many frames or without a known sender."""
        self._identity = identity
        self._group = group
        self._on_frames = on_frames
        self._on_refused = on_refused
        self._on_gone = on_gone
        self._hosts = tuple(hosts)
        self._bound: set[tuple[str, Lane]] = set()
        """Those of a host that is listened on only in part."""
        self._plain = plain
        self._max_queued_bytes = max_queued_bytes or MAX_QUEUED_BYTES
        self._buckets: dict[Lane, TokenBucket] = {"control": TokenBucket(None), "bulk": TokenBucket(bulk_bytes_per_s)}
        self._context: zmq.asyncio.Context | None = None
        self._gate: Gate | None = None
        self._routers: dict[Lane, zmq.asyncio.Socket] = {}
        self._doorkeepers: dict[Lane, Doorkeeper] = {}
        self._readers: list[asyncio.Task[None]] = []
        self._links: dict[tuple[str, Lane], Link] = {}
        self._missing: dict[tuple[str, Lane], str] = {}
        """Endpoints of links that were dialled while there was no socket for them."""
        self._retry_at = 0.0
        self._told_refused_at = -REFUSED_TOLD_S
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closing = False

    async def start(self) -> None:
        """Bind and read. Raises ``UserError`` for a port, a host or sockets that can't be had."""
        check_room(START_FILES, "the sockets to listen on")
        self._context = zmq.asyncio.Context(io_threads=len(LANES))
        self._context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
        try:
            self._gate = Gate(self._context)
            self._bind()
        except zmq.ZMQError as error:
            await self.close()
            raise UserError(f"the sockets to listen on can't be opened ({error}): {ADVICE}") from error
        except UserError:
            await self.close()
            raise
        seconds = HANDSHAKE_MS / 1000
        self._doorkeepers = {lane: Doorkeeper(self._context, self._routers[lane], seconds) for lane in LANES}
        self._doorkeepers["control"].on_gone = self._on_gone
        self._readers = [asyncio.create_task(self._read(lane), name=f"read {lane}") for lane in LANES]

    def listen_on(self, hosts: Sequence[str]) -> str:
        """Listen on those of ``hosts`` that are new, at the same ports; why not, or "".

        What was bound before stays: a socket works again once its address is back.
        """
        for host in hosts:
            if host in self._hosts or ANY in self._hosts:
                continue
            for lane, router in self._routers.items():
                if (host, lane) in self._bound:
                    continue
                port = self.port if lane == "control" else self.bulk_port
                try:
                    router.bind(endpoint(host, port))
                except zmq.ZMQError as error:
                    return f"can't listen on {host}, port {port} ({reason(error)})"
                self._bound.add((host, lane))
            self._hosts += (host,)
        return ""

    @property
    def refused(self) -> Counter[str]:
        """Connections that were hung up, and messages of the banned or of too many frames."""
        return Counter({"hung-up": self.num_hung_up, "unread": self.num_refused})

    @property
    def num_hung_up(self) -> int:
        """Connections that were more than may be at once, or of which too much was unread."""
        return sum(each.num_hung_up for each in self._doorkeepers.values())

    def dial(self, address: str, bulk_address: str = "") -> None:
        """Connect to a neighbour; again, with a ``bulk_address``, once that is known."""
        self._connect(address, "control", address)
        if bulk_address:
            self._connect(address, "bulk", bulk_address)

    def send(self, address: str, lane: Lane, frames: Sequence[RawBytes]) -> bool:
        """Queue for the neighbour at ``address``. False if something was dropped: a full queue, or never dialled."""
        if (address, lane) in self._missing and time.monotonic() >= self._retry_at:
            self._connect(address, lane, self._missing[address, lane])
        link = self._links.get((address, lane))
        num_dropped = link.put(in_pieces(frames)) if link else 1
        if lane == "bulk":
            num_dropped += make_room(self._bulk_links())
        self.num_dropped += num_dropped
        return num_dropped == 0

    def has_room(self, address: str) -> bool:
        """Whether what a neighbour asked for may be read and sent to it: it takes what it was sent before."""
        link = self._links.get((address, "bulk"))
        return link is None or has_room(link, self._bulk_links())

    def _bulk_links(self) -> list[Link]:
        return [link for (_, lane), link in self._links.items() if lane == "bulk"]

    def hang_up(self, address: str) -> None:
        """Disconnect; what waits to be sent is forgotten."""
        for lane in LANES:
            self._missing.pop((address, lane), None)
            link = self._links.pop((address, lane), None)
            if link:
                self._close(link)

    def ban(self, key: bytes, seconds: float) -> None:
        """Refuse new connections of ``key``, and drop what its present ones bring."""
        if self._gate:
            self._gate.ban(key, seconds)

    def queued_bytes(self, address: str) -> int:
        """What waits to be sent to a neighbour, on both lanes."""
        return sum(link.queued_bytes for (name, _), link in self._links.items() if name == address)

    async def close(self, linger_s: float = 0.0) -> None:
        """Leave nothing behind: no task, no socket, no port. What was not sent after ``linger_s`` is lost.

        From here on nobody is dialled: a socket that is made now would be closed by the context, from another thread.
        """
        self._is_closing = True
        give_up_at = time.monotonic() + linger_s
        while any(link.busy for link in self._links.values()) and time.monotonic() < give_up_at:
            await asyncio.sleep(0.005)
        for link in self._links.values():
            self._close(link, linger_s)
        self._links, self._missing = {}, {}
        for task in self._readers:
            task.cancel()
        await asyncio.gather(*self._readers, *self._closing, return_exceptions=True)
        for doorkeeper in self._doorkeepers.values():
            await doorkeeper.close()
        for router in self._routers.values():
            router.close(linger=0)
        if self._gate:
            await self._gate.close()
        if self._context and linger_s:
            await asyncio.to_thread(self._context.destroy, linger=0)  # waits for what lingers
        elif self._context:
            self._context.destroy(linger=0)
        self._context = self._gate = None
        self._readers, self._routers = [], {}

    # --- sockets ------------------------------------------------------------------------------------------------------

    def _socket(self, kind: int, lane: Lane) -> zmq.asyncio.Socket:
        if self._context is None:
            raise LocalError("the transport is not started")
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.ipv6 = True
        socket.set(zmq.AFFINITY, IO_THREAD[lane])
        socket.set(zmq.TCP_KEEPALIVE, 1)
        socket.set(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_S)
        socket.set(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_S)
        socket.set(zmq.TCP_KEEPALIVE_CNT, UNREACHABLE_S // KEEPALIVE_S)
        socket.set(zmq.TCP_MAXRT, 1000 * UNREACHABLE_S)
        socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.set(zmq.MAXMSGSIZE, MAX_WIRE_BYTES[lane])
        socket.set_hwm(HIGH_WATER_MARK[lane])
        return socket

    def _router(self, lane: Lane) -> zmq.asyncio.Socket:
        router = self._socket(zmq.ROUTER, lane)
        if not self._plain:
            router.curve_server = True
            router.curve_secretkey = self._group.server_secret
            router.zap_domain = DOMAIN
        return router

    def _bind(self) -> None:
        for lane in LANES:
            wanted = self.port if lane == "control" else self.bulk_port
            for left in reversed(range(_BIND_TRIES)):
                router = self._routers[lane] = self._router(lane)
                try:
                    bound = self._bind_hosts(router, wanted)
                    break
                except zmq.ZMQError as error:
                    router.close(linger=0)
                    # Only a port that the system chose for the first host may be taken on the next one.
                    if wanted or error.errno != errno.EADDRINUSE or not left:
                        raise bind_error(self._hosts, error, wanted, lane) from error
            if lane == "control":
                self.port = bound
            else:
                self.bulk_port = bound

    def _bind_hosts(self, router: zmq.asyncio.Socket, port: int) -> int:
        for host in self._hosts:
            router.bind(endpoint(host, port))
            port = int(router.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        return port

    def _connect(self, address: str, lane: Lane, where: str) -> None:
        if self._is_closing or (address, lane) in self._links:
            return
        parts = split_address(where)
        if parts is None:
            raise LocalError(f"{where!r} is no address to dial")
        try:
            dealer = self._dealer(lane)
        except zmq.ZMQError as error:
            if error.errno not in NONE_LEFT:
                raise
            self._missing[address, lane] = where
            self._socket_refused(address, error)
            return
        try:
            dealer.connect(make_address(*parts))
        except zmq.ZMQError:  # an interface in the address that has just gone
            dealer.close(linger=0)
            self._missing[address, lane] = where
            self._retry_at = time.monotonic() + RETRY_S
            return
        self._missing.pop((address, lane), None)
        self._links[address, lane] = Link(dealer, self._max_queued_bytes[lane], self._buckets[lane], self._count_sent)

    def _socket_refused(self, address: str, error: zmq.ZMQError) -> None:
        now = time.monotonic()
        self._retry_at = now + RETRY_S
        if now - self._told_refused_at >= REFUSED_TOLD_S:
            self._told_refused_at = now
            self._on_refused(address, str(error))

    def _dealer(self, lane: Lane) -> zmq.asyncio.Socket:
        dealer = self._socket(zmq.DEALER, lane)
        dealer.set(zmq.IMMEDIATE, 1)
        dealer.set(zmq.ROUTING_ID, b"p" + os.urandom(15))
        dealer.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        dealer.set(zmq.RECONNECT_IVL_MAX, MAX_RECONNECT_MS)
        if not self._plain:
            dealer.curve_publickey = self._identity.public
            dealer.curve_secretkey = self._identity.secret
            dealer.curve_serverkey = self._group.server_public
        return dealer

    def _close(self, link: Link, linger_s: float = 0.0) -> None:
        task = asyncio.create_task(link.close(linger_s), name="hang up")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _count_sent(self, num_bytes: int) -> None:
        self.bytes_sent += num_bytes

    async def _read(self, lane: Lane) -> None:
        router = self._routers[lane]
        while True:
            _, *parts = await router.recv_multipart(copy=False)
            self.bytes_received += sum(map(len, parts))
            key = self._sender(parts)
            self._doorkeepers[lane].heard(parts, key)
            frames = put_together(parts) if key is not None else None
            if key is None or frames is None:
                self.num_refused += 1
            else:
                await self._on_frames(lane, key, frames)
            # A receive that succeeds at once does not let the loop breathe, and there may be no end of them.
            await asyncio.sleep(0)

    def _sender(self, parts: Sequence[zmq.Frame]) -> bytes | None:
        """The authenticated key behind a message; None for one that is banned."""
        if self._plain:
            return NO_KEY
        if not parts or self._gate is None:
            return None
        key = str(parts[0].get("User-Id")).encode()
        return None if len(key) != 40 or self._gate.is_banned(key) else key
