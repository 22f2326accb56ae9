"""Links of members that nobody needs for a while: let go of on both sides, and there again with the next word."""

from __future__ import annotations

import pytest
from session_net import PORT, Net, Node, captured, know_each_other, meet

from p2ptrain.ids import PeerId
from p2ptrain.protocol.session.address_book import REST_S
from p2ptrain.protocol.session.effects import PeerAdmitted, PeerDropped
from p2ptrain.protocol.session.links import LINGER_S, Idle
from p2ptrain.wire import codec
from p2ptrain.wire import messages as m


def two_members(does: Idle = "rests", *, source: str = "peer") -> tuple[Net, Node, Node]:
    net = Net()
    one, other = net.add("one"), net.add("other")
    for node in (one, other):
        node.sessions.when_idle = lambda peer, now: does
    net.propose(one, other.addresses[0], source=source)  # type: ignore[arg-type]
    net.run(1)
    assert know_each_other(one, other)
    return net, one, other


def rest(net: Net, node: Node, other: Node) -> None:
    net.do(node, node.sessions.rest(other.peer, net.now))


def dropped(node: Node) -> list[str]:
    return [effect.reason for effect in node.news if isinstance(effect, PeerDropped)]


def test_both_ends_let_go_and_nobody_dials_again() -> None:
    net, one, other = two_members()
    rest(net, one, other)
    net.run(LINGER_S + 1)
    assert dropped(one) == dropped(other) == ["idle"]
    assert not one.linked and not other.linked and not one.sessions.unanswered() and not other.sessions.unanswered()
    sent = dict(net.sent)
    net.run(4000)
    assert dict(net.sent) == sent
    assert not one.sessions.refused and not other.sessions.refused


def test_whoever_needs_it_dials_and_the_session_goes_on() -> None:
    net, one, other = two_members()
    rest(net, one, other)
    net.run(LINGER_S + 1)
    net.propose(other, *one.addresses)
    net.run(1)
    assert know_each_other(one, other)
    net.say(one, other, m.StatusRequest())
    net.run(0.1)
    assert [message for _, message in other.received] == [m.StatusRequest()]
    assert dropped(one) == dropped(other) == ["idle"], "it is no restart"


def test_a_word_of_the_other_end_brings_it_back_where_the_goodbye_was_lost() -> None:
    net, one, other = two_members()
    net.blocked = lambda sender, address: sender is one
    rest(net, one, other)
    net.run(LINGER_S + 1)
    net.blocked = lambda sender, address: False
    assert dropped(other) == [] and one.sessions.key_of(other.peer) is None
    net.say(other, one, m.Ping(1, ()))
    net.run(0.1)
    assert [message for _, message in one.received] == [m.Ping(1, ())]
    assert know_each_other(one, other) and one.count(PeerAdmitted) == 2
    net.say(one, other, m.Ack(1, ()))
    net.run(0.1)
    assert other.received[-1][1] == m.Ack(1, ())
    assert not one.sessions.refused and not other.sessions.refused


def test_who_still_needs_it_keeps_it_and_wakes_the_other_end() -> None:
    net, one, other = two_members("stays")
    rest(net, one, other)
    net.run(LINGER_S + 1)
    assert dropped(other) == []
    net.say(other, one, m.StatusRequest())
    net.run(0.1)
    assert know_each_other(one, other) and [message for _, message in one.received] == [m.StatusRequest()]


def test_a_member_whose_goodbye_is_no_rest_is_looked_for() -> None:
    net, one, other = two_members("ends")
    rest(net, one, other)
    net.run(0.1)
    assert dropped(other) == ["goodbye"] and other.sessions.unanswered()


@pytest.mark.parametrize("late", [m.Ack(1, ()), m.Records(()), m.Goodbye()])
def test_late_answers_bring_nothing_back(late: m.Message) -> None:
    net, one, other = two_members("stays")
    net.blocked = lambda sender, address: sender is one
    rest(net, one, other)
    net.say(other, one, late)
    net.run(0.5)
    assert one.sessions.key_of(other.peer) is None and one.count(PeerAdmitted) == 1


def test_what_was_here_before_brings_nothing_back() -> None:
    net, one, other = two_members("stays")
    caught = captured(net, other)
    net.say(other, one, m.Ping(1, ()))
    net.run(0.1)
    ((_, frames),) = caught
    rest(net, one, other)
    net.run(0.1)
    for old in (frames, codec.encode(m.Ping(1, ()), session=bytes(8), sequence=10**6)):
        received, effects = one.sessions.frames_received("control", other.key, old, net.now)
        assert received is None and not [each for each in effects if isinstance(each, PeerAdmitted)]
    assert one.sessions.key_of(other.peer) is None


def test_an_address_that_the_user_gave_is_tried_again_after_a_while() -> None:
    net, one, other = two_members(source="given")
    rest(net, one, other)
    net.run(REST_S - 10)
    assert one.sessions.key_of(other.peer) is None
    net.run(20)
    assert know_each_other(one, other)


def test_a_restart_is_met_anew() -> None:
    net, one, other = two_members()
    rest(net, one, other)
    net.run(LINGER_S + 1)
    del net.nodes["other"]
    again = net.add("other", *other.addresses)
    net.propose(again, *one.addresses)
    net.run(1)
    assert know_each_other(one, again)


def test_resting_twice_and_resting_a_stranger_is_nothing() -> None:
    net, one, other = two_members()
    rest(net, one, other)
    assert one.sessions.rest(other.peer, net.now) == [] and one.sessions.rest(PeerId("nobody"), net.now) == []


def test_both_at_once() -> None:
    net, one, other = two_members()
    rest(net, one, other)
    rest(net, other, one)
    net.run(LINGER_S + 1)
    assert dropped(one) == dropped(other) == ["idle"] and not one.linked and not other.linked
    meet(net, one, other)
    assert PORT and know_each_other(one, other)
