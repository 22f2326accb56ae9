"""The group's fit, step by step, in virtual time: whatever is lost and whoever dies, all end with the same state."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seeds import seeds

from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId, PeerId, blob_id, peer_id
from p2ptrain.protocol.head_fit.head_fit import HeadFitMachine
from p2ptrain.protocol.head_fit.lead import MAX_MISSED
from p2ptrain.protocol.head_fit.run import (
    CombineContributions,
    ComputeContribution,
    HeadFitConfig,
    HeadFitFinished,
    PrepareFeatures,
    session_name,
)
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.simulation.network import Conditions, SimulatedNetwork
from p2ptrain.wire.messages import (
    HeadFitCall,
    HeadFitGradient,
    HeadFitReady,
    HeadFitState,
    Message,
    SnapshotRef,
)

STEPS = 6
RATE = 0.3
DIMENSIONS = 3
PEERS = sorted(peer_id(b"%040d" % number) for number in range(8))
FINE = Conditions()


def holdings(epoch: int = 1, salt: str = "") -> tuple[SnapshotRef, ...]:
    return tuple(
        SnapshotRef(part, PEERS[part], epoch, 5, 50, 100, blob_id(f"{part}{salt}".encode()), 1000) for part in range(3)
    )


# --- a trainer of three numbers ---------------------------------------------------------------------------------------


def contribute(step: int, state: bytes, samples: np.ndarray) -> bytes:
    """Step 0: the sum; then the gradient of half the squared distance, summed."""
    if step == 0:
        return samples.sum(0).tobytes()
    return (len(samples) * np.frombuffer(state) - samples.sum(0)).tobytes()


def combine(step: int, state: bytes, contributions: Iterable[tuple[int, bytes]]) -> bytes:
    """Step 0: twice the mean, so that there is something left to do; then one step down."""
    total, count = np.zeros(DIMENSIONS), 0
    for samples, data in contributions:
        total, count = total + np.frombuffer(data), count + samples
    return (2 * total / count if step == 0 else np.frombuffer(state) - RATE * total / count).tobytes()


def pooled(samples: Iterable[np.ndarray]) -> np.ndarray:
    """What one process with all the samples gets."""
    everything = np.concatenate(list(samples))
    state = b""
    for step in range(STEPS):
        state = combine(step, state, [(len(everything), contribute(step, state, everything))])
    return np.frombuffer(state)


@dataclass
class Host:
    """A participant: the machine, and a trainer that takes its time."""

    room: Room
    peer: PeerId
    machine: HeadFitMachine
    samples: np.ndarray
    prepare_s: float = 0.5
    compute_s: float = 0.01
    finished: list[HeadFitFinished] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    prepared: int = 0
    dead_trainer: bool = False

    def handle(self, sender: PeerId, message: Message, now: float) -> list[object]:
        assert isinstance(message, HeadFitCall | HeadFitReady | HeadFitGradient | HeadFitState)
        return list(self.machine.received(sender, message, STEPS, now))

    def tick(self, now: float) -> list[object]:
        return list(self.machine.tick(now))

    def next_deadline(self) -> float:
        return self.machine.next_deadline()


class Room:
    """Participants on a network, who learn of each other's death after ``noticed_s``."""

    def __init__(self, seed: int, sizes: Iterable[int], conditions: Conditions = FINE, **config: float) -> None:
        print(f"P2PTRAIN_SEED={seed}")
        self.rng = random.Random(f"{seed}/room")
        self.network = SimulatedNetwork(seed, conditions, on_effect=self._carry_out, through_codec=True)
        self.config = HeadFitConfig(**config)
        self.hosts: dict[PeerId, Host] = {}
        self.sent: list[tuple[float, PeerId, Message]] = []
        for number, size in enumerate(sizes):
            self.add(PEERS[number], size)
        self.change()

    def add(self, peer: PeerId, size: int) -> Host:
        samples = np.array([[self.rng.gauss(peer_mean, 1) for peer_mean in (size, 1, -2)] for _ in range(size)])
        machine = HeadFitMachine(peer, self.config)
        host = Host(self, peer, machine, samples.reshape(size, DIMENSIONS))
        self.hosts[peer] = host
        self.network.add(peer, host)
        return host

    def change(self) -> None:
        """Everyone learns who is alive."""
        alive = sorted(self.hosts)
        for peer, host in sorted(self.hosts.items()):
            self.network.perform(peer, host.machine.members_changed(alive, self.network.now))

    def call(self, peer: PeerId, over: tuple[SnapshotRef, ...] | None = None) -> None:
        machine = self.hosts[peer].machine
        self.network.perform(peer, machine.call(1, over or holdings(), STEPS, self.hosts, self.network.now))

    def kill(self, peer: PeerId, noticed_s: float = 2.0) -> Host:
        self.network.crash(peer)
        host = self.hosts.pop(peer)
        self.network.at(self.network.now + noticed_s, self.change)
        return host

    def run(self, seconds: float) -> bool:
        """Until everyone alive is done, or so long. True: they are."""
        return self.network.run(self.network.now + seconds, lambda: all(h.finished for h in self.hosts.values()))

    def states(self) -> set[bytes]:
        return {host.finished[-1].state for host in self.hosts.values() if host.finished}

    def late(self) -> list[str]:
        return [note.kind for host in self.hosts.values() for note in host.notes if note.kind == "head-fit-late"]

    def pooled(self) -> np.ndarray:
        return pooled(host.samples for host in self.hosts.values() if len(host.samples))

    def check_exact(self) -> None:
        """Everyone has the very same state, and it is the pooled one."""
        assert len(self.states()) == 1
        (state,) = self.states()
        np.testing.assert_allclose(np.frombuffer(state), self.pooled(), rtol=1e-9)
        assert all(len(host.finished) == 1 and host.finished[0].step == STEPS for host in self.hosts.values())

    def _carry_out(self, who: PeerId, effect: object, now: float) -> None:
        host = self.hosts.get(who)
        if host is None:
            return
        if isinstance(effect, Note):
            host.notes.append(effect)
        elif isinstance(effect, HeadFitFinished):
            host.finished.append(effect)
        elif not host.dead_trainer:
            wait = host.prepare_s if isinstance(effect, PrepareFeatures) else host.compute_s
            self.network.at(now + wait, lambda: self._answer(host, effect))

    def _answer(self, host: Host, effect: object) -> None:
        if self.hosts.get(host.peer) is not host or host.dead_trainer:
            return
        now, size = self.network.now, len(host.samples)
        effects: list[object] = []
        if isinstance(effect, PrepareFeatures):
            host.prepared += 1
            effects += host.machine.features_ready(effect.session, size, now)
        elif isinstance(effect, ComputeContribution):
            data = contribute(effect.step, effect.state, host.samples)
            effects += host.machine.contribution_ready(effect.session, effect.step, size, data, now)
        elif isinstance(effect, CombineContributions):
            assert effect.contributions
            state = combine(effect.step, effect.state, effect.contributions)
            effects += host.machine.state_ready(effect.session, effect.step + 1, state, now)
        self.network.perform(host.peer, effects)


# --- the ordinary case -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(5,), (5, 9), (4, 1, 30), (7, 3, 5, 2, 11)])
def test_all_end_with_the_pooled_state(sizes: tuple[int, ...]) -> None:
    room = Room(0, sizes)
    room.call(PEERS[0])
    assert room.run(10)
    room.check_exact()
    assert not room.late()
    assert all(host.prepared == 1 for host in room.hosts.values())
    assert not any(host.machine.running for host in room.hosts.values())


def test_a_slow_device_is_waited_for() -> None:
    room = Room(0, (5, 6, 7))
    room.hosts[PEERS[2]].prepare_s = 300.0
    room.hosts[PEERS[2]].compute_s = 1.0
    room.call(PEERS[0])
    assert not room.run(290)
    assert "features of" in room.hosts[PEERS[0]].machine.waiting_for(room.network.now)
    assert room.run(100)
    room.check_exact()
    assert not room.late()


def test_one_too_slow_to_prepare_is_left_out_and_still_gets_the_state() -> None:
    room = Room(0, (5, 6, 7), prepare_timeout_s=20.0)
    room.hosts[PEERS[2]].prepare_s = 1000.0
    room.call(PEERS[0])
    assert room.run(60)
    left = room.hosts.pop(PEERS[2])
    room.check_exact()
    assert left.finished[0].state in room.states()


def test_a_peer_without_samples_listens() -> None:
    room = Room(1, (5, 6, 0, 4))
    room.call(PEERS[0])
    assert room.run(10)
    room.check_exact()
    assert not room.late()


def test_a_lead_without_features_hands_over() -> None:
    room = Room(1, (0, 6, 0, 4))
    room.call(PEERS[0])
    assert room.run(30)
    room.check_exact()
    assert room.hosts[PEERS[3]].machine.lead == PEERS[1]


def test_who_resigned_under_an_earlier_lead_is_not_waited_for() -> None:
    """It may take somebody else for the lead, and answer this one no more."""
    machine = HeadFitMachine(PEERS[3])
    machine.members_changed(PEERS[:4], 0.0)
    call = HeadFitCall(1, holdings())
    session = session_name(1, holdings())
    machine.received(PEERS[0], call, STEPS, 0.0)
    machine.features_ready(session, 5, 0.1)
    for number in (2, 0, 1):
        effects = machine.received(PEERS[number], HeadFitReady(session, 0), STEPS, 0.2)
    assert machine.lead == PEERS[3]
    assert any(isinstance(effect, ComputeContribution) for effect in effects)


def test_nobody_with_features_ends_it() -> None:
    room = Room(1, (0, 0, 0))
    room.call(PEERS[0])
    assert not room.run(300)
    assert not any(host.machine.running for host in room.hosts.values())


# --- loss, repetition, disorder ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(12))
def test_a_bad_network(seed: int) -> None:
    room = Room(seed, (5, 9, 3, 7), Conditions(0.005, 0.05, loss=0.2, duplication=0.1), min_step_timeout_s=8.0)
    room.call(PEERS[0])
    assert room.run(300)
    assert len(room.states()) == 1
    (state,) = room.states()
    if room.late():  # somebody was left out of a step: near, not equal
        np.testing.assert_allclose(np.frombuffer(state), room.pooled(), atol=3.0)
    else:
        room.check_exact()
    assert all(host.prepared == 1 for host in room.hosts.values())


@pytest.mark.parametrize("kind", [HeadFitCall, HeadFitReady, HeadFitGradient, HeadFitState])
@pytest.mark.parametrize("which", [0, 1, 3, 9])
def test_any_message_lost_once(kind: type[Message], which: int) -> None:
    """The ``which``-th message of each kind never arrives (on TCP: a link that broke while it was under way)."""
    room = Room(0, (5, 9, 3))
    seen = {"count": -1}
    for host in room.hosts.values():
        handle = host.handle

        def lossy(sender: PeerId, message: Message, now: float, handle: object = handle) -> list[object]:
            if isinstance(message, kind):
                seen["count"] += 1
                if seen["count"] == which:
                    return []
            return list(handle(sender, message, now))  # type: ignore[operator]

        host.handle = lossy  # type: ignore[method-assign]
    room.call(PEERS[0])
    assert room.run(60)
    room.check_exact()
    assert not room.late()


def test_the_last_state_lost_to_all_and_the_lead_gone() -> None:
    """The lead alone is done, and dies: the others do the last step again."""
    room = Room(0, (5, 9, 3))
    room.call(PEERS[0])
    room.network.run(60, lambda: bool(room.hosts[PEERS[0]].finished), every_s=0.0)
    room.kill(PEERS[0])
    assert room.run(60)
    assert len(room.states()) == 1


# --- death and delay --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(-1, STEPS))
@pytest.mark.parametrize("seed", seeds(3))
def test_the_lead_dies_at_any_step(seed: int, step: int) -> None:
    """-1: while features are made. The next lead goes on from the step that was reached."""
    room = Room(seed, (5, 9, 3, 6), Conditions(0.002, 0.02))
    room.call(PEERS[0])
    lead = room.hosts[PEERS[0]].machine
    if step < 0:
        room.network.run(0.2)
    else:
        run = lead._run
        assert run is not None
        room.network.run(30, lambda: lead.step >= step and bool(run.step or room.network.now > 0.51), every_s=0.0)
        room.network.run(room.network.now + room.rng.uniform(0, 0.02))
    before = max(host.machine.step for host in room.hosts.values())
    room.kill(PEERS[0])
    assert room.run(100)
    assert len(room.states()) == 1
    assert all(host.prepared == 1 for host in room.hosts.values())
    assert room.hosts[PEERS[1]].machine.lead == PEERS[1] or before == STEPS
    if step < 0:
        room.check_exact()


@pytest.mark.parametrize("seed", seeds(4))
def test_leads_die_one_after_the_other(seed: int) -> None:
    room = Room(seed, (5, 9, 3, 6, 4), Conditions(0.002, 0.02))
    room.call(PEERS[0])
    for number, wait in enumerate((0.55, 2.1, 2.1)):
        room.run(wait)
        room.kill(PEERS[number])
    assert room.run(200)
    assert len(room.states()) == 1
    assert len(room.hosts) == 2


@pytest.mark.parametrize("noticed_s", [0.5, 30.0])
def test_a_participant_dies(noticed_s: float) -> None:
    room = Room(2, (5, 9, 3))
    room.call(PEERS[0])
    room.run(0.55)
    room.kill(PEERS[1], noticed_s)
    assert room.run(100)
    assert len(room.states()) == 1
    assert room.network.now < 60


def test_a_participant_stalls_and_comes_back() -> None:
    room = Room(3, (5, 9, 3), max_step_timeout_s=8.0, min_step_timeout_s=0.5)
    room.call(PEERS[0])
    room.run(0.53)
    room.network.stall(PEERS[1], 5.0)
    assert room.run(100)
    assert len(room.states()) == 1
    assert room.late()


def test_a_trainer_that_never_answers_does_not_hold_up_the_others() -> None:
    room = Room(3, (5, 9, 3), max_step_timeout_s=8.0)
    room.call(PEERS[0])
    room.run(0.53)
    room.hosts[PEERS[1]].dead_trainer = True
    assert room.run(100)
    assert len(room.states()) == 1


def test_steps_that_were_cut_off_do_not_shorten_the_next() -> None:
    room = Room(3, (5, 9, 3))
    room.call(PEERS[0])
    room.run(0.53)
    room.hosts[PEERS[1]].dead_trainer = True
    room.hosts[PEERS[2]].compute_s = 5.0
    assert room.run(200)
    missing = [dict(note.fields)["missing"] for note in room.hosts[PEERS[0]].notes if note.kind == "head-fit-late"]
    assert missing == [PEERS[1]] * MAX_MISSED


def test_a_lead_whose_trainer_dies_hands_over() -> None:
    room = Room(3, (5, 9, 3))
    room.call(PEERS[0])
    room.run(0.53)
    lead = room.hosts[PEERS[0]]
    lead.dead_trainer = True
    room.network.perform(PEERS[0], lead.machine.features_ready(lead.machine.session, 0, room.network.now))
    assert room.run(30)
    assert len(room.states()) == 1
    assert room.hosts[PEERS[2]].machine.lead == PEERS[1]


def test_a_lead_whose_trainer_hangs_hands_over() -> None:
    room = Room(3, (5, 9, 3), max_step_timeout_s=4.0)
    room.call(PEERS[0])
    room.run(0.53)
    room.hosts[PEERS[0]].dead_trainer = True
    assert room.run(100)
    assert len(room.states()) == 1


def test_a_lead_that_hangs_is_replaced() -> None:
    """Its node answers pings, so membership calls it alive, but nothing else comes of it."""
    room = Room(3, (5, 9, 3), lead_timeout_s=20.0)
    room.call(PEERS[0])
    room.run(0.53)
    room.network.stall(PEERS[0], 1000.0)
    others = [room.hosts[peer] for peer in PEERS[1:3]]
    assert room.network.run(100, lambda: all(host.finished for host in others))
    assert len(room.states()) == 1
    assert room.run(1000)  # and when it wakes up it is told
    assert len(room.states()) == 1


@pytest.mark.parametrize("seed", seeds(4))
def test_a_late_one_joins_in(seed: int) -> None:
    room = Room(seed, (5, 9, 3), Conditions(0.002, 0.02))
    for host in room.hosts.values():
        host.compute_s = 0.5
    room.call(PEERS[0])
    room.run(1.5)
    late = room.add(PEERS[5], 8)
    room.change()
    assert room.run(60)
    assert len(room.states()) == 1
    assert late.prepared == 1


def test_who_comes_when_all_is_over_gets_the_state() -> None:
    room = Room(0, (5, 9))
    room.call(PEERS[0])
    assert room.run(10)
    late = room.add(PEERS[5], 4)
    room.change()
    room.call(PEERS[5])
    assert room.run(10)
    assert len(room.states()) == 1
    assert late.finished[0].step == STEPS


# --- rivals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap_s", [0.0, 0.003, 0.3, 0.52, 0.56, 0.7])
@pytest.mark.parametrize("first", [0, 2])
def test_two_leads_at_once(gap_s: float, first: int) -> None:
    """The same session, called by two: the lower id leads, whoever was first."""
    room = Room(4, (5, 9, 3, 6))
    room.call(PEERS[first])
    room.run(gap_s)
    lead = PEERS[2 - first]
    machine = room.hosts[lead].machine
    if machine._run is not None and not machine._run.finished:
        room.network.perform(lead, machine._reign(machine._run, room.network.now))
    else:
        room.call(lead)
    assert room.run(60)
    assert len(room.states()) == 1
    if gap_s <= 0.3:
        assert room.hosts[PEERS[3]].machine.lead == PEERS[0]
        room.check_exact()


def test_two_calls_over_different_snapshots() -> None:
    room = Room(4, (5, 9, 3, 6))
    room.call(PEERS[2], holdings(salt="other"))
    room.call(PEERS[0])
    assert room.run(30)
    assert {host.finished[-1].holdings for host in room.hosts.values()} == {holdings()}
    assert len(room.states()) == 1


def test_two_halves_meet_again() -> None:
    room = Room(5, (5, 9, 3, 6), max_step_timeout_s=6.0)
    for host in room.hosts.values():
        host.compute_s = 0.4
    room.call(PEERS[0])
    room.run(0.8)
    room.network.partition(PEERS[:2], PEERS[2:4])
    for half in (PEERS[:2], PEERS[2:4]):
        for peer in half:
            machine = room.hosts[peer].machine
            room.network.at(2.0, lambda p=peer, m=machine, h=half: room.network.perform(p, m.members_changed(h, 2.0)))
    room.run(2.5)
    room.network.heal()
    room.change()
    assert room.run(200)
    assert len(room.states()) == 1


# --- hostile ----------------------------------------------------------------------------------------------------------

sessions = st.sampled_from([session_name(1, holdings()), session_name(2, holdings(2)), "0" * 16])
counts = st.integers(0, 2**63 - 1) | st.integers(0, STEPS + 1)
data = st.binary(max_size=24)
calls = st.builds(
    HeadFitCall,
    st.integers(0, 3),
    st.sampled_from([holdings(), holdings(2), holdings()[:1], holdings() + holdings()[:1], holdings(salt="x")]),
)
messages = (
    calls
    | st.builds(HeadFitReady, sessions, counts)
    | st.builds(HeadFitGradient, sessions, counts, counts, data)
    | st.builds(HeadFitState, sessions, counts, data)
)
events = st.sampled_from(["call", "features", "contribution", "state", "members", "stop", "trainer-lost"])


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(PEERS[:2]),
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 5.0, 100.0]), st.sampled_from(PEERS[:4]), messages | events)),
)
def test_any_message_in_any_order(own: PeerId, steps: list[tuple[float, PeerId, Message | str]]) -> None:
    """``RemoteError`` or nothing; no endless ticks; finished at most once a session."""
    machine = HeadFitMachine(own)
    machine.members_changed(PEERS[:4], 0.0)
    now = 0.0
    finished: list[str] = []
    asked: list[object] = []

    def note(effects: Iterable[object]) -> None:
        for effect in effects:
            assert not (isinstance(effect, Send) and effect.to == own)
            if isinstance(effect, HeadFitFinished):
                finished.append(session_name(1, effect.holdings) + str(effect.holdings))
            elif not isinstance(effect, Send | Note):
                asked.append(effect)

    for pause, peer, step in steps:
        now += pause
        for _ in range(1000):
            if machine.next_deadline() > now:
                break
            note(machine.tick(max(machine.next_deadline(), 0.0)))
        else:
            raise AssertionError("it ticks without end")
        session = machine.session
        try:
            match step:
                case "call":
                    note(machine.call(1, holdings(), STEPS, PEERS[:4], now))
                case "features":
                    note(machine.features_ready(session, 5, now))
                case "trainer-lost":
                    note(machine.features_ready(session, 0, now))
                case "contribution":
                    note(machine.contribution_ready(session, machine.step, 5, b"12345678", now))
                case "state":
                    note(machine.state_ready(session, machine.step + 1, b"12345678", now))
                case "members":
                    note(machine.members_changed([own, peer], now))
                case "stop":
                    machine.stop()
                case str():
                    raise AssertionError(step)
                case _:
                    if peer != own:
                        note(machine.received(peer, step, STEPS, now))  # type: ignore[arg-type]
        except RemoteError:
            pass
        assert machine.step <= STEPS
        machine.waiting_for(now)
    assert len(set(finished)) == len(finished)


def test_a_flood_does_not_fill_the_memory() -> None:
    machine = HeadFitMachine(PEERS[0])
    machine.members_changed(PEERS[:4], 0.0)
    machine.call(1, holdings(), STEPS, PEERS[:4], 0.0)
    machine.features_ready(machine.session, 5, 0.0)
    sizes = []
    for number in range(4000):
        stranger = peer_id(b"%040d" % (1000 + number))
        session = machine.session
        machine.received(stranger, HeadFitReady(session, 5), STEPS, 0.1)
        machine.received(stranger, HeadFitGradient(session, 0, 5, bytes(100)), STEPS, 0.1)
        over = (SnapshotRef(0, PEERS[1], 1, 1, 1, 1, BlobId(f"{number:064x}"), 1),)
        if number % 2:
            machine.received(PEERS[1], HeadFitCall(1, over), STEPS, 0.1)
            machine.received(PEERS[1], HeadFitState(session_name(1, over), STEPS, b"x"), STEPS, 0.1)
        if number % 1000 == 999:
            sizes.append(len(pickle.dumps(machine)))
    assert sizes[-1] < 1.3 * sizes[0], sizes
    assert machine.next_deadline() != NEVER


def test_a_state_of_an_unknown_session_is_nothing() -> None:
    machine = HeadFitMachine(PEERS[1])
    assert machine.received(PEERS[0], HeadFitState("0" * 16, 3, b"state"), STEPS, 0.0) == []
    machine.call(1, holdings(), STEPS, PEERS[:3], 0.0)
    assert machine.received(PEERS[0], HeadFitState("0" * 16, 3, b"state"), STEPS, 0.0) == []
    assert machine.step == 0


@pytest.mark.parametrize(
    "message",
    [
        HeadFitCall(1, holdings() + holdings()[:1]),
        HeadFitReady(session_name(1, holdings()), 2**62),
        HeadFitGradient(session_name(1, holdings()), 0, 0, b"x"),
        HeadFitGradient(session_name(1, holdings()), STEPS, 5, b"x"),
        HeadFitState(session_name(1, holdings()), STEPS + 1, b"x"),
        HeadFitState(session_name(1, holdings()), 0, b"x"),
        HeadFitState(session_name(1, holdings()), 2, b""),
    ],
)
def test_what_no_honest_peer_sends(message: HeadFitCall) -> None:
    machine = HeadFitMachine(PEERS[0])
    machine.call(1, holdings(), STEPS, PEERS[:3], 0.0)
    with pytest.raises(RemoteError):
        machine.received(PEERS[1], message, STEPS, 0.0)
