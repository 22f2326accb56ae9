"""The doctor: each way in which two devices can fail to meet is told from the others, on loopback."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import get_args

import pytest

from p2ptrain.net.interfaces import ANY, InterfaceAddress, listening_hosts
from p2ptrain.net.keys import Group, new_group, new_identity
from p2ptrain.net.transport import Transport
from p2ptrain.net.ways import path
from p2ptrain.runtime.doctor import device, peers
from p2ptrain.runtime.doctor.examine import verdict
from p2ptrain.runtime.doctor.findings import Finding
from p2ptrain.runtime.doctor.multicast import Echo, check_multicast, explain_echo, multicast_echo
from p2ptrain.runtime.doctor.peers import Reach, check_peers, explain, try_address
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.observer_node import ObserverNode

LAN = InterfaceAddress("eth0", "192.168.1.5", 24, "lan")
LOOPBACK = InterfaceAddress("lo", "127.0.0.1", 8, "loopback")
OVERLAY = InterfaceAddress("tailscale0", "100.64.1.2", 32, "overlay")
BRIDGE = InterfaceAddress("docker0", "172.17.0.1", 16, "bridge")


def network(*peers: str) -> NetworkConfig:
    return NetworkConfig(interfaces=("127.0.0.1",), peers=peers, discover=False)


def texts(findings: list[Finding], level: str = "problem") -> str:
    return "\n".join(f"{f.text} -> {f.advice}" for f in findings if f.level == level)


def listening(group: Group) -> Transport:
    async def ignore(lane: str, key: bytes, frames: list[bytes]) -> None:
        return

    return Transport(new_identity(), group, ignore, ("127.0.0.1",))


def test_every_problem_says_what_to_do() -> None:
    findings = [*device.check_clock(0.0), *device.check_interfaces([LOOPBACK], [])]
    findings += [explain("tcp://1.2.3.4:5", outcome, ["tcp://1.2.3.5:6"]) for outcome in get_args(Reach)]
    assert all(finding.advice for finding in findings if finding.level == "problem")


def test_a_clock_that_was_never_set_and_one_that_is_ahead() -> None:
    assert "1970" in texts(device.check_clock(0.0))
    assert device.check_clock(1_800_000_000.0)[0].level == "fine"
    ahead = int((time.time() + 600) * 1000)
    assert "clock of desk is, or once was, at least" in texts(peers._clock_of("desk", ahead))
    assert peers._clock_of("desk", int(time.time() * 1000)) == []


def test_interfaces_say_what_is_advertised_and_why_not_the_rest() -> None:
    told = texts(device.check_interfaces([LAN, OVERLAY, BRIDGE, LOOPBACK], [LAN, OVERLAY, BRIDGE]), "fine")
    assert "advertised: eth0 192.168.1.5" in told
    assert "a VPN or the like: most don't pass multicast" in told and "others mostly can't reach" in told
    assert "not advertised (loopback is left out" in told
    assert "--network host" in texts(device.check_interfaces([BRIDGE, LOOPBACK], [BRIDGE]), "hint")


def test_ports_that_are_taken() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = min(busy.getsockname()[1], 65534)
        assert f"127.0.0.1, port {port}" in texts(device.check_ports(port, ["127.0.0.1"]))
        told = texts(device.check_ports(port, listening_hosts()))  # a peer listens on all addresses, on this one too
        assert f"can't listen on this device, port {port} (Address already in use)" in told
    assert device.check_ports(0, ["127.0.0.1", ANY])[0].level == "fine"


@pytest.mark.parametrize(
    ("system", "path", "content", "said"),
    [
        ("linux", "etc/ufw/ufw.conf", "ENABLED=yes\n", "ufw allow"),
        ("linux", "etc/ufw/ufw.conf", "ENABLED=yes # since the move\n", "ufw allow"),
        ("linux", "etc/ufw/ufw.conf", "ENABLED=no\n", "ufw is switched off by its settings"),
        ("linux", "etc/hosts", "", "no sign of ufw or firewalld"),
        ("linux", "run/firewalld/x", "", "firewall-cmd"),
        ("darwin", "x", "", "Local Network"),
        ("win32", "x", "", "private"),
    ],
)
def test_firewall_hints_by_platform(system: str, path: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(content)
    (finding,) = device.check_firewall(system, tmp_path)
    assert said in finding.text + finding.advice


def test_multicast_never_raises() -> None:
    away = multicast_echo(InterfaceAddress("eth9", "203.0.113.77", 24, "lan"), [])
    assert not away.came_back and not away.others and away.why  # no address of ours
    v6 = multicast_echo(InterfaceAddress("eth9", "fe80::7%eth9", 64, "link-local"), [])
    assert not v6.came_back and v6.why
    here = multicast_echo(LOOPBACK, ["127.0.0.1"])
    assert not here.others, "our own words are nobody else's"


def test_an_echo_of_our_own_proves_nothing_about_others() -> None:
    itself = explain_echo(LAN, Echo(True))
    assert itself.level == "hint" and not itself.proved and "was not proved" in itself.text
    heard = explain_echo(LAN, Echo(True, frozenset({"192.168.1.9"})))
    assert heard.level == "fine" and heard.proved and "heard words from 1 other address on eth0" in heard.text
    nothing = explain_echo(LAN, Echo(False))
    assert nothing.level == "problem" and "was not heard there" in nothing.text
    held = explain_echo(LAN, Echo(False, why="Address already in use"))
    assert "stop the program that holds UDP port 5353" in held.advice
    assert asyncio.run(check_multicast([], []))[0].level == "hint"


def test_the_last_sentence_says_no_more_than_was_seen() -> None:
    fine = Finding("fine", "ports", "can listen")
    assert "was not proved" in verdict([fine])
    assert "was not proved" in verdict(
        [fine, Finding("fine", "peers", "a (x) answers at this device's own 10.0.0.1:5")]
    )
    heard = Finding("fine", "multicast", "heard 1 other device", proved=True)
    assert "was not proved" in verdict([heard]), "that somebody speaks is no meeting"
    met = Finding("fine", "peers", "a (x) answers at 10.0.0.2:5", proved=True)
    assert verdict([fine, met]) == "all is fine: this device and another one met"
    assert verdict([met, peers.large_lost("large ones get lost")]).startswith("something is wrong")


def test_link_local_addresses_of_ipv6_need_no_dhcp_server() -> None:
    own = InterfaceAddress("eth0", "fe80::7%eth0", 64, "link-local")
    told = texts(device.check_interfaces([own], [own]), "fine")
    assert "on the same cable or Wi-Fi" in told and "DHCP" not in told


def test_more_addresses_than_others_are_told() -> None:
    many = [InterfaceAddress("eth0", f"10.0.0.{n}", 24, "lan") for n in range(20)]
    told = texts(device.check_interfaces(many, many), "fine")
    assert told.count("advertised: ") == 16 and told.count("not advertised (only the first 16 are)") == 4


def test_a_firewall_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc/ufw").mkdir(parents=True)
    (tmp_path / "etc/ufw/ufw.conf").write_text("ENABLED=yes")
    monkeypatch.setattr(device.os, "access", lambda path, how: False)
    (finding,) = device.check_firewall("linux", tmp_path)
    assert finding.level == "hint" and "needs root to see" in finding.text


def test_a_peer_that_hangs_is_not_called_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "CONNECT_S", 0.3)

    async def scenario() -> tuple[str, str]:
        with socket.socket() as hung:
            hung.bind(("127.0.0.1", 0))
            hung.listen()  # the system takes connections, and nobody reads them
            mute = await try_address(f"tcp://127.0.0.1:{hung.getsockname()[1]}", new_group())
        return mute, await try_address("tcp://no-address", new_group())

    assert asyncio.run(scenario()) == ("mute", "unreachable")


def test_a_handshake_that_takes_long_is_no_other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "HANDSHAKE_S", 0.3)

    async def greet_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(path.GREETING[:32] + b"\x01" + bytes(31))
        await reader.read()

    async def scenario() -> str:
        slow = await asyncio.start_server(greet_only, "127.0.0.1", 0)
        try:
            return await try_address(f"tcp://127.0.0.1:{slow.sockets[0].getsockname()[1]}", new_group())
        finally:
            slow.close()

    assert asyncio.run(scenario()) == "unfinished"


def test_a_peer_of_this_group_with_another_version_is_no_other_group() -> None:
    group = new_group()
    same = peers._another_group(f"{group.tag} (wire version 99)", ["tcp://10.0.0.2:5"], group)
    assert same.level == "problem" and "announces another wire version 99" in same.text
    assert peers._another_group("abc (wire version 4)", ["tcp://10.0.0.2:5"], group).level == "hint"


def test_how_far_a_connection_gets() -> None:
    async def scenario() -> dict[str, str]:
        group = new_group()
        ours, theirs = listening(group), listening(new_group())
        await ours.start()
        await theirs.start()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-server\r\n" + b"." * 60)
            await writer.drain()
            writer.close()

        web = await asyncio.start_server(talk, "127.0.0.1", 0)
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            free = closed.getsockname()[1]
        ports = {"ours": ours.port, "theirs": theirs.port, "web": web.sockets[0].getsockname()[1], "free": free}
        try:
            return {name: await try_address(f"tcp://127.0.0.1:{port}", group) for name, port in ports.items()}
        finally:
            web.close()
            await ours.close()
            await theirs.close()

    assert asyncio.run(scenario()) == {"ours": "open", "theirs": "locked", "web": "other", "free": "refused"}


def test_peers_that_answer_hold_another_code_or_cannot_reach_us() -> None:
    async def scenario() -> tuple[str, str, str]:
        group, other = new_group(), new_group()
        node = ObserverNode(group, network())
        deaf = listening(group)  # takes connections, and never answers a Hello: as if it could not reach us
        await node.start()
        await deaf.start()
        try:
            here = f"127.0.0.1:{node.transport.port}"
            met = await check_peers(group, network(here), 1.5)
            locked = await check_peers(other, network(here), 0.5)
            one_way = await check_peers(group, network(f"127.0.0.1:{deaf.port}"), 0.5)
            return texts(met, "fine"), texts(locked), texts(one_way)
        finally:
            await node.close()
            await deaf.close()

    met, locked, one_way = asyncio.run(scenario())
    assert "answers at this device's own 127.0.0.1" in met
    assert "not to this one" in locked and "p2ptrain group show" in locked
    assert "it may not reach us" in one_way and "firewall" in one_way


def test_nobody_there_and_an_unknown_name() -> None:
    alone = asyncio.run(check_peers(new_group(), network(), 0.2))
    assert "no peer of this group was found" in texts(alone)
    unknown = asyncio.run(check_peers(new_group(), network("no-such-host.invalid:5710"), 0.2))
    assert "--peer no-such-host.invalid:5710" in texts(unknown) and "check its spelling" in unknown[0].advice


def test_another_wire_version_is_told_with_both_numbers() -> None:
    from p2ptrain.protocol.machine import Note

    async def scenario() -> str:
        node = ObserverNode(new_group(), network())
        await node.start()
        try:
            node.note(Note("refused-us", (("peer", "p" * 16), ("reason", "old"), ("ours", 1), ("theirs", 7))))
            return texts(peers._other_versions(node))
        finally:
            await node.close()

    told = asyncio.run(scenario())
    assert "speaks wire version 7, this device 1" in told and "install the same" in told
