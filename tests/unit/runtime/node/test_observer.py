"""Who only looks: when it has heard all that there is to hear, and need not wait for more."""

from __future__ import annotations

import dataclasses
import json
import random
from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.config import DataConfig, Job
from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.net.keys import new_identity
from p2ptrain.net.signing import signing_of
from p2ptrain.protocol.group.record import blank_record
from p2ptrain.protocol.machine import Send
from p2ptrain.protocol.session.effects import PeerAdmitted
from p2ptrain.protocol.signing import Statements
from p2ptrain.runtime.harvest import _nothing_yet
from p2ptrain.runtime.node.observer import FEW, MAX_JOBS, MAX_PLANS, MAX_RECORDS, Observer
from p2ptrain.runtime.peer.core import MOST_ASKED
from p2ptrain.wire.messages import (
    JobReply,
    JobRequest,
    MemberState,
    PlanRequest,
    Record,
    RecordChange,
    RecordChanges,
    RecordDigest,
    Records,
    RecordVersion,
    StatusRequest,
)
from p2ptrain.wire.partial import pack_fields

ANNA, BEN = (PeerId(name * 16) for name in ("a", "b"))
JOB = Job(data=DataConfig(classes=("a", "b"), input_shape=(1, 8, 8), mean=(0.0,), std=(1.0,)))
PLAN = "f" * 64


def record(peer: PeerId, **changes: Any) -> Record:
    return dataclasses.replace(blank_record(peer, b"k" * 40, 1, name="device"), **changes)


@pytest.fixture
def observer() -> Observer:
    """To whom two peers have answered that train one job by one plan; all of it is here."""
    identity = new_identity()
    made = Observer(identity.public, bytes(32), (), 1, random.Random(1), signing_of(identity))
    made.records = {peer: record(peer, job=JOB.id, plan=PLAN, epoch=1) for peer in (ANNA, BEN)}
    made.states = dict.fromkeys((ANNA, BEN), "alive")
    made.answered = {ANNA, BEN}
    made.jobs = {JOB.id: JOB}
    made.plans = {PLAN: None}  # type: ignore[dict-item]
    return made


def test_all_have_answered_and_job_and_plan_are_here(observer: Observer) -> None:
    assert observer.misses_nothing()


def test_a_group_without_a_job_has_none_to_wait_for(observer: Observer) -> None:
    observer.jobs, observer.records = {}, {peer: record(peer) for peer in (ANNA, BEN)}
    assert observer.misses_nothing()


@pytest.mark.parametrize("state", ["alive", "suspect"])
def test_one_of_whom_others_say_that_it_is_there_has_not_answered(observer: Observer, state: MemberState) -> None:
    observer.answered, observer.states[BEN] = {ANNA}, state
    assert not observer.misses_nothing()
    observer.states[BEN] = "dead"
    assert observer.misses_nothing()


def test_the_job_or_a_plan_is_missing(observer: Observer) -> None:
    observer.jobs = {}
    assert not observer.misses_nothing()
    observer.jobs, observer.plans = {JOB.id: JOB}, {}
    assert not observer.misses_nothing()


# --- what one alone says ----------------------------------------------------------------------------------------------


def plan(epoch: int) -> Any:
    return SimpleNamespace(epoch=epoch)


def test_the_plan_is_the_one_that_most_follow_and_not_of_an_epoch_that_one_made_up(observer: Observer) -> None:
    cat = PeerId("c" * 16)
    observer.records[cat] = record(cat, job=JOB.id, plan="e" * 64, epoch=2**40)
    observer.states[cat] = "alive"
    observer.answered.add(cat)
    observer.plans = {PLAN: plan(1), "e" * 64: plan(2**40)}
    assert observer.plan() is observer.plans[PLAN]
    observer.records[BEN] = record(BEN, job=JOB.id, plan="e" * 64, epoch=2**40)
    assert observer.plan() is observer.plans["e" * 64]
    del observer.plans["e" * 64]
    assert observer.plan() is None, "it is not here yet"


def test_peers_that_one_alone_tells_of_follow_no_plan_and_have_no_job(observer: Observer) -> None:
    for number in range(20):
        made_up = PeerId(f"z{number:015d}")
        observer.records[made_up] = record(made_up, job="f" * 16, plan="e" * 64, epoch=9)
        observer.states[made_up] = "alive"
    observer.plans["e" * 64], observer.plans[PLAN] = plan(9), plan(1)
    assert observer.plan() is observer.plans[PLAN]
    observer.jobs = {}
    reply = JobReply(JOB.to_json().encode())
    observer._job_came(ANNA, reply, 0.0)
    assert observer.job == JOB
    observer.states[ANNA] = observer.states[BEN] = "alive"
    assert [each.peer for each in observer.members()] == [ANNA, BEN], "who has another job is no member"


def test_the_job_is_the_one_that_most_train_whoever_told_first(observer: Observer) -> None:
    liar, other = PeerId("0" * 16), dataclasses.replace(JOB, name="of the liar")
    observer.jobs, observer.answered = {}, {liar}
    observer.records = {liar: record(liar, job=other.id)}
    observer.states = {liar: "alive"}
    observer._job_came(liar, JobReply(other.to_json().encode()), 0.0)
    assert observer.job == other, "as far as anybody can tell"
    for peer in (ANNA, BEN):
        observer.records[peer], observer.states[peer] = record(peer, job=JOB.id), "alive"
        observer.answered.add(peer)
    assert observer.job is None and not observer.misses_nothing(), "that of the group is yet to come"
    observer.sessions.peers = lambda: [liar, ANNA]  # type: ignore[method-assign]
    asked: list[Any] = []
    observer.run = lambda effects, now: asked.extend(effects) or []  # type: ignore[method-assign,func-returns-value]
    observer.ask(1.0)
    assert [each.to for each in asked if isinstance(each.message, JobRequest)] == [ANNA]
    observer._job_came(ANNA, JobReply(JOB.to_json().encode()), 1.0)
    assert observer.job == JOB and observer.job_id == JOB.id
    for number in range(3 * MAX_JOBS):
        false = dataclasses.replace(JOB, name=str(number))
        observer._job_came(liar, JobReply(false.to_json().encode()), 2.0)
    assert observer.job == JOB and len(observer.jobs) == MAX_JOBS
    observer.only_job = other.id
    assert observer.job != JOB, "who asks for a job gets no other"


def test_who_is_linked_is_heard_however_many_there_are_said_to_be(observer: Observer) -> None:
    for number in range(MAX_RECORDS):
        observer.records[PeerId(f"z{number:015d}")] = record(ANNA)
    identities = [new_identity() for _ in range(2)]
    records = [
        Statements(signing_of(each), bytes(32)).signed(blank_record(each.peer, each.public, 1)) for each in identities
    ]
    observer.sessions.key_of = lambda peer: b"k" * 40 if peer == identities[0].peer else None  # type: ignore[method-assign]
    observer._records_came(ANNA, Records(tuple(records)), 0.0)
    assert identities[0].peer in observer.records and identities[1].peer not in observer.records
    newer = Statements(signing_of(identities[0]), bytes(32)).signed(dataclasses.replace(records[0], version=2))
    observer._records_came(ANNA, Records((newer,)), 0.0)
    assert observer.records[identities[0].peer].version == 2, "nor do those that are known grow old"


def test_plans_that_are_told_one_after_the_other_do_not_fill_the_memory(observer: Observer) -> None:
    observer.plans = {PLAN: plan(1)} | {f"{number:064x}": plan(number) for number in range(2, 3 * MAX_PLANS)}
    observer._forget_plans()
    assert len(observer.plans) == MAX_PLANS and PLAN in observer.plans, "that of the group stays"
    for name, each in (observer.plans | {f"{number:064x}": plan(number) for number in range(2, 3 * MAX_PLANS)}).items():
        made_up = PeerId(f"z{name[-15:]}")  # one member alone tells of peers that follow those
        observer.records.setdefault(made_up, record(made_up, job=JOB.id, plan=name, epoch=each.epoch))
        observer.states[made_up], observer.plans[name] = "alive", each
    observer._forget_plans()
    assert len(observer.plans) == MAX_PLANS and PLAN in observer.plans


def test_what_did_not_come_is_not_said_to_be_missing(observer: Observer) -> None:
    observer.plans = {}
    assert "did not come within 8 s; try again and look longer (harvest --wait)" in _nothing_yet(observer, 8.0)
    observer.records = {peer: record(peer, job=JOB.id) for peer in (ANNA, BEN)}
    assert _nothing_yet(observer, 8.0).startswith("the group has no plan yet")
    observer.jobs = {}
    assert "did not come within 8 s" in _nothing_yet(observer, 8.0)
    later = json.dumps(json.loads(JOB.to_json()) | {"colour": "red"}).encode()
    with pytest.raises(RemoteError):
        observer._job_came(ANNA, JobReply(later), 1.0)
    assert "can't read the job of the group (colour: unknown key)" in _nothing_yet(observer, 8.0)


# --- what is asked of whom --------------------------------------------------------------------------------------------

MANY = [PeerId(f"p{number:015d}") for number in range(200)]


def asked_by(observer: Observer, linked: list[PeerId]) -> list[Send]:
    """Filled with all that the observer says from now on."""
    asked: list[Send] = []
    observer.sessions.peers = lambda: linked  # type: ignore[method-assign]
    observer.sessions.key_of = lambda peer: b"k" * 40 if peer in linked else None  # type: ignore[method-assign]
    observer.run = lambda effects, now: asked.extend(e for e in effects if isinstance(e, Send)) or []  # type: ignore[method-assign,func-returns-value]
    return asked


def test_a_large_room_is_asked_in_turn_and_each_of_itself_only(observer: Observer) -> None:
    asked = asked_by(observer, MANY)
    rounds = -(-len(MANY) // MOST_ASKED)
    for second in range(rounds):
        asked.clear()
        observer.ask(float(second))
        assert len(asked) <= 2 * MOST_ASKED + 1
        digests = [each.message for each in asked if isinstance(each.message, RecordDigest)]
        assert sum(each.whole for each in digests) == 1
        assert all(len(each.versions) == 1 for each in digests if not each.whole)
    assert observer._asked_at.keys() == set(MANY) and min(observer._asked_at.values()) >= 0.0


def test_a_peer_that_is_met_makes_nobody_else_be_asked_again(observer: Observer) -> None:
    asked = asked_by(observer, MANY)
    for peer in MANY:
        asked += observer._admitted(PeerAdmitted(peer, b"k" * 40, "tcp://10.0.0.1:1", ""), 0.0)  # type: ignore[arg-type]
    sends = [each for each in asked if isinstance(each, Send)]
    assert sum(isinstance(each.message, StatusRequest) for each in sends) == len(MANY)
    assert sum(isinstance(each.message, RecordDigest) for each in sends) == len(MANY) + FEW


def test_a_plan_that_all_follow_is_asked_of_a_few_and_of_others_each_time(observer: Observer) -> None:
    asked = asked_by(observer, MANY)
    observer.plans = {}
    observer.records = {peer: record(peer, job=JOB.id, plan=PLAN, epoch=1) for peer in MANY}
    observer.states = dict.fromkeys(MANY, "alive")
    reached = set()
    for second in range(-(-len(MANY) // FEW)):
        asked.clear()
        observer.ask(float(second))
        to = {each.to for each in asked if isinstance(each.message, PlanRequest)}
        assert len(to) == FEW
        reached |= to
    assert reached == set(MANY), "somebody is never asked, who may be the one that answers"


def test_only_what_changed_of_a_record_is_taken_and_the_whole_asked_for_where_that_does_not_fit(
    observer: Observer,
) -> None:
    owner = new_identity()
    statements = Statements(signing_of(owner), bytes(32))
    first = statements.signed(blank_record(owner.peer, owner.public, 5))
    newer = statements.signed(dataclasses.replace(first, version=6, step=7))
    observer._records_came(ANNA, Records((first,)), 0.0)
    change = RecordChange(owner.peer, 5, 6, pack_fields(newer, {"step"}), newer.signature)
    wrong = dataclasses.replace(change, fields=pack_fields(newer, {"loss"}))
    (asked,) = observer._changes_came(owner.peer, RecordChanges((wrong,)), 0.0)
    assert asked.message == RecordDigest((RecordVersion(owner.peer, 0),), want_reply=True, whole=False)
    assert observer.records[owner.peer] == first
    assert observer._changes_came(owner.peer, RecordChanges((change,)), 0.0) == []
    assert observer.records[owner.peer] == newer
