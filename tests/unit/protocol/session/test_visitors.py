"""Visitors in virtual time: they go when they say so, when they fall silent, and when there are too many."""

from __future__ import annotations

import pytest
from session_net import PORT, Net, Node, captured, key_of, know_each_other, meet, size_of

from p2ptrain.ids import PeerId, peer_id
from p2ptrain.protocol.session import guests, sessions, visitors
from p2ptrain.protocol.session.effects import Ban, PeerDropped
from p2ptrain.wire import codec
from p2ptrain.wire import messages as m


def someone_visits(net: Net, members: set[PeerId] | None = None) -> tuple[Node, Node]:
    """A peer, and an observer that was told its address and is admitted."""
    known = members if members is not None else set()
    peer = net.add("peer", is_member=known.__contains__)
    visitor = net.add("visitor")
    net.propose(visitor, peer.addresses[0], source="given")
    net.run(1)
    assert know_each_other(peer, visitor)
    return peer, visitor


def go_away(net: Net, node: Node) -> None:
    del net.nodes[node.name]


def talk(net: Net, node: Node, to: Node, seconds: float) -> None:
    """As an observer does, or a peer that lacks a record: ask every second."""
    for _ in range(round(seconds)):
        net.say(node, to, m.StatusRequest())
        net.run(1)


def assert_nothing_left(net: Net, peer: Node, size: int) -> None:
    assert not peer.sessions.peers() and not peer.linked and not peer.sessions.unanswered()
    sent = net.sent[peer.name]
    net.run(4000)
    assert net.sent[peer.name] == sent, "and nobody is looked for"
    assert size_of(peer.sessions) <= size + 3, "a former session, the key that said hello, a refused proof"


# --- goodbye ----------------------------------------------------------------------------------------------------------


def test_goodbye_ends_a_visit_at_once() -> None:
    net = Net()
    peer = net.add("peer", is_member=lambda who: False)
    size = size_of(peer.sessions)
    visitor = net.add("visitor", f"tcp://10.0.1.1:{PORT}", f"tcp://10.0.1.2:{PORT}")
    net.propose(visitor, *peer.addresses)
    net.run(1)
    net.say(visitor, peer, m.Goodbye())
    net.run(0.01)
    assert peer.news[-1] == PeerDropped(visitor.peer, "goodbye") and not peer.received
    assert peer.sessions.key_of(visitor.peer) is None
    assert_nothing_left(net, peer, size)


def test_a_hello_that_comes_after_the_goodbye_does_not_begin_a_visit() -> None:
    """It was sent before, over another connection."""
    net = Net()
    peer, visitor = someone_visits(net)
    late = m.Hello(visitor.sessions._boot + b"another.", tuple(visitor.addresses), PORT, "")
    net.say(visitor, peer, m.Goodbye())
    net.run(0.1)
    net.do(peer, peer.sessions.frames_received("control", visitor.key, codec.encode(late), net.now)[1])
    assert not peer.linked and not peer.sessions.peers() and peer.sessions.refused == {"goodbye": 1}
    net.run(60)
    assert "one-way" not in peer.notes()


def test_whoever_said_goodbye_may_come_again() -> None:
    """In another run, with the same key."""
    net = Net()
    peer, visitor = someone_visits(net)
    net.say(visitor, peer, m.Goodbye())
    net.run(1)
    again = net.add("visitor", *visitor.addresses)
    net.propose(again, *peer.addresses)
    net.run(1)
    assert know_each_other(peer, again)


def test_the_goodbye_of_a_member_is_left_to_the_membership() -> None:
    """Its session ends, and it is looked for as any member whose link broke."""
    net = Net()
    peer, member = someone_visits(net, {peer_id(key_of("visitor"))})
    net.say(member, peer, m.Goodbye())
    net.run(0.1)
    assert peer.news[-1] == PeerDropped(member.peer, "goodbye")
    assert [each.address for each in peer.sessions.unanswered()] == member.addresses


def test_nobody_says_goodbye_for_another() -> None:
    """Not a stranger, not another member with what it made up, and not with what it overheard."""
    net = Net()
    peer, visitor = someone_visits(net)
    liar, stranger = net.add("liar"), net.add("stranger", code=b"d" * 32)
    net.propose(liar, *peer.addresses)
    net.run(1)
    caught = captured(net, visitor)
    session = peer.sessions._table[visitor.key]
    name, heard = session.name, session.heard["control"]
    net.blocked = lambda sender, address: sender is visitor
    net.say(visitor, peer, m.Goodbye())
    (overheard,) = [frames for _, frames in caught]
    made_up = codec.encode(m.Goodbye(), session=name, sequence=heard + 5)
    for who in (liar, stranger):
        for frames in (overheard, made_up, codec.encode(m.Goodbye())):
            assert peer.sessions.frames_received("control", who.key, frames, net.now) == (None, [])
    assert visitor.peer in peer.sessions.peers()
    assert peer.sessions.refused == {"session": 6} and not peer.count(Ban)


def test_a_goodbye_ends_one_session_only_once() -> None:
    """Sent again, after the visitor has come back in the same session, it is old."""
    net = Net()
    peer, visitor = someone_visits(net)
    caught = captured(net, visitor)
    net.say(visitor, peer, m.StatusRequest())
    net.blocked = lambda sender, address: sender is visitor
    net.say(visitor, peer, m.Goodbye())
    net.say(visitor, peer, m.StatusRequest())
    goodbye, later = caught[-2][1], caught[-1][1]
    assert peer.sessions.frames_received("control", visitor.key, later, net.now)[0] is not None
    assert peer.sessions.frames_received("control", visitor.key, goodbye, net.now) == (None, [])
    assert know_each_other(peer, visitor) and peer.sessions.refused == {"replay": 1}


# --- silence ----------------------------------------------------------------------------------------------------------


def test_a_silent_visitor_goes() -> None:
    net = Net()
    peer = net.add("peer", is_member=lambda who: False)
    size = size_of(peer.sessions)
    visitor = net.add("visitor")
    net.propose(visitor, *peer.addresses)
    net.run(1)
    talk(net, visitor, peer, 60)
    assert peer.sessions.peers() == [visitor.peer]
    go_away(net, visitor)
    net.run(visitors.VISITOR_SILENT_S - 2)
    assert peer.sessions.peers() == [visitor.peer]
    net.run(4)
    assert peer.news[-1] == PeerDropped(visitor.peer, "silent")
    assert_nothing_left(net, peer, size)


def test_a_visitor_that_was_silent_for_too_long_comes_back_with_a_new_hello() -> None:
    net = Net()
    peer, visitor = someone_visits(net)
    net.run(visitors.VISITOR_SILENT_S + 5)
    assert not peer.sessions.peers()
    net.do(visitor, visitor.sessions.drop(peer.peer, "silent", net.now))
    net.run(5)
    assert know_each_other(peer, visitor)
    net.say(visitor, peer, m.StatusRequest())
    net.run(1)
    assert peer.received[-1] == (visitor.peer, m.StatusRequest())


def test_members_may_be_silent() -> None:
    """Whether a member is there is the membership's business."""
    net = Net()
    peer, member = someone_visits(net, {peer_id(key_of("visitor"))})
    net.run(1000)
    assert know_each_other(peer, member) and not peer.count(PeerDropped)


def test_a_joiner_becomes_a_member() -> None:
    """It speaks from the start; whether its record comes soon or late, it stays."""
    net = Net()
    members: set[PeerId] = set()
    peer, joiner = someone_visits(net, members)
    talk(net, joiner, peer, 3 * visitors.VISITOR_SILENT_S)
    members.add(joiner.peer)
    net.run(1000)
    assert know_each_other(peer, joiner) and not peer.count(PeerDropped)


def test_what_a_stall_of_ours_hides_is_no_silence_of_others() -> None:
    net = Net()
    peer, visitor = someone_visits(net)
    talk(net, visitor, peer, 3)
    net.now += 500  # this process was stopped; the frames that wait are read after its timers
    net.run(visitors.VISITOR_SILENT_S - 6)
    assert know_each_other(peer, visitor)
    net.run(10)
    assert not peer.sessions.peers(), "but from then on"


def test_two_that_lost_each_other_before_they_were_members_meet_again() -> None:
    """Each takes the other for a silent visitor: the one that was told of the other looks for it again."""
    net = Net()
    a, b = (net.add(name, is_member=lambda who: False) for name in "ab")
    net.propose(a, *b.addresses)
    net.run(1)
    assert know_each_other(a, b)
    net.run(visitors.VISITOR_SILENT_S + 5)
    assert PeerDropped(b.peer, "silent") in a.news and PeerDropped(a.peer, "silent") in b.news
    assert know_each_other(a, b)


def test_what_the_user_gave_is_dialled_for_ever() -> None:
    net = Net()
    peer = net.add("peer", is_member=lambda who: False)
    visitor = net.add("visitor")
    net.propose(peer, *visitor.addresses, source="given")
    net.run(1)
    net.say(visitor, peer, m.Goodbye())
    net.run(1000)
    assert [each.address for each in peer.sessions.unanswered()] == visitor.addresses


# --- too many ---------------------------------------------------------------------------------------------------------


def visit(net: Net, peer: Node, number: int) -> Node:
    node = net.add(f"v{number}", f"tcp://10.1.{number // 200}.{number % 200 + 1}:{PORT}")
    net.propose(node, *peer.addresses)
    return node


def test_the_longest_silent_visitor_gives_way() -> None:
    net = Net()
    members: set[PeerId] = set()
    peer = net.add("peer", is_member=members.__contains__)
    member = net.add("member")
    members.add(member.peer)
    meet(net, peer, member)
    guests = []
    for number in range(visitors.MAX_VISITORS + 8):
        guests.append(visit(net, peer, number))
        net.run(0.02)
    for _ in range(5):  # none is silent for long, but the first of them for longest
        for guest in reversed(guests):
            net.say(guest, peer, m.StatusRequest())
            net.run(0.02)
    assert len(peer.sessions.peers()) == len(guests) + 1, "newcomers may all be peers"
    net.run(visitors.NEWCOMER_S - 3)
    here = set(peer.sessions.peers())
    assert here == {guest.peer for guest in guests[: visitors.MAX_VISITORS]} | {member.peer}
    reasons = [effect.reason for effect in peer.news if isinstance(effect, PeerDropped)]
    assert reasons == ["too many visitors"] * 8
    assert len(peer.linked) == len(here) and not peer.sessions.unanswered()


def test_visitors_never_keep_a_peer_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_PEERS", 2 * visitors.MAX_VISITORS)
    net = Net()
    members: set[PeerId] = set()
    peer = net.add("peer", is_member=members.__contains__)
    for number in range(sessions.MAX_PEERS + 20):
        visit(net, peer, number)
        net.run(0.01)
    assert len(peer.sessions.peers()) <= sessions.MAX_PEERS
    newcomer = net.add("newcomer", f"tcp://10.2.0.1:{PORT}")
    net.propose(newcomer, *peer.addresses)
    net.run(0.5)
    assert newcomer.peer in peer.sessions.peers() and not peer.sessions.refused["full"]


def test_many_visits_leave_what_one_does() -> None:
    """Hundreds of them, of which some end without a word, some before they are admitted, and some say goodbye."""
    net = Net()
    member = peer_id(key_of("member"))
    peer = net.add("peer", is_member=lambda who: who == member)
    friend = net.add("member")
    meet(net, peer, friend)
    linked = dict(peer.linked)
    for number in range(600):
        node = visit(net, peer, number)
        net.run(0.0025 if number % 5 == 0 else 0.1)
        if number % 3:
            net.say(node, peer, m.Goodbye())
            net.run(0.01)
        go_away(net, node)
        assert len(peer.linked) <= 1 + guests.MAX_GUESTS + 16 / 0.1
    net.run(visitors.VISITOR_SILENT_S + guests.GUEST_S)
    assert peer.linked == linked and know_each_other(peer, friend)
    assert not peer.sessions.unanswered()
    assert size_of(peer.sessions) < 3 * 512 + 20, "tables of a fixed size, of offences and former sessions"
