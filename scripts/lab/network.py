"""The lab's network: a namespace for each device, all on one bridge, with shaped links that can be cut and healed.

Invariant: nothing of it is visible in the machine's own network, and all of it vanishes with this process: the
namespaces have no names, only file descriptors of ours, and the bridge lives in one that this process moves into.

The calling thread (the main one, before any other starts) is in the lab's own namespace from ``Network()`` on, where
it reaches every device that is not cut off. Multicast crosses the bridge, so devices find each other by mDNS.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from lab.relay import Relay, open_tap
from p2ptrain.errors import UserError

CLONE_NEWNET = 0x40000000
OWN_ADDRESS = "10.77.0.1"
PREFIX = 24
BRIDGE = "lan"
BURST_S = 0.004
"""A token bucket fills for so long: shorter bursts cost rate, longer ones hide the limit."""
FRAME_BYTES = 1514
SMALLEST_BURST = 4 * FRAME_BYTES
LARGEST_SEGMENT = 65536
"""What the kernel hands to an interface at once, and takes from it."""
QUEUE_MS = 100
"""What waits for longer is dropped, as by a home router's buffer."""


@dataclass(slots=True)
class Port:
    """One device's place in the network. ``fd`` is its namespace; ``end`` the bridge's side of its link."""

    name: str
    address: str
    fd: int
    end: str
    relay: Relay | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """Delay and loss of every link, one way."""

    delay_ms: float = 0.0
    loss: float = 0.0


@dataclass(slots=True)
class Network:
    """A context: leaving it brings the thread back to where it was."""

    line: Line = field(default_factory=Line)
    ports: dict[str, Port] = field(default_factory=dict)
    _home: int = -1
    _lab: int = -1
    _bridges: list[str] = field(default_factory=list)

    def __enter__(self) -> Network:
        self._home = _current()
        _unshare()
        self._lab = _current()
        _run("ip", "link", "set", "lo", "up")
        self._add_bridge(BRIDGE)
        _run("ip", "address", "add", f"{OWN_ADDRESS}/{PREFIX}", "dev", BRIDGE)
        return self

    def __exit__(self, *_: object) -> None:
        for port in self.ports.values():
            if port.relay is not None:
                port.relay.stop()
            os.close(port.fd)
        self.ports.clear()
        _enter(self._home)
        os.close(self._lab)
        os.close(self._home)

    def add(self, name: str, rate_mbit: float = 0.0) -> Port:
        """Connect one more device; ``rate_mbit`` 0 = no limit."""
        number = len(self.ports) + 1
        _unshare()
        fd = _current()
        _enter(self._lab)
        port = Port(name, f"10.77.0.{number + 1}", fd, f"port{number}")
        self.ports[name] = port
        if self._needs_relay:
            port.relay = Relay(open_tap(port.end), open_tap("eth0"), self.line.delay_ms, self.line.loss, seed=number)
            _run("ip", "link", "set", "eth0", "netns", _path(fd))
        else:
            _run("ip", "link", "add", port.end, "type", "veth", "peer", "name", "eth0", "netns", _path(fd))
        _run("ip", "link", "set", port.end, "master", BRIDGE, "up")
        with self.inside(name):
            _run("ip", "link", "set", "lo", "up")
            _run("ip", "address", "add", f"{port.address}/{PREFIX}", "dev", "eth0")
            _run("ip", "link", "set", "eth0", "up")
            _run("ip", "route", "add", "default", "via", OWN_ADDRESS)
        if port.relay is not None:
            port.relay.start()
        self.set_rate(name, rate_mbit)
        return port

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """The calling thread in a device's namespace."""
        _enter(self.ports[name].fd)
        try:
            yield
        finally:
            _enter(self._lab)

    def move(self, name: str, address: str) -> None:
        """A device gets another address on its link, as from another router."""
        with self.inside(name):
            _run("ip", "address", "flush", "dev", "eth0")
            _run("ip", "address", "add", f"{address}/{PREFIX}", "dev", "eth0")
            _run("ip", "route", "add", "default", "via", OWN_ADDRESS)
        self.ports[name].address = address

    def set_rate(self, name: str, rate_mbit: float) -> None:
        """Limit a device's link, in both directions; 0 = no limit."""
        _shape(self.ports[name].end, rate_mbit, self._netem)
        with self.inside(name):
            _shape("eth0", rate_mbit, self._netem)

    def cut(self, sides: Sequence[Sequence[str]]) -> None:
        """Only those on the same side reach each other from now on; this process is on the first side."""
        self.heal()
        for number, side in enumerate(sides[1:], start=1):
            bridge = f"side{number}"
            self._add_bridge(bridge)
            for name in side:
                _run("ip", "link", "set", self.ports[name].end, "master", bridge)
        together = {name for side in sides for name in side}
        for name, port in self.ports.items():
            if name not in together:
                _run("ip", "link", "set", port.end, "nomaster")

    def heal(self) -> None:
        """All reach all again."""
        for port in self.ports.values():
            _run("ip", "link", "set", port.end, "master", BRIDGE)
        for bridge in [b for b in self._bridges if b != BRIDGE]:
            _run("ip", "link", "delete", bridge)
            self._bridges.remove(bridge)

    @property
    def _shapes_line(self) -> bool:
        return bool(self.line.delay_ms or self.line.loss)

    @property
    def _netem(self) -> Line | None:
        return self.line if self._shapes_line and has_netem() else None

    @property
    def _needs_relay(self) -> bool:
        return self._shapes_line and not has_netem()

    def _add_bridge(self, name: str) -> None:
        _run("ip", "link", "add", name, "type", "bridge", "mcast_snooping", "0")
        _run("ip", "link", "set", name, "up")
        self._bridges.append(name)


_netem_known: list[bool] = []


def has_netem() -> bool:
    """Whether the kernel can delay and drop by itself; asked once, of the lab's own loopback interface."""
    if not _netem_known:
        tried = subprocess.run(
            ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1us"], capture_output=True
        )
        if tried.returncode == 0:
            _run("tc", "qdisc", "del", "dev", "lo", "root")
        _netem_known.append(tried.returncode == 0)
    return _netem_known[0]


def shaping(device: str, rate_mbit: float, netem: Line | None) -> list[list[str]]:
    """The commands that give a bare interface this rate, delay and loss.

    Segments are kept smaller than the bucket, which would cut larger ones into frames. The kernel then handles those
    one by one, on the time of whoever computes on that core. Network cards of devices merge frames.
    """
    commands, parent, segment = [], ["root"], LARGEST_SEGMENT
    if rate_mbit:
        burst = max(SMALLEST_BURST, round(rate_mbit * 1e6 / 8 * BURST_S))
        segment = min(segment, burst - FRAME_BYTES)
        tbf = ["tbf", "rate", f"{rate_mbit:g}mbit", "burst", f"{burst}", "latency", f"{QUEUE_MS}ms"]
        commands.append(["tc", "qdisc", "add", "dev", device, *parent, "handle", "1:", *tbf])
        parent = ["parent", "1:1"]
    if netem is not None:
        what = ["netem", "delay", f"{netem.delay_ms:g}ms", "loss", f"{100 * netem.loss:g}%", "limit", "10000"]
        commands.append(["tc", "qdisc", "add", "dev", device, *parent, *what])
    return [*commands, ["ip", "link", "set", "dev", device, "gso_max_size", f"{segment}"]]


def _shape(device: str, rate_mbit: float, netem: Line | None) -> None:
    with contextlib.suppress(UserError):  # there may be none yet
        _run("tc", "qdisc", "del", "dev", device, "root")
    for command in shaping(device, rate_mbit, netem):
        _run(*command)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"{' '.join(command)}: {done.stderr.strip() or f'status {done.returncode}'}")


_libc = ctypes.CDLL(None, use_errno=True)


def _unshare() -> None:
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise UserError(f"a network namespace can't be made: {os.strerror(ctypes.get_errno())}; the lab needs root")


def _enter(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _path(fd: int) -> str:
    return f"/proc/{os.getpid()}/fd/{fd}"
