"""Peers that meet where networks come late, change, or are odd: processes in network namespaces."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from rooms import Rooms, lacks_namespaces

lacks = lacks_namespaces()
pytestmark = pytest.mark.skipif(bool(lacks), reason=f"no network namespaces here: {lacks}")


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[Rooms]:
    with Rooms(tmp_path) as made:
        yield made


def test_a_network_that_comes_up_late_and_then_changes(rooms: Rooms) -> None:
    here, there = rooms.device(), rooms.device()
    a, b = rooms.peer(here, "a"), rooms.peer(there, "b")
    a.until("discovery", lambda line: "127.0.0.1" in line["status"])  # nothing but loopback so far
    b.until("discovery")
    rooms.cable(here, there)
    here.run("ip address add 10.9.0.1/24 dev eth0")
    there.run("ip address add 10.9.0.2/24 dev eth0")
    a.until("joined")
    b.until("joined")
    here.run("ip link delete eth0")  # from cable to Wi-Fi
    a.until("failed")
    rooms.cable(here, there, "wlan0")
    here.run("ip address add 10.8.0.1/24 dev wlan0")
    there.run("ip address add 10.8.0.2/24 dev wlan0")
    a.until("joined")


def test_a_cable_with_link_local_addresses_only(rooms: Rooms) -> None:
    here, there = rooms.device(), rooms.device()
    rooms.cable(here, there)
    a, b = rooms.peer(here, "a"), rooms.peer(there, "b")
    assert a.until("admitted")["address"].startswith("tcp://[fe80::")
    assert "%eth0]" in b.until("admitted")["address"]


def test_one_has_both_families_and_the_other_ipv6_only(rooms: Rooms) -> None:
    here, there = rooms.device(), rooms.device()
    rooms.cable(here, there)
    here.run("ip address add 10.9.0.1/24 dev eth0")
    for device, host in ((here, 1), (there, 2)):
        device.run("ip -6 address flush dev eth0")
        device.run(f"ip address add fd00:9::{host}/64 dev eth0 nodad")
    a, b = rooms.peer(here, "a"), rooms.peer(there, "b")
    assert a.until("admitted")["address"].startswith("tcp://[fd00:9::2]")
    b.until("admitted")


def test_an_interface_that_was_chosen_loses_its_address_and_gets_another(rooms: Rooms) -> None:
    here, there = rooms.device(), rooms.device()
    rooms.cable(here, there)
    for device, host in ((here, 1), (there, 2)):
        device.run("ip -6 address flush dev eth0")
        device.run(f"ip address add 10.9.0.{host}/24 dev eth0")
    a, b = rooms.peer(here, "a", interfaces=["eth0"]), rooms.peer(there, "b")
    a.until("joined")
    b.until("joined")
    here.run("ip address delete 10.9.0.1/24 dev eth0")
    trouble = a.until("finding-trouble", lambda line: line["source"] == "--interface")
    assert trouble["why"] == "eth0 has no address now"
    b.until("failed")
    here.run("ip address add 10.9.0.7/24 dev eth0")
    b.until("admitted", lambda line: line["address"].startswith("tcp://10.9.0.7:"))


HOLDER = """
import socket, time
held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
held.bind(("", 5353))
print('{"kind": "held"}', flush=True)
time.sleep(600)
"""


def test_port_5353_is_held_by_another(rooms: Rooms) -> None:
    here, there = rooms.device(), rooms.device()
    rooms.cable(here, there)
    here.run("ip address add 10.9.0.1/24 dev eth0")
    there.run("ip address add 10.9.0.2/24 dev eth0")
    holder = rooms.talker(here, "-c", HOLDER)
    holder.until("held")
    a = rooms.peer(here, "a", peers=["10.9.0.9:5710"])
    trouble = a.until("finding-trouble")
    assert trouble["source"] == "mDNS" and "port 5353 is held by another program" in trouble["why"]
    words = a.until("waiting", lambda line: "mDNS failed" in line["words"] and "tries" in line["words"])["words"]
    assert "10.9.0.9:5710, given by --peer, doesn't answer (" in words and "held by another program" in words
    holder.close()
    b = rooms.peer(there, "b")
    b.until("joined")
    a.until("joined")


def test_a_state_directory_that_was_copied(rooms: Rooms, tmp_path: Path) -> None:
    here, there = rooms.device(), rooms.device()
    rooms.cable(here, there)
    here.run("ip address add 10.9.0.1/24 dev eth0")
    there.run("ip address add 10.9.0.2/24 dev eth0")
    first = rooms.peer(here, "first")
    first.until("discovery")
    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "first" / "identity.key", tmp_path / "second")
    second = rooms.peer(there, "second")
    first.until("identity-used-twice")
    reason = second.until("refused-to-run")["why"]
    assert f"delete {tmp_path / 'second' / 'identity.key'} on this device" in reason
    second.until("ended")
    assert not [line for line in first.heard if line["kind"] == "ended"]


def test_small_packets_pass_and_large_ones_do_not(rooms: Rooms) -> None:
    here, there = rooms.device(), rooms.device()
    rooms.cable(here, there)
    here.run("ip address add 10.9.0.1/24 dev eth0")
    there.run("ip address add 10.9.0.2/24 dev eth0")
    for device in (here, there):
        device.run("ip link set dev eth0 gso_max_segs 1")  # as on a real cable, each packet is sent by itself
        device.run("ip -6 address flush dev eth0")
    there.run("ip link set dev eth0 mtu 1280")  # swallows what is longer, and says that it takes more
    there.run("ip route change 10.9.0.0/24 dev eth0 advmss 1460")
    listener = rooms.peer(there, "b", port=5710)
    listener.until("discovery")
    assert rooms.talker(here, "-c", LOOK, "tcp://10.9.0.2:5710").until("found")["passage"] == "lost"
    there.run("ip link set dev eth0 mtu 1500")
    assert rooms.talker(here, "-c", LOOK, "tcp://10.9.0.2:5710").until("found")["passage"] == "passes"
    assert rooms.talker(here, "-c", LOOK, "tcp://10.9.0.2:9").until("found")["passage"] == "unknown"


LOOK = """
import asyncio, json, sys
from p2ptrain.net.ways import path
path.ARRIVE_S = 2.0
print(json.dumps({"kind": "found", "passage": asyncio.run(path.large_packets(sys.argv[1]))[0]}), flush=True)
"""


def test_the_doctor_says_only_what_another_device_has_shown(rooms: Rooms) -> None:
    here, there = rooms.device(), rooms.device()
    for number, name in enumerate(("eth0", "eth1")):  # two interfaces, that hear each other's questions in no way
        rooms.cable(here, there, name)
        here.run(f"ip address add 10.{number}.0.1/24 dev {name}")
    alone = rooms.talker(here, "-c", DOCTOR, rooms.code).until("found")
    assert not alone["heard"] and not alone["met"] and alone["wrong"], "nobody else is there"
    there.run("ip -6 address flush dev eth1")
    for device in (here, there):
        device.run("ip -4 address flush dev eth0")
        device.run("ip -4 address flush dev eth1")
    rooms.peer(there, "b").until("discovery")
    found = rooms.talker(here, "-c", DOCTOR, rooms.code).until("found")  # by IPv6 alone
    assert found["met"] and not found["wrong"] and found["verdict"].startswith("all is fine"), found
    assert any("on eth0 fe80::" in text for text in found["heard"])
    assert not any("eth1" in text for text in found["heard"])


DOCTOR = """
import asyncio, json, sys
from p2ptrain.net.keys import read_code
from p2ptrain.runtime.doctor.examine import examine, verdict
from p2ptrain.runtime.node.node import NetworkConfig
found = asyncio.run(examine(read_code(sys.argv[1]), NetworkConfig(), 6.0))
heard = [each.text for each in found if each.proved and each.area == "multicast"]
met = [each.text for each in found if each.proved and each.area == "peers"]
wrong = [each.text for each in found if each.level == "problem"]
print(json.dumps({"kind": "found", "heard": heard, "met": met, "wrong": wrong, "verdict": verdict(found)}), flush=True)
"""
