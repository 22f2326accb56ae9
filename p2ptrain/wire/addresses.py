"""Control addresses, ``tcp://IP:port``: the only form in which peers tell each other where they are.

Invariant: an address that passed ``canonical_address`` holds an IP address (never a name, which somebody would have to
look up) and is spelt the one way in which equal addresses are equal strings.
"""

from __future__ import annotations

import ipaddress


def make_address(host: str, port: int) -> str:
    """The address of an IP address (v6 without brackets) and a port."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def split_address(address: str) -> tuple[str, int] | None:
    """IP address and port of ``tcp://IP:port``; None for anything else, and for what nobody can dial."""
    scheme, slashes, rest = address.partition("://")
    host, colon, port = rest.rpartition(":")
    if scheme != "tcp" or not slashes or not colon or not (port.isascii() and port.isdigit() and len(port) <= 5):
        return None
    in_brackets = host.startswith("[") and host.endswith("]")
    try:
        ip = ipaddress.ip_address(host[1:-1] if in_brackets else host)
    except ValueError:
        return None
    if in_brackets != (ip.version == 6) or "%" in host or ip.is_unspecified or ip.is_multicast:
        return None
    return (str(ip), int(port)) if 1 <= int(port) <= 65535 else None


def canonical_address(address: str) -> str | None:
    """``address`` as everyone spells it; None if it is no control address."""
    parts = split_address(address)
    return make_address(*parts) if parts else None


def with_port(address: str, port: int) -> str:
    """The same host, another port."""
    return f"{address.rpartition(':')[0]}:{port}"
