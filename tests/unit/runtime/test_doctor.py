"""The doctor: each way in which two devices can fail to meet is told from the others, on loopback."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from p2ptrain.net.interfaces import InterfaceAddress
from p2ptrain.net.keys import Group, new_group, new_identity
from p2ptrain.net.transport import Transport
from p2ptrain.runtime import doctor
from p2ptrain.runtime.doctor import Finding, check_peers, try_address
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
    findings = [*doctor.check_clock(0.0), *doctor.check_interfaces([LOOPBACK], [])]
    findings += [doctor.explain("tcp://1.2.3.4:5", outcome, ["tcp://1.2.3.5:6"]) for outcome in doctor.Reach.__args__]
    assert all(finding.advice for finding in findings if finding.level == "problem")


def test_a_clock_that_was_never_set_and_one_that_is_ahead() -> None:
    assert "1970" in texts(doctor.check_clock(0.0))
    assert doctor.check_clock(1_800_000_000.0)[0].level == "fine"
    ahead = int((time.time() + 600) * 1000)
    assert "clock of desk is at least" in texts(doctor._clock_of("desk", ahead))
    assert doctor._clock_of("desk", int(time.time() * 1000)) == []


def test_interfaces_say_what_is_advertised_and_why_not_the_rest() -> None:
    told = texts(doctor.check_interfaces([LAN, OVERLAY, BRIDGE, LOOPBACK], [LAN, OVERLAY, BRIDGE]), "fine")
    assert "advertised: eth0 192.168.1.5" in told
    assert "a VPN: multicast does not pass it" in told and "others outside can't reach it" in told
    assert "not advertised (loopback is left out" in told
    assert "--network host" in texts(doctor.check_interfaces([BRIDGE, LOOPBACK], [BRIDGE]), "hint")


def test_ports_that_are_taken() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = min(busy.getsockname()[1], 65534)
        assert f"port {port}" in texts(doctor.check_ports(port, [LOOPBACK]))
    assert doctor.check_ports(0, [LOOPBACK])[0].level == "fine"


@pytest.mark.parametrize(
    ("system", "path", "content", "said"),
    [
        ("linux", "etc/ufw/ufw.conf", "ENABLED=yes\n", "ufw allow"),
        ("linux", "etc/ufw/ufw.conf", "ENABLED=no\n", "neither"),
        ("linux", "run/firewalld/x", "", "firewall-cmd"),
        ("darwin", "x", "", "System Settings"),
        ("win32", "x", "", "private"),
    ],
)
def test_firewall_hints_by_platform(system: str, path: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(content)
    (finding,) = doctor.check_firewall(system, tmp_path)
    assert said in finding.text + finding.advice


def test_multicast_never_raises() -> None:
    assert doctor.multicast_echo("203.0.113.77")[0] is False  # no address of ours
    came_back, _, why = doctor.multicast_echo("127.0.0.1")
    assert came_back or why


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


def test_peers_that_answer_hold_another_code_or_cannot_reach_us(tmp_path: Path) -> None:
    async def scenario() -> tuple[str, str, str]:
        group, other = new_group(), new_group()
        node = ObserverNode(group, network(), tmp_path)
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
    assert "answers at tcp://127.0.0.1" in met
    assert "not with this code" in locked and "p2ptrain group show" in locked
    assert "can't reach us" in one_way and "firewall" in one_way


def test_nobody_there_and_an_unknown_name() -> None:
    alone = asyncio.run(check_peers(new_group(), network(), 0.2))
    assert "no peer of this group was found" in texts(alone)
    unknown = asyncio.run(check_peers(new_group(), network("no-such-host.invalid:5710"), 0.2))
    assert "the name is unknown" in texts(unknown)


def test_another_wire_version_is_told_with_both_numbers(tmp_path: Path) -> None:
    from p2ptrain.protocol.machine import Note

    async def scenario() -> str:
        node = ObserverNode(new_group(), network(), tmp_path)
        await node.start()
        try:
            node.note(Note("refused-us", (("peer", "p" * 16), ("reason", "old"), ("ours", 1), ("theirs", 7))))
            return texts(doctor._other_versions(node))
        finally:
            await node.close()

    told = asyncio.run(scenario())
    assert "speaks wire version 7, this device 1" in told and "install the same" in told
