"""Addresses that a person gives, ``HOST:PORT``, and what they lead to.

Invariant: what nobody could ever dial is refused when it is given; of what can't be dialled now it is said why.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
from collections.abc import Sequence

from p2ptrain.errors import UserError
from p2ptrain.wire.addresses import make_address, split_address, without_zone

_EXPECTED = "expected HOST:PORT, for example --peer 192.168.1.20:5710"
_NO_NAME = re.compile(r"[\s:/,;@#?\\'\"]")


def parse_endpoint(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``tcp://HOST:PORT``; a v6 address without brackets. Raises ``UserError``."""
    given = text.strip().removeprefix("tcp://")
    host, _, port = given.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if is_bracketed else host
    if not is_bracketed and (_is_v6(host) or _is_v6(given)):
        raise UserError(f"--peer {text}: write an IPv6 address in brackets: --peer [2001:db8::20]:5710")
    is_port = bool(re.fullmatch("[0-9]{1,5}", port)) and 1 <= int(port) <= 65535
    if not host or not is_port or (not is_bracketed and _NO_NAME.search(host)):
        raise UserError(f"--peer {text}: {_EXPECTED}")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        if is_bracketed or re.fullmatch("[0-9.]+", host):  # some systems would take 192.168.1 for 192.168.0.1
            raise UserError(f"--peer {text}: {host} is no IP address; {_EXPECTED}") from None
        return host, int(port)
    if ip.is_unspecified or ip.is_multicast:
        raise UserError(f"--peer {text}: {host} is the address of no device; {_EXPECTED}")
    return host, int(port)


def _is_v6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


async def resolve(host: str, port: int) -> tuple[list[str], str]:
    """The addresses of ``--peer HOST:PORT``, with zones; or, where there are none for now, why."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        return [], "is no name that a device could have"
    except socket.gaierror as error:
        if "%" in host:
            return [], f"names an interface that this device has not now ({host.partition('%')[2]})"
        is_unknown = error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
        return [], "is a name that nobody knows here" if is_unknown else f"can't be looked up now ({error.strerror})"
    except OSError as error:
        return [], f"can't be looked up now ({error.strerror or error})"
    made = dict.fromkeys(make_address(_zoned(sockaddr), port) for *_, sockaddr in found if isinstance(sockaddr[0], str))
    usable = [address for address in made if split_address(address) and without_zone(address)]
    leads = ", ".join(str(sockaddr[0]) for *_, sockaddr in found[:1])
    return usable, "" if usable else f"leads to {leads}, which is the address of no device"


def _zoned(sockaddr: Sequence[object]) -> str:
    """The host of a socket's address, a link-local one with the interface that the system named beside it."""
    host = str(sockaddr[0])
    scope = sockaddr[3] if len(sockaddr) > 3 else 0
    if "%" not in host and isinstance(scope, int) and scope and ipaddress.ip_address(host).is_link_local:
        with contextlib.suppress(OSError):
            return f"{host}%{socket.if_indextoname(scope)}"
    return host
