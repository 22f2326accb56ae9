"""What an interface is for, by what the system says of it where its name says nothing."""

from __future__ import annotations

import errno
import fcntl
import struct
import sys
from types import SimpleNamespace

import ifaddr
import pytest

from p2ptrain.net import interfaces

UP, BROADCAST, LOOPBACK, POINT_TO_POINT, RUNNING, MULTICAST = 0x1, 0x2, 0x8, 0x10, 0x40, 0x1000
FLAGS = {
    "lo": UP | LOOPBACK,
    "lab-bridge": UP | BROADCAST | MULTICAST,
    "eth0": UP | BROADCAST | RUNNING | MULTICAST,
    "office": UP | POINT_TO_POINT | MULTICAST,
    "mesh": UP | BROADCAST,
    "docker0": UP | BROADCAST,
}


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_tunnel_is_one_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: object, request: int, asked: bytes) -> bytes:
        name = asked.rstrip(b"\0").decode()
        if name not in FLAGS:
            raise OSError(errno.ENODEV, "No such device")
        return struct.pack("16sH22x", name.encode(), FLAGS[name])

    names = [*FLAGS, "just-gone"]
    adapters = [
        SimpleNamespace(nice_name=name, ips=[SimpleNamespace(ip=f"10.0.{number}.1", network_prefix=24)])
        for number, name in enumerate(names)
    ]
    monkeypatch.setattr(fcntl, "ioctl", answer)
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters)
    found = {each.interface: each.kind for each in interfaces.all_addresses()}
    assert found == {
        "lo": "lan",  # by its address here
        "lab-bridge": "lan",
        "eth0": "lan",
        "just-gone": "lan",
        "office": "overlay",
        "mesh": "overlay",
        "docker0": "bridge",
    }
    order = [each.interface for each in interfaces.all_addresses()]
    assert order.index("eth0") < order.index("lab-bridge"), "what has no cable comes later"
    assert order[-2:] == ["mesh", "docker0"], "best first"


def test_without_a_file_left_the_addresses_are_known_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    adapter = SimpleNamespace(nice_name="eth0", ips=[SimpleNamespace(ip="10.0.0.1", network_prefix=24)])
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: [adapter])
    monkeypatch.setattr(interfaces.socket, "socket", none_left)
    assert [each.address for each in interfaces.all_addresses()] == ["10.0.0.1"]
