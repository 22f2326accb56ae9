"""Addresses that mDNS shows: of whom they may be, and how many."""

from __future__ import annotations

import pytest

from p2ptrain.net.guard.shown import MAX_NEW_AT_ONCE, NEW_PER_S, Allowance, near
from p2ptrain.net.interfaces import InterfaceAddress

LAN = InterfaceAddress("eth0", "192.168.1.7", 24, "lan")
V6 = InterfaceAddress("eth0", "2001:db8:1:2::7", 64, "lan")
LINK = InterfaceAddress("eth0", "fe80::7%eth0", 64, "link-local")
LOOPBACK = InterfaceAddress("lo", "127.0.0.1", 8, "loopback")
UNKNOWN = InterfaceAddress("?", "10.1.2.3", 0, "lan")
ALL = [LAN, V6, LINK, LOOPBACK]


@pytest.mark.parametrize(
    ("host", "is_near"),
    [
        ("192.168.1.20", True),
        ("192.168.2.20", False),
        ("8.8.8.8", False),
        ("127.0.0.1", False),
        ("127.0.0.53", False),
        ("2001:db8:1:2::99", True),
        ("2001:db8:1:3::99", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("fe80::1234", True),
    ],
)
def test_what_is_on_no_network_of_ours_is_not_dialled(host: str, is_near: bool) -> None:
    own = [each.address for each in (LAN, V6, LINK)]
    assert near([host], own, ALL) == ([host] if is_near else [])


def test_this_device_is_dialled_where_it_was_asked_for() -> None:
    assert near(["127.0.0.1", "192.168.1.20"], ["127.0.0.1"], ALL) == ["127.0.0.1"]


def test_where_the_system_does_not_say_what_a_network_is_all_others_may_be_on_it() -> None:
    assert near(["192.168.9.9", "127.0.0.1"], ["10.1.2.3"], [UNKNOWN, LOOPBACK]) == ["192.168.9.9"]


def test_new_addresses_are_dialled_at_a_rate() -> None:
    allowance = Allowance(0.0)
    assert sum(allowance.take(0.0) for _ in range(1000)) == MAX_NEW_AT_ONCE
    taken = sum(allowance.take(step / 100) for step in range(1, 1001))
    assert abs(taken - 10 * NEW_PER_S) <= 1
