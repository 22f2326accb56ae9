"""Whether large packets pass on the way to an address, where small ones do: a tunnel or a switch may swallow them.

Invariant: proves what it says. Small packets passed in both directions (the connection and the greetings), and the
system of the other device says for each byte of the large ones that it has them, or has not said so for seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time
from typing import Literal

from p2ptrain.wire.addresses import split_address

LARGE_BYTES = 8 << 10
CONNECT_S = 5.0
ARRIVE_S = 6.0
"""Several retransmissions."""
LOOK_S = 0.05
SLOW_S = 1.0
"""A way that takes so long to connect and to carry 8 kB has a round trip of a third of a second, or little rate."""
GREETING = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x01CURVE" + bytes(15) + b"\x00" + bytes(31)
"""ZMTP 3.1: signature, version, mechanism, not as a server."""

Passage = Literal["passes", "lost", "unknown"]


async def large_packets(address: str) -> tuple[Passage, float]:
    """Whether they pass, and how many seconds it took to connect and to have them acknowledged.

    "unknown": nobody listens there, or this system can't tell.
    """
    began = time.monotonic()
    passage = await _large_packets(address)
    return passage, time.monotonic() - began


async def _large_packets(address: str) -> Passage:
    parts = split_address(address)
    if parts is None or sys.platform != "linux":
        return "unknown"
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(*parts), CONNECT_S)
    except (OSError, TimeoutError):
        return "unknown"
    try:
        writer.write(GREETING)
        await asyncio.wait_for(reader.readexactly(len(GREETING)), CONNECT_S)
        writer.write(bytes(LARGE_BYTES))  # no words of ZeroMQ: the other side hangs up when it has read them
        give_up_at = time.monotonic() + ARRIVE_S
        while time.monotonic() < give_up_at:
            if reader.at_eof() or writer.is_closing() or not _unacknowledged(writer):
                return "passes"
            await asyncio.sleep(LOOK_S)
        return "lost"
    except (ConnectionResetError, BrokenPipeError):
        return "passes"
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return "unknown"
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), 0.1)


def _unacknowledged(writer: asyncio.StreamWriter) -> int:
    """Bytes that the other device's system has not confirmed."""
    import fcntl
    import termios

    link: socket.socket = writer.get_extra_info("socket")
    (num_bytes,) = struct.unpack("i", fcntl.ioctl(link.fileno(), termios.TIOCOUTQ, bytes(4)))
    return int(num_bytes)
