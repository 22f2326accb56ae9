"""The addresses of this device that others may dial.

Invariant: what others can reach comes first, as others are told of some only, and some systems let a program use some
only for multicast. Never ``gethostbyname(gethostname())``, which on many systems is a loopback address. An IPv6
link-local address has its interface's name in it (``fe80::1%eth0``).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import ifaddr

from p2ptrain.errors import UserError

Kind = Literal["lan", "link-local", "overlay", "bridge", "loopback"]
"""``overlay``: a VPN or the like. ``bridge``: containers and virtual machines of this host; others have the same."""

ANY = "*"
"""Every address of this device, and those that it will have."""
_PREFERENCE: tuple[Kind, ...] = ("lan", "link-local", "overlay", "bridge", "loopback")
_OVERLAYS = ("tailscale", "wg", "tun", "tap", "zt", "utun", "ppp", "nebula", "awdl", "llw", "anpi")
"""The last three are macOS's, for AirDrop and within a device: they have link-local addresses alone."""
_BRIDGES = ("docker", "veth", "virbr", "podman", "cni", "lxc", "lxd", "incus", "vmnet", "vboxnet", "flannel", "cali")
_DOCKER_BRIDGE = re.compile(r"br-[0-9a-f]{12}")
"""A network that someone made with docker; a router's `br-lan` is the LAN itself."""
_SIOCGIFFLAGS, _LOOPBACK, _POINT_TO_POINT, _RUNNING, _MULTICAST = 0x8913, 0x8, 0x10, 0x40, 0x1000
"""As of Linux's netdevice(7)."""
_TAILSCALE = ipaddress.ip_network("100.64.0.0/10")


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    interface: str
    address: str
    prefix_bits: int
    kind: Kind

    @property
    def is_v6(self) -> bool:
        return ":" in self.address


def listening_hosts(only: Sequence[str] = ()) -> tuple[str, ...]:
    """What a node listens on: ``ANY`` or, if the user chose interfaces, their addresses. Raises ``UserError``."""
    return tuple(each.address for each in usable_addresses(only)) if only else (ANY,)


def place(host: str) -> str:
    """Where it listens, for people."""
    return "this device" if host == ANY else host


def try_to_bind(host: str, port: int) -> str:
    """Whether a node could listen there: why not, or ""."""
    tried = [host] if host != ANY else ["::", "0.0.0.0"]
    for address in tried:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                if os.name == "posix":
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if address == "::":
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                probe.bind(socket.getaddrinfo(address, port, family, socket.SOCK_STREAM)[0][4])  # with its zone
        except OSError as error:
            if address != tried[-1] and error.errno == errno.EAFNOSUPPORT:  # a system without IPv6
                continue
            return error.strerror or str(error)
        return ""
    return ""


def all_addresses() -> list[InterfaceAddress]:
    """Every address of every interface, but IPv6 link-local ones of VPNs and containers."""
    try:
        adapters = list(ifaddr.get_adapters())
    except (OSError, ValueError):  # containers and Android may forbid the question; or a name is no text
        return _guessed_addresses()
    found = []
    known = _flags([adapter.nice_name for adapter in adapters])
    tunnels = {name for name, flags in known.items() if flags & _POINT_TO_POINT or not flags & (_MULTICAST | _LOOPBACK)}
    unplugged = {name for name, flags in known.items() if not flags & _RUNNING}
    for adapter in adapters:
        for ip in adapter.ips:
            address = ip.ip if isinstance(ip.ip, str) else ip.ip[0].partition("%")[0]
            parsed = ipaddress.ip_address(address)
            if parsed.is_multicast or parsed.is_unspecified:
                continue
            kind = kind_of(adapter.nice_name, address)
            kind = "overlay" if kind in ("lan", "link-local") and adapter.nice_name in tunnels else kind
            if parsed.version == 6 and parsed.is_link_local:
                if kind != "link-local":
                    continue
                address = f"{address}%{adapter.nice_name}"
            found.append(InterfaceAddress(adapter.nice_name, address, ip.network_prefix, kind))
    return sorted(found, key=lambda e: (_PREFERENCE.index(e.kind), e.interface in unplugged, e.is_v6))


def _guessed_addresses() -> list[InterfaceAddress]:
    """Where the system lists no interfaces: the addresses from which it would speak to others, and loopback."""
    found = []
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))  # sends nothing
            address = probe.getsockname()[0]
            found.append(InterfaceAddress("?", address, 0, kind_of("?", address)))
    return [*(each for each in found if each.kind != "loopback"), InterfaceAddress("lo", "127.0.0.1", 8, "loopback")]


def _flags(interfaces: Iterable[str]) -> dict[str, int]:
    """What the system says of each, whatever somebody has called it: whether it leads to one other device only, passes
    multicast, has a cable or a network. Nothing where that is not known."""
    if sys.platform != "linux":
        return {}
    import fcntl

    found = {}
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for name in interfaces:
            with contextlib.suppress(OSError):  # it has just gone
                answer = fcntl.ioctl(asked, _SIOCGIFFLAGS, struct.pack("40s", name.encode()))
                (found[name],) = struct.unpack_from("H", answer, 16)
    return found


def kind_of(interface: str, address: str) -> Kind:
    """What an interface is, by its name and address."""
    parsed = ipaddress.ip_address(address)
    name = interface.lower()
    if parsed.is_loopback:
        return "loopback"
    if name.startswith(_BRIDGES) or _DOCKER_BRIDGE.fullmatch(name):
        return "bridge"
    if name.startswith(_OVERLAYS) or (parsed.version == 4 and parsed in _TAILSCALE):
        return "overlay"
    return "link-local" if parsed.is_link_local else "lan"


def usable_addresses(
    only: Sequence[str] = (), *, loopback: bool = False, strict: bool = True
) -> list[InterfaceAddress]:
    """The addresses to listen on and to advertise, best first.

    ``only``: interface names or addresses that the user chose. Loopback comes along if it was asked for, by
    ``loopback`` or by name, or if there is nothing else. ``UserError`` for a choice that is not there; unless
    ``strict``, as while a peer runs: an interface may come back.
    """
    return choose(all_addresses(), only, loopback=loopback, strict=strict)


def choose(
    addresses: Sequence[InterfaceAddress], only: Sequence[str] = (), *, loopback: bool = False, strict: bool = True
) -> list[InterfaceAddress]:
    for wanted in only if strict else ():
        if not any(wanted in (each.interface, each.address) for each in addresses):
            there = ", ".join(f"{each.interface} ({each.address})" for each in addresses) or "none"
            raise UserError(f"this device has no interface or address {wanted!r}: choose --interface from {there}")
    if only:
        return [each for each in addresses if each.interface in only or each.address in only]
    outside = [each for each in addresses if each.kind != "loopback"]
    return list(addresses) if loopback or not outside else outside
