"""Control addresses, ``tcp://IP:port``: the only form in which peers tell each other where they are.

Invariant: an address that passed ``canonical_address`` holds an IP address (never a name, which somebody would have to
look up) and is spelt the one way in which equal addresses are equal strings.

A link-local IPv6 address means something only together with the interface of ours that it is reached through, its
*zone* (``fe80::1%eth0``). Zones are this device's own business: none goes over the wire, each receiver adds its own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable


def make_address(host: str, port: int) -> str:
    """The address of an IP address (v6 without brackets) and a port."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def split_address(address: str) -> tuple[str, int] | None:
    """IP address (with its zone, if it has one) and port of ``tcp://IP:port``; None for what nobody can dial."""
    scheme, slashes, rest = address.partition("://")
    host, colon, port = rest.rpartition(":")
    if scheme != "tcp" or not slashes or not colon or not (port.isascii() and port.isdigit() and len(port) <= 5):
        return None
    in_brackets = host.startswith("[") and host.endswith("]")
    try:
        ip = ipaddress.ip_address(host[1:-1] if in_brackets else host)
    except ValueError:
        return None
    if in_brackets != (ip.version == 6) or ip.is_unspecified or ip.is_multicast:
        return None
    if "%" in host and not ip.is_link_local:
        return None
    return (str(ip), int(port)) if 1 <= int(port) <= 65535 else None


def canonical_address(address: str) -> str | None:
    """``address`` as everyone spells it; None if it is no control address, or one that only its sender can dial."""
    parts = split_address(address)
    return make_address(*parts) if parts and "%" not in parts[0] else None


def without_zone(address: str) -> str:
    """An address of ours as others are told it."""
    host, percent, rest = address.partition("%")
    return f"{host}]{rest.partition(']')[2]}" if percent else address


def zone_of(address: str) -> str:
    """The interface in an address of this device's own; "" if there is none."""
    return address.partition("%")[2].partition("]")[0]


def in_zones(address: str, zones: Iterable[str]) -> list[str]:
    """``address`` as it is dialled from here: a link-local one in its zone or, without one, in each of ours.

    None that names a zone which is not among ``zones``: whoever says so, there is no such interface.
    """
    parts, known = split_address(address), list(zones)
    if parts is None:
        return []
    host, _, zone = parts[0].partition("%")
    ip = ipaddress.ip_address(host)
    if ip.version == 4 or not ip.is_link_local:
        return [make_address(*parts)]
    return [make_address(f"{host}%{each}", parts[1]) for each in known if zone in ("", each)]


def with_port(address: str, port: int) -> str:
    """The same host, another port."""
    return f"{address.rpartition(':')[0]}:{port}"
