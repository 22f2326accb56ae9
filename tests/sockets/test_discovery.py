"""mDNS on loopback, and which addresses a device has."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from zeroconf import ServiceStateChange

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from attackers.outsider import Announcer

from p2ptrain.errors import UserError
from p2ptrain.ids import GroupTag
from p2ptrain.net import discovery
from p2ptrain.net.discovery import Discovery
from p2ptrain.net.guard import shown
from p2ptrain.net.interfaces import InterfaceAddress, all_addresses, choose, kind_of, usable_addresses
from p2ptrain.wire.messages import WIRE_VERSION

LOOPBACK = ["127.0.0.1"]


def tag() -> GroupTag:
    """Of its own for each test: others on this host may be announcing too."""
    return GroupTag(os.urandom(8).hex())


async def until(done: Callable[[], bool], timeout_s: float = 100) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "timed out"
        await asyncio.sleep(0.02)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 300))  # type: ignore[arg-type]


def test_who_only_visits_finds_peers_and_is_not_found() -> None:
    async def test() -> None:
        group = tag()
        seen: dict[str, list[str]] = {"peer": [], "visitor": [], "later": []}
        peer = Discovery(group, 4715, LOOPBACK, seen["peer"].append)
        visitor = Discovery(group, 4725, LOOPBACK, seen["visitor"].append, announce=False)
        later = Discovery(group, 4735, LOOPBACK, seen["later"].append)
        for each in (peer, visitor):
            each.start()
        await until(lambda: bool(seen["visitor"]) and visitor.status.startswith("running"))
        later.start()
        await until(lambda: bool(seen["later"]) and bool(seen["peer"]))
        assert set(seen["peer"]) == {"tcp://127.0.0.1:4735"} and set(seen["later"]) == {"tcp://127.0.0.1:4715"}
        await asyncio.gather(peer.close(), visitor.close(), later.close())

    run(test)


def test_peers_of_a_group_find_each_other_and_not_another_group() -> None:
    async def test() -> None:
        ours, theirs = tag(), tag()
        seen: dict[str, list[str]] = {"a": [], "b": [], "c": []}
        a = Discovery(ours, 4711, LOOPBACK, seen["a"].append)
        b = Discovery(ours, 4721, LOOPBACK, seen["b"].append)
        c = Discovery(theirs, 4731, LOOPBACK, seen["c"].append)
        for each in (a, b, c):
            each.start()
            assert each.status == "starting", "it is not waited for"
        await until(lambda: bool(seen["a"] and seen["b"] and a.others and b.others and len(c.others) >= 1))
        await until(lambda: all(each.status.startswith("running on 127.0.0.1") for each in (a, b, c)))
        assert set(seen["a"]) == {"tcp://127.0.0.1:4721"}
        assert set(seen["b"]) == {"tcp://127.0.0.1:4711"}
        assert not seen["c"]
        assert any(group.startswith(theirs) for group in a.others)
        await asyncio.gather(a.close(), b.close(), c.close())

    run(test)


CHILD = """
import asyncio, sys
from p2ptrain.net.discovery import Discovery
async def main():
    each = Discovery(sys.argv[1], int(sys.argv[2]), ["127.0.0.1"], lambda address: print(address, flush=True))
    each.start()
    await asyncio.to_thread(sys.stdin.read)
    await each.close()
asyncio.run(main())
"""


def test_two_processes_of_one_host() -> None:
    ours = tag()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, ours, port], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for port in ("4741", "4751")
    ]
    found = [child.stdout.readline() for child in children if child.stdout is not None]  # none ends before both have
    rest = [child.communicate(timeout=200)[0] for child in children]
    assert [set(f"{line}{more}".split()) for line, more in zip(found, rest, strict=True)] == [
        {"tcp://127.0.0.1:4751"},
        {"tcp://127.0.0.1:4741"},
    ]


@pytest.mark.parametrize("interfaces", [["192.0.2.1"], []])
def test_what_does_not_work_is_a_status(interfaces: list[str]) -> None:
    async def test() -> None:
        each = Discovery(tag(), 4761, interfaces, lambda address: None)
        each.start()
        await until(lambda: each.status.startswith("failed"))
        assert "--peer" in each.status
        await each.close()
        assert each.status == "closed"

    run(test)


def test_what_zeroconf_raises_at_the_end_is_said_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever others have sent it: what it stumbles over while it closes is no error of ours to end with."""

    async def fails(*_: object) -> None:
        raise KeyError("a name that it has forgotten")

    async def test() -> None:
        said: list[str] = []
        each = Discovery(tag(), 4771, ["127.0.0.1"], lambda address: None, on_status=said.append)
        monkeypatch.setattr(discovery, "_stop", fails)
        each._zeroconf = object()  # type: ignore[assignment]
        await each.close()
        assert each.status == "closed"
        assert said == ["closed, and zeroconf failed at it: 'a name that it has forgotten'"]

    run(test)


def test_closing_at_once() -> None:
    async def test() -> None:
        each = Discovery(tag(), 4771, LOOPBACK, lambda address: None)
        await each.close()
        again = Discovery(tag(), 4771, LOOPBACK, lambda address: None)
        again.start()
        await asyncio.sleep(0.05)
        await again.close()

    run(test)


def announced(name: str, properties: dict[str, bytes | str], port: int = 4700) -> discovery.AsyncServiceInfo:
    hosts = [b"\x0a\x00\x00\x07", b"\xff" * 4, b"\x00" * 4, b"\xfe\x80" + bytes(13) + b"\x01"]
    return discovery.AsyncServiceInfo(
        discovery.SERVICE, f"{name}.{discovery.SERVICE}", addresses=hosts, port=port, properties=properties
    )


LAN = ["10.0.0.5", "fe80::5%lan0"]


@pytest.fixture
def in_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [InterfaceAddress("lan0", LAN[0], 24, "lan"), InterfaceAddress("lan0", LAN[1], 64, "link-local")]
    monkeypatch.setattr(discovery, "all_addresses", lambda: found)


@pytest.mark.usefixtures("in_a_network")
def test_odd_announcements() -> None:
    seen: list[str] = []
    each = Discovery(GroupTag("ours"), 4781, LAN, seen.append)
    each._announced(announced("good", {"g": "ours", "v": str(WIRE_VERSION)}))
    assert seen == ["tcp://10.0.0.7:4700", "tcp://[fe80::1]:4700"], "and none of another network"
    each._announced(announced("no port", {"g": "ours", "v": str(WIRE_VERSION)}, port=0))
    assert len(seen) == 2
    each._announced(announced("later", {"g": "ours", "v": str(WIRE_VERSION + 1)}))
    assert len(seen) == 4 and list(each.others) == [f"ours (wire version {WIRE_VERSION + 1})"]
    for number in range(200):
        each._announced(announced("x", {"g": b"\xff\x00\x1b[31m" + os.urandom(8), "v": str(number)}))
    each._announced(announced("empty", {}))
    assert len(each.others) == discovery.MAX_OTHERS and len(seen) == 4
    assert all(group.isprintable() for group in each.others)


@pytest.mark.usefixtures("in_a_network")
def test_who_is_shown_on_a_network_that_this_device_is_not_in_is_told_and_not_dialled() -> None:
    """As where a router passes announcements on between two networks."""
    seen: list[str] = []
    each = Discovery(GroupTag("ours"), 4781, LAN, seen.append)

    def shown(name: str, host: str, group: str = "ours") -> None:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
        properties: dict[str, bytes | str] = {"g": group, "v": str(WIRE_VERSION)}
        service = f"{name}.{discovery.SERVICE}"
        each._announced(
            discovery.AsyncServiceInfo(discovery.SERVICE, service, addresses=[packed], port=4700, properties=properties)
        )

    for name, host, group in (
        ("other", "10.0.1.9", "theirs"),
        ("alone", "127.0.0.1", "ours"),
        ("b", "10.0.0.7", "ours"),
    ):
        shown(name, host, group)
    assert each.elsewhere() == "" and seen == ["tcp://10.0.0.7:4700"]
    shown("c", "10.0.1.7")
    shown("c", "10.0.1.7")  # by another way
    assert "shows 10.0.1.7:4700, which is on no network of this device: --peer 10.0.1.7:4700" in each.elsewhere()
    shown("d", "2001:db8::7")
    assert "--peer [2001:db8::7]:4700" in each.elsewhere()
    for name in ("c", "d"):
        each._changed(None, discovery.SERVICE, f"{name}.{discovery.SERVICE}", ServiceStateChange.Removed)  # type: ignore[arg-type]
    assert each.elsewhere() == ""
    for number in range(1000):
        shown(f"n{number}", "10.0.1.7")
    assert len(each._elsewhere) <= discovery.MAX_SHOWN and len(seen) == 1
    shown("n999", "10.0.0.8")  # it has come into our network
    each.readdress(LAN)
    assert each.elsewhere() == ""


@pytest.mark.usefixtures("in_a_network")
def test_who_has_a_former_code_of_the_group_is_told_apart() -> None:
    seen: list[str] = []
    former: list[str] = []
    each = Discovery(GroupTag("now"), 4783, LAN, seen.append, former={GroupTag("then"): former.append})
    for group in ("now", "then", "other"):
        each._announced(announced(group, {"g": group, "v": str(WIRE_VERSION)}))
    assert seen == former == ["tcp://10.0.0.7:4700", "tcp://[fe80::1]:4700"]
    for number in range(1000):
        each._announced(announced(f"n{number}", {"g": "then", "v": "1"}, port=4000 + number))
    assert len(former) <= 2 * (shown.MAX_NEW_AT_ONCE + 20)


@pytest.mark.usefixtures("in_a_network")
def test_a_flood_of_announcements_is_dialled_at_a_rate() -> None:
    seen: list[str] = []
    each = Discovery(GroupTag("ours"), 4782, LAN, seen.append)
    for number in range(1000):
        each._announced(announced(f"n{number}", {"g": "ours", "v": str(WIRE_VERSION)}, port=4000 + number))
    assert len(seen) <= 2 * (shown.MAX_NEW_AT_ONCE + 20)
    assert len(each._shown) <= discovery.MAX_SHOWN


def test_all_that_were_announced_share_the_look_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who announces a thousand names that nobody answers for does not keep those that come later out for ever."""
    looked_up: list[str] = []

    async def look_up(self: Discovery, zeroconf: object, name: str) -> None:
        await asyncio.sleep(0)
        looked_up.append(name)

    monkeypatch.setattr(Discovery, "_look_up", look_up)

    async def test() -> None:
        each = Discovery(GroupTag("ours"), 4784, LOOPBACK, lambda address: None)
        each._zeroconf = SimpleNamespace(zeroconf=None)  # type: ignore[assignment]
        for number in range(discovery.MAX_LOOKUPS + discovery.MAX_WAITING // 2):
            each._changed(None, discovery.SERVICE, f"dead {number}", ServiceStateChange.Added)  # type: ignore[arg-type]
        each._changed(None, discovery.SERVICE, "good", ServiceStateChange.Added)  # type: ignore[arg-type]
        assert len(each._lookups) == discovery.MAX_LOOKUPS
        await until(lambda: "good" in looked_up)
        await until(lambda: not each._lookups)
        for number in range(5000):
            each._changed(None, discovery.SERVICE, f"more {number}", ServiceStateChange.Added)  # type: ignore[arg-type]
        assert len(each._waiting) <= discovery.MAX_WAITING
        each._zeroconf = None
        await until(lambda: not each._lookups)

    run(test)


def test_names_without_end_are_forgotten_and_a_peer_is_found_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "MAX_HEARD", 100)

    async def test() -> None:
        ours, seen = tag(), list[str]()
        each = Discovery(ours, 4788, LOOPBACK, seen.append)
        other = Discovery(ours, 4789, LOOPBACK, lambda address: None)
        flood = Announcer(ours, random.Random(1))
        each.start()
        await until(lambda: each._browser is not None and each.status.startswith("running"))
        first = each._browser

        def begun_anew() -> bool:
            flood.announce(2)
            return each._browser not in (None, first)

        await until(begun_anew)
        assert each._num_heard <= discovery.MAX_HEARD
        flood.close()
        other.start()
        await until(lambda: "tcp://127.0.0.1:4789" in seen)
        await asyncio.gather(each.close(), other.close())

    run(test)


def test_a_device_without_an_address_is_found_once_it_has_one() -> None:
    async def test() -> None:
        group = tag()
        seen: dict[str, list[str]] = {"late": [], "other": []}
        said: list[str] = []
        late = Discovery(group, 4785, [], seen["late"].append, on_status=said.append)
        other = Discovery(group, 4787, LOOPBACK, seen["other"].append)
        late.start()
        other.start()
        await until(lambda: late.failed and other.status.startswith("running"))
        late.readdress(LOOPBACK)
        await until(lambda: bool(seen["late"]) and bool(seen["other"]))
        assert not late.failed and [text.partition(" ")[0] for text in said] == ["failed", "running"]
        seen["other"].clear()
        late.ask_again()  # a new question, and a new announcement
        await until(lambda: bool(seen["other"]))
        await asyncio.gather(late.close(), other.close())

    run(test)


# --- interfaces -------------------------------------------------------------------------------------------------------

LO = InterfaceAddress("lo", "127.0.0.1", 8, "loopback")
ETH = InterfaceAddress("eth0", "192.168.1.7", 24, "lan")
ETH6 = InterfaceAddress("eth0", "2001:db8::7", 64, "lan")
DOCKER = InterfaceAddress("docker0", "172.17.0.1", 16, "bridge")


def test_choosing() -> None:
    there = [ETH, ETH6, DOCKER, LO]
    assert choose(there) == [ETH, ETH6, DOCKER]
    assert choose(there, loopback=True) == there
    assert choose([LO]) == [LO], "loopback is better than nothing"
    assert choose(there, ["eth0"]) == [ETH, ETH6]
    assert choose(there, ["192.168.1.7", "lo"]) == [ETH, LO]
    with pytest.raises(UserError, match=r"'wlan0'.*eth0 \(192.168.1.7\)"):
        choose(there, ["wlan0"])
    with pytest.raises(UserError, match="none"):
        choose([], ["eth0"])


@pytest.mark.parametrize(
    ("interface", "address", "kind"),
    [
        ("eth0", "192.168.1.7", "lan"),
        ("wlp3s0", "2001:db8::7", "lan"),
        ("eth0", "169.254.3.4", "link-local"),
        ("docker0", "172.17.0.1", "bridge"),
        ("br-0a1b2c3d4e5f", "172.18.0.1", "bridge"),
        ("br-lan", "192.168.1.1", "lan"),
        ("veth12ab", "10.0.0.1", "bridge"),
        ("tailscale0", "fd7a::1", "overlay"),
        ("utun3", "100.101.102.103", "overlay"),
        ("awdl0", "fe80::1", "overlay"),
        ("wg0", "10.8.0.2", "overlay"),
        ("tun0", "10.9.0.2", "overlay"),
        ("lo", "::1", "loopback"),
    ],
)
def test_kinds(interface: str, address: str, kind: str) -> None:
    assert kind_of(interface, address) == kind


def test_this_device() -> None:
    assert LO in all_addresses()
    assert usable_addresses(["127.0.0.1"]) == [LO]
    assert usable_addresses()


@pytest.mark.parametrize(("num_v4", "num_v6", "hinted"), [(12, 12, False), (20, 0, True)])
def test_the_limit_of_memberships_is_blamed_only_where_it_counts(
    num_v4: int, num_v6: int, hinted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of IPv4 alone."""
    works = [f"10.0.{n}.1" for n in range(num_v4)] + [f"fd00::{n + 1:x}" for n in range(num_v6)]
    asking = Discovery(tag(), 4715, [*works, "10.1.0.1"], lambda address: None, announce=False)
    engine = SimpleNamespace(senders=[SimpleNamespace(sock_name=(each,)) for each in works])

    async def opened() -> SimpleNamespace:
        return SimpleNamespace(zeroconf=SimpleNamespace(engine=engine))

    monkeypatch.setattr(asking, "_opened", opened)
    monkeypatch.setattr(discovery, "AsyncServiceBrowser", lambda *_, **__: None)
    working, lacking = asyncio.run(asking._ask())
    assert working == works and lacking.startswith("can't be used on 10.1.0.1 for now")
    assert ("sysctl" in lacking) == hinted
