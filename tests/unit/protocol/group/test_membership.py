"""Membership, one scenario at a time, by hand."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from records import membership

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId, peer_id
from p2ptrain.protocol.group.membership import Membership
from p2ptrain.protocol.group.rumours import News, retransmit_limit
from p2ptrain.protocol.group.swim import (
    LAN,
    Effect,
    MembershipConfig,
    PeerFailed,
    PeerJoined,
    PeerLeft,
    PeerRefuted,
    PeerSuspected,
    suspicion_timeout,
)
from p2ptrain.protocol.machine import NEVER, Send
from p2ptrain.protocol.round_trip import RoundTrip
from p2ptrain.protocol.signing import Statements
from p2ptrain.simulation.names import key
from p2ptrain.simulation.signing import signing_as
from p2ptrain.wire.messages import Ack, MemberState, Ping, PingRequest, Rumour

ME, ANN, BOB, CAT = (PeerId(name.ljust(16, "x")) for name in ("me", "ann", "bob", "cat"))


def machine(*members: PeerId, now: float = 0.0, config: MembershipConfig = LAN) -> Membership:
    return membership(ME, random.Random(1), now, config, members=members)


def sends(effects: list[Effect], to: PeerId) -> list[object]:
    return [effect.message for effect in effects if isinstance(effect, Send) and effect.to == to]


def events(effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if not isinstance(effect, Send)]


def rumour(peer: PeerId, state: MemberState = "alive", incarnation: int = 0) -> Rumour:
    return Rumour(peer, state, incarnation)


def run(membership: Membership, until: float) -> list[tuple[float, Effect]]:
    """Tick at each deadline; nobody answers."""
    log: list[tuple[float, Effect]] = []
    while membership.next_deadline() <= until:
        now = membership.next_deadline()
        log.extend((now, effect) for effect in membership.tick(now))
        assert membership.next_deadline() > now
    return log


@pytest.mark.parametrize(
    ("confirmations", "expected", "timeout"), [(0, 3, 3.0), (1, 3, 2.0), (3, 3, 1.0), (9, 3, 1.0), (0, 0, 1.0)]
)
def test_suspicion_shrinks_with_confirmations(confirmations: int, expected: int, timeout: float) -> None:
    assert suspicion_timeout(1.0, 3.0, confirmations, expected) == pytest.approx(timeout)


@pytest.mark.parametrize(("members", "limit"), [(1, 2), (3, 4), (4, 6), (200, 16), (5000, 26)])
def test_retransmits_grow_with_the_logarithm(members: int, limit: int) -> None:
    assert retransmit_limit(2, members) == limit


def test_ack_timeout_follows_round_trips_within_its_bounds() -> None:
    trips = RoundTrip()
    assert machine().ack_timeout_s() == trips.timeout_s(0.1, 0.4, first_s=0.2) == 0.2
    for _ in range(50):
        trips.add(0.002)
    assert trips.timeout_s(0.1, 0.4, first_s=0.2) == 0.1
    for _ in range(50):
        trips.add(0.15)
    assert 0.15 < trips.timeout_s(0.1, 0.4, first_s=0.2) < 0.3
    trips.add(9.0)
    assert trips.timeout_s(0.1, 0.4, first_s=0.2) == 0.4


def test_news_is_sent_youngest_first_and_not_for_ever() -> None:
    news = News()
    news.add(ANN)
    assert news.take(1, 3) == [ANN]
    news.add(BOB)
    assert news.take(1, 3) == [BOB]
    assert [len(news.take(2, 3)) for _ in range(3)] == [2, 2, 0]
    assert not news


def test_a_link_makes_a_member_who_is_told_of_all() -> None:
    membership = machine(ANN, BOB)
    effects = membership.peer_reachable(CAT, 0.1)
    assert events(effects) == [PeerJoined(CAT)]
    (ping,) = sends(effects, CAT)
    assert isinstance(ping, Ping)
    assert {r.peer for r in ping.rumours} == {ME, ANN, BOB}
    assert membership.alive() == {ANN, BOB, CAT}
    assert membership.peer_reachable(CAT, 0.2) == []


def test_who_gets_a_link_says_hello_over_it() -> None:
    machine = membership(ME, random.Random(1), 0.0, members=(ANN, BOB), linked=())
    (hello,) = machine.peer_reachable(BOB, 0.01)
    assert isinstance(hello, Send) and hello.to == BOB
    assert isinstance(hello.message, Ping) and hello.message.sequence == 0
    assert machine.peer_reachable(BOB, 0.02) == []
    machine.link_closed(BOB)
    assert len(machine.peer_reachable(BOB, 0.03)) == 1


def test_a_ping_is_acked() -> None:
    (ack,) = sends(machine(ANN).received(ANN, Ping(7, ()), 0.1), ANN)
    assert isinstance(ack, Ack)
    assert ack.sequence == 7
    assert rumour(ME) in ack.rumours


def test_an_observer_is_acked_and_no_member_and_has_no_say() -> None:
    membership = machine(ANN)
    effects = membership.received(CAT, Ping(1, (rumour(BOB), rumour(ANN, "dead", 5))), 0.1)
    assert len(sends(effects, CAT)) == 1
    assert events(effects) == []
    assert membership.alive() == {ANN}
    assert machine(config=MembershipConfig(ack_strangers=False)).received(CAT, Ping(1, ()), 0.1) == []


def test_who_only_watches_never_names_itself() -> None:
    membership = machine(ANN, config=MembershipConfig(announce=False))
    spoken = [effect for _, effect in run(membership, 5.0)] + membership.received(ANN, Ping(1, (rumour(ME),)), 5.0)
    messages = [effect.message for effect in spoken if isinstance(effect, Send)]
    assert messages
    assert all(r.peer != ME for m in messages if isinstance(m, (Ping, PingRequest, Ack)) for r in m.rumours)
    assert membership.leave(6.0) == []


def test_a_silent_peer_is_pinged_again_asked_for_suspected_and_dead() -> None:
    log = run(machine(ANN, BOB), 10.0)
    first = [type(e.message).__name__ for _, e in log if isinstance(e, Send)][:3]
    assert first[0] == "Ping"
    assert any(isinstance(e, Send) and isinstance(e.message, PingRequest) for _, e in log)
    suspected = next(now for now, e in log if e == PeerSuspected(ANN))
    failed = next(now for now, e in log if isinstance(e, PeerFailed) and e.peer == ANN)
    assert LAN.suspicion_min_s <= failed - suspected <= LAN.suspicion_min_s * LAN.suspicion_stretch + 0.01


def test_an_ack_by_way_of_a_helper_counts() -> None:
    membership = machine(ANN, BOB)
    requests: list[tuple[float, PeerId, PingRequest]] = []
    while not requests:
        now = membership.next_deadline()
        requests = [
            (now, e.to, e.message)
            for e in membership.tick(now)
            if isinstance(e, Send) and isinstance(e.message, PingRequest)
        ]
    now, helper, request = requests[0]
    membership.received(helper, Ack(request.sequence, ()), now + 0.01)
    later = run(membership, now + 0.35)
    assert PeerSuspected(request.target) not in [effect for _, effect in later]


def test_a_helper_passes_the_ack_on() -> None:
    membership = machine(ANN, BOB)
    (ping,) = sends(membership.received(ANN, PingRequest(42, BOB, ()), 0.1), BOB)
    assert isinstance(ping, Ping)
    assert sends(membership.received(CAT, Ack(ping.sequence, ()), 0.1), ANN) == []
    (ack,) = sends(membership.received(BOB, Ack(ping.sequence, ()), 0.1), ANN)
    assert isinstance(ack, Ack)
    assert ack.sequence == 42


def test_an_accused_peer_refutes_by_its_incarnation() -> None:
    membership = machine(ANN)
    effects = membership.received(ANN, Ping(1, (rumour(ME, "suspect", 3),)), 0.1)
    assert membership.incarnation(ME) == 4
    (ack,) = sends(effects, ANN)
    assert isinstance(ack, Ack)
    assert rumour(ME, "alive", 4) in ack.rumours


def test_only_a_higher_incarnation_ends_a_suspicion() -> None:
    membership = machine(ANN, BOB, CAT)
    assert PeerSuspected(BOB) in membership.received(ANN, Ping(0, (rumour(BOB, "suspect"),)), 0.05)
    membership.received(CAT, Ping(0, (rumour(BOB),)), 0.06)
    assert membership.state(BOB) == "suspect"
    assert BOB in membership.alive()
    assert PeerRefuted(BOB) in membership.received(CAT, Ping(0, (rumour(BOB, "alive", 1),)), 0.07)
    assert membership.state(BOB) == "alive"


def test_a_sign_of_life_puts_death_off() -> None:
    membership = machine(ANN, BOB)
    membership.received(ANN, Ping(0, (rumour(BOB, "suspect"),)), 0.05)
    log = []
    for step in range(1, 30):
        log += run(membership, step * 0.1)
        membership.received(BOB, Ack(0, ()), step * 0.1)
    failed = [now for now, e in log + run(membership, 9.0) if isinstance(e, PeerFailed) and e.peer == BOB]
    assert failed
    assert failed[0] >= 2.9 + LAN.suspicion_min_s


def test_hearsay_of_a_death_is_checked_by_who_heard_the_dead_lately() -> None:
    membership = machine(ANN, BOB)
    membership.received(BOB, Ping(0, ()), 0.05)
    assert events(membership.received(ANN, Ping(0, (rumour(BOB, "dead"),)), 0.06)) == [PeerSuspected(BOB)]
    assert events(membership.received(ANN, Ping(0, (rumour(BOB, "dead"),)), 1.4)) == []
    assert membership.state(BOB) == "suspect"
    assert [e for _, e in run(membership, 4.0) if isinstance(e, PeerFailed) and e.peer == BOB]


def test_own_stall_is_held_against_nobody() -> None:
    membership = machine(ANN, BOB)
    run(membership, 0.5)
    effects = membership.tick(100.0)
    assert not [e for e in effects if isinstance(e, (PeerSuspected, PeerFailed))]
    assert membership.health == 1


def test_the_dead_are_remembered_can_return_and_are_forgotten() -> None:
    membership = machine(ANN, BOB, config=MembershipConfig(remember_s=30.0))
    run(membership, 0.1)
    membership.received(ANN, Ping(0, (rumour(BOB, "dead", 2),)), 0.15)
    now = 0.15
    while membership.state(BOB) != "dead":
        now = max(now, membership.next_deadline())
        membership.received(ANN, Ping(0, ()), now)
        membership.tick(now)
    assert membership.alive() == {ANN}
    (ping,) = sends(membership.peer_reachable(BOB, now), BOB)
    assert isinstance(ping, Ping)
    assert rumour(BOB, "dead", 2) in ping.rumours
    (ack,) = sends(membership.received(BOB, Ping(1, (rumour(BOB, "alive", 2),)), now), BOB)
    assert isinstance(ack, Ack)
    assert rumour(BOB, "dead", 2) in ack.rumours
    effects = membership.received(BOB, Ping(1, (rumour(BOB, "alive", 3),)), now)
    assert PeerJoined(BOB) in effects
    membership.received(BOB, Ping(1, (rumour(BOB, "left", 3),)), now)
    run(membership, now + 35.0)
    assert membership.state(BOB) is None


def suspected_for(membership: Membership, now: float) -> tuple[float, float]:
    """How long ANN, who falls silent, is suspected before she counts as dead, and when she does."""
    log = run(membership, now + 60.0)
    since = next(at for at, e in log if e == PeerSuspected(ANN))
    dead = next(at for at, e in log if isinstance(e, PeerFailed))
    return dead - since, dead


def test_who_was_called_dead_and_lived_is_waited_for_longer() -> None:
    """As a process on a very weak device that stands still now and then; for no longer than it goes on like that."""
    membership = machine(ANN)
    waits, now = [], 0.0
    for incarnation in range(1, 6):
        waited, now = suspected_for(membership, now)
        waits.append(waited)
        assert PeerJoined(ANN) in membership.received(ANN, Ping(0, (rumour(ANN, "alive", incarnation),)), now + 1)
        now += 1
    assert waits == pytest.approx([waits[0] * times for times in (1, 2, 4, 8, 8)])
    while now < 1000:
        now = max(now, membership.next_deadline())
        membership.received(ANN, Ping(0, ()), now)
        membership.tick(now)
    assert suspected_for(membership, now)[0] == pytest.approx(waits[0], abs=LAN.period_s)


@pytest.mark.parametrize(("incarnation", "after_s"), [(9, 1.0), (1, 20.0)], ids=["started again", "was out of reach"])
def test_who_did_not_stand_still_is_waited_for_as_before(incarnation: int, after_s: float) -> None:
    membership = machine(ANN)
    waited, now = suspected_for(membership, 0.0)
    assert PeerJoined(ANN) in membership.received(ANN, Ping(0, (rumour(ANN, "alive", incarnation),)), now + after_s)
    assert suspected_for(membership, now + after_s)[0] == pytest.approx(waited)


def test_leaving_tells_all_and_then_only_answers() -> None:
    leaver = machine(ANN, BOB)
    effects = leaver.leave(1.0)
    assert sorted(effect.to for effect in effects if isinstance(effect, Send)) == [ANN, BOB]
    (ping,) = sends(effects, ANN)
    assert isinstance(ping, Ping)
    other = membership(ANN, random.Random(2), 1.0, members=[ME, BOB])
    assert PeerLeft(ME) in other.received(ME, ping, 1.01)
    assert leaver.next_deadline() == NEVER
    assert leaver.tick(2.0) == []
    (ack,) = sends(leaver.received(ANN, Ping(3, (rumour(ME, "left"),)), 2.0), ANN)
    assert isinstance(ack, Ack)
    assert ack.rumours[0] == rumour(ME, "left")


@pytest.mark.parametrize(
    "message",
    [
        Ping(0, tuple(rumour(ANN) for _ in range(65))),
        Ack(0, (rumour(ANN, "alive", 2**60),)),
        Ping(0, (rumour(BOB, "alive", -1),)),
    ],
)
def test_absurd_messages_are_refused_unheard(message: Ping | Ack) -> None:
    membership = machine(ANN)
    with pytest.raises(RemoteError):
        membership.received(ANN, message, 0.1)
    assert membership.alive() == {ANN}
    with pytest.raises(RemoteError):
        membership.received(ME, Ping(1, ()), 0.1)


# --- whose word counts ------------------------------------------------------------------------------------------------

KEYS = [key(number) for number in range(4)]
NAMES = [peer_id(each) for each in KEYS]
KEY_OF = dict(zip(NAMES, KEYS, strict=True)).get


def signer(number: int) -> Statements:
    return Statements(signing_as(KEYS[number]), b"the group")


def strict(*, incarnation: int = 5) -> tuple[Membership, Counter[str]]:
    """Peer 0, which knows the keys of the others and believes what they sign. And what it refused."""
    refused: Counter[str] = Counter()
    own = Membership(
        NAMES[0], random.Random(1), 0.0, statements=signer(0), key_of=KEY_OF, refused=refused, incarnation=incarnation
    )
    for number in (1, 2):
        own.received(NAMES[number], Ping(0, (word(number, 7),)), 0.0)
    assert own.alive() == set(NAMES[1:3])
    return own, refused


def word(number: int, incarnation: int, *, left: bool = False, by: int | None = None) -> Rumour:
    """What a peer says of itself, or what ``by`` makes up in its name."""
    signature = signer(number if by is None else by).presence(incarnation, left=left)
    return Rumour(NAMES[number], "left" if left else "alive", incarnation, signature)


LIES = [
    *(word(2, incarnation, left=True, by=1) for incarnation in (7, 8, 2**53 - 1, 2**53)),
    *(word(2, incarnation, by=1) for incarnation in (8, 2**31, 2**53 - 1, 2**53)),
    *(Rumour(NAMES[2], state, incarnation) for state in ("suspect", "dead") for incarnation in (8, 2**53 - 1, 2**53)),
    Rumour(NAMES[2], "left", 7, word(2, 7).word),
    Rumour(NAMES[2], "left", 7, word(2, 6, left=True).word),
    word(3, 7, by=1),
    Rumour(NAMES[3], "alive", 0),
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_what_only_a_peer_itself_can_say_is_not_believed_of_another(lie: Rumour) -> None:
    own, refused = strict()
    assert events(own.received(NAMES[1], Ping(0, (lie,)), 0.1)) == []
    assert own.alive() == set(NAMES[1:3])
    assert (own.state(NAMES[2]), own.incarnation(NAMES[2])) == ("alive", 7)
    assert refused["rumour-unsigned"] == bool(lie.word)
    assert own.incarnation(NAMES[0]) == 5


def test_a_word_passed_on_counts_whoever_passes_it_on() -> None:
    own, refused = strict()
    assert events(own.received(NAMES[1], Ping(0, (word(2, 9),)), 0.1)) == []
    assert own.incarnation(NAMES[2]) == 9
    assert events(own.received(NAMES[1], Ping(0, (word(3, 4),)), 0.1)) == [PeerJoined(NAMES[3])]
    assert events(own.received(NAMES[1], Ping(0, (word(2, 9, left=True),)), 0.1)) == [PeerLeft(NAMES[2])]
    assert not refused


def test_a_word_to_another_group_does_not_count_here() -> None:
    own, refused = strict()
    elsewhere = Statements(signing_as(KEYS[2]), b"another group").presence(7, left=True)
    own.received(NAMES[1], Ping(0, (Rumour(NAMES[2], "left", 7, elsewhere),)), 0.1)
    assert own.state(NAMES[2]) == "alive" and refused["rumour-unsigned"] == 1


@pytest.mark.parametrize("state", ["alive", "suspect", "dead", "left"])
@pytest.mark.parametrize("incarnation", [6, 2**53 - 1, 2**53])
def test_nobody_else_raises_the_own_incarnation(state: MemberState, incarnation: int) -> None:
    """But an earlier life of ours, under a clock that went ahead, does."""
    own, refused = strict()
    own.received(NAMES[1], Ping(0, (Rumour(NAMES[0], state, incarnation, b"x" * 64),)), 0.1)
    assert own.incarnation(NAMES[0]) == 5 and refused["rumour-unsigned"] == 1
    earlier = signer(0).presence(6, left=state == "left")
    own.received(NAMES[1], Ping(0, (Rumour(NAMES[0], state, 6, earlier),)), 0.1)
    assert own.incarnation(NAMES[0]) == 7


def test_who_is_called_dead_by_one_answers_and_stays() -> None:
    own, _ = strict()
    victim = Membership(
        NAMES[2], random.Random(2), 0.0, statements=signer(2), key_of=KEY_OF, refused=Counter(), incarnation=7
    )
    victim.received(NAMES[0], Ping(0, (word(0, 5),)), 0.0)
    for turn in range(50):
        now = 3.0 + turn * 0.1  # long after anything was heard of it
        lie = Rumour(NAMES[2], "dead", own.incarnation(NAMES[2]) or 0)
        said = own.received(NAMES[1], Ping(0, (lie,)), now)
        assert not [event for event in events(said) if isinstance(event, PeerFailed)]
        for ping in sends([*said, *own.tick(now)], NAMES[2]):
            if isinstance(ping, Ping):
                for answer in sends(victim.received(NAMES[0], ping, now), NAMES[0]):
                    assert isinstance(answer, Ack)
                    own.received(NAMES[2], answer, now)
    assert NAMES[2] in own.alive()


def test_a_process_that_has_ended_is_dead_at_once_and_may_come_back() -> None:
    group = machine(ANN, BOB)
    group.received(ANN, Ping(1, (rumour(ANN, incarnation=3),)), 0.5)
    assert events(group.process_gone(ANN, 0.6)) == [PeerFailed(ANN)]
    assert group.alive() == {BOB} and group.process_gone(ANN, 0.7) == []
    assert events(group.received(BOB, Ping(2, (rumour(ANN, incarnation=3),)), 0.8)) == [], "old news"
    assert events(group.received(ANN, Ping(3, (rumour(ANN, incarnation=4),)), 0.9)) == [PeerJoined(ANN)]
    assert group.process_gone(CAT, 1.0) == [], "nobody that is known"
