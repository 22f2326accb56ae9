"""Devices as network namespaces, with cables between them, and peers in them as processes that are listened to."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2ptrain.net.keys import new_group

WAIT_S = 300.0
"""Generous: a loaded machine is slow."""


def lacks_namespaces() -> str:
    """Why no namespaces can be made here; "" if they can."""
    if not all(map(shutil.which, ("ip", "nsenter", "unshare"))):
        return "ip, nsenter or unshare is missing"
    make = ["unshare", "-n", "ip", "link", "add", "name", "a0", "type", "veth", "peer", "name", "b0"]
    return "" if subprocess.run(make, capture_output=True, check=False).returncode == 0 else "no right to make them"


class Device:
    """A namespace of its own. Its process holds it until ``close``."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        self._holder.stdout.readline()  # now it is in there
        self.run("ip link set lo up")

    @property
    def pid(self) -> int:
        return self._holder.pid

    def command(self, *words: str) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-n", *words]

    def run(self, line: str) -> None:
        subprocess.run(self.command(*line.split()), check=True, capture_output=True)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


class Talker:
    """A process that says a line of JSON for each thing that happens."""

    def __init__(self, command: list[str]) -> None:
        self.heard: list[dict[str, Any]] = []
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put({"kind": "ended"})

    def until(self, kind: str, is_it: Callable[[dict[str, Any]], bool] = lambda line: True) -> dict[str, Any]:
        """The next line of this kind that ``is_it``."""
        end = time.monotonic() + WAIT_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {kind!r} came: {self.heard[-20:]}") from None
            self.heard.append(line)
            if line["kind"] == kind and is_it(line):
                return line
            assert line["kind"] != "ended", f"it ended before {kind!r} came: {self.heard[-20:]}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Rooms:
    """A context with devices and what runs on them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ends: list[Callable[[], None]] = []
        self._num = 0
        self.code = str(new_group())

    def __enter__(self) -> Rooms:
        return self

    def __exit__(self, *_: object) -> None:
        for end in reversed(self._ends):
            end()

    def device(self) -> Device:
        device = Device()
        self._ends.append(device.close)
        return device

    def cable(self, one: Device, other: Device, name: str = "eth0") -> None:
        """From ``name`` of the one to ``name`` of the other; both ends are up, without an address of IPv4."""
        self._num += 1
        ends = f"p{self._num}a", f"p{self._num}b"
        one.run(f"ip link add name {ends[0]} type veth peer name {ends[1]}")
        one.run(f"ip link set {ends[1]} netns {other.pid}")
        for device, end in zip((one, other), ends, strict=True):
            device.run(f"ip link set {end} name {name}")
            device.run(f"sysctl -qw net.ipv6.conf.{name}.accept_dad=0")
            device.run(f"ip link set {name} up")

    def talker(self, device: Device, *command: str) -> Talker:
        talker = Talker(device.command(sys.executable, *command))
        self._ends.append(talker.close)
        return talker

    def peer(self, device: Device, name: str, **options: Any) -> Talker:
        script = str(Path(__file__).with_name("lone_peer.py"))
        return self.talker(device, script, str(self._directory / name), self.code, json.dumps(options))
