"""A member that holds the code and lies: what it says is counted or does nothing, and the group goes on.

The liar is a whole peer that plays along, so that it is admitted, pinged and planned with; its lies go out over its own
sessions, between its honest words.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import msgpack
import numpy as np
import pytest
from any_values import SAID_INSIDE, THE_JOB, any_message, any_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from liar import LIAR, LINK, check_goes_on, check_untouched, honest, lie, made, pretend, statements, training_group
from peer_group import CLASSES, Room, job, sizes
from seeds import seeds

from p2ptrain.config import ModelConfig
from p2ptrain.core.plan import Plan
from p2ptrain.ids import BlobId, PeerId, blob_id, peer_id
from p2ptrain.protocol.session.effects import SendFrames
from p2ptrain.simulation.device import Device
from p2ptrain.simulation.names import address, key
from p2ptrain.wire import messages as m
from p2ptrain.wire import tensorfile
from p2ptrain.wire.codec import WIRE_VERSION, decode, encode
from p2ptrain.wire.messages import KINDS, Message, Record, SnapshotRef, lane_of

slow = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))


def lie_raw(room: Room, to: Device, kind: str, body: object, *behind: bytes) -> None:
    """The same with a body that no encoder would make."""
    core = room.devices[LIAR].core
    session = core.sessions._table.get(key(to.number))
    if session is None or session.address != address(to.number):
        return
    lane = lane_of_kind(kind)
    core.sessions._table._sequences[lane] += 1
    header = {"v": WIRE_VERSION, "k": kind, "s": session.name, "q": core.sessions._table._sequences[lane]}
    frame = msgpack.packb(header | {"j": core.job_id, "e": core.epoch, "b": body}, use_bin_type=True)
    room.send(core.own_id, SendFrames(address(to.number), lane, [frame, *behind]))


def lane_of_kind(kind: str) -> m.Lane:
    return "bulk" if KINDS.get(kind) in m.BULK else "control"


def check_bounded(room: Room) -> None:
    for device in honest(room):
        for path, size in sizes(device.core).items():
            assert size < 20_000, (path, size)


# --- any message at all -----------------------------------------------------------------------------------------------


def signed_where_it_can_be(room: Room, message: Message) -> Message:
    """With the liar's signature on what it says of itself, so that what is behind the signature is tried, too."""
    said, own = statements(LIAR), room.devices[LIAR].id
    if isinstance(message, m.Records):
        return m.Records(tuple(said.signed(in_its_name(room, r)) if r.key == key(LIAR) else r for r in message.records))
    if isinstance(message, m.Ping | m.Ack | m.PingRequest):
        told = tuple(
            dataclasses.replace(r, word=said.presence(r.incarnation, left=r.state == "left")) if r.peer == own else r
            for r in message.rumours
        )
        return dataclasses.replace(message, rumours=told)
    if isinstance(message, m.ReplicaOffer):
        return m.ReplicaOffer(made(room, dataclasses.replace(message.holding, trainer=own)))
    if isinstance(message, m.HeadFitCall):
        refs = tuple(made(room, dataclasses.replace(each, trainer=own)) for each in message.holdings)
        return dataclasses.replace(message, epoch=room.devices[LIAR].core.epoch, holdings=refs)
    return message


def in_its_name(room: Room, record: Record) -> Record:
    """The liar's record, of the group's job as often as not, with snapshots that it made."""
    core = room.devices[LIAR].core
    job_id = core.group.job if record.job == THE_JOB else record.job
    refs = tuple(made(room, dataclasses.replace(each, trainer=core.own_id)) for each in record.holdings)
    refs = refs if job_id == core.group.job else ()
    return dataclasses.replace(record, peer=core.own_id, job=job_id, holdings=refs)


@pytest.mark.parametrize("cls", SAID_INSIDE, ids=lambda cls: cls.KIND)
def test_of_every_kind_there_are_well_formed_ones(cls: type[Message]) -> None:
    """Else the next test would show nothing for it."""

    @settings(max_examples=3, deadline=None, database=None)
    @given(any_of(cls))
    def look(message: Message) -> None:
        assert decode(encode(message), lane_of(message))[1] == message

    look()


@slow
@given(st.lists(st.tuples(st.integers(0, 2), any_message, st.sampled_from([0.0, 0.0, 0.02, 0.5])), max_size=30))
def test_any_well_formed_message(lies: list[tuple[int, Message, float]]) -> None:
    room = training_group()
    for number, message, pause in lies:
        lie(room, room.devices[number], signed_where_it_can_be(room, message))
        room.run(pause)
    check_bounded(room)
    check_goes_on(room)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def shapeless(draw: st.DrawFn) -> tuple[str, object, tuple[bytes, ...]]:
    """A message of any kind, with one field that is something else, is missing, or is one too many."""
    kind = draw(st.sampled_from([*KINDS, "no-such-kind"]))
    names = [name for name in getattr(KINDS.get(kind), "__dataclass_fields__", {}) if name != "data"]
    body: object = {name: draw(plain) for name in names if draw(st.integers(0, 9))}
    if draw(st.integers(0, 9)) == 0:
        body = draw(plain)
    return kind, body, tuple(draw(st.lists(st.binary(max_size=20), max_size=2)))


@slow
@given(st.lists(st.tuples(st.integers(0, 2), shapeless()), max_size=40))
def test_messages_of_a_wrong_shape(lies: list[tuple[int, tuple[str, object, tuple[bytes, ...]]]]) -> None:
    room = training_group()
    before = sum(sum(d.core.sessions.refused.values()) for d in honest(room))
    for number, (kind, body, behind) in lies:
        lie_raw(room, room.devices[number], kind, body, *behind)
        room.run(0.01)
    refused = sum(sum(d.core.sessions.refused.values()) + sum(d.core.refused.values()) for d in honest(room))
    assert refused - before >= min(len(lies), 1)
    check_goes_on(room)


@pytest.mark.parametrize("seed", seeds(1))
def test_raw_bytes_and_replays(seed: int) -> None:
    """Noise on both lanes, and everything that the liar ever said once more."""
    room = training_group(seed)
    rng = random.Random(seed)
    target, liar = room.devices[0], room.devices[LIAR]
    heard: list[tuple[m.Lane, list[bytes]]] = []
    frames = target.frames

    def listen(lane: m.Lane, sender: bytes, got: list[bytes], now: float) -> list[object]:
        if sender == key(LIAR):
            heard.append((lane, list(got)))
        return frames(lane, sender, got, now)

    target.frames = listen  # type: ignore[method-assign,assignment]
    room.run(3)
    steps = target.record.step
    for lane, got in list(heard):
        room.send(liar.id, SendFrames(address(0), lane, got))
        torn = [bytes(rng.choice([byte, byte, rng.randrange(256)]) for byte in got[0]), *got[1:]]
        room.send(liar.id, SendFrames(address(0), rng.choice(["control", "bulk"]), torn))
    room.run(3)
    assert len(heard) > 10
    assert target.core.sessions.refused["replay"] >= 5
    assert target.record.step > steps
    check_goes_on(room)


def test_a_flood_of_well_formed_messages() -> None:
    """Thousands of records, rumours, offers, pushes and fetches of things that do not exist."""
    room = training_group()
    target = room.devices[0]
    for turn in range(50):
        made_up = [peer_id(key(10_000 + 40 * turn + i)) for i in range(40)]
        lie(room, target, m.Ping(turn, tuple(m.Rumour(p, "alive", 1) for p in made_up)))
        mine = room.devices[LIAR].record
        many = tuple(
            dataclasses.replace(
                mine, peer=p, key=key(10_000 + 40 * turn + i), addresses=(), holdings=(), name=f"made up {i}"
            )
            for i, p in enumerate(made_up)
        )
        lie(room, target, m.Records(many))
        blob = BlobId(f"{turn:064x}")
        lie(room, target, m.ReplicaOffer(made(room, SnapshotRef(turn, room.devices[LIAR].id, 1, 1, 1, 1, blob, 10))))
        lie(room, target, m.Fetch(blob, 0, 100))
        lie(room, target, m.PlanRequest(f"{turn:064x}"))
        room.run(0.02)
    check_bounded(room)
    room.devices[LIAR].kill()
    devices = honest(room)
    assert room.run(60, lambda: all({d.id for d in devices} - {e.id} <= e.core.membership.alive() for e in devices))
    steps = {d.number: d.record.step for d in devices}
    assert room.run(120, lambda: all(d.done or d.record.step > steps[d.number] for d in devices))


# --- particular lies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [2**31, 2**62 - 1, 2**62])
def test_claims_about_another_s_record_harm_nobody(limit: int) -> None:
    """Of a higher version of it: the victim must not outbid that, nor anybody take it, nor blame who repeats it."""
    room = training_group()
    victim, epoch = room.devices[1], room.devices[1].core.epoch
    forged = dataclasses.replace(victim.record, version=limit, phase="failed", counts=())
    for _ in range(10):
        for device in honest(room):
            lie(room, device, m.RecordDigest((m.RecordVersion(victim.id, limit),), True))
            for other in (forged, statements(LIAR).signed(forged), dataclasses.replace(victim.record, version=2**62)):
                lie(room, device, m.Records((other,)))
        room.run(0.2)
    assert victim.record.version < 2**40
    check_untouched(room, epoch)


@pytest.mark.parametrize("limit", [2**53 - 1, 2**53])
def test_claims_that_another_is_gone_end_nobody(limit: int) -> None:
    room = training_group()
    victim, epoch = room.devices[1], room.devices[1].core.epoch
    for _ in range(20):
        for device in honest(room):
            known = device.core.membership.incarnation(victim.id) or 0
            for incarnation in (known, known + 1, limit):
                words = (b"", *(statements(LIAR).presence(incarnation, left=left) for left in (True, False)))
                states: tuple[m.MemberState, ...] = ("left", "dead", "suspect", "alive")
                told = [m.Rumour(victim.id, state, incarnation, word) for state in states for word in words]
                lie(room, device, m.Ping(0, tuple(told)))
        room.run(0.1)
    assert (victim.core.membership.incarnation(victim.id) or 0) < 2**31
    check_untouched(room, epoch)


def test_too_many_lies_get_the_liar_banned_and_the_rest_goes_on() -> None:
    room = training_group()
    for _ in range(30):
        for device in honest(room):
            offer = SnapshotRef(0, device.id, 1, 1, 1, 1, BlobId("0" * 64), 10)  # in another's name
            lie(room, device, m.ReplicaOffer(dataclasses.replace(offer, trainer=room.devices[LIAR].id)))
            lie(room, device, m.ReplicaOffer(made(room, offer)))
        room.run(0.05)
    assert all(key(LIAR) in device.banned for device in honest(room))
    assert all(device.core.sessions.refused["snapshot-unsigned"] for device in honest(room))
    liar = room.devices[LIAR].id
    assert room.run(60, lambda: all(liar not in d.core.membership.alive() for d in honest(room)))
    check_goes_on(room)


@pytest.mark.parametrize(
    "payload",
    [
        b"not a tensor file",
        tensorfile.pack({"x": np.zeros(3)}),
        tensorfile.pack({"y": np.zeros(8)}),
        tensorfile.pack({"x": np.full(8, np.nan)}),
        tensorfile.pack({"x": np.full(8, np.inf)}),
        tensorfile.pack({"x": np.zeros(8, np.int64)})[:-4],
    ],
    ids=["noise", "shape", "name", "nan", "inf", "torn"],
)
def test_gossip_that_does_not_fit(payload: bytes) -> None:
    room = training_group(mode="replicas")
    liar, target = room.devices[LIAR], room.devices[0]
    assert target.trainer is not None
    blob = liar.disk.put(payload, passing=True)
    push = m.GossipPush(2**50, 1, (m.ShardMass("all", 5.0),), blob, len(payload), False)
    lie(room, target, push)
    assert room.run(5, lambda: target.core.refused["payload"] >= 1)
    assert np.isfinite(target.trainer.x).all()
    check_goes_on(room)


@pytest.mark.parametrize("mass", [0.0, 1e16, 1e18])
def test_masses_out_of_range(mass: float) -> None:
    room = training_group(mode="replicas")
    liar, target = room.devices[LIAR], room.devices[0]
    payload = tensorfile.pack({"x": np.zeros(8)})
    blob = liar.disk.put(payload, passing=True)
    lie(room, target, m.GossipPush(2**50, 1, (m.ShardMass("all", mass),), blob, len(payload), False))
    room.run(1)
    assert mass == 0.0 or target.core.sessions.refused["gossip-mass"] == 1
    check_goes_on(room)


@pytest.mark.parametrize("mass", [1e6, 1e15])
def test_a_mass_counts_as_far_as_samples_were_recorded(mass: float) -> None:
    room = training_group(mode="replicas")
    liar, target = room.devices[LIAR], room.devices[0]
    pretend(room, lambda record: dataclasses.replace(record, samples=2**62))
    room.run(3)
    payload = tensorfile.pack({"x": np.ones(8)})
    blob = liar.disk.put(payload, passing=True)
    masses: list[float] = []
    received = target.core.role._exchanges._gossip.received  # type: ignore[union-attr]

    def listen(sender: PeerId, push: m.GossipPush, now: float) -> list[object]:
        if sender == liar.id and push.exchange == 2**50:
            masses.append(push.masses[0].mass)
        return list(received(sender, push, now))

    target.core.role._exchanges._gossip.received = listen  # type: ignore[union-attr]
    lie(room, target, m.GossipPush(2**50, 1, (m.ShardMass("all", mass),), blob, len(payload), False))
    room.run(1)
    trained = sum(device.record.samples + sum(device.record.counts) for device in honest(room))
    assert masses and masses[0] <= 17 * trained < mass
    assert target.core.refused["gossip-mass-cut"] == 1
    check_goes_on(room)


def swapped(plan: Plan, liar: PeerId, proposer: PeerId) -> Plan:
    """The next plan, were it the liar's to say who trains what."""
    parts = list(plan.parts)
    mine = next(part for part in parts if liar in part.trainers)
    other = next(part for part in parts if part is not mine)
    parts[mine.index] = dataclasses.replace(mine, trainers=other.trainers)
    parts[other.index] = dataclasses.replace(other, trainers=mine.trainers)
    body: Any = dataclasses.replace(plan.body, parts=tuple(parts), former=())  # type: ignore[type-var]
    return dataclasses.replace(plan, epoch=plan.epoch + 1, parent=plan.hash, proposer=proposer, body=body)


def test_a_plan_that_does_not_follow_from_its_inputs() -> None:
    room = training_group()
    liar = room.devices[LIAR]
    agreement = liar.core.agreement
    assert agreement is not None and agreement.current is not None
    before = agreement.current
    false = swapped(before, liar.id, liar.id)
    agreement._plans[false.hash] = (false, false.to_json().encode())
    pretend(room, lambda record: dataclasses.replace(record, epoch=false.epoch, plan=false.hash))
    room.run(10)
    for device in honest(room):
        assert device.core.sessions.refused["plan-verify"] >= 1
        assert device.core.agreement is not None and device.core.agreement.current == before
    check_goes_on(room)


def test_plans_that_nobody_has() -> None:
    """The liar names a better plan each second, and never sends one."""
    room = training_group()
    for turn in range(20):
        name = blob_id(bytes([turn]))
        pretend(room, lambda record, name=name: dataclasses.replace(record, epoch=10**6, plan=name))  # type: ignore[misc]
        room.run(1)
    check_goes_on(room)


def test_a_plan_reply_that_nobody_asked_for() -> None:
    room = training_group()
    target = room.devices[0]
    assert target.core.agreement is not None and target.core.agreement.current is not None
    false = swapped(target.core.agreement.current, room.devices[LIAR].id, target.id)
    lie(room, target, m.PlanReply(false.to_json().encode()))
    room.run(1)
    assert target.core.sessions.refused["plan-unasked"] == 1
    check_goes_on(room)


def test_snapshots_with_a_wrong_hash_are_dropped() -> None:
    """A donor that serves other bytes than it should: the newcomer gets the part from somebody else."""
    room = training_group(replicas=2, liar=True)
    room.run(2)
    room.devices[LIAR].served = lambda data: bytes(255 - b for b in data)
    late = room.add(4, load_s=0.05, round_s=0.4)
    assert room.run(60, lambda: late.record.phase == "training")
    assert late.trainer is not None
    assert all(blob_id(data) == blob for device in room.on() for blob, data in device.disk.blobs.items())
    room.run(10)
    for device in honest(room):
        kept = [h for h in device.record.holdings if h.trainer == room.devices[LIAR].id]
        assert all(h.blob in device.disk.blobs for h in kept)
    check_goes_on(room)


def test_snapshots_of_nonsense_are_tried_and_dropped() -> None:
    """Copies of every part, fresher than all others, with the right hash and of no use: the next best is taken."""
    room = training_group(replicas=1)
    room.run(3)
    liar = room.devices[LIAR]
    false = []
    for part in range(4):
        for number in range(6):
            data = tensorfile.pack({"model.x": np.zeros(3)}, {"part": str(part), "number": str(number)})
            blob = liar.disk.put(data)
            false.append(made(room, SnapshotRef(part, liar.id, 1, 40, 900 + number, 9000, blob, len(data))))
    pretend(room, lambda record: dataclasses.replace(record, holdings=(*record.holdings, *false)))
    room.run(2)
    victim = room.devices[1]
    part, reached = victim.record.part, victim.record.round
    victim.kill()
    room.run(1)
    room.restart(1)
    assert room.run(30, lambda: victim.record.phase == "training")
    assert victim.trainer is not None and victim.record.part == part
    assert victim.trainer.follows[0][1] >= reached - 1
    check_goes_on(room)


def test_a_false_head_does_not_crash_anyone() -> None:
    """States of the head fit that do not parse, do not fit, or come from nowhere."""
    room = training_group(rounds=5, fit_head="always", head_fit_steps=20)
    liar = room.devices[LIAR]
    noise = [b"noise", tensorfile.pack({"head": np.zeros(77)}), tensorfile.pack({"head": np.full(4, np.nan)})]

    def fitting() -> bool:
        return any(device.record.phase == "fitting" for device in honest(room))

    assert room.run(60, fitting)
    for turn in range(60):
        for device in honest(room):
            ending: Any = device.core.role.ending if device.core.role else None
            session = ending._machine.session if ending else ""
            if len(session) == 16:
                data = noise[turn % 3]
                lie(room, device, m.HeadFitGradient(session, turn % 20, 5, data))
                lie(room, device, m.HeadFitState(session, turn % 20 + 1, data))
                lie(room, device, m.HeadFitReady(session, 2**62))
        room.run(0.1)
    assert all(not device.lost for device in honest(room))
    del liar
    assert room.run(900, lambda: all(device.done for device in honest(room))), [
        (d.number, d.record.phase, d.record.waiting_for) for d in room.on()
    ]


# --- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [2**20, 2**52])
def test_a_plan_of_an_absurd_epoch_and_of_nowhere_is_not_followed(epoch: int) -> None:
    """Nor does anybody's trainer end when its maker goes: the next plan is one more than the group's own."""
    room = training_group()
    liar, before = room.devices[LIAR], room.devices[0].core.epoch
    agreement = liar.core.agreement
    assert agreement is not None and agreement.current is not None
    plan = dataclasses.replace(agreement.current, epoch=epoch, parent="f" * 64, proposer=liar.id)
    agreement._plans[plan.hash] = (plan, plan.to_json().encode())  # it serves what it made up
    pretend(room, lambda r: dataclasses.replace(r, epoch=plan.epoch, plan=plan.hash))
    room.run(20)
    assert all(device.core.epoch == before and not device.banned for device in honest(room))
    liar.kill()
    assert room.run(30, lambda: all(device.core.epoch == before + 1 for device in honest(room)))
    check_goes_on(room)


def test_plans_that_are_named_and_never_delivered_do_not_keep_others_away() -> None:
    room = training_group(rounds=200)
    before = room.devices[0].core.epoch
    for turn in range(30):
        pretend(room, lambda r, turn=turn: dataclasses.replace(r, epoch=10**6 + turn, plan=f"{turn:064x}"))  # type: ignore[misc]
        room.run(0.5)
    room.add(4, job=room.devices[0].core.job)
    assert room.run(60, lambda: all(device.core.epoch > before for device in honest(room)))
    assert len({device.core.epoch for device in honest(room)}) == 1


# --- jobs -------------------------------------------------------------------------------------------------------------


def user_code_job() -> object:
    return dataclasses.replace(job(), model=ModelConfig("evil.module:run"))


def test_a_job_with_user_code_is_refused() -> None:
    room = Room(0, LINK)
    room.add(0, job=user_code_job())  # type: ignore[arg-type]
    guest = room.add(1)
    room.run(5)
    assert guest.core.job is None and guest.trainer is None
    assert "--allow-model does not name that" in guest.record.waiting_for
    assert "evil" not in guest.record.waiting_for, "nobody is told to allow what a stranger names"
    assert guest.core.refused["job-code"] >= 1


def test_a_job_with_user_code_of_one_member_does_not_keep_the_group_s_job_away() -> None:
    room = training_group()
    liar = room.devices[LIAR]
    liar.core.job = user_code_job()  # type: ignore[assignment]
    guest = room.add(4)
    assert room.run(20, lambda: guest.core.job is not None)
    assert guest.core.job == room.devices[0].core.job


def test_the_job_of_one_member_is_not_the_group_s() -> None:
    room = training_group()
    other = job(name="other", rounds=3)
    room.devices[LIAR].core.job = other
    guest = room.add(4)
    room.run(0.05)
    lie(room, guest, m.JobReply(other.to_json().encode()))
    assert room.run(20, lambda: guest.core.job is not None)
    assert guest.core.job == room.devices[0].core.job


def test_a_job_with_other_user_code_than_allowed_is_refused() -> None:
    room = Room(0, LINK)
    room.add(0, job=user_code_job())  # type: ignore[arg-type]
    guest = room.add(1, allow="good.module:run")
    room.run(5)
    assert guest.core.job is None and guest.core.refused["job-code"] >= 1


def test_a_job_with_user_code_that_was_allowed_is_taken() -> None:
    room = Room(0, LINK)
    room.add(0, job=user_code_job())  # type: ignore[arg-type]
    guest = room.add(1, allow="evil.module:run")
    assert room.run(60, lambda: guest.done)


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b"null", b'{"name": 7}', b"\xff" * 10, b'{"colour": "red"}', b'{"data": {"classes": []}}']
)
def test_jobs_that_are_none(data: bytes) -> None:
    room = Room(0, LINK)
    guest = room.add(0)
    room.add(LIAR)
    room.run(2)
    lie(room, guest, m.JobReply(data))
    room.run(1)
    assert guest.core.sessions.refused["job"] == 1
    assert guest.core.job is None


def test_a_second_job_is_ignored() -> None:
    room = training_group()
    other = job(name="other", rounds=3)
    assert len(other.data.classes) == len(CLASSES)
    for device in honest(room):
        lie(room, device, m.JobReply(other.to_json().encode()))
    room.run(1)
    assert all(device.core.job != other for device in room.on())
    check_goes_on(room)


def test_lanes_are_kept() -> None:
    """A control message over the bulk lane is refused."""
    room = training_group()
    core, target = room.devices[LIAR].core, room.devices[0]
    (effect,) = core.sessions.send(target.id, m.StatusRequest(), core.job_id, 1, room.network.now)
    assert isinstance(effect, SendFrames) and effect.lane == lane_of(m.StatusRequest())
    room.send(core.own_id, dataclasses.replace(effect, lane="bulk"))
    room.run(0.1)
    assert target.core.sessions.refused["lane"] == 1
