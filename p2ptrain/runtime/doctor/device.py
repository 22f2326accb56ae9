"""What can be seen of this device by itself: versions, clock, interfaces, ports, firewall.

Invariant: nothing is said of what others can do.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import zmq

from p2ptrain.net.interfaces import InterfaceAddress, place, try_to_bind
from p2ptrain.protocol.session.own_addresses import MAX_OWN_ADDRESSES
from p2ptrain.runtime.doctor.findings import Finding, Level, contents, problem
from p2ptrain.version import __version__
from p2ptrain.wire.messages import WIRE_VERSION

OLDEST_CLOCK = 1_735_689_600  # 2025: a clock before that was never set
UFW = "run: sudo ufw allow 5353/udp && sudo ufw allow 5710:5711/tcp"


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
        "link-local": " (link-local: works only with devices on the same cable or Wi-Fi that have such an address too)",
        "overlay": " (a VPN or the like: most don't pass multicast; if peers there are not found, name them with "
        "--peer HOST:PORT)",
        "bridge": " (by its name of containers or virtual machines on this device, which others mostly can't reach)",
        "loopback": " (reaches only this device)",
    }
    found = []
    told = list(chosen)[:MAX_OWN_ADDRESSES]
    for each in addresses:
        place = f"{each.interface} {each.address}{remarks[each.kind]}"
        if each in told:
            found.append(Finding("fine", "interfaces", f"advertised: {place}"))
        else:
            left_out = each.kind == "loopback" and chosen and not any(other.kind == "loopback" for other in chosen)
            why = "loopback is left out where there is anything else" if left_out else "not chosen"
            why = f"only the first {MAX_OWN_ADDRESSES} are" if each in chosen else why
            found.append(Finding("fine", "interfaces", f"not advertised ({why}): {place}"))
    if not addresses:
        advice = "connect it to the network of the others, and bring up its interfaces (`ip link`)"
        return [problem("interfaces", "this device has no address: nobody can be met", advice)]
    kinds = {each.kind for each in chosen}
    inside = next((p for p in ("/.dockerenv", "/run/.containerenv") if os.path.exists(p)), "")
    if not kinds - {"loopback"}:
        advice = (
            "connect it to the network of the others" if len(addresses) == len(chosen) else "choose another --interface"
        )
        level: Level = "problem" if not any(each.kind == "loopback" for each in chosen) else "hint"
        found.append(Finding(level, "interfaces", "only peers on this very device can be met", advice))
    elif not kinds - {"loopback", "bridge"} or inside:
        text = "this may be a container, whose addresses others can't reach unless it shares the host's network"
        found.append(Finding("hint", "interfaces", text, "start the container with --network host"))
    if re.search("microsoft-standard|WSL2", contents("/proc/version")):  # the first WSL has the network of Windows
        text = "this is WSL, whose network is by default behind the address of Windows"
        found.append(Finding("hint", "interfaces", text, "set networkingMode=mirrored in .wslconfig"))
    return found


def check_ports(port: int, hosts: Sequence[str]) -> list[Finding]:
    """Whether a peer could listen: two ports, on all that it would listen on."""
    for wanted in (port, port + 1) if port else (0, 0):
        for host in hosts:
            if why := try_to_bind(host, wanted):
                text = f"can't listen on {place(host)}, port {wanted or 'any'} ({why})"
                advice = "if a peer of yours runs there, fine; else choose another --port (it and the next are used)"
                return [problem("ports", text, advice)]
    return [Finding("fine", "ports", f"can listen on {f'{port} and {port + 1}' if port else 'any free port'}")]


def check_firewall(system: str = sys.platform, root: Path = Path("/")) -> list[Finding]:
    """What can be seen of a firewall without rights, and how to open it."""
    need = "UDP 5353 (mDNS) and the peer's two TCP ports must be let in; fix the latter with --port 5710"
    if system == "darwin":
        text = f"macOS may block programs that listen; {need}"
        advice = (
            "allow Python in System Settings, Network, Firewall, and, from macOS 15 on, the terminal (of a service: "
            "Python) under Privacy & Security, Local Network"
        )
        return [Finding("hint", "firewall", text, advice)]
    if system == "win32":
        text = f"the Windows firewall blocks programs in networks marked public; {need}"
        return [Finding("hint", "firewall", text, "mark the network as private, and allow Python when Windows asks")]
    ufw = root / "etc/ufw/ufw.conf"
    if ufw.exists() and not os.access(ufw, os.R_OK):
        return [Finding("hint", "firewall", f"ufw is installed, and whether it is on needs root to see; {need}", UFW)]
    if any(
        re.fullmatch(r"\s*enabled\s*=\s*[\"']?yes[\"']?\s*(#.*)?", line.lower()) for line in contents(ufw).splitlines()
    ):
        return [Finding("hint", "firewall", f"ufw is switched on by its settings; {need}", UFW)]
    if (root / "run/firewalld").exists():
        advice = "run: sudo firewall-cmd --add-service=mdns --add-port=5710-5711/tcp"
        return [Finding("hint", "firewall", f"firewalld seems to run (/run/firewalld is there); {need}", advice)]
    seen = "ufw is switched off by its settings, and there is no sign of firewalld"
    seen = seen if ufw.exists() else "no sign of ufw or firewalld"
    return [Finding("fine", "firewall", f"{seen} (what else may filter needs root to see)")]
