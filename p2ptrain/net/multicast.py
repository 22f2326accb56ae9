"""Whether multicast works on an interface: says something to a group and listens for it."""

from __future__ import annotations

import ipaddress
import secrets
import socket

GROUP = "224.0.0.251"
"""mDNS's own group, on a port of ours: what is filtered for mDNS is filtered here."""


def multicast_works(address: str, timeout_s: float = 0.5) -> bool:
    """Whether a datagram to the mDNS group, sent from this IPv4 address of ours, comes back to it."""
    if ipaddress.ip_address(address).version != 4:
        return False
    word = secrets.token_bytes(16)
    own = socket.inet_aton(address)
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as speaker,
        ):
            listener.bind(("", 0))
            listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + own)
            listener.settimeout(timeout_s)
            speaker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
            speaker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            speaker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            speaker.sendto(word, (GROUP, listener.getsockname()[1]))
            while True:
                if listener.recv(64) == word:
                    return True
    except OSError:
        return False
