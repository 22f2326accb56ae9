"""A door that opens to those only who show what it asks for, over links that lose."""

from __future__ import annotations

import pytest
from session_net import Net, Node, key_of, know_each_other, meet

from p2ptrain.protocol.session.abuse import MAX_HELLOS
from p2ptrain.protocol.session.door import Door
from p2ptrain.protocol.session.effects import Knocked, NoticeTold
from p2ptrain.wire import codec
from p2ptrain.wire import messages as m

FOUNDER, NONCE, WORD = key_of("founder"), bytes(32), b"w" * 64


def shown(name: str) -> m.Admission:
    return m.Admission(FOUNDER, NONCE, key_of(name), WORD)


def door(name: str, *, is_in: bool = True) -> Door:
    """Opens to who shows what was made out for its key."""

    def opens(key: bytes, admission: m.Admission | None) -> bool:
        return is_in and admission is not None and admission.device == key

    return Door(opens, shown(name) if is_in else None, name, is_guarded=True)


def knocked(node: Node) -> set[str]:
    return {effect.name for effect in node.news if isinstance(effect, Knocked)}


@pytest.mark.parametrize("loss", [0.0, 0.3])
@pytest.mark.parametrize("seed", [1, 2])
def test_those_that_are_let_in_meet_and_the_other_knocks(seed: int, loss: float) -> None:
    net = Net(seed, loss)
    one, other = net.add("one", door=door("one")), net.add("other", door=door("other"))
    asks = net.add("asks", door=door("asks", is_in=False))
    meet(net, one, other, asks)
    net.run(60)
    assert know_each_other(one, other) and asks.sessions.peers() == []
    assert knocked(one) == knocked(other) == {"asks"}


def test_each_side_knows_whose_door_keeps_them_apart_and_that_nobody_answers_any_more() -> None:
    net = Net(1)
    one, asks = net.add("one", door=door("one")), net.add("asks", door=door("asks", is_in=False))
    meet(net, one, asks)
    net.run(60)
    assert [each.shut for each in one.sessions.unanswered()] == ["here"]
    assert [each.shut for each in asks.sessions.unanswered()] == ["there"]
    del net.nodes["one"]
    net.run(90)
    assert [each.shut for each in asks.sessions.unanswered()] == [""]


def test_what_was_made_out_for_another_opens_no_door() -> None:
    net = Net(1)
    one, thief = net.add("one", door=door("one")), net.add("thief", door=Door(own=shown("other"), name="thief"))
    meet(net, one, thief)
    net.run(30)
    assert one.sessions.peers() == [] and knocked(one) == {"thief"}


def test_two_that_are_not_in_do_not_meet_each_other() -> None:
    net = Net(1)
    one, other = net.add("one", door=door("one", is_in=False)), net.add("other", door=door("other", is_in=False))
    meet(net, one, other)
    assert one.sessions.peers() == other.sessions.peers() == []


def test_who_knocks_without_end_is_banned() -> None:
    net = Net(1)
    one, asks = net.add("one", door=door("one")), net.add("asks", door=door("asks", is_in=False))
    caught: list[list[bytes]] = []
    send = net.send

    def spy(who: Node, address: str, lane: m.Lane, frames: list[bytes]) -> None:
        if who is asks:
            caught.append(frames)
        send(who, address, lane, frames)

    net.send = spy  # type: ignore[method-assign]
    meet(net, one, asks)
    (proof, *_) = [frames for frames in caught if isinstance(codec.decode(frames, "control")[1], m.Proof)]
    for _ in range(2 * MAX_HELLOS):
        net.do(one, one.sessions.frames_received("control", asks.key, proof, net.now)[1])
    assert one.sessions.refused["flood"] and "banned" in one.notes()
    assert one.count(Knocked) <= MAX_HELLOS + 1


def test_notices_are_heard_outside_of_a_session_and_not_without_end() -> None:
    net = Net(1)
    one, other = net.add("one"), net.add("other")
    frames = codec.encode(m.Admitted(shown("one")))
    for _ in range(2 * MAX_HELLOS):
        net.do(one, one.sessions.frames_received("control", other.key, frames, net.now)[1])
    told = [effect for effect in one.news if isinstance(effect, NoticeTold)]
    assert told[0] == NoticeTold(other.key, m.Admitted(shown("one"))) and len(told) == MAX_HELLOS
    assert "banned" in one.notes()
