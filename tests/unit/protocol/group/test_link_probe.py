"""What links carry: measured against made-up links of a known rate and delay, some of them busy, deaf or gone."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.ids import PeerId
from p2ptrain.protocol.group.link_probe import LinkConfig, LinkMeasured, LinkMeter
from p2ptrain.protocol.machine import NEVER, Send
from p2ptrain.wire.messages import MAX_LINKS, LinkEcho, LinkFigure, LinkProbe

CONFIG = LinkConfig()


def peer(number: int) -> PeerId:
    return PeerId(f"peer{number:012d}")


class Wire:
    """Members 0 to n - 1 on links of one rate (bytes/s) and delay (s one way); the echo is one of a few bytes."""

    def __init__(self, count: int, rate: float, delay_s: float = 0.002, *, noise_s: float = 0.0, seed: int = 0) -> None:
        self.rate, self.delay_s, self.noise_s = rate, delay_s, noise_s
        self.rng = random.Random(seed)
        self.names = [peer(number) for number in range(count)]
        self.meters = {name: LinkMeter(name, random.Random(number)) for number, name in enumerate(self.names)}
        self.deaf: set[PeerId] = set()
        self.now = 0.0
        self.sent: list[tuple[float, PeerId, PeerId, int]] = []
        self.told: list[tuple[PeerId, LinkFigure]] = []
        self._queue: list[tuple[float, int, PeerId, PeerId, LinkProbe | LinkEcho]] = []
        self._order = itertools.count()

    def start(self) -> None:
        for name in self.names:
            self.carry_out(name, self.meters[name].members_changed(self.names, self.now))

    def carry_out(self, sender: PeerId, effects: list[Send | LinkMeasured]) -> None:
        for effect in effects:
            if isinstance(effect, LinkMeasured):
                self.told.append((sender, effect.figure))
                continue
            message = effect.message
            assert isinstance(message, (LinkProbe, LinkEcho))
            size = len(message.data) if isinstance(message, LinkProbe) else 0
            if isinstance(message, LinkProbe):
                self.sent.append((self.now, sender, effect.to, size))
            if effect.to in self.deaf:
                continue
            late = self.rng.expovariate(1 / self.noise_s) if self.noise_s else 0.0
            at = self.now + self.delay_s + size / self.rate + late
            heapq.heappush(self._queue, (at, next(self._order), sender, effect.to, message))

    def run(self, until: float = 600.0) -> None:
        while True:
            due = {name: meter.next_deadline() for name, meter in self.meters.items()}
            name = min(due, key=lambda each: due[each])
            arrival = self._queue[0][0] if self._queue else NEVER
            if min(due[name], arrival) > until:
                return
            if arrival <= due[name]:
                self.now, _, sender, to, message = heapq.heappop(self._queue)
                self.carry_out(to, self.meters[to].received(sender, message, self.now))
            else:
                self.now = max(self.now, due[name])
                self.carry_out(name, self.meters[name].tick(self.now))


@pytest.mark.parametrize("mbit_s", [0.5, 5.0, 20.0, 100.0, 1000.0])
def test_a_link_is_measured_as_it_is_in_bytes_that_it_can_bear(mbit_s: float) -> None:
    wire = Wire(2, mbit_s * 1e6 / 8, delay_s=0.003)
    wire.start()
    wire.run()
    ((who, figure),) = wire.told
    assert (who, figure.peer) == (peer(0), peer(1))
    assert figure.bytes_per_s * 8e-6 == pytest.approx(mbit_s, rel=0.01)
    assert figure.latency_s == pytest.approx(0.003, rel=0.01)
    assert wire.meters[peer(0)].figures() == (figure,) and wire.meters[peer(1)].figures() == ()
    assert wire.now < 5.0 and all(meter.next_deadline() == NEVER for meter in wire.meters.values())
    largest = max(size for *_, size in wire.sent)
    assert largest == CONFIG.first_bytes or largest / 4 * 8e-6 / mbit_s < CONFIG.long_s


@settings(max_examples=40, deadline=None)
@given(st.floats(1.0, 200.0), st.floats(0.0, 0.02), st.integers(0, 2**16))
def test_what_comes_in_between_makes_a_link_look_slower_never_much_faster(
    mbit_s: float, noise_s: float, seed: int
) -> None:
    wire = Wire(2, mbit_s * 1e6 / 8, noise_s=noise_s, seed=seed)
    wire.start()
    wire.run()
    ((_, figure),) = wire.told
    num_bytes = wire.sent[-1][3]
    held_up_s = 2 * (figure.latency_s - wire.delay_s)  # even the fastest of the empty probes
    least_s = max(num_bytes / (mbit_s * 1e6 / 8) - held_up_s, 1e-5)
    assert figure.bytes_per_s <= num_bytes / least_s * 1.001
    assert figure.latency_s >= wire.delay_s


def test_every_pair_is_measured_once_and_each_peer_measures_one_at_a_time() -> None:
    wire = Wire(6, 2.5e6)
    wire.start()
    wire.run()
    pairs = {(who, figure.peer) for who, figure in wire.told}
    assert len(wire.told) == len(pairs) == 15 and all(one < other for one, other in pairs)
    assert wire.now < 30.0, "a second each, some of them at once"
    times: dict[frozenset[PeerId], list[float]] = {}
    for at, sender, to, size in wire.sent:
        if size > 1:
            times.setdefault(frozenset((sender, to)), []).append(at)
    for one, other in itertools.combinations(times, 2):
        apart = times[one][-1] <= times[other][0] or times[other][-1] <= times[one][0]
        assert apart or not one & other, "nobody is in two measurements at once"


def test_who_is_being_measured_asks_others_to_come_back() -> None:
    meter = LinkMeter(peer(5), random.Random(0))
    assert meter.received(peer(1), LinkProbe(7, b"x"), 0.0) == [Send(peer(1), LinkEcho(7))]
    assert meter.received(peer(2), LinkProbe(3, b"x"), 0.1) == [Send(peer(2), LinkEcho(3, busy=True))]
    assert meter.members_changed([peer(5), peer(6)], 0.2) == [] and meter.next_deadline() == CONFIG.hold_s
    assert meter.received(peer(1), LinkProbe(8, bytes(99), last=True), 0.3) == [Send(peer(1), LinkEcho(8))]
    (probe,) = meter.tick(meter.next_deadline())
    assert isinstance(probe, Send) and isinstance(probe.message, LinkProbe) and probe.to == peer(6)
    assert meter.received(peer(2), LinkProbe(4, b"x"), 0.4) == [Send(peer(2), LinkEcho(4, busy=True))]
    silent = LinkMeter(peer(5), random.Random(0))
    silent.received(peer(1), LinkProbe(7, b"x"), 0.0)
    assert silent.received(peer(2), LinkProbe(3, b"x"), CONFIG.hold_s) == [Send(peer(2), LinkEcho(3))], "it has gone"


def test_who_is_told_to_come_back_does_so_soon() -> None:
    meter = LinkMeter(peer(0), random.Random(0))
    (first,) = meter.members_changed([peer(0), peer(1)], 0.0)
    assert isinstance(first, Send) and isinstance(first.message, LinkProbe)
    assert meter.received(peer(1), LinkEcho(first.message.sequence, busy=True), 0.01) == []
    assert 0.0 < meter.next_deadline() - 0.01 < 2 * CONFIG.busy_s
    (again,) = meter.tick(meter.next_deadline())
    assert isinstance(again, Send) and again.to == peer(1)


def test_of_a_large_group_only_some_links_are_measured() -> None:
    meter = LinkMeter(peer(0), random.Random(0))
    meter.members_changed([peer(number) for number in range(200)], 0.0)
    assert len(meter._waiting) == MAX_LINKS


def test_who_does_not_answer_is_left_alone_for_a_while_and_the_others_are_measured() -> None:
    wire = Wire(3, 1e6)
    wire.deaf = {peer(1)}
    wire.start()
    wire.run(until=65.0)
    assert [figure.peer for who, figure in wire.told if who == peer(0)] == [peer(2)]
    times = [at for at, sender, to, _ in wire.sent if (sender, to) == (peer(0), peer(1))]
    assert len(times) == CONFIG.max_failures
    wire.deaf = set()
    wire.run(until=300.0)
    assert {figure.peer for who, figure in wire.told if who == peer(0)} == {peer(1), peer(2)}


def test_late_and_made_up_echoes_change_nothing() -> None:
    meter = LinkMeter(peer(0), random.Random(0))
    (first,) = meter.members_changed([peer(0), peer(1), peer(2)], 0.0)
    assert isinstance(first, Send) and isinstance(first.message, LinkProbe)
    other = peer(2) if first.to == peer(1) else peer(1)
    number = first.message.sequence
    assert meter.received(other, LinkEcho(number), 1.0) == []
    assert meter.received(first.to, LinkEcho(number + 1), 1.0) == []
    (again,) = meter.tick(CONFIG.timeout_s)
    assert isinstance(again, Send) and isinstance(again.message, LinkProbe) and again.to == first.to
    assert meter.received(first.to, LinkEcho(number), CONFIG.timeout_s + 1) == []
    assert meter.received(first.to, LinkEcho(again.message.sequence), CONFIG.timeout_s + 1) != []


def test_who_comes_back_soon_has_the_link_that_it_had_and_later_it_is_measured_anew() -> None:
    wire = Wire(3, 1e6)
    wire.start()
    wire.run()
    meter = wire.meters[peer(0)]
    known = meter.figures()
    assert [figure.peer for figure in known] == [peer(1), peer(2)]
    for _ in range(3):
        assert meter.members_changed([peer(0), peer(2)], wire.now) == [] and meter.figures() == known
        wire.now += CONFIG.remember_s - 1
        assert meter.members_changed(wire.names, wire.now) == [] and meter.next_deadline() == NEVER
    meter.members_changed([peer(0), peer(2)], wire.now)
    wire.now += CONFIG.remember_s
    (probe,) = meter.members_changed(wire.names, wire.now)
    assert isinstance(probe, Send) and probe.to == peer(1) and meter.figures() == known[1:]
    assert meter.members_changed([peer(0)], wire.now) == [] and meter.next_deadline() == NEVER  # it goes half way


def test_of_those_that_come_and_go_no_more_are_remembered_than_a_record_has_room_for() -> None:
    wire = Wire(MAX_LINKS + 9, 1e7)
    meter = wire.meters[peer(0)]
    for number in range(1, len(wire.names)):
        wire.carry_out(peer(0), meter.members_changed([peer(0), peer(number)], wire.now))
        wire.run(wire.now + 30.0)
        assert wire.told[-1][1].peer == peer(number)
    known = [figure.peer for figure in meter.figures()]
    assert known == [peer(number) for number in range(len(wire.names) - MAX_LINKS, len(wire.names))]


def test_a_probe_is_answered_whoever_sends_it() -> None:
    meter = LinkMeter(peer(5), random.Random(0))
    assert meter.received(peer(1), LinkProbe(7, b"x" * 100), 0.0) == [Send(peer(1), LinkEcho(7))]
