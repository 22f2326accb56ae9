"""Sessions in virtual time: nodes with addresses, links that lose and reorder, and others that misbehave."""

from __future__ import annotations

import random

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_net import PORT, Net, admitted, captured, key_of, know_each_other, meet, size_of

from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId
from p2ptrain.protocol.machine import Note
from p2ptrain.protocol.session import abuse, address_book, guests
from p2ptrain.protocol.session.effects import Ban, PeerAdmitted, PeerDropped
from p2ptrain.protocol.session.own_addresses import OwnAddresses
from p2ptrain.wire import codec
from p2ptrain.wire import messages as m
from p2ptrain.wire.addresses import canonical_address, in_zones, make_address, split_address, with_port

# --- meeting ----------------------------------------------------------------------------------------------------------


def test_one_dials_and_both_are_admitted() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b")
    net.propose(a, b.addresses[0])
    net.run(1)
    assert know_each_other(a, b)
    assert admitted(a) == [PeerAdmitted(b.peer, b.key, b.addresses[0], "test")]
    assert admitted(b) == [PeerAdmitted(a.peer, a.key, a.addresses[0], "test")]
    assert a.linked == {b.addresses[0]: with_port(b.addresses[0], PORT + 1)}
    net.say(a, b, m.Ping(1, ()))
    net.say(b, a, m.Chunk(m.BlobId("a" * 64), 0, b"x"))
    net.run(1)
    assert b.received == [(a.peer, m.Ping(1, ()))]
    assert a.received == [(b.peer, m.Chunk(m.BlobId("a" * 64), 0, b"x"))]
    assert net.sent == {"a": 3, "b": 2}
    assert not a.sessions.refused and not b.sessions.refused


def test_the_first_message_after_admission_is_understood() -> None:
    """The Proof goes before PeerAdmitted, so what the node says at once arrives behind it."""
    net = Net(delay_s=(0.001, 0.001))
    a, b = net.add("a"), net.add("b")
    a.greet = b.greet = lambda node, peer: net.do(node, node.sessions.send(peer, m.Ping(1, ()), "job", 1, net.now))
    meet(net, a, b)
    assert a.received == [(b.peer, m.Ping(1, ()))] and b.received == [(a.peer, m.Ping(1, ()))]
    assert not a.sessions.refused["session"] and not b.sessions.refused["session"]


def test_both_dial_at_once_and_make_one_session() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b")
    meet(net, a, b)
    assert know_each_other(a, b)
    assert len(admitted(a)) == len(admitted(b)) == 1
    for number in range(5):
        net.say(a, b, m.Ping(number, ()))
        net.say(b, a, m.Ping(number, ()))
        net.run(0.01)
    assert len(a.received) == len(b.received) == 5


def test_three_peers_with_several_addresses() -> None:
    net = Net()
    nodes = [net.add(name, f"tcp://10.0.{i}.1:{PORT}", f"tcp://10.0.{i}.2:{PORT}") for i, name in enumerate("abc")]
    meet(net, *nodes)
    assert know_each_other(*nodes)
    for node in nodes:
        assert len(admitted(node)) == 2
        assert len(node.linked) == 2, "spare addresses are hung up"
        assert not node.sessions.unanswered()


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_loss_and_reordering(seed: int) -> None:
    net = Net(seed, loss=0.3, delay_s=(0.0, 0.8))
    nodes = [net.add(name, f"tcp://10.0.{i}.1:{PORT}", f"tcp://10.0.{i}.2:{PORT}") for i, name in enumerate("abc")]
    meet(net, *nodes)
    net.run(60)
    net.loss, net.delay_s = 0.0, (0.001, 0.001)
    net.run(90)  # what one side alone believes is found out by the membership; here by dropping and meeting again
    for node in nodes:
        for other in nodes:
            if other.peer in node.sessions.peers() and node.peer not in other.sessions.peers():
                net.do(node, node.sessions.drop(other.peer, "silent", net.now))
    net.run(40)
    assert know_each_other(*nodes)
    assert not any(node.count(Ban) for node in nodes)
    for node in nodes:
        node.received.clear()
    for node in nodes:
        for other in nodes:
            net.say(node, other, m.Ping(7, ()))
    net.run(1)
    assert all(len(node.received) == 2 for node in nodes)


def test_only_one_address_works() -> None:
    net = Net()
    a = net.add("a", f"tcp://10.0.0.1:{PORT}", f"tcp://192.168.0.1:{PORT}")
    b = net.add("b", f"tcp://10.0.0.2:{PORT}", f"tcp://192.168.0.2:{PORT}")
    net.blocked = lambda sender, address: address.startswith("tcp://10.")
    meet(net, a, b)
    assert know_each_other(a, b)
    assert a.sessions.address_of(b.peer) == b.addresses[1]
    assert b.sessions.address_of(a.peer) == a.addresses[1]


def test_ourselves() -> None:
    net = Net()
    a = net.add("a")
    alias = f"tcp://10.9.9.9:{PORT}"
    net.propose(a, a.addresses[0])
    assert not a.linked
    a.addresses.append(alias)  # an address of ours that we don't know of
    net.propose(a, alias)
    net.run(2)
    assert not a.linked and not a.sessions.unanswered() and not a.sessions.peers()
    net.propose(a, alias)
    assert not a.linked
    assert net.sent["a"] == 1


def test_an_address_that_was_ours_for_a_while_is_another_s_again() -> None:
    """A laptop that comes back to a network where somebody has the address that it had elsewhere."""
    net = Net()
    office = f"tcp://192.168.1.6:{PORT}"
    a, b = net.add("a", f"tcp://192.168.1.5:{PORT}"), net.add("b", office)
    b.addresses.remove(office)
    a.addresses[:] = [office]  # elsewhere, and not noticed yet
    net.propose(a, office, source="given")
    net.run(2)
    assert not a.linked and not a.sessions.unanswered(), "it leads to itself"
    a.addresses[:], b.addresses[:] = [f"tcp://192.168.1.5:{PORT}"], [office]
    a.sessions.readdress(a.addresses)
    net.propose(a, office, source="given")
    net.run(2)
    assert know_each_other(a, b)


def test_a_copied_identity_is_noted() -> None:
    net = Net()
    a, copy = net.add("a"), net.add("copy", key=key_of("a"))
    meet(net, a, copy)
    assert "identity-used-twice" in a.notes()
    assert not a.sessions.peers()


def test_a_known_peer_is_not_dialled_at_another_address() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b")
    meet(net, a, b)
    assert a.sessions.propose(f"tcp://10.7.7.7:{PORT}", net.now, peer=b.peer) == []
    assert not a.sessions.unanswered()


def test_names_and_nonsense_are_not_dialled() -> None:
    net = Net()
    a = net.add("a")
    net.propose(a, "tcp://localhost:1", "tcp://1.2.3.4", "tcp://1.2.3.4:0", "udp://1.2.3.4:5", "tcp://::1:5", "x" * 999)
    assert not a.linked


def test_addresses() -> None:
    assert split_address("tcp://[2001:db8:0::7]:4700") == ("2001:db8::7", 4700)
    assert canonical_address("tcp://[2001:DB8:0::7]:04700") == "tcp://[2001:db8::7]:4700"
    assert make_address("10.0.0.1", 5) == "tcp://10.0.0.1:5"
    assert with_port("tcp://[::1]:5", 6) == "tcp://[::1]:6"
    for wrong in (
        "tcp://0.0.0.0:5",
        "tcp://[2001:db8::7%eth0]:5",
        "tcp://[10.0.0.1]:5",
        "tcp://10.0.0.1:65536",
        "",
        "tcp://",
    ):
        assert split_address(wrong) is None


def test_link_local_addresses_have_a_zone_here_and_none_on_the_wire() -> None:
    assert split_address("tcp://[fe80::1%eth0]:5") == ("fe80::1%eth0", 5)
    assert canonical_address("tcp://[fe80::1%eth0]:5") is None, "a zone of somebody else's"
    assert canonical_address("tcp://[fe80::1]:5") == "tcp://[fe80::1]:5"
    assert in_zones("tcp://[fe80::1]:5", ["eth0", "wlan0"]) == ["tcp://[fe80::1%eth0]:5", "tcp://[fe80::1%wlan0]:5"]
    assert in_zones("tcp://[fe80::1%wlan0]:5", ["eth0", "wlan0"]) == ["tcp://[fe80::1%wlan0]:5"]
    assert in_zones("tcp://[fe80::1%../x]:5", ["eth0"]) == in_zones("tcp://[fe80::1]:5", []) == []
    assert in_zones("tcp://10.0.0.1:5", []) == ["tcp://10.0.0.1:5"]
    own = OwnAddresses(["tcp://10.0.0.1:5", "tcp://[fe80::7%eth0]:5", "tcp://[fe80::7%wlan0]:5"])
    assert own.told == ("tcp://10.0.0.1:5", "tcp://[fe80::7]:5")
    assert own.ways_to("tcp://[fe80::9]:5") == ["tcp://[fe80::9%eth0]:5", "tcp://[fe80::9%wlan0]:5"]
    assert own.ways_to("tcp://[fe80::7]:5") == own.ways_to("tcp://10.0.0.1:5") == [], "ourselves"
    assert own.dialable(["tcp://[fe80::9%eth0]:5", "tcp://10.0.0.2:5"]) == ("tcp://10.0.0.2:5",)


def test_peers_meet_over_a_cable_with_link_local_addresses_only() -> None:
    net = Net()
    a, b = net.add("a", "tcp://[fe80::a%eth0]:4700"), net.add("b", "tcp://[fe80::b%eth0]:4700")
    net.propose(a, "tcp://[fe80::b]:4700")
    net.run(5)
    assert a.sessions.peers() == [b.peer] and b.sessions.peers() == [a.peer]
    assert a.sessions.address_of(b.peer) == "tcp://[fe80::b%eth0]:4700"


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_nobody_answers() -> None:
    net = Net()
    a = net.add("a")
    net.propose(a, f"tcp://10.0.0.9:{PORT}")
    net.propose(a, f"tcp://10.0.0.8:{PORT}", source="given")
    net.run(60)
    assert 2 * 6 <= net.sent["a"] <= 2 * 9
    assert len(a.sessions.unanswered()) == 2
    net.run(address_book.FORGET_ADDRESS_S)
    assert [each.address for each in a.sessions.unanswered()] == [f"tcp://10.0.0.8:{PORT}"]
    assert list(a.linked) == [f"tcp://10.0.0.8:{PORT}"]


def test_what_mdns_showed_is_dialled_for_long_and_for_as_long_as_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address_book.FORGET_SHOWN_S > 3 * 86_400, "a weekend"
    monkeypatch.setattr(address_book, "FORGET_SHOWN_S", 86_400.0)
    net = Net()
    a = net.add("a")
    net.propose(a, f"tcp://10.0.0.2:{PORT}", source="mdns")
    net.run(12 * 3600)
    b = net.add("b")
    net.run(40)
    assert know_each_other(a, b)
    net.propose(a, f"tcp://10.0.0.9:{PORT}")
    net.propose(a, f"tcp://10.0.0.9:{PORT}", source="mdns")
    net.run(20 * 3600)
    net.propose(a, f"tcp://10.0.0.9:{PORT}", source="mdns")  # shown again
    net.propose(a, f"tcp://10.0.0.9:{PORT}")
    net.run(20 * 3600)
    assert [(each.address, each.source) for each in a.sessions.unanswered()] == [(f"tcp://10.0.0.9:{PORT}", "mdns")]
    net.run(5 * 3600)
    assert not a.sessions.unanswered() and list(a.linked) == [f"tcp://10.0.0.2:{PORT}"]


@pytest.mark.parametrize("is_missed", [True, False])
def test_who_is_elsewhere_now_is_not_looked_for_where_it_was(is_missed: bool) -> None:
    """As a device whose process starts again at another port: nothing listens at the former one."""
    net = Net()
    net.blocked = lambda sender, address: "10.0.9." in address
    a = net.add("a")
    for port in range(PORT + 10, PORT + 60, 10):
        b = net.add("b", f"tcp://10.0.0.2:{port}", f"tcp://10.0.9.2:{port}")  # no way leads to the second
        net.propose(a, *b.addresses, source="mdns")
        net.run(60)
        assert know_each_other(a, b) and set(a.linked) == set(b.addresses)
        del net.nodes["b"]
        if is_missed:
            net.do(a, a.sessions.drop(b.peer, "dead", net.now))
        net.run(5)
    assert len(a.sessions._book._targets) == 2


def test_who_is_elsewhere_now_is_looked_for_where_the_user_said_and_where_it_says() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b", f"tcp://10.0.0.2:{PORT}", f"tcp://10.0.1.2:{PORT}")
    net.propose(a, b.addresses[0], source="given")
    net.run(1)
    net.do(a, a.sessions.drop(b.peer, "dead", net.now))
    net.do(b, b.sessions.drop(a.peer, "dead", net.now))
    b.addresses[:] = [f"tcp://10.0.1.2:{PORT}", f"tcp://10.0.3.2:{PORT}"]  # a cable less, another one more
    b.sessions.readdress(b.addresses)
    net.run(60)
    assert know_each_other(a, b)
    known, given = set(a.sessions._book._targets), f"tcp://10.0.0.2:{PORT}"
    assert given in known and known - {given} <= set(b.addresses)


def test_a_round_trip_of_seconds() -> None:
    """With the time that TCP, ZeroMQ and CURVE take for a new connection: four round trips."""
    net = Net(delay_s=(1.2, 1.2))
    net.connect_s = 9.6
    a, b = net.add("a"), net.add("b")
    net.propose(a, b.addresses[0])
    net.run(30)
    assert know_each_other(a, b)


def test_a_peer_that_comes_late() -> None:
    net = Net()
    a = net.add("a")
    net.propose(a, f"tcp://10.0.0.2:{PORT}", source="given")
    net.run(600)
    b = net.add("b")
    net.run(40)
    assert know_each_other(a, b)


def test_dropped_and_met_again() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b", f"tcp://10.0.1.1:{PORT}", f"tcp://10.0.1.2:{PORT}")
    net.propose(a, b.addresses[0])
    net.run(1)
    net.say(b, a, m.Ping(1, ()))
    net.run(1)
    net.blocked = lambda sender, address: address == b.addresses[0]
    net.do(a, a.sessions.drop(b.peer, "dead", net.now))
    assert a.news[-1] == PeerDropped(b.peer, "dead") and not a.linked
    assert net.say(a, b, m.Ping(2, ())) == []
    net.run(5)
    assert a.sessions.address_of(b.peer) == b.addresses[1], "it told us of its other address"
    net.say(a, b, m.Ping(3, ()))
    net.say(b, a, m.Ping(4, ()))
    net.run(1)
    assert [message for _, message in b.received] == [m.Ping(3, ())]
    assert [message for _, message in a.received] == [m.Ping(1, ()), m.Ping(4, ())]


def test_restart() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b")
    meet(net, a, b)
    net.say(a, b, m.Ping(1, ()))
    net.run(1)
    old = a.sessions.send(b.peer, m.Ping(2, ()), "job", 1, net.now)
    again = net.add("b", *b.addresses)
    net.do(a, old)
    net.run(0.1)
    assert again.sessions.refused == {"session": 1}
    net.propose(again, a.addresses[0])
    net.run(1)
    assert know_each_other(a, again)
    assert [type(effect) for effect in a.news[-2:]] == [PeerDropped, PeerAdmitted]
    assert a.news[-2] == PeerDropped(b.peer, "restarted")
    net.say(a, again, m.Ping(3, ()))
    net.say(again, a, m.Ping(4, ()))
    net.run(1)
    assert again.received == [(a.peer, m.Ping(3, ()))]
    assert a.received[-1] == (b.peer, m.Ping(4, ()))


def test_one_way() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b")
    net.blocked = lambda sender, address: sender is b
    meet(net, a, b)
    net.run(60)
    assert "one-way" in b.notes()
    assert not a.sessions.peers() and not b.sessions.peers()


# --- what must not get in ---------------------------------------------------------------------------------------------


def test_wrong_code() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b", code=b"d" * 32)
    meet(net, a, b)
    net.run(60)
    assert not a.sessions.peers() and not b.sessions.peers()
    assert a.sessions.refused["proof"] and b.sessions.refused["proof"]
    assert "frame-refused" in a.notes()


def test_replay() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b")
    caught = captured(net, a)
    meet(net, a, b)
    net.say(a, b, m.Ping(1, ()))
    net.say(a, b, m.Ping(2, ()))
    net.run(1)
    first, second = (frames for _, frames in caught[-2:])
    for frames in (first, second, second):
        assert b.sessions.frames_received("control", a.key, frames, net.now) == (None, [])
    assert b.sessions.refused["replay"] == 3
    net.do(b, b.sessions.drop(a.peer, "dead", net.now))
    net.run(5)
    assert know_each_other(a, b)
    assert b.sessions.frames_received("control", a.key, second, net.now)[0] is None, (
        "nor in the same session made again"
    )
    for node in (a, b):
        before = len(node.sessions.peers())
        for _, frames in caught:
            received, _ = node.sessions.frames_received("control", a.key, frames, net.now)
            assert received is None
        assert len(node.sessions.peers()) == before


def test_a_third_peer_can_not_use_what_it_heard() -> None:
    """Every frame of a's handshake and session, sent by c under its own key, gets c nowhere."""
    net = Net()
    a, b, c = net.add("a"), net.add("b"), net.add("c")
    caught = captured(net, a) + captured(net, b)
    heard = captured(net, a)
    meet(net, a, b)
    net.say(a, b, m.Ping(1, ()))
    net.run(1)
    for _, frames in [*caught, *heard]:
        for node in (a, b):
            received, _ = node.sessions.frames_received("control", c.key, frames, net.now)
            assert received is None
    net.run(5)
    assert c.peer not in a.sessions.peers() and c.peer not in b.sessions.peers()


def test_nothing_but_the_handshake_before_admission() -> None:
    net = Net()
    a = net.add("a")
    blob = BlobId("a" * 64)
    for message in (m.Ping(1, ()), m.JobRequest(), m.Chunk(blob, 0, b"x"), m.Records(())):
        frames = codec.encode(message, session=bytes(8), sequence=1)
        assert a.sessions.frames_received(m.lane_of(message), key_of("x"), frames, 0) == (None, [])
    assert a.sessions.refused == {"session": 4}


def test_a_welcome_for_someone_elses_hello() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b")
    meet(net, a, b)
    welcome = m.Welcome(bytes(16), bytes(16), bytes(32), (), 1, "")
    a.sessions.frames_received("control", b.key, codec.encode(welcome), net.now)
    a.sessions.frames_received("control", b.key, codec.encode(m.Proof(bytes(16), bytes(32))), net.now)
    assert a.sessions.refused == {"echo": 2}


def as_version(frames: list[bytes], version: int) -> list[bytes]:
    return [msgpack.packb({**msgpack.unpackb(frames[0]), "v": version}), *frames[1:]]


def test_another_wire_version_is_told_so() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b")
    theirs = m.WIRE_VERSION + 1
    hello = m.Hello(b"h" * 16, tuple(b.addresses), PORT, "p2ptrain 9.9")
    for _ in range(3):
        _, effects = a.sessions.frames_received("control", b.key, as_version(codec.encode(hello), theirs), net.now)
        net.do(a, effects)
    note = next(effect for effect in a.news if isinstance(effect, Note))
    assert note.kind == "other-version"
    assert (dict(note.fields)["ours"], dict(note.fields)["theirs"]) == (m.WIRE_VERSION, theirs)
    assert net.sent["a"] == 1, "told once"
    net.run(1)
    told = next(effect for effect in b.news if isinstance(effect, Note))
    assert told.kind == "refused-us" and dict(told.fields)["theirs"] == m.WIRE_VERSION
    net.run(guests.GUEST_S)
    assert not a.linked, "hung up afterwards"
    assert a.sessions.refused == {"version": 3}
    frames = as_version(codec.encode(m.Ping(1, ())), theirs)
    for _ in range(100):
        net.do(a, a.sessions.frames_received("control", b.key, frames, net.now)[1])
    assert not a.count(Ban)


# --- floods -----------------------------------------------------------------------------------------------------------


def test_too_many_errors_are_banned_for_a_while() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b")
    meet(net, a, b)
    for _ in range(abuse.MAX_ERRORS):
        net.do(a, a.sessions.frames_received("control", b.key, [b"garbage"], net.now)[1])
    assert a.count(Ban) == 1 and a.notes().count("frame-refused") == 1 and a.notes().count("banned") == 1
    assert PeerDropped(b.peer, "banned") in a.news and not a.linked and not a.sessions.peers()
    net.say(b, a, m.Ping(1, ()))
    net.run(abuse.BAN_S - 10)
    assert not a.received and not a.sessions.peers() and a.sessions.refused["banned"]
    net.run(60)
    assert a.sessions.peers() == [b.peer]


def test_few_errors_are_forgiven() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b")
    meet(net, a, b)
    for _ in range(100):
        net.do(a, a.sessions.frames_received("control", b.key, [b"garbage"], net.now)[1])
        net.run(10)
    assert know_each_other(a, b) and not a.count(Ban)
    assert a.sessions.refused["header"] == 100


def test_hellos_from_everywhere_stay_bounded() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b")
    meet(net, a, b)
    most = 0
    for number in range(800):
        addresses = tuple(f"tcp://10.{number % 200}.{i}.{number % 199 + 1}:{PORT}" for i in range(16))
        hello = m.Hello(number.to_bytes(16, "big"), addresses, PORT, "x")
        net.do(a, a.sessions.frames_received("control", key_of(f"x{number}"), codec.encode(hello), net.now)[1])
        net.run(0.01)
        most = max(most, len(a.linked))
    assert most <= guests.MAX_GUESTS * guests.MAX_GUEST_ADDRESSES + 1
    assert size_of(a.sessions) < 4000
    assert know_each_other(a, b)
    net.run(2 * guests.GUEST_S)
    assert len(a.linked) == 1


def test_hellos_from_one_key_are_limited() -> None:
    net = Net()
    a = net.add("a")
    addresses = tuple(f"tcp://10.1.1.{i}:{PORT}" for i in range(1, 17))
    for number in range(1000):
        hello = m.Hello(number.to_bytes(16, "big"), addresses, PORT, "x")
        net.do(a, a.sessions.frames_received("control", key_of("x"), codec.encode(hello), net.now)[1])
    assert net.sent["a"] <= abuse.MAX_HELLOS * guests.MAX_GUEST_ADDRESSES
    assert a.count(Ban) == 1


def test_proposals_are_bounded() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b")
    meet(net, a, b)
    net.propose(a, f"tcp://10.200.0.1:{PORT}", source="given")
    for number in range(1000):
        net.propose(a, f"tcp://10.1.{number // 200}.{number % 200 + 1}:{PORT}")
    assert len(a.linked) <= address_book.MAX_ADDRESSES
    assert f"tcp://10.200.0.1:{PORT}" in a.linked and know_each_other(a, b)


@given(st.lists(st.tuples(st.sampled_from("abx"), st.binary(max_size=60), st.sampled_from(["control", "bulk"]))))
@settings(max_examples=100, deadline=None)
def test_garbage_never_raises(frames: list[tuple[str, bytes, m.Lane]]) -> None:
    net = Net()
    a, b = net.add("a"), net.add("b")
    meet(net, a, b)
    for name, raw, lane in frames:
        net.do(a, a.sessions.frames_received(lane, key_of(name), [raw], net.now)[1])


def test_sending_what_can_not_be_sent_is_our_bug() -> None:
    net = Net()
    a, b = net.add("a"), net.add("b")
    meet(net, a, b)
    with pytest.raises(Exception, match="can't go on the wire") as caught:
        a.sessions.send(b.peer, m.Ping(-1, ()), "job", 1, net.now)
    assert not isinstance(caught.value, RemoteError)


def test_a_flood_of_shown_addresses_pushes_out_none_that_led_somewhere_and_not_all_others() -> None:
    book = address_book.AddressBook(random.Random(1))
    book.propose("tcp://10.0.0.1:1", 0.0, source="given", in_use=())
    met = [f"tcp://10.0.1.{number}:1" for number in range(20)]
    for number, address in enumerate(met):
        book.found(address, b"%040d" % number, 0.0, ())
        book.lost(b"%040d" % number, (), 0.0, ())
    known = [f"tcp://10.0.2.{number}:1" for number in range(20)]
    for address in known:
        book.propose(address, 0.0, source="remembered", in_use=())
    for number in range(5000):
        book.propose(f"tcp://10.1.{number // 250}.{number % 250}:1", 1.0, source="mdns", in_use=())
    left = {target.address for target in book.unanswered()}
    assert len(left) == address_book.MAX_ADDRESSES
    assert {"tcp://10.0.0.1:1", *met, *known} <= left
