"""Streams of stage messages over a bad network in virtual time: in order, once, bounded, and as fast as the link."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.streams.ends import StreamConfig
from p2ptrain.protocol.streams.streams import Delivered, Effect, Streams, StreamWait
from p2ptrain.wire.messages import StreamAck, StreamData

A, B, C = PeerId("a" * 16), PeerId("b" * 16), PeerId("c" * 16)
PLAN = "5" * 64
SMALL = StreamConfig(window_bytes=100, window_messages=8, max_queued_bytes=2000)
Fate = tuple[float, ...]
"""Delays of a message's copies: none = lost, two = doubled."""


def machine(config: StreamConfig = SMALL, *, peers: Iterable[PeerId] = (A, B), epoch: int = 3) -> Streams:
    streams = Streams(config)
    streams.reset(epoch, peers, 0.0, PLAN)
    return streams


def push(streams: Streams, to: PeerId, number: int, now: float = 0.0, size: int = 10) -> list[Effect]:
    return streams.push(to, "forward", number, 0, 0, bytes(size), now)


def stream_data(effects: Iterable[object]) -> list[StreamData]:
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, StreamData)]


def acks(effects: Iterable[object]) -> list[StreamAck]:
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, StreamAck)]


class Pair:
    """A sends to B over a network that ``fate`` decides on; B's trainer takes each stage message after ``think_s``."""

    def __init__(self, config: StreamConfig, fate: Callable[[object], Fate], think_s: float = 0.0) -> None:
        self.ends = {A: machine(config), B: machine(config)}
        self.fate = fate
        self.think_s = think_s
        self.now = 0.0
        self.sent: list[tuple[float, StreamData | StreamAck]] = []
        self.got: list[int] = []
        self.most_held = 0
        self.asleep: dict[PeerId, float] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._trainer_free = 0.0
        self._num_events = 0

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (when, next(self._order), action))

    def push(self, numbers: Iterable[int], size: int) -> None:
        for number in numbers:
            self.carry(A, push(self.ends[A], B, number, self.now, size))

    def carry(self, who: PeerId, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                message = effect.message
                assert isinstance(message, (StreamData, StreamAck))
                self.sent.append((self.now, message))
                for delay in self.fate(message):
                    self.at(self.now + delay, lambda to=effect.to, message=message: self.arrive(who, to, message))
            elif isinstance(effect, Delivered):
                self.got.append(effect.step)
                self._trainer_free = max(self._trainer_free, self.now) + self.think_s
                self.at(self._trainer_free, lambda sender=effect.sender: self.take(who, sender))
        stream = self.ends[B]._incoming[A]
        self.most_held = max(self.most_held, stream.held_bytes)

    def arrive(self, sender: PeerId, to: PeerId, message: StreamData | StreamAck) -> None:
        if self.now < self.asleep.get(to, 0.0):
            self.at(self.asleep[to], lambda: self.arrive(sender, to, message))
            return
        self.carry(to, self.ends[to].received(sender, message, self.now))

    def take(self, who: PeerId, sender: PeerId) -> None:
        if self.now < self.asleep.get(who, 0.0):
            self.at(self.asleep[who], lambda: self.take(who, sender))
            return
        self.carry(who, self.ends[who].taken(sender, 1, self.now))

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Events and timers in order of time."""
        while not stop():
            self._num_events += 1
            assert self._num_events < 200_000, "it ticks without end"
            timers = {who: max(end.next_deadline(), self.asleep.get(who, 0.0)) for who, end in self.ends.items()}
            who = min(timers, key=lambda each: timers[each])
            event = self._heap[0][0] if self._heap else NEVER
            if min(event, timers[who]) > until:
                self.now = until
                return
            if event <= timers[who]:
                self.now, _, action = heapq.heappop(self._heap)
                action()
            else:
                self.now = max(self.now, timers[who])
                self.carry(who, self.ends[who].tick(self.now))

    def done(self) -> bool:
        return not self.ends[A].waiting()

    def num_sent(self, kind: type) -> int:
        return sum(isinstance(message, kind) for _, message in self.sent)


def line(rate: float, latency_s: float) -> Callable[[object], Fate]:
    """A link that carries ``rate`` bytes a second each way, in order."""
    free = {StreamData: 0.0, StreamAck: 0.0}
    pair: list[Pair] = []

    def fate(message: object) -> Fate:
        size = len(message.data) if isinstance(message, StreamData) else 100
        free[type(message)] = max(free[type(message)], pair[0].now) + size / rate
        return (free[type(message)] - pair[0].now + latency_s,)

    fate.pair = pair  # type: ignore[attr-defined]
    return fate


def over_line(config: StreamConfig, rate: float, latency_s: float, think_s: float = 0.0) -> Pair:
    fate = line(rate, latency_s)
    pair = Pair(config, fate, think_s)
    fate.pair.append(pair)  # type: ignore[attr-defined]
    return pair


# --- whatever the network does -------------------------------------------------------------------------------------

delays = st.floats(0.0, 3.0) | st.just(0.001)
fates = st.lists(st.lists(delays, max_size=2).map(tuple), max_size=80)


@settings(max_examples=150, deadline=None)
@given(fates, st.lists(st.integers(1, 150), min_size=1, max_size=40), st.sampled_from([0.0, 0.003, 0.4, 5.0]))
def test_everything_arrives_once_and_in_order(doom: list[Fate], sizes: list[int], think_s: float) -> None:
    """Losses, doubles and delays as drawn, for the first messages; later ones get through: that is fair."""
    left = iter(doom)
    pair = Pair(dataclasses.replace(SMALL, max_queued_bytes=10_000), lambda message: next(left, (0.01,)), think_s)
    for number, size in enumerate(sizes):
        pair.push([number], size)
    pair.run(5000.0, pair.done)
    assert pair.got == list(range(len(sizes)))
    assert pair.done()
    assert pair.most_held <= max(SMALL.window_bytes, *sizes)


@pytest.mark.parametrize("seed", range(5))
def test_a_bad_link_for_ever(seed: int) -> None:
    rng = random.Random(seed)

    def fate(message: object) -> Fate:
        copies = rng.choices([0, 1, 2], [0.3, 0.6, 0.1])[0]
        return tuple(rng.uniform(0.01, 0.5) for _ in range(copies))

    pair = Pair(StreamConfig(), fate, think_s=0.01)
    pair.push(range(300), 500_000)
    pair.run(5000.0, pair.done)
    assert pair.got == list(range(300))
    assert pair.most_held <= StreamConfig().window_bytes
    assert pair.num_sent(StreamData) < 3 * 300


# --- the window and its speed --------------------------------------------------------------------------------------


def test_the_window_lets_through_what_fits_and_a_single_larger_message() -> None:
    sender, receiver = machine(), machine()
    assert [p.sequence for n in range(4) for p in stream_data(push(sender, B, n, size=40))] == [0, 1]
    assert (sender.queued_bytes, sender.waiting()) == (80, (StreamWait(B, 0.0, 160),))
    receiver.received(A, StreamData(3, 0, "forward", 0, 0, 0, bytes(40), PLAN, 1), 0.1)
    receiver.received(A, StreamData(3, 1, "forward", 1, 0, 0, bytes(40), PLAN, 2), 0.1)
    receiver.taken(A, 1, 0.1)
    (ack,) = acks(receiver.tick(0.2))
    assert ack == StreamAck(3, 1, PLAN, arrived=2, sending=2)
    assert [p.sequence for p in stream_data(sender.received(B, ack, 0.3))] == [2]
    assert sender.waiting() == (StreamWait(B, 0.3, 120),)

    alone = machine()
    assert len(stream_data(push(alone, B, 0, size=5000))) == 1
    assert stream_data(push(alone, B, 1, size=1)) == []


def test_no_more_messages_are_out_than_the_window_counts() -> None:
    sender = machine()
    assert sum(len(stream_data(push(sender, B, n, size=1))) for n in range(50)) == SMALL.window_messages


def test_the_window_keeps_the_pipe_full() -> None:
    """100 Mbit/s, 40 ms there and back: as fast as the link; and the trainer's own speed where that is less."""
    pair = over_line(StreamConfig(), rate=12.5e6, latency_s=0.02)
    pair.push(range(64), 1 << 20)
    pair.run(60.0, pair.done)
    ideal = 64 * (1 << 20) / 12.5e6
    assert pair.got == list(range(64))
    assert ideal <= pair.now < 1.02 * ideal + 0.1
    assert pair.num_sent(StreamData) == 64

    slow = over_line(StreamConfig(), rate=12.5e6, latency_s=0.02, think_s=0.5)
    slow.push(range(20), 1 << 20)
    slow.run(60.0, slow.done)
    assert 10.0 <= slow.now < 10.5


def test_where_the_round_trip_is_long_each_one_brings_a_window() -> None:
    pair = over_line(StreamConfig(first_timeout_s=10.0), rate=1e12, latency_s=1.0)
    pair.push(range(40), 1 << 20)
    pair.run(60.0, pair.done)
    assert pair.got == list(range(40))
    assert pair.now < 10 * (2.0 + 0.05)
    assert pair.num_sent(StreamData) == 40


def test_acks_are_few() -> None:
    """Small stage messages, taken at once: one ack for eight; at leisure: one in 20 ms."""
    pair = over_line(StreamConfig(), rate=1e8, latency_s=0.0005)
    pair.push(range(800), 1000)
    pair.run(10.0, pair.done)
    assert pair.num_sent(StreamAck) <= 101

    calm = over_line(StreamConfig(), rate=1e8, latency_s=0.0005)
    for number in range(200):
        calm.at(number * 0.005, lambda number=number: calm.push([number], 1000))
    calm.run(1.05)
    assert len(calm.got) == 200
    assert calm.num_sent(StreamAck) <= 1.05 / 0.02 + 1


# --- loss, stalls and slow links -----------------------------------------------------------------------------------


def test_an_ack_shows_a_gap_and_only_the_missing_message_is_sent_again() -> None:
    sender, receiver = machine(), machine()
    sent = [p for n in range(5) for p in stream_data(push(sender, B, n))]
    assert all(receiver.received(A, message, 0.01) == [] for message in sent[1:])
    (ack,) = acks(receiver.tick(0.04))
    assert (ack.sequence, ack.arrived, ack.sending) == (0, 0, 5)
    again = stream_data(sender.received(B, ack, 0.05))
    assert [(p.sequence, p.sending) for p in again] == [(0, 6)]
    assert sender.received(B, ack, 0.06) == []  # the ack twice
    delivered = receiver.received(A, again[0], 0.07)
    assert [e.step for e in delivered if isinstance(e, Delivered)] == [0, 1, 2, 3, 4]


def test_a_burst_of_losses_takes_one_timeout_and_then_a_round_trip_each() -> None:
    pair = over_line(StreamConfig(), rate=1e8, latency_s=0.005)
    honest, num = pair.fate, itertools.count()
    pair.fate = lambda message: () if isinstance(message, StreamData) and next(num) < 4 else honest(message)
    pair.push(range(4), 1 << 20)
    pair.run(60.0, pair.done)
    assert pair.got == [0, 1, 2, 3]
    assert pair.now < StreamConfig().first_timeout_s + 4 * 0.3
    assert pair.num_sent(StreamData) == 8


def test_a_trainer_that_stands_still_costs_its_sender_nothing() -> None:
    pair = over_line(StreamConfig(), rate=12.5e6, latency_s=0.01, think_s=3600.0)
    pair.push(range(20), 1 << 20)
    pair.run(3500.0)
    assert pair.num_sent(StreamData) == 4
    assert pair.num_sent(StreamAck) < 140  # one in 30 s
    pair.think_s = 0.0
    assert pair.ends[A].waiting() == (StreamWait(B, 0.0, 20 << 20),)


def test_a_process_that_stands_still_is_sent_one_message_now_and_then() -> None:
    pair = over_line(StreamConfig(), rate=12.5e6, latency_s=0.01)
    pair.asleep[B] = 600.0
    pair.push(range(40), 1 << 20)
    pair.run(599.0)
    assert pair.num_sent(StreamData) <= 4 + 5 + 600 / StreamConfig().max_timeout_s
    pair.run(605.0)
    assert pair.got == list(range(40)) and pair.done()


@pytest.mark.parametrize("rate", [12_500, 125_000, 1_250_000])
def test_a_slow_link_is_not_flooded_with_repetitions(rate: int) -> None:
    """The first window takes longer than any first guess of a time-out."""
    size = min(1 << 20, rate * 8)
    pair = over_line(StreamConfig(), rate=rate, latency_s=0.01)
    pair.push(range(30), size)
    pair.run(10_000.0, pair.done)
    assert pair.got == list(range(30))
    assert pair.num_sent(StreamData) <= 30 + 4
    assert pair.now < 34 * size / rate + 5


def test_a_lost_credit_is_repeated_until_more_comes() -> None:
    pair = over_line(SMALL, rate=1e6, latency_s=0.001)
    honest = pair.fate
    lossy = True
    pair.fate = lambda message: () if lossy and isinstance(message, StreamAck) and message.sequence else honest(message)
    pair.push(range(20), 60)
    pair.run(100.0)
    assert pair.got == [0]
    lossy = False
    pair.run(140.0)
    assert pair.got == list(range(20)) and pair.done()


def test_a_new_link_brings_the_oldest_message_and_the_last_ack_at_once() -> None:
    sender, receiver = machine(), machine()
    (lost,) = stream_data(push(sender, B, 0))
    assert sender.next_deadline() == SMALL.first_timeout_s
    (again,) = stream_data(sender.reconnected(B, 0.5))
    assert (again.sequence, again.sending) == (0, lost.sending + 1)
    assert receiver.reconnected(A, 0.5) == []  # nothing came yet
    receiver.received(A, again, 0.6)
    assert [ack.arrived for ack in acks(receiver.reconnected(A, 0.6))] == [1]
    assert sender.reconnected(C, 0.6) == []


def test_a_resend_is_noted() -> None:
    sender = machine()
    push(sender, B, 7)
    send, note = sender.tick(sender.next_deadline())
    assert isinstance(send, Send)
    assert note == Note("stage-message-sent-again", (("peer", B), ("stage_message", 0), ("timeouts", 1)))


# --- plans ---------------------------------------------------------------------------------------------------------


def test_a_new_plan_starts_from_nothing() -> None:
    sender, receiver = machine(), machine()
    old = [p for n in range(12) for p in stream_data(push(sender, B, n, size=20))]
    receiver.received(A, old[0], 0.1)
    assert sender.reset(4, (A, C), 1.0, PLAN) == [Send(A, StreamAck(4, 0, PLAN)), Send(C, StreamAck(4, 0, PLAN))]
    assert (sender.epoch, sender.waiting(), sender.queued_bytes) == (4, (), 0)
    (first,) = stream_data(push(sender, C, 99))
    assert (first.epoch, first.sequence, first.sending) == (4, 0, 1)
    assert acks(receiver.reset(4, (A,), 1.0, PLAN)) == [StreamAck(4, 0, PLAN)]
    assert receiver.received(A, old[1], 1.1) == []
    assert receiver.tick(100.0) == []  # not even an ack
    delivered = receiver.received(A, first, 1.2)
    assert delivered == [Delivered(A, "forward", 99, 0, 0, bytes(10))]


def test_who_is_ahead_still_sends_what_others_need_to_get_there() -> None:
    """The window let five of twelve through before the plan changed; the sixth was lost."""
    sender, receiver = machine(), machine()
    sent = [p for n in range(12) for p in stream_data(push(sender, B, n, size=20))]
    sender.reset(4, (A, B), 1.0, "6" * 64)
    got: list[int] = []
    now, lost = 1.0, {5}
    while sent and now < 30.0:
        now += 0.01
        delivered = [e for p in sent if p.sequence not in lost for e in receiver.received(A, p, now)]
        lost -= {p.sequence for p in sent}
        got += [e.step for e in delivered if isinstance(e, Delivered)]
        answers = acks(receiver.taken(A, len(delivered), now)) + acks(receiver.tick(now + 0.1))
        sent = [p for ack in answers for p in stream_data(sender.received(B, ack, now + 0.1))]
        sent += stream_data(sender.tick(now + 0.1)) if not sent and len(got) < 12 else []
        now += 0.1 if sent else 1.0
    assert got == list(range(12)), got
    assert sender.waiting() == ()
    assert sender.tick(1.0 + SMALL.finish_s) == [] and sender.next_deadline() == NEVER


def test_nothing_of_the_plan_before_is_sent_to_who_has_left_it_or_for_ever() -> None:
    for shows_up in (True, False):
        sender = machine(SMALL)
        for number in range(12):
            push(sender, B, number, size=20)
        sender.reset(4, (A, B), 1.0, PLAN)
        if shows_up:
            assert sender.received(B, StreamAck(4, 0, PLAN), 2.0) == []
            assert not [e for now in range(2, 61) for e in sender.tick(float(now))]
            assert sender.tick(1.0 + SMALL.finish_s) == []
        else:
            sent = [p for now in range(2, 61) for p in stream_data(sender.tick(float(now)))]
            assert {p.sequence for p in sent} == {0} and len(sent) < 8
            assert sender.tick(1.0 + SMALL.finish_s) == [Note("stage-messages-dropped", (("epoch", 3), ("bytes", 240)))]
        assert sender.next_deadline() == NEVER
        assert sender.received(B, StreamAck(3, 1, PLAN, 1, 1), 70.0) == []


def test_what_went_past_a_receiver_that_began_late_comes_again_at_once() -> None:
    sender, receiver = machine(), Streams(SMALL)
    early = [p for n in range(3) for p in stream_data(push(sender, B, n))]
    assert [receiver.received(A, message, 0.0) for message in early] == [[], [], []]
    (opening,) = acks(receiver.reset(3, (A,), 0.5, PLAN))
    again = stream_data(sender.received(B, opening, 0.6))
    assert [p.sequence for p in again] == [0, 1, 2] and [p.sending for p in again] == [4, 5, 6]
    assert [e.step for p in again for e in receiver.received(A, p, 0.7) if isinstance(e, Delivered)] == [0, 1, 2]
    taken = StreamAck(3, 1, PLAN, 3, 6)
    assert stream_data(sender.received(B, taken, 0.8)) == []
    assert stream_data(sender.received(B, opening, 0.9)) == [], "late: it has taken something since"


def test_other_epochs_and_rival_plans_are_ignored_and_strangers_are_not() -> None:
    receiver = machine(peers=(A,))
    for epoch, plan in ((2, PLAN), (4, PLAN), (3, "6" * 64), (3, "")):
        for sender in (A, C):
            assert receiver.received(sender, StreamData(epoch, 0, "norm", 0, 0, 0, b"x", plan, 1), 0.0) == []
            assert receiver.received(sender, StreamAck(epoch, 9, plan), 0.0) == []
    for message in (StreamData(3, 0, "norm", 0, 0, 0, b"x", PLAN, 1), StreamAck(3, 0, PLAN)):
        with pytest.raises(RemoteError, match="stream-stranger"):
            receiver.received(C, message, 0.0)
    assert len(receiver.received(A, StreamData(3, 0, "norm", 0, 0, 0, b"x", PLAN, 1), 0.0)) == 1


def test_before_the_first_plan_nothing_is_expected() -> None:
    streams = Streams()
    assert streams.received(A, StreamData(1, 0, "norm", 0, 0, 0, b"x", PLAN, 1), 0.0) == []
    assert streams.taken(A, 1, 0.0) == [] and streams.tick(9.0) == [] and streams.next_deadline() == NEVER
    with pytest.raises(LocalError):
        push(streams, A, 0)


# --- whose fault ---------------------------------------------------------------------------------------------------


def test_more_than_the_window_is_refused() -> None:
    receiver = machine()
    receiver.received(A, StreamData(3, 0, "forward", 0, 0, 0, bytes(150), PLAN, 1), 0.0)  # a single one may be large
    with pytest.raises(RemoteError, match="stream-window"):
        receiver.received(A, StreamData(3, 1, "forward", 0, 0, 0, bytes(51), PLAN, 2), 0.0)
    with pytest.raises(RemoteError, match="stream-window"):
        receiver.received(A, StreamData(3, 16, "forward", 0, 0, 0, b"x", PLAN, 2), 0.0)
    receiver.taken(A, 1, 0.0)
    assert receiver.received(A, StreamData(3, 1, "forward", 0, 0, 0, bytes(51), PLAN, 2), 0.0)


def test_an_ack_of_what_was_never_sent_changes_nothing() -> None:
    """It is of a life before a restart."""
    sender = machine()
    push(sender, B, 0)
    before = sender.waiting()
    for ack in (StreamAck(3, 2, PLAN), StreamAck(3, 0, PLAN, arrived=2), StreamAck(3, 1, PLAN, arrived=1, sending=9)):
        assert sender.received(B, ack, 0.1) == []
        assert sender.waiting() == before


def test_what_the_caller_must_not_do() -> None:
    streams = machine()
    with pytest.raises(LocalError, match="not in the plan"):
        push(streams, C, 0)
    number = itertools.count()
    with pytest.raises(LocalError, match="not held back"):
        for _ in range(100):
            push(streams, B, next(number), size=100)
    assert streams.queued_bytes == 2100


def test_no_more_is_taken_than_was_delivered() -> None:
    receiver = machine()
    receiver.received(A, StreamData(3, 0, "forward", 0, 0, 0, b"x", PLAN, 1), 0.0)
    receiver.taken(A, 5, 0.0)  # four of them under the plan before
    assert [ack.sequence for ack in acks(receiver.tick(0.02))] == [1]


messages = st.builds(
    StreamData, st.sampled_from([2, 3]), st.integers(0, 20) | st.integers(0, 2**63 - 1), st.just("forward"),
    st.just(1), st.just(0), st.just(0), st.binary(min_size=1, max_size=120), st.just(PLAN), st.integers(0, 2**63 - 1),
) | st.builds(
    StreamAck, st.just(3), st.integers(0, 9) | st.integers(0, 2**63 - 1), st.just(PLAN),
    st.integers(0, 9) | st.integers(0, 2**63 - 1), st.integers(0, 20),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.01, 2.0]), messages | st.sampled_from(["push", "take", "reset"])), max_size=60
    )
)
def test_any_message_at_any_time(steps: list[tuple[float, StreamData | StreamAck | str]]) -> None:
    """``RemoteError`` or nothing, no ticks without end, bounded memory."""
    streams, now, number = machine(), 0.0, 0
    for pause, step in steps:
        now += pause
        for _ in range(20):
            if streams.next_deadline() > now:
                break
            streams.tick(streams.next_deadline())
        assert streams.next_deadline() > now
        try:
            if step == "push":
                number += 1
                push(streams, A, number, now, 30)
            elif step == "take":
                streams.taken(A, 1, now)
            elif step == "reset":
                streams.reset(7 - streams.epoch, (A, B), now, PLAN)
            else:
                assert not isinstance(step, str)
                streams.received(A, step, now)
        except RemoteError as error:
            assert error.reason == "stream-window"
        stream = streams._incoming[A]
        assert stream.held_bytes <= 2 * SMALL.window_bytes
        assert len(stream.early) + len(stream.untaken) <= 2 * SMALL.window_messages
