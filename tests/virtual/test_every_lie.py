"""A member that lies about every field of every kind of message: in each mode the others go on, and end right.

It plays along, and before its honest words come the same ones with one field changed (``mouth``). What it does not say
by itself it is made to say, so a kind that nobody has thought of here fails these tests. Nobody bans it, so that all
lies are read. Then it is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from liar import LIAR, LINK
from mouth import Mouth, lies_of
from peer_group import Room, job, plan_of, sizes
from stage_group import group as pipeline_group
from test_units import group as split_group
from unit_trainer import UnitTrainer

from p2ptrain.ids import BlobId
from p2ptrain.protocol.session import abuse
from p2ptrain.simulation.device import Device
from p2ptrain.simulation.names import address, key, peer_ids
from p2ptrain.wire import messages as m

MOST = 2**40
"""No number that others count up is ever so large in an honest group."""
BLOB = BlobId("0" * 64)


@pytest.fixture(autouse=True)
def nobody_is_banned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abuse, "MAX_ERRORS", 10**9)
    monkeypatch.setattr(UnitTrainer, "expects_lies", True)


def words(room: Room, liar: Device, other: Device) -> Iterator[m.Message]:
    """One of each kind, as an honest peer might say it at this time. Last what spoils the liar itself: its record, what
    ends the session, or begins another one."""
    core, plan = liar.core, plan_of(liar)
    name, nonce, founder = plan.hash, bytes(16), bytes(32)
    ref = next((ref for ref in liar.record.holdings), None) or m.SnapshotRef(0, liar.id, 1, 1, 1, 1, BLOB, 10)
    admission = m.Admission(key(0), founder, liar.key, b"w" * 64, b"v" * 64)
    here = m.Rumour(liar.id, "alive", core.membership.incarnation(liar.id) or 0)
    yield m.StatusRequest()
    yield m.StatusReply((here,), (m.RefusedCount("why", 1),), (m.SentBytes("ping", 1),), (m.Figure("computes", 0.5),))
    yield m.StopReply("refuses")
    yield m.JobRequest()
    yield m.JobReply(core.job.to_json().encode() if core.job else b"{}")
    yield m.PlanRequest(name)
    yield m.PlanReply(plan.to_json().encode())
    yield m.PlanVote(name, plan.epoch, False)
    yield m.ProfileRequest(liar.record.profile or "f" * 64)
    yield m.ProfileReply(b"{}")
    yield m.Fetch(ref.blob, 0, 10)
    yield m.Chunk(ref.blob, 0, b"bytes")
    yield m.FetchRefused(ref.blob)
    yield m.GossipPush(1, plan.epoch, (m.ShardMass("all", 1.0),), ref.blob, 10, True)
    yield m.ReplicaOffer(ref)
    yield m.ReplicaAck(ref.blob)
    yield m.HeadFitCall(plan.epoch, (ref,))
    yield m.HeadFitReady("0" * 16, 10)
    yield m.HeadFitGradient("0" * 16, 0, 10, b"")
    yield m.HeadFitState("0" * 16, 1, b"")
    yield m.StreamData(plan.epoch, 0, "forward", 0, 0, 0, b"bytes", name, 1)
    yield m.StreamAck(plan.epoch, 0, name, 0, 0)
    yield m.LinkProbe(1, b"bytes")
    yield m.LinkEcho(1)
    yield m.Ping(1, (here,))
    yield m.PingRequest(1, other.id, (here,))
    yield m.Ack(1, (here,))
    yield m.Records((core.records.signed(),))
    yield m.RecordDigest((m.RecordVersion(liar.id, liar.record.version),), True)
    yield m.RecordChanges((m.RecordChange(liar.id, 1, 2, b"\x90", b"s" * 64),))
    yield m.NewCode(key(0), founder, (m.SealedCode(other.id, b"box"),), (other.id,), b"s" * 64)
    yield m.Admitted(admission)
    yield m.Refused("why", m.WIRE_VERSION)
    yield m.Stop(core.job_id, 2, "name")
    yield m.Goodbye()
    yield m.Hello(nonce, (address(LIAR),), 5711, "software")
    yield m.Welcome(nonce, nonce, bytes(32), (address(LIAR),), 5711, "software", "name", admission)
    yield m.Proof(nonce, bytes(32), "name", admission)


def class_sub_models() -> Room:
    """Of two groups, so that there is gossip too; with a fit of the last layer."""
    room = Room(0, LINK)
    the_job = job(rounds=60, min_peers=4, settle_s=0.2, num_groups=2, fit_head="always", head_fit_steps=8)
    for number in range(4):
        room.add(number, job=the_job, load_s=0.05, round_s=0.4)
    return room


ROOMS: dict[str, tuple[Callable[[], Room], set[str]]] = {
    "tasks": (class_sub_models, {"gossip-push", "replica-offer", "chunk"}),
    "pipeline": (
        lambda: pipeline_group(0, 4, LINK, owners=4, rounds=4, snapshot_steps=5),
        {"stage-data", "stage-ack"},
    ),
    "split": (lambda: split_group(0, 3, 1, LINK, rounds=3), {"stage-data", "stage-ack", "chunk"}),
}
"""By mode, and what the liar says there by itself while it trains: it lies about that at the moment when it matters."""


OF_BLOCKS = {
    *("stage-data", "stage-ack", "plan-vote", "plan-reply", "plan-request", "profile-request", "profile-reply"),
    *("link-probe", "link-echo", "replica-offer", "replica-ack", "chunk", "records"),
}
"""Kinds that mean more where a model is cut into blocks; all others are told in mode "tasks"."""


@pytest.mark.parametrize("mode", ROOMS)
def test_lies_about_every_field_of_every_kind(mode: str) -> None:
    make, by_itself = ROOMS[mode]
    room = make()
    liar = room.devices[LIAR]
    others = [device for device in room.on() if device is not liar]
    assert room.run(60, lambda: all(device.record.phase == "training" for device in room.on()))
    mouth = Mouth(room, liar, only=by_itself & {"chunk"})  # whose stage messages are lies is asked for nothing else
    assert room.run(60, lambda: mouth.only <= mouth.told.keys() and all(d.record.round >= 1 for d in room.on()))
    mouth.only = by_itself
    assert room.run(60, lambda: by_itself <= mouth.told.keys()), by_itself - mouth.told.keys()
    mouth.only = m.KINDS if mode == "tasks" else OF_BLOCKS
    for number, message in enumerate(words(room, liar, others[0])):
        if message.KIND in mouth.only:
            mouth.say(others[number % len(others)], message)
            room.run(0.1)
    untold = set(mouth.only) - mouth.whole
    assert not untold, "a kind of message that nobody lies about: let the liar say one in `words`"
    check_unharmed(others)
    liar.kill()
    assert room.run(400, lambda: all(device.done for device in others)), [
        (d.number, d.record.phase, d.core.epoch, d.record.waiting_for) for d in others
    ]


def check_unharmed(others: list[Device]) -> None:
    """They are there for each other, nothing of theirs counts up to absurd numbers, and tables are bounded."""
    ids = {device.id for device in others}
    for device in others:
        assert ids - {device.id} <= device.core.membership.alive()
        assert not any(key(other.number) in device.banned for other in others) and not device.lost
        assert device.record.version < MOST and device.core.epoch < MOST
        assert all((device.core.membership.incarnation(each) or 0) < MOST for each in ids)
        for path, size in sizes(device.core).items():
            assert size < 20_000, (path, size)


def test_each_field_has_lies_of_its_sort() -> None:
    """Numbers at their limits, other ids, unknown names, noise: so a schema that says nothing of a bound is seen."""
    record = m.Rumour(peer_ids(4)[LIAR], "alive", 3)
    found: dict[str, list[object]] = {}
    for path, lie in lies_of(m.Ping(1, (record,)), m.Ping):
        found.setdefault(path, []).append(lie)
    assert set(found) == {
        "sequence",
        "rumours.none",
        "rumours.twice",
        "rumours.peer",
        "rumours.state",
        "rumours.incarnation",
        "rumours.word",
    }
    numbers = {lie.rumours[0].incarnation for lie in found["rumours.incarnation"]}  # type: ignore[attr-defined]
    assert {0, 2, 4, 2**53 - 1, 2**62 - 1, 2**63 - 1} <= numbers and 3 not in numbers
    assert len(found["rumours.state"]) == 3 and len(found["rumours.peer"]) >= 4
