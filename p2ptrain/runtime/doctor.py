"""Why two devices don't meet: looks at this device, its network and the peers, and says what to do.

Invariant: changes nothing, ends within its time, and every finding that is a problem says what to do about it. Nothing
is read from a stranger beyond the 64 bytes with which ZeroMQ greets.

An address of a peer is tried in steps, and the first that fails is the finding: name -> TCP -> ZeroMQ with CURVE ->
the group's key -> the answer of the peer's node. The last needs the peer to reach us, which is how "it answers us but
can't reach us" is told from "nothing answers".
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import platform
import secrets
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from p2ptrain.errors import UserError
from p2ptrain.net.discovery import resolve
from p2ptrain.net.interfaces import InterfaceAddress, all_addresses, choose
from p2ptrain.net.keys import Group, new_identity
from p2ptrain.runtime.node.node import NetworkConfig, parse_endpoint
from p2ptrain.runtime.node.observer_node import ObserverNode
from p2ptrain.version import __version__
from p2ptrain.wire.addresses import split_address
from p2ptrain.wire.messages import WIRE_VERSION

Level = Literal["fine", "hint", "problem"]
Reach = Literal["refused", "silent", "other", "strange", "locked", "open"]
"""Of an address: nothing listens; no answer; not ZeroMQ; ZeroMQ without CURVE; another code; our group's key works."""

MDNS = ("224.0.0.251", 5353)
ECHO_S = 1.0
CONNECT_S = 2.0
HANDSHAKE_S = 3.0
CLOCK_TOLERANCE_S = 120.0
OLDEST_CLOCK = 1_735_689_600  # 2025: a clock before that was never set
GREETING = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x01CURVE" + bytes(15) + b"\x00" + bytes(31)
"""ZMTP 3.1: signature, version, mechanism, not as a server."""


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    area: str
    text: str
    advice: str = ""


def problem(area: str, text: str, advice: str) -> Finding:
    return Finding("problem", area, text, advice)


async def examine(group: Group | None, network: NetworkConfig, wait_s: float) -> list[Finding]:
    """Everything. Without a group, only this device. Raises ``UserError`` for a wrong option."""
    findings = [*check_versions(), *check_clock()]
    addresses = all_addresses()
    chosen = choose(addresses, network.interfaces)
    findings += check_interfaces(addresses, chosen)
    if network.discover:
        findings += await check_multicast(chosen)
    findings += check_ports(network.port, chosen)
    findings += check_firewall()
    if group is None:
        text = "no join code given, and none kept on this device: no peers were looked for"
        return [*findings, Finding("hint", "peers", text, "give one with --code")]
    return findings + await check_peers(group, network, wait_s)


# --- this device ------------------------------------------------------------------------------------------------------


def check_versions() -> list[Finding]:
    versions = [f"Python {platform.python_version()}", f"libzmq {zmq.zmq_version()}"]
    for package in ("torch", "zeroconf"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            advice = f"run: pip install {package}"
            return [problem("versions", f"the package {package} is not installed", advice)]
    text = f"p2ptrain {__version__}, wire version {WIRE_VERSION}, {', '.join(versions)}, {platform.platform()}"
    found = [Finding("fine", "versions", text)]
    if not zmq.has("curve"):
        found.append(
            problem("versions", "libzmq was built without CURVE", "install pyzmq from PyPI: pip install pyzmq")
        )
    return found


def check_clock(now: float | None = None) -> list[Finding]:
    now = time.time() if now is None else now
    if now >= OLDEST_CLOCK:
        return [Finding("fine", "clock", time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(now)))]
    date = time.strftime("%Y-%m-%d", time.localtime(now))
    return [problem("clock", f"this device believes it is {date}", "set its clock, for example with NTP (timedatectl)")]


def check_interfaces(addresses: Sequence[InterfaceAddress], chosen: Sequence[InterfaceAddress]) -> list[Finding]:
    """Which addresses others are told, and why not the rest."""
    remarks = {
        "lan": "",
        "link-local": " (link-local: no DHCP server answered; works only with devices that have such an address too)",
        "overlay": " (a VPN: multicast does not pass it, so name peers there with --peer HOST:PORT)",
        "bridge": " (of containers or virtual machines on this device: others outside can't reach it)",
        "loopback": " (reaches only this device)",
    }
    found = []
    for each in addresses:
        place = f"{each.interface} {each.address}{remarks[each.kind]}"
        if each in chosen:
            found.append(Finding("fine", "interfaces", f"advertised: {place}"))
        else:
            left_out = each.kind == "loopback" and not any(other.kind == "loopback" for other in chosen)
            why = "loopback is left out where there is anything else" if left_out else "not chosen"
            found.append(Finding("fine", "interfaces", f"not advertised ({why}): {place}"))
    kinds = {each.kind for each in chosen}
    inside = next((p for p in ("/.dockerenv", "/run/.containerenv") if os.path.exists(p)), "")
    if not kinds - {"loopback"}:
        advice = (
            "connect it to the network of the others" if len(addresses) == len(chosen) else "choose another --interface"
        )
        level: Level = "problem" if not any(each.kind == "loopback" for each in chosen) else "hint"
        found.append(Finding(level, "interfaces", "only peers on this very device can be met", advice))
    elif not kinds - {"loopback", "bridge"} or inside:
        text = "this seems to be a container: others can't reach its addresses unless it shares the host's network"
        found.append(Finding("hint", "interfaces", text, "start the container with --network host"))
    if "microsoft" in _read("/proc/version").lower():
        text = "this is WSL, whose network is by default behind the address of Windows"
        found.append(Finding("hint", "interfaces", text, "set networkingMode=mirrored in .wslconfig"))
    return found


def check_ports(port: int, chosen: Sequence[InterfaceAddress]) -> list[Finding]:
    """Whether a peer could listen: two ports, on every chosen address."""
    for wanted in (port, port + 1) if port else (0, 0):
        for each in chosen:
            family = socket.AF_INET6 if each.is_v6 else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    sock.bind((each.address, wanted))
                except OSError as error:
                    text = f"can't listen on {each.address}, port {wanted or 'any'} ({error.strerror})"
                    advice = (
                        "if a peer of yours runs there, fine; else choose another --port (it and the next are used)"
                    )
                    return [problem("ports", text, advice)]
    return [Finding("fine", "ports", f"can listen on {f'{port} and {port + 1}' if port else 'any free port'}")]


def check_firewall(system: str = sys.platform, root: Path = Path("/")) -> list[Finding]:
    """What can be seen of a firewall without rights, and how to open it."""
    need = "UDP 5353 (mDNS) and the peer's two TCP ports must be let in; fix the latter with --port 5710"
    if system == "darwin":
        text = f"macOS may block programs that listen; {need}"
        return [Finding("hint", "firewall", text, "allow Python in System Settings, Network, Firewall")]
    if system == "win32":
        text = f"the Windows firewall blocks programs in networks marked public; {need}"
        return [Finding("hint", "firewall", text, "mark the network as private, and allow Python when Windows asks")]
    if "enabled=yes" in _read(root / "etc/ufw/ufw.conf").lower().replace(" ", ""):
        advice = "run: sudo ufw allow 5353/udp && sudo ufw allow 5710:5711/tcp"
        return [Finding("hint", "firewall", f"ufw is switched on; {need}", advice)]
    if (root / "run/firewalld").exists():
        advice = "run: sudo firewall-cmd --add-service=mdns --add-port=5710-5711/tcp"
        return [Finding("hint", "firewall", f"firewalld is running; {need}", advice)]
    return [Finding("fine", "firewall", "neither ufw nor firewalld is switched on here (other rules need root to see)")]


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# --- multicast --------------------------------------------------------------------------------------------------------


async def check_multicast(chosen: Sequence[InterfaceAddress]) -> list[Finding]:
    """A question to mDNS goes out on every IPv4 address; does it come back, and does anybody else speak?"""
    v4 = [each for each in chosen if not each.is_v6]
    if not v4:
        text = "no IPv4 address is used: discovery by mDNS was not tried"
        return [Finding("hint", "multicast", text, "name peers with --peer HOST:PORT if they are not found")]
    echoes = await asyncio.gather(*(asyncio.to_thread(multicast_echo, each.address) for each in v4))
    found = []
    for each, (came_back, others, why) in zip(v4, echoes, strict=True):
        place = f"{each.interface} {each.address}"
        if came_back:
            heard = f"; heard from {others} other device{'s' if others != 1 else ''} there" if others else ""
            found.append(Finding("fine", "multicast", f"works on {place}{heard}"))
        else:
            level: Level = "hint" if each.kind in ("loopback", "overlay", "bridge") else "problem"
            text = f"does not work on {place} ({why}): peers there won't be found by themselves"
            advice = "let UDP 5353 through the firewall, switch off 'client isolation' in the router, or use --peer"
            found.append(Finding(level, "multicast", text, advice))
    return found


def multicast_echo(address: str) -> tuple[bool, int, str]:
    """Whether our own mDNS question came back, how many others spoke meanwhile, and why not."""
    question = secrets.token_bytes(2) + struct.pack(">5H", 0, 1, 0, 0, 0) + _dns_name("_p2ptrain._tcp.local")
    question += struct.pack(">2H", 12, 1)  # PTR, IN
    others: set[str] = set()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "SO_REUSEPORT"):
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(("", MDNS[1]))
            own = socket.inet_aton(address)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(MDNS[0]) + own)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
            sock.sendto(question, MDNS)
            came_back, end = False, time.monotonic() + ECHO_S
            while (left := end - time.monotonic()) > 0:
                sock.settimeout(left)
                data, sender = sock.recvfrom(9000)
                came_back = came_back or data == question
                if sender[0] != address:
                    others.add(sender[0])
            return came_back, len(others), "no echo"
    except TimeoutError:
        return came_back, len(others), "no echo"
    except OSError as error:
        return False, 0, error.strerror or str(error)


def _dns_name(name: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"


# --- peers ------------------------------------------------------------------------------------------------------------


async def check_peers(group: Group, network: NetworkConfig, wait_s: float) -> list[Finding]:
    """Look for peers of the group, and find out about every address that leads to nobody."""
    given = {text: await resolve(*parse_endpoint(text)) for text in network.peers}
    found = [
        problem("peers", f"--peer {text}: the name is unknown", "check its spelling, or give the IP address")
        for text, addresses in given.items()
        if not addresses
    ]
    with tempfile.TemporaryDirectory(prefix="p2ptrain-") as directory:
        node = ObserverNode(group, network, Path(directory))
        try:
            await node.start()
            with contextlib.suppress(UserError):
                await node.look_around(wait_s)
            found += await _about_peers(node, group, given)
        finally:
            await node.close()
    return found


async def _about_peers(node: ObserverNode, group: Group, given: dict[str, list[str]]) -> list[Finding]:
    observer, found = node.observer, []
    mdns = node.discovery.status if node.discovery else "switched off by --no-discovery"
    if mdns.startswith("failed"):
        found.append(problem("peers", f"discovery by mDNS {mdns}", "name peers with --peer HOST:PORT"))
    reached = {address for p in observer.sessions.peers() if (address := observer.sessions.address_of(p))}
    for peer in observer.sessions.peers():
        record = observer.records.get(peer)
        name = record.name if record else "a peer"
        found.append(Finding("fine", "peers", f"{name} ({peer}) answers at {observer.sessions.address_of(peer)}"))
        found += _clock_of(name, record.version if record else 0)
    versions = _other_versions(node)
    found += versions
    named = {address for addresses in given.values() for address in addresses}
    addresses = dict.fromkeys([*sorted(named), *(each.address for each in observer.sessions.unanswered())])
    met_otherwise = {a for r in observer.records.values() if r.peer in observer.sessions.peers() for a in r.addresses}
    tried = [a for a in addresses if a not in reached and (a in named or a not in met_otherwise)][:16]
    outcomes = await asyncio.gather(*(try_address(address, group) for address in tried))
    for address, outcome in zip(tried, outcomes, strict=True):
        if not (outcome == "open" and (versions or address in met_otherwise)):
            found.append(explain(address, outcome, node.addresses()))
    others = node.discovery.others if node.discovery else {}
    for label, places in list(others.items())[:8]:
        text = f"another group announces itself: {label}, at {' '.join(places[:2])}"
        found.append(
            Finding("hint", "peers", text, "if that is a device of yours, its code differs: give it this one's")
        )
    if not observer.sessions.peers() and not any(f.level == "problem" for f in found):
        text = f"no peer of this group was found (mDNS: {mdns})"
        advice = "is one running, with this very code? then start `p2ptrain doctor` there too, or name it with --peer"
        found.append(problem("peers", text, advice))
    return found


def _other_versions(node: ObserverNode) -> list[Finding]:
    """Peers of the group that speak another wire version said so, or were turned away for it."""
    found = {}
    for line in node.journal.tail():
        if line.kind in ("other-version", "refused-us"):
            ours, theirs = line.fields.get("ours"), line.fields.get("theirs")
            text = f"{line.fields.get('peer')} speaks wire version {theirs}, this device {ours}"
            found[text] = problem("peers", text, "install the same p2ptrain on both, the newer one")
        elif line.kind == "one-way":
            text = f"{line.fields.get('peer')} reaches us, but we can't reach it at {line.fields.get('addresses')}"
            found[text] = problem("peers", text, "open its firewall for its TCP ports, or start it with --interface")
    return list(found.values())


def _clock_of(name: str, version_ms: int) -> list[Finding]:
    """A record's version starts from its peer's clock, in milliseconds: it can't lie in our future."""
    ahead_s = version_ms / 1000 - time.time()
    if ahead_s < CLOCK_TOLERANCE_S:
        return []
    text = f"the clock of {name} is at least {ahead_s:.0f} s ahead of this device's"
    return [problem("clock", text, "set both clocks, for example with NTP; journals of the two don't fit else")]


def explain(address: str, outcome: Reach, own: Sequence[str]) -> Finding:
    """What it means that ``address`` led to nobody."""
    where = address.removeprefix("tcp://")
    if outcome == "refused":
        return problem(
            "peers", f"{where}: the device is there, but nothing listens", "is the peer running? with this --port?"
        )
    if outcome == "silent":
        advice = "is the address right, and the device in this network? does its firewall let the port in?"
        return problem("peers", f"{where}: nothing answers", advice)
    if outcome in ("other", "strange"):
        return problem("peers", f"{where}: something listens, but no p2ptrain peer", "correct the port")
    if outcome == "locked":
        text = f"{where}: a peer answers, but not with this code"
        return problem("peers", text, "compare `p2ptrain group show` on both devices (or --open is given on one only)")
    places = ", ".join(a.removeprefix("tcp://") for a in own[:4])
    text = f"{where}: it answers us, but can't reach us (it was told {places})"
    return problem(
        "peers", text, "let incoming TCP through this device's firewall; a VPN or container may be in the way"
    )


async def try_address(address: str, group: Group) -> Reach:
    """How far a connection gets."""
    parts = split_address(address)
    if parts is None:
        return "silent"
    greeting = b""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(*parts), CONNECT_S)
    except ConnectionRefusedError:
        return "refused"
    except (OSError, TimeoutError):
        return "silent"
    try:
        writer.write(GREETING)
        greeting = await asyncio.wait_for(reader.readexactly(64), CONNECT_S)
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return "other"
    finally:
        writer.close()
    if greeting[0] != 0xFF or greeting[9] != 0x7F:
        return "other"
    if greeting[12:32].rstrip(b"\0") != b"CURVE":
        return "strange"
    return "open" if await _handshakes(address, group) else "locked"


async def _handshakes(address: str, group: Group) -> bool:
    """Whether the group's key opens the door: nobody else can finish the CURVE handshake."""
    identity = new_identity()
    context = zmq.asyncio.Context()
    dealer = context.socket(zmq.DEALER)
    try:
        dealer.linger, dealer.ipv6 = 0, True
        dealer.curve_publickey, dealer.curve_secretkey = identity.public, identity.secret
        dealer.curve_serverkey = group.server_public
        monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        dealer.connect(address)
        event = parse_monitor_message(await asyncio.wait_for(monitor.recv_multipart(), HANDSHAKE_S))
        return bool(event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED)
    except TimeoutError:
        return False
    finally:
        dealer.disable_monitor()
        context.destroy(linger=0)
