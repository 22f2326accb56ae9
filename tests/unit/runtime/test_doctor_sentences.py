# ruff: noqa: E501
"""Every sentence that ``doctor`` can say, the situation that shows it, and one in which it would be wrong.

A sentence without a row here fails the last test: whoever adds one adds what proves it.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.metadata
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2ptrain.ids import PeerId
from p2ptrain.net.interfaces import ANY, InterfaceAddress
from p2ptrain.net.keys import new_group
from p2ptrain.runtime.doctor import device, examine, multicast, peers
from p2ptrain.runtime.doctor.findings import Finding
from p2ptrain.runtime.doctor.multicast import Echo, explain_echo
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.wire.messages import WIRE_VERSION

Situation = Callable[[], list[Finding]]

LAN = InterfaceAddress("eth0", "192.168.1.5", 24, "lan")
LOOPBACK = InterfaceAddress("lo", "127.0.0.1", 8, "loopback")
OVERLAY = InterfaceAddress("tailscale0", "100.64.1.2", 32, "overlay")
BRIDGE = InterfaceAddress("docker0", "172.17.0.1", 16, "bridge")
LINK = InterfaceAddress("eth0", "169.254.3.4", 16, "link-local")
MANY = [InterfaceAddress("eth0", f"10.0.0.{n}", 24, "lan") for n in range(20)]
GROUP = new_group()
A = PeerId("a" * 16)


def with_changes(changes: dict[tuple[Any, str], Any], situation: Situation) -> Situation:
    def run() -> list[Finding]:
        with pytest.MonkeyPatch.context() as patch:
            for (where, name), value in changes.items():
                patch.setattr(where, name, value)
            return situation()

    return run


def without_package(*names: str) -> Situation:
    def version(name: str) -> str:
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    return with_changes({(device.importlib.metadata, "version"): version}, device.check_versions)


def curve(has: bool) -> Situation:
    return with_changes({(device.zmq, "has"): lambda what: has}, device.check_versions)


def interfaces(*addresses: InterfaceAddress, chosen: list[InterfaceAddress] | None = None) -> Situation:
    here = list(addresses)
    return elsewhere(lambda: device.check_interfaces(here, here if chosen is None else chosen))


def elsewhere(situation: Situation, *, container: bool = False, version: str = "Linux") -> Situation:
    """Neither in a container nor in WSL, unless told so."""
    exists = {(device.os.path, "exists"): lambda path: container}
    return with_changes(exists | {(device, "contents"): lambda path: version}, situation)


def ports(port: int, why: str = "", host: str = LAN.address) -> Situation:
    return with_changes({(device, "try_to_bind"): lambda *_: why}, lambda: device.check_ports(port, [host]))


def firewall(files: dict[str, str], system: str = "linux", readable: bool = True) -> Situation:
    def run() -> list[Finding]:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / name).write_text(text)
            return device.check_firewall(system, Path(folder))

    return with_changes({(device.os, "access"): lambda *_: readable}, run)


def echo(*args: Any, **values: Any) -> Situation:
    return lambda: [explain_echo(LAN, Echo(*args, **values))]


def reach(outcome: str) -> Situation:
    return lambda: [peers.explain("tcp://1.2.3.4:5", cast(Any, outcome), ["tcp://1.2.3.5:6"])]


def about_one(
    passage: str, took_s: float, *, record: Any = None, waited_s: float = 8.0, where: str = "tcp://10.9.9.9:5"
) -> Situation:
    async def large(address: str) -> tuple[str, float]:
        return passage, took_s

    known = {A: record} if record else {}
    node: Any = SimpleNamespace(observer=SimpleNamespace(records=known))
    return with_changes(
        {(peers, "large_packets"): large}, lambda: asyncio.run(peers._about_one(node, A, where, waited_s))
    )


DESK = SimpleNamespace(name="desk", version=0, addresses=("tcp://10.9.9.9:5",))


def clock_ahead(seconds: float) -> Situation:
    """By the clock of the moment in which it is looked at."""

    def run() -> list[Finding]:
        desk = SimpleNamespace(name="desk", version=int((time.time() + seconds) * 1000))
        return about_one("passes", 0.0, record=desk)()

    return run


def around(
    mdns: str | None = "works",
    met: bool = False,
    lines: list[Any] | None = None,
    others: dict[str, Any] | None = None,
    elsewhere: str = "",
) -> Situation:
    """What is said of a group, by what the observer saw."""
    sessions = SimpleNamespace(
        peers=lambda: [A] if met else [], address_of=lambda peer: "tcp://10.9.9.9:5", unanswered=lambda: []
    )
    node: Any = SimpleNamespace(
        observer=SimpleNamespace(sessions=sessions, records={A: DESK} if met else {}),
        discovery=SimpleNamespace(status=mdns, others=others or {}, elsewhere=lambda: elsewhere) if mdns else None,
        journal=SimpleNamespace(tail=lambda: lines or []),
        addresses=lambda: ["tcp://10.0.0.1:5"],
    )

    async def large(address: str) -> tuple[str, float]:
        return "passes", 0.0

    return with_changes(
        {(peers, "large_packets"): large}, lambda: asyncio.run(peers._about_peers(node, GROUP, set(), 8.0))
    )


def line(kind: str, **fields: Any) -> Any:
    return SimpleNamespace(kind=kind, fields=fields)


def named(text: str) -> Situation:
    """``--peer``, with nothing listening at either."""
    network = NetworkConfig(interfaces=("127.0.0.1",), peers=(text,), discover=False)
    return lambda: asyncio.run(peers.check_peers(GROUP, network, 0.1))


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def whole(group: Any) -> Situation:
    """All of it, with a group or without, where each part finds nothing."""

    async def nothing(*_: object) -> list[Finding]:
        return []

    network = NetworkConfig(interfaces=("127.0.0.1",), discover=False)
    return with_changes({(examine, "check_peers"): nothing}, lambda: asyncio.run(examine.examine(group, network, 0.1)))


def verdict(*findings: Finding) -> Situation:
    return lambda: [Finding("fine", "verdict", examine.verdict(list(findings)))]


MET = Finding("fine", "peers", "met", proved=True)
BAD = Finding("problem", "ports", "bad", "mend it")
FINE = Finding("fine", "ports", "fine")
OTHER_VERSION = line("other-version", peer="p", ours=1, theirs=7)
FAR = "shows 10.2.0.7:5, which is on no network of this device: --peer 10.2.0.7:5 dials it all the same"
ONE_WAY = line("one-way", peer="p", addresses="10.0.0.2:5")

ROWS: list[tuple[str, Situation, Situation]] = [
    # this device
    (r"p2ptrain .*, wire version \d+, Python .*, libzmq ", device.check_versions, without_package("torch")),
    (r"the package torch is not installed -> run: pip install torch", without_package("torch"), device.check_versions),
    (r"libzmq was built without CURVE -> install pyzmq from PyPI", curve(False), curve(True)),
    (
        r"this device believes it is 1970.* -> set its clock, for example with NTP",
        lambda: device.check_clock(0.0),
        lambda: device.check_clock(1.9e9),
    ),
    (r"^advertised: eth0 192.168.1.5", interfaces(LAN), interfaces(LAN, OVERLAY, chosen=[OVERLAY])),
    (r"link-local: works only with devices on the same cable", interfaces(LINK), interfaces(LAN)),
    (r"a VPN or the like: most don't pass multicast; .*--peer", interfaces(OVERLAY), interfaces(LAN)),
    (r"by its name of containers or virtual machines", interfaces(BRIDGE), interfaces(LAN)),
    (r"lo 127.0.0.1 \(reaches only this device\)", interfaces(LOOPBACK), interfaces(LAN)),
    (r"loopback is left out where there is anything else", interfaces(LAN, LOOPBACK, chosen=[LAN]), interfaces(LOOPBACK)),
    (
        r"loopback is left out",
        interfaces(LAN, LOOPBACK, chosen=[LAN]),
        interfaces(LOOPBACK, chosen=[]),  # there is nothing else
    ),
    (r"not advertised \(not chosen\): tail", interfaces(LAN, OVERLAY, chosen=[LAN]), interfaces(LAN, OVERLAY)),
    (r"only the first 16 are", interfaces(*MANY), interfaces(*MANY[:16])),
    (
        r"only peers on this very device can be met -> connect it to the network of the others",
        interfaces(LOOPBACK),
        interfaces(LAN, LOOPBACK),
    ),
    (
        r"only peers on this very device can be met -> choose another --interface",
        interfaces(LAN, LOOPBACK, chosen=[LOOPBACK]),
        interfaces(LAN, LOOPBACK, chosen=[LAN]),
    ),
    (r"this may be a container.* -> start the container with --network host", interfaces(BRIDGE), interfaces(LAN)),
    (
        r"this may be a container, whose addresses others can't reach unless it shares the host's network",
        elsewhere(lambda: device.check_interfaces([LAN], [LAN]), container=True),
        interfaces(LAN),
    ),
    (
        r"this is WSL, whose network is by default .* -> set networkingMode=mirrored",
        elsewhere(lambda: device.check_interfaces([LAN], [LAN]), version="Linux 5.15.1-microsoft-standard-WSL2"),
        elsewhere(lambda: device.check_interfaces([LAN], [LAN]), version="Linux 4.4.0-19041-Microsoft"),
    ),
    (
        r"this device has no address: nobody can be met -> connect it to the network of the others, and bring up",
        interfaces(),
        interfaces(LOOPBACK),
    ),
    (r"only peers on this very device", interfaces(LOOPBACK), interfaces()),
    (r"can listen on 5710 and 5711$", ports(5710), ports(5710, "in use")),
    (r"can listen on any free port$", ports(0), ports(0, "no")),
    (r"can't listen on this device, port any \(no\)", ports(0, "no", ANY), ports(0, "no")),
    (
        r"can't listen on 192.168.1.5, port 5710 \(in use\) -> if a peer of yours runs there, fine; else",
        ports(5710, "in use"),
        ports(5710),
    ),
    (r"no sign of ufw or firewalld \(what else may filter", firewall({}), firewall({"run/firewalld/x": ""})),
    (r"ufw is switched on by its settings; .* -> run: sudo ufw", firewall({"etc/ufw/ufw.conf": "ENABLED=yes"}),
     firewall({"etc/ufw/ufw.conf": "# ENABLED=yes\nENABLED=no\n"})),
    (r"ufw is switched off by its settings, and there is no sign of firewalld \(what else",
     firewall({"etc/ufw/ufw.conf": "ENABLED=no"}), firewall({"etc/ufw/ufw.conf": "ENABLED=yes # now"})),
    (r"no sign of ufw", firewall({}), firewall({"etc/ufw/ufw.conf": "ENABLED=no"})),
    (r"ufw is switched on", firewall({"etc/ufw/ufw.conf": 'ENABLED = "yes"\n'}), firewall({"etc/ufw/ufw.conf": ""})),
    (r"whether it is on needs root to see; .* -> run: sudo ufw", firewall({"etc/ufw/ufw.conf": ""}, readable=False),
     firewall({"etc/ufw/ufw.conf": ""})),
    (r"firewalld seems to run \(/run/firewalld is there\); .* -> run: sudo firewall-cmd", firewall({"run/firewalld/x": ""}),
     firewall({})),
    (r"macOS may block programs that listen; UDP 5353 .* -> allow Python in System Settings", firewall({}, "darwin"),
     firewall({})),
    (r"the Windows firewall blocks programs in networks marked public; .* -> mark the network as private",
     firewall({}, "win32"), firewall({})),
    # multicast
    (
        r"there is no address to speak on: discovery by mDNS was not tried -> name peers with --peer",
        lambda: asyncio.run(multicast.check_multicast([], [])),
        echo(True),
    ),
    (r"heard words from 1 other address on eth0", echo(True, frozenset({"192.168.1.9"})), echo(True)),
    (r"heard words from 2 other addresses on", echo(True, frozenset("ab")), echo(True, frozenset("a"))),
    (
        r"can be used on eth0 .*no other address spoke there, so whether it gets through was not proved -> run `p2ptrain",
        echo(True),
        echo(True, frozenset({"192.168.1.9"})),
    ),
    (
        r"what was said on eth0 192.168.1.5 was not heard there: it does not go out or is not let in, as far as .* -> let",
        echo(False),
        echo(True),
    ),
    (
        r"can't be used on eth0 192.168.1.5 \(No such device\): peers there won't be found by themselves .* -> let UDP 5353",
        echo(False, why="No such device"),
        echo(False),
    ),
    (
        r"\(Address already in use\).* -> stop the program that holds UDP port 5353",
        echo(False, why="Address already in use"),
        echo(False, why="No such device"),
    ),
    # peers
    (r"desk \(a{16}\) answers at 10.9.9.9:5$", around(met=True), around()),
    (r"answers at this device's own 127.0.0.1:5", about_one("passes", 0.0, where="tcp://127.0.0.1:5"),
     about_one("passes", 0.0)),
    (r"clock of desk is, or once was, at least \d+ s ahead of this device's -> set both clocks",
     clock_ahead(600), clock_ahead(-5)),
    (r"small packets pass, but on the way to desk \(10.9.9.9:5\) large ones \(8 kB\) get lost -> make the MTU of both",
     about_one("lost", 6.0, record=DESK), about_one("unknown", 6.0, record=DESK)),
    (r"small packets pass, but from a peer .* no longer message arrived in 8 s", about_one("passes", 0.0),
     about_one("passes", 0.0, record=DESK)),
    (r"no longer message arrived", about_one("passes", 0.0), about_one("passes", 0.0, waited_s=1.0)),
    (r"the way to desk .* is slow, or one of the two devices busy: to connect and send 8 kB took 2.5 s -> peers meet there",
     about_one("passes", 2.5, record=DESK), about_one("passes", 0.5, record=DESK)),
    (r"discovery by mDNS failed: no socket -> name peers with --peer", around("failed: no socket"), around()),
    (r"no peer of this group was found in 8 s \(mDNS: works\) -> is one running, with this very code\? then start",
     around(), around(met=True)),
    (r"mDNS: switched off by --no-discovery", around(None), around()),
    (r"mDNS shows 10.2.0.7:5, which is on no network of this device -> --peer 10.2.0.7:5 dials it all the same",
     around(elsewhere=FAR), around(elsewhere=FAR, met=True)),
    (r"another group announces itself: xyz \(v\), at 10.0.0.3:5 -> if that is a device of yours, its code differs",
     around(others={"xyz (v)": ["tcp://10.0.0.3:5"]}), around()),
    (rf"a peer of this group at 10.0.0.3:5 announces another wire version 99, ours is {WIRE_VERSION} -> install the same",
     around(others={f"{GROUP.tag} (wire version 99)": ["tcp://10.0.0.3:5"]}),
     around(others={"xyz (wire version 99)": ["tcp://10.0.0.3:5"]})),
    (r"p speaks wire version 7, this device 1 -> install the same p2ptrain on both", around(lines=[OTHER_VERSION]),
     around(lines=[ONE_WAY])),
    (r"p reaches us, but we can't reach it at 10.0.0.2:5 -> open its firewall for its TCP ports", around(lines=[ONE_WAY]),
     around(lines=[OTHER_VERSION])),
    (r"--peer no-such-host.invalid:5 (is a name that nobody knows|can't be looked up).* -> check its spelling",
     named("no-such-host.invalid:5"), named(closed_port())),
    (r"refused: nothing listens there, or a firewall refuses it -> is the peer running", reach("refused"), reach("mute")),
    (r"there is no way there from this device -> is the address right, and are both", reach("unreachable"), reach("mute")),
    (r"nothing answered within 6 s -> is the address right, and the device in this", reach("silent"), reach("mute")),
    (r"takes the connection and says nothing: a peer that hangs, or .* -> look at that device; start", reach("mute"),
     reach("closed")),
    (r"takes the connection and ends it at once: another .* too many knock -> look at that device; correct",
     reach("closed"), reach("mute")),
    (r"something listens, but no p2ptrain peer -> correct the port", reach("other"), reach("closed")),
    (r"something listens, but no p2ptrain peer", reach("strange"), reach("locked")),
    (r"asks for a code answers, but not to this one: most likely .* -> compare `p2ptrain group show`", reach("locked"),
     reach("unfinished")),
    (r"the handshake did not end within 10 s -> the way there is very slow or loses", reach("unfinished"), reach("locked")),
    (r"it lets us in, but nothing came back .* may not reach us \(it was told 1.2.3.5:6\) -> let incoming TCP through.*first is meant",
     reach("open"), reach("locked")),
    (r"no join code given, and none kept on this device: no peers were looked for -> enter it with `p2ptrain group join`", whole(None),
     whole(GROUP)),
    # the last sentence
    (r"something is wrong: see BAD above", verdict(MET, BAD), verdict(MET)),
    (r"all is fine: this device and another one met", verdict(FINE, MET), verdict(FINE)),
    (r"nothing wrong was found on this device; no peer on another one answered, so that they meet was not proved",
     verdict(FINE), verdict(FINE, MET)),
]  # fmt: skip


def told(situation: Situation) -> str:
    return "\n".join(f"{found.text} -> {found.advice}" if found.advice else found.text for found in situation())


@pytest.mark.parametrize(("sentence", "shown", "wrong"), ROWS, ids=[row[0][:60] for row in ROWS])
def test_it_is_said_where_it_is_so_and_not_where_it_is_not(sentence: str, shown: Situation, wrong: Situation) -> None:
    assert re.search(sentence, told(shown), re.MULTILINE)
    assert not re.search(sentence, told(wrong), re.MULTILINE)


def fragments(path: Path) -> Iterator[str]:
    """All text in a module that is more than a word or two, but for docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
    texts = [
        e for e in ast.walk(tree) if isinstance(e, ast.Constant) and isinstance(e.value, str) and id(e) not in docs
    ]
    for each in texts:
        if len(re.findall(r"[a-z]{2,}", each.value)) >= 3 and " " in each.value.strip():
            yield each.value


def test_no_sentence_is_without_a_row() -> None:
    everything = "\n".join(told(shown) for _, shown, _ in ROWS)
    modules = sorted(Path(cast(str, device.__file__)).parent.glob("*.py"))
    said = [text for path in modules for text in fragments(path)]
    assert len(said) > 60
    assert [text for text in said if text not in everything] == []
