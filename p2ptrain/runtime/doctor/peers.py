"""Looks for peers of the group, and finds out about every address that leads to nobody.

Invariant: says what was seen, and no more. Nothing is read from a stranger beyond the 64 bytes with which ZeroMQ
greets.

An address is tried in steps, and the first that fails is the finding: name -> TCP -> ZeroMQ with CURVE -> the group's
key -> the answer of the peer's node. The last needs the peer to reach us. Where a peer has answered, large packets are
tried on the way to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from p2ptrain.errors import UserError
from p2ptrain.ids import PeerId
from p2ptrain.net.group.admission import visitors_door
from p2ptrain.net.interfaces import all_addresses
from p2ptrain.net.keys import Group, new_identity
from p2ptrain.net.ways.endpoint import parse_endpoint, resolve
from p2ptrain.net.ways.path import GREETING, SLOW_S, large_packets
from p2ptrain.runtime.doctor.findings import Finding, problem
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.observer_node import ObserverNode
from p2ptrain.wire.addresses import split_address, without_zone
from p2ptrain.wire.messages import WIRE_VERSION

Reach = Literal[
    "refused", "unreachable", "silent", "mute", "closed", "other", "strange", "locked", "unfinished", "open"
]
"""Of an address: the connection is refused; no way there; no answer; nothing said; taken and ended; not ZeroMQ; ZeroMQ
without CURVE; another code; no end of the handshake in time; our group's key works."""

CONNECT_S = 6.0
HANDSHAKE_S = 10.0
CLOCK_TOLERANCE_S = 120.0
ENOUGH_S = 3.0
"""After that long, a peer that answers has sent what it was asked for, if it gets through."""


async def check_peers(
    group: Group, network: NetworkConfig, wait_s: float, state_dir: Path | None = None
) -> list[Finding]:
    """All that can be said of peers."""
    given = {text: await resolve(*parse_endpoint(text)) for text in network.peers}
    found = [
        problem("peers", f"--peer {text} {why_none}", "check its spelling, or give the IP address")
        for text, (_, why_none) in given.items()
        if why_none
    ]
    try:
        door = visitors_door(group, state_dir)
    except UserError as error:
        what, _, advice = str(error).partition(": ")
        return [*found, problem("peers", what, advice)]
    node = ObserverNode(group, network, door)
    try:
        await node.start()
        began = time.monotonic()
        with contextlib.suppress(UserError):
            await node.look_around(wait_s)
        named = {address for addresses, _ in given.values() for address in addresses}
        found += await _about_peers(node, group, named, time.monotonic() - began)
    finally:
        await node.close()
    return found


async def _about_peers(node: ObserverNode, group: Group, named: Collection[str], waited_s: float) -> list[Finding]:
    observer, found = node.observer, []
    mdns = node.discovery.status if node.discovery else "switched off by --no-discovery"
    if mdns.startswith("failed"):
        found.append(problem("peers", f"discovery by mDNS {mdns}", "name peers with --peer HOST:PORT"))
    met = {p: address for p in observer.sessions.peers() if (address := observer.sessions.address_of(p))}
    for findings in await asyncio.gather(*(_about_one(node, peer, address, waited_s) for peer, address in met.items())):
        found += findings
    versions = _other_versions(node)
    found += versions
    addresses = dict.fromkeys([*sorted(named), *(each.address for each in observer.sessions.unanswered())])
    met_otherwise = {a for p in met if (r := observer.records.get(p)) for a in r.addresses}
    tried = [a for a in addresses if a not in met.values() and (a in named or without_zone(a) not in met_otherwise)][
        :16
    ]
    outcomes = await asyncio.gather(*(try_address(address, group) for address in tried))
    for address, outcome in zip(tried, outcomes, strict=True):
        if not (outcome == "open" and (versions or without_zone(address) in met_otherwise)):
            found.append(explain(address, outcome, node.addresses()))
    others = node.discovery.others if node.discovery else {}
    for label, places in list(others.items())[:8]:
        found.append(_another_group(label, places, group))
    if not met and node.discovery is not None and (far := node.discovery.elsewhere()):
        shows, _, advice = far.partition(": ")
        found.append(problem("peers", f"mDNS {shows}", advice))
    if not met and not any(f.level == "problem" for f in found):
        text = f"no peer of this group was found in {waited_s:.0f} s (mDNS: {mdns})"
        advice = "is one running, with this very code? then start `p2ptrain doctor` there too, or name it with --peer"
        found.append(problem("peers", text, advice))
    return found


async def _about_one(node: ObserverNode, peer: PeerId, address: str, waited_s: float) -> list[Finding]:
    """A peer that answered."""
    record = node.observer.records.get(peer)
    name = record.name if record else "a peer"
    parts, where = split_address(address), address.removeprefix("tcp://")
    here = parts is not None and parts[0] in {each.address for each in all_addresses()}
    place = "at this device's own" if here else "at"
    found = [Finding("fine", "peers", f"{name} ({peer}) answers {place} {where}", proved=not here)]
    found += _clock_of(name, record.version if record else 0)
    if here:
        return found
    passage, took_s = await large_packets(address)
    if passage == "lost":
        found.append(large_lost(f"on the way to {name} ({where}) large ones (8 kB) get lost"))
    elif record is None and waited_s >= ENOUGH_S:
        found.append(large_lost(f"from {name} ({where}) no longer message arrived in {waited_s:.0f} s"))
    elif passage == "passes" and took_s > SLOW_S:
        slow = f"the way to {name} ({where}) is slow, or one of the two devices busy"
        text = f"{slow}: to connect and send 8 kB took {took_s:.1f} s"
        advice = "peers meet there within half a minute, and lose each other where a word takes seconds"
        found.append(Finding("hint", "peers", text, advice))
    return found


def large_lost(what: str) -> Finding:
    advice = "make the MTU of both devices' interfaces smaller (1280), or mend the VPN, switch or Wi-Fi in between"
    return problem("peers", f"small packets pass, but {what}", advice)


def _another_group(label: str, places: Sequence[str], group: Group) -> Finding:
    where = " ".join(each.removeprefix("tcp://") for each in places[:2])
    if label.startswith(f"{group.tag} "):
        theirs = label.partition("(")[2].rstrip(")")
        text = f"a peer of this group at {where} announces another {theirs}, ours is {WIRE_VERSION}"
        return problem("peers", text, "install the same p2ptrain on both, the newer one")
    text = f"another group announces itself: {label}, at {where}"
    return Finding("hint", "peers", text, "if that is a device of yours, its code differs: give it this one's")


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
    text = f"the clock of {name} is, or once was, at least {ahead_s:.0f} s ahead of this device's"
    return [problem("clock", text, "set both clocks, for example with NTP; journals of the two don't fit else")]


_WORDS: dict[Reach, tuple[str, str]] = {
    "refused": (
        "the connection is refused: nothing listens there, or a firewall refuses it",
        "is the peer running? with this --port? does the firewall there let it in?",
    ),
    "unreachable": (
        "there is no way there from this device",
        "is the address right, and are both devices in the same network?",
    ),
    "silent": (
        f"nothing answered within {CONNECT_S:.0f} s",
        "is the address right, and the device in this network? does its firewall let the port in?",
    ),
    "mute": (
        "something takes the connection and says nothing: a peer that hangs, or another program",
        "look at that device; start its peer again, or correct the port",
    ),
    "closed": (
        "something takes the connection and ends it at once: another program, or a peer at whose door too many knock",
        "look at that device; correct the port, or try again in a minute",
    ),
    "other": ("something listens, but no p2ptrain peer", "correct the port"),
    "strange": ("something listens, but no p2ptrain peer", "correct the port"),
    "locked": (
        "something that asks for a code answers, but not to this one: most likely a peer of another group",
        "compare `p2ptrain group show` on both devices (or --open is given on one only)",
    ),
    "unfinished": (
        f"a peer answers, but the handshake did not end within {HANDSHAKE_S:.0f} s",
        "the way there is very slow or loses large packets, or that device is busy or hangs: look at both",
    ),
}


def explain(address: str, outcome: Reach, own: Sequence[str]) -> Finding:
    """What it means that ``address`` led to nobody."""
    where = address.removeprefix("tcp://")
    if outcome in _WORDS:
        text, advice = _WORDS[outcome]
        return problem("peers", f"{where}: {text}", advice)
    places = ", ".join(a.removeprefix("tcp://") for a in own[:4])
    return problem(
        "peers",
        f"{where}: it lets us in, but nothing came back from it: it may not reach us (it was told {places})",
        "let incoming TCP through this device's firewall; a VPN or container may be in the way; or it is the second of "
        "a peer's two ports, and the first is meant",
    )


async def try_address(address: str, group: Group) -> Reach:
    """How far a connection gets."""
    parts = split_address(address)
    if parts is None:
        return "unreachable"
    greeting = b""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(*parts), CONNECT_S)
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "silent"
    except OSError:
        return "unreachable"
    try:
        writer.write(GREETING)
        greeting = await asyncio.wait_for(reader.readexactly(64), CONNECT_S)
    except TimeoutError:
        return "mute"
    except (OSError, asyncio.IncompleteReadError) as error:
        return "other" if getattr(error, "partial", b"") else "closed"
    finally:
        writer.close()
    if greeting[0] != 0xFF or greeting[9] != 0x7F:
        return "other"
    if greeting[12:32].rstrip(b"\0") != b"CURVE":
        return "strange"
    return await _handshake(address, group)


async def _handshake(address: str, group: Group) -> Reach:
    """Whether the group's key opens the door: nobody else can finish the CURVE handshake."""
    identity = new_identity()
    context = zmq.asyncio.Context()
    dealer = context.socket(zmq.DEALER)
    try:
        dealer.linger, dealer.ipv6 = 0, True
        dealer.curve_publickey, dealer.curve_secretkey = identity.public, identity.secret
        dealer.curve_serverkey = group.server_public
        failed = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | failed)
        dealer.connect(address)
        event = parse_monitor_message(await asyncio.wait_for(monitor.recv_multipart(), HANDSHAKE_S))
        return "open" if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED else "locked"
    except TimeoutError:
        return "unfinished"
    finally:
        dealer.disable_monitor()
        context.destroy(linger=0)
