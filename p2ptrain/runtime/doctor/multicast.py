"""Does mDNS get through? A question goes out on every interface, and whoever else speaks there is counted.

Invariant: that our own question comes back proves nothing about others: only what another device said does.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import struct
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from p2ptrain.net.interfaces import InterfaceAddress
from p2ptrain.runtime.doctor.findings import Finding, Level

PORT = 5353
GROUP_V4, GROUP_V6 = "224.0.0.251", "ff02::fb"
ECHO_S = 1.5


@dataclass(frozen=True, slots=True)
class Echo:
    came_back: bool
    others: frozenset[str] = field(default_factory=frozenset)
    """Addresses of other devices that spoke meanwhile."""
    why: str = ""


async def check_multicast(chosen: Sequence[InterfaceAddress], own: Collection[str]) -> list[Finding]:
    """On every IPv4 address, and every interface with IPv6. ``own``: all addresses of this device."""
    v4 = [each for each in chosen if not each.is_v6]
    v6 = {each.interface: each for each in reversed(chosen) if each.is_v6 and each.kind != "loopback"}
    tried = [*v4, *v6.values()]
    if not tried:
        text = "there is no address to speak on: discovery by mDNS was not tried"
        return [Finding("hint", "multicast", text, "name peers with --peer HOST:PORT")]
    echoes = await asyncio.gather(*(asyncio.to_thread(multicast_echo, each, own) for each in tried))
    return [explain_echo(each, echo) for each, echo in zip(tried, echoes, strict=True)]


def explain_echo(each: InterfaceAddress, echo: Echo) -> Finding:
    """What an echo, or none, says."""
    place = f"{each.interface} {each.address}"
    if echo.others:
        others = f"{len(echo.others)} other address{'es' if len(echo.others) != 1 else ''}"  # a device may have several
        return Finding("fine", "multicast", f"heard words from {others} on {place}", proved=True)
    if echo.came_back:
        text = f"can be used on {place}; no other address spoke there, so whether it gets through was not proved"
        return Finding("hint", "multicast", text, "run `p2ptrain doctor` on another device at the same time")
    level: Level = "hint" if each.kind in ("loopback", "overlay", "bridge") or each.is_v6 else "problem"
    if not echo.why:
        text = (
            f"what was said on {place} was not heard there: it does not go out or is not let in, as far as is seen here"
        )
        return Finding(level, "multicast", text, "let UDP 5353 through the firewall, or use --peer HOST:PORT")
    text = f"can't be used on {place} ({echo.why}): peers there won't be found by themselves that way"
    if "in use" in echo.why:
        return Finding(level, "multicast", text, "stop the program that holds UDP port 5353, or use --peer HOST:PORT")
    return Finding(level, "multicast", text, "let UDP 5353 through the firewall, or use --peer HOST:PORT")


def multicast_echo(each: InterfaceAddress, own: Collection[str]) -> Echo:
    """Say our question there, and listen. Never raises."""
    question = secrets.token_bytes(2) + struct.pack(">5H", 0, 1, 0, 0, 0) + _dns_name("_p2ptrain._tcp.local")
    question += struct.pack(">2H", 12, 1)  # PTR, IN
    mine = {address.partition("%")[0] for address in (*own, each.address)}
    others: set[str] = set()
    came_back = False
    try:
        with _joined(each) as sock:
            sock.sendto(question, (GROUP_V6 if each.is_v6 else GROUP_V4, PORT))
            end = time.monotonic() + ECHO_S
            while (left := end - time.monotonic()) > 0:
                sock.settimeout(left)
                data, sender = sock.recvfrom(9000)
                host = str(sender[0]).partition("%")[0]
                came_back = came_back or (data == question and host in mine)
                if host not in mine and (not each.is_v6 or sender[3] in (0, _index(each))):
                    others.add(host)
    except TimeoutError:
        pass
    except OSError as error:
        return Echo(False, frozenset(others), error.strerror or str(error))
    return Echo(came_back, frozenset(others), "")


def _joined(each: InterfaceAddress) -> socket.socket:
    family = socket.AF_INET6 if each.is_v6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if each.is_v6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(("", PORT))
            index = struct.pack("@I", _index(each))
            joined = socket.inet_pton(socket.AF_INET6, GROUP_V6) + index
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, joined)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        else:
            sock.bind(("", PORT))
            own = socket.inet_aton(each.address)
            if hasattr(socket, "IP_MULTICAST_ALL"):  # else sockets hear what comes in on any interface
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_ALL, 0)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP_V4) + own)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
    except OSError:
        sock.close()
        raise
    return sock


def _index(each: InterfaceAddress) -> int:
    return socket.if_nametoindex(each.interface)


def _dns_name(name: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
