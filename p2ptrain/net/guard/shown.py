"""Which of the addresses that mDNS shows are worth dialling: anybody in the network may show anything.

Invariant: what is on no network of ours is not dialled, this very device only where it was asked for, and new addresses
no faster than ``NEW_PER_S`` over a while.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from p2ptrain.net.interfaces import InterfaceAddress

NEW_PER_S = 4.0
MAX_NEW_AT_ONCE = 64
"""A room that starts together."""


class Allowance:
    """Tokens for new addresses: so many at once, and so many a second."""

    def __init__(self, now: float) -> None:
        self._tokens = float(MAX_NEW_AT_ONCE)
        self._since = now

    def take(self, now: float) -> bool:
        """Whether one more may be dialled now."""
        self._tokens = min(MAX_NEW_AT_ONCE, self._tokens + NEW_PER_S * (now - self._since))
        self._since = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def near(hosts: Iterable[str], own: Sequence[str], interfaces: Sequence[InterfaceAddress]) -> list[str]:
    """Those of ``hosts`` that are on a network of ``own``, addresses of ours; ``interfaces`` say which networks."""
    used = [each for each in interfaces if each.address in own]
    return [host for host in hosts if any(_is_near(host, each) for each in used)] if used else []


def _is_near(host: str, own: InterfaceAddress) -> bool:
    theirs, ours = ipaddress.ip_address(host), ipaddress.ip_address(own.address.partition("%")[0])
    if theirs.version != ours.version or theirs.is_loopback != ours.is_loopback:
        return False
    if theirs.version == 6 and theirs.is_link_local:
        return ours.is_link_local
    if not own.prefix_bits:  # the system did not say
        return not theirs.is_loopback
    return theirs in ipaddress.ip_network(f"{ours}/{own.prefix_bits}", strict=False)
