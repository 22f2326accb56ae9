"""Watches a listening socket's connections: how many have not shown yet who they are, and how much of them is unread.

Invariant: connections are at most ``MAX_CONNECTIONS``, those that are still in their handshake at most ``MAX_PENDING``,
and ``MAX_PENDING_OF_ONE`` of any one other device; and what libzmq holds of all connections that is not read yet is at
most ``MAX_UNREAD_BYTES`` for longer than it takes to look. What is above that is hung up: of the pending the oldest of
who has most (a handshake takes less than a second, nearly everywhere), of the unread the one with most, of all the one
silent for longest. An honest peer that this hits connects again by itself.

libzmq bounds none of these. It reads a handshake command of any size up to a frame's, accepts whoever comes, and keeps
the parts of a message that never ends, whatever its high-water mark says. What it tells is when a connection begins and
ends, by file descriptor, and from which one a message came. How much came over a connection is the system's to say,
where it does (Linux).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

MAX_CONNECTIONS = 2048
"""Several of each peer that there can be: a restart leaves some for a while."""
MAX_PENDING = 128
MAX_PENDING_OF_ONE = 32
"""Of one address; those of this very device don't count for that."""
MAX_UNREAD_BYTES = 256 << 20
LOOK_S = 0.1
"""With up to 64 connections; with more of them it is longer, so that looking costs no more."""
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
_TCP_INFO = socket.TCP_INFO if sys.platform == "linux" else None
_BYTES_RECEIVED_AT = 128
"""Where Linux has ``tcpi_bytes_received`` in its ``tcp_info``."""


@dataclass(slots=True)
class _Connection:
    fd: int
    peer: tuple[object, ...]
    """Address and port of the other end: they tell this connection from a later one with the same descriptor."""
    host: str
    since: float
    heard_at: float
    """When a message came last, or when it began."""
    has_spoken: bool = False
    """A message came: its sender is known."""
    read_bytes: int = 0
    key: bytes | None = None
    """The sender's."""


class Doorkeeper:
    """Of one ``router``. ``handshake_s``: after so long libzmq ends those that are not through with it."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        router: zmq.asyncio.Socket,
        handshake_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_hung_up = 0
        """Connections that were too many, or of which too much was unread."""
        self.on_gone: Callable[[bytes], None] = lambda key: None
        """Hears the key of each sender whose connection ended, unless it was hung up here."""
        self._router = router
        self._handshake_s = handshake_s
        self._clock = clock
        self._connections: dict[int, _Connection] = {}
        name = f"inproc://doorkeeper-{id(self)}"
        router.monitor(name, _EVENTS)
        self._events = context.socket(zmq.PAIR)
        self._events.linger = 0
        self._events.set_hwm(0)  # or libzmq's threads would wait for us
        self._events.connect(name)
        self._tasks = [_watched(self._listen(), "doors"), _watched(self._look(), "look")]

    def heard(self, frames: list[zmq.Frame], key: bytes | None = None) -> None:
        """A message came, from the sender with this key (None: one who is not listened to)."""
        connection = self._connections.get(int(frames[0].get(zmq.SRCFD))) if frames else None
        if connection is not None:
            connection.has_spoken, connection.heard_at, connection.key = True, self._clock(), key
            connection.read_bytes += sum(_wire_bytes(len(frame)) for frame in frames)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(zmq.ZMQError):
            self._router.disable_monitor()
        self._events.close(linger=0)

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            event = parse_monitor_message(await self._events.recv_multipart())
            fd = int(event["value"])
            ended = self._connections.pop(fd, None)
            if ended is not None and ended.key is not None:
                self.on_gone(ended.key)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._accepted(fd)

    def _accepted(self, fd: int) -> None:
        with _borrowed(fd) as connected:
            if connected is None:
                return  # it has gone already
            peer = connected.peer
            received = connected.received_bytes() or 0
        now = self._clock()
        self._connections[fd] = _Connection(fd, peer, str(peer[0]), since=now, heard_at=now, read_bytes=received)
        self._turn_away()
        if len(self._connections) > MAX_CONNECTIONS:
            self._hang_up(min(self._connections.values(), key=lambda each: each.heard_at))

    def _turn_away(self) -> None:
        """Some of those that are too many."""
        young = self._clock() - self._handshake_s
        pending = [each for each in self._connections.values() if not each.has_spoken and each.since > young]
        by_host = Counter(each.host for each in pending)
        limits = {host: MAX_PENDING if _is_own(host) else MAX_PENDING_OF_ONE for host in by_host}
        most = max(by_host, key=lambda host: by_host[host], default="")
        if len(pending) > MAX_PENDING or any(by_host[host] > limits[host] for host in by_host):
            crowded = next((host for host in by_host if by_host[host] > limits[host]), most)
            self._hang_up(min((each for each in pending if each.host == crowded), key=lambda each: each.since))

    async def _look(self) -> None:
        """At what is unread."""
        while _TCP_INFO is not None:
            await asyncio.sleep(LOOK_S * max(1.0, len(self._connections) / 64))
            unread = {fd: self._unread_bytes(each) for fd, each in list(self._connections.items())}
            while sum(unread.values()) > MAX_UNREAD_BYTES:
                worst = max(unread, key=lambda fd: unread[fd])
                del unread[worst]
                self._hang_up(self._connections[worst])

    def _unread_bytes(self, connection: _Connection) -> int:
        with _borrowed(connection.fd, connection.peer) as connected:
            received = connected.received_bytes() if connected is not None else None
        if received is None:
            return 0
        return max(0, received - connection.read_bytes)

    def _hang_up(self, connection: _Connection) -> None:
        """libzmq sees its end, and closes it."""
        self._connections.pop(connection.fd, None)
        with _borrowed(connection.fd, connection.peer) as connected:
            if connected is not None:
                self.num_hung_up += 1
                connected.shut()


def _watched(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task whose failure is told at once: without it nobody would keep strangers out, and nobody would know."""
    task = asyncio.create_task(work, name=name)

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            told = {"message": f"nobody watches connections any more ({name})", "exception": error, "task": task}
            task.get_loop().call_exception_handler(told)

    task.add_done_callback(ended)
    return task


class _Borrowed:
    """A connection of libzmq's, under a descriptor of our own. ``peer`` is its other end."""

    def __init__(self, connected: socket.socket, peer: tuple[object, ...]) -> None:
        self.peer = peer
        self._socket = connected

    def shut(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def received_bytes(self) -> int | None:
        """How much came over it ever; None where the system does not say."""
        if _TCP_INFO is None:
            return None
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256)
        except OSError:
            return None
        if len(info) < _BYTES_RECEIVED_AT + 8:
            return None
        (received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED_AT)
        return int(received)


@contextlib.contextmanager
def _borrowed(fd: int, peer: tuple[object, ...] | None = None) -> Iterator[_Borrowed | None]:
    """For a moment. None where there is no connection under ``fd`` any more, or another one than ``peer``'s.

    libzmq closes connections in threads of its own, at any moment: so the descriptor may be closed by now, be a file,
    or be a socket whose other end has hung up.
    """
    try:
        own = os.dup(fd)
    except OSError:
        yield None
        return
    try:
        connected = socket.socket(fileno=own)
    except OSError:
        os.close(own)
        yield None
        return
    with connected:
        try:
            found = connected.getpeername()
        except OSError:
            found = None
        is_it = isinstance(found, tuple) and peer in (None, found)
        yield _Borrowed(connected, found) if is_it else None


def _wire_bytes(num_bytes: int) -> int:
    """Of a frame, as CURVE (RFC 26) and ZMTP (RFC 23) send it."""
    command = 33 + num_bytes
    return command + (2 if command <= 255 else 9)


def _is_own(host: str) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
