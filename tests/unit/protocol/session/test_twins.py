"""One identity on two devices: the younger ends, the older stays, and the others say why."""

from __future__ import annotations

import pytest
from session_net import PORT, Net, Node, key_of

from p2ptrain.errors import RemoteError
from p2ptrain.ids import peer_id
from p2ptrain.protocol.machine import Note
from p2ptrain.protocol.session.effects import IdentityTaken, PeerDropped
from p2ptrain.protocol.session.twins import MAX_REMEMBERED, SURE_S, TURNED_AWAY_S, Twins

OLD, YOUNG = b"1" * 8, b"2" * 8


def taken(node: Node) -> list[str]:
    return [effect.address for effect in node.news if isinstance(effect, IdentityTaken)]


@pytest.mark.parametrize("one_way", [False, True])
def test_the_younger_ends_whoever_dials(one_way: bool) -> None:
    net = Net()
    old = net.add("old", key=key_of("same"), started_s=1_800_000_000)
    young = net.add("young", key=key_of("same"), started_s=1_800_000_100)
    net.propose(young, *old.addresses)
    if not one_way:
        net.propose(old, *young.addresses)
    net.run(10)
    assert set(taken(young)) == set(old.addresses) and not taken(old)
    assert "identity-used-twice" in old.notes()


def test_a_restart_is_no_twin() -> None:
    """Not even where frames of the process before are still on their way, or its clock was ahead."""
    net = Net(delay_s=(0.001, 1.0))
    for started_s in (1_800_000_000, 1_700_000_000, 1_800_000_005):
        a = net.add("a", f"tcp://10.0.0.1:{PORT}", started_s=started_s)
        b = net.nodes.get("b") or net.add("b", f"tcp://10.0.0.2:{PORT}")
        net.propose(a, *b.addresses)
        net.run(60)
        assert a.sessions.peers() == [b.peer] and b.sessions.peers() == [a.peer]
        assert not taken(a) and "frame-refused" not in b.notes()


def test_another_peer_keeps_the_older_and_says_why() -> None:
    net = Net()
    other = net.add("other")
    old = net.add("old", key=key_of("same"), started_s=1_800_000_000)
    young = net.add("young", key=key_of("same"), started_s=1_800_000_100)
    net.blocked = lambda sender, address: other not in (sender, net.listener(address))  # the two never meet
    for node in (old, young):
        net.propose(node, *other.addresses, source="given")
        net.run(20)
    for _ in range(10):  # each comes back, as it finds itself dropped
        for node in (old, young):
            net.do(node, node.sessions.drop(other.peer, "silent", net.now))
        net.run(10)
    restarts = sum(isinstance(effect, PeerDropped) and effect.reason == "restarted" for effect in other.news)
    assert restarts <= 2, "no coming and going"
    assert other.sessions.address_of(peer_id(key_of("same"))) == old.addresses[0]
    why = [dict(each.fields) for each in other.news if isinstance(each, Note) and each.kind == "frame-refused"]
    assert {each["reason"] for each in why} == {"twin"}
    assert old.addresses[0] in str(why[0]["why"]) and young.addresses[0] in str(why[0]["why"])


def test_the_younger_is_turned_away_for_as_long_as_the_older_is_here() -> None:
    twins = Twins(b"0" * 8)
    twins.followed(b"k", OLD, 0.0)
    twins.check(b"k", OLD, "a", (YOUNG, "b"), SURE_S)  # the older one comes back
    twins.followed(b"k", YOUNG, SURE_S)
    with pytest.raises(RemoteError, match="at a and b"):
        twins.check(b"k", YOUNG, "b", (OLD, "a"), SURE_S + 1)
    with pytest.raises(RemoteError, match="at a and b"):
        twins.check(b"k", YOUNG, "b", (OLD, "a"), 10 * TURNED_AWAY_S)
    third = b"3" * 8
    twins.check(b"k", third, "c", (OLD, "a"), 20 * TURNED_AWAY_S)  # one that is new here may be a restart


def test_what_is_remembered_is_bounded() -> None:
    twins = Twins(b"0" * 8)
    for number in range(3 * MAX_REMEMBERED):
        boot = number.to_bytes(8)
        twins.is_ours_taken(boot, 0.0)
        twins.followed(b"k%d" % number, boot, 0.0)
    assert len(twins._own_seen) == len(twins._followed) == MAX_REMEMBERED
