"""Who only looks: when it has heard all that there is to hear, and need not wait for more."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from p2ptrain.config import DataConfig, Job
from p2ptrain.ids import PeerId
from p2ptrain.net.keys import new_identity
from p2ptrain.net.signing import signing_of
from p2ptrain.protocol.group.record import blank_record
from p2ptrain.runtime.node.observer_node import Observer
from p2ptrain.wire.messages import MemberState, Record

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
    made.job = JOB
    made.plans = {PLAN: None}  # type: ignore[dict-item]
    return made


def test_all_have_answered_and_job_and_plan_are_here(observer: Observer) -> None:
    assert observer.misses_nothing()


def test_a_group_without_a_job_has_none_to_wait_for(observer: Observer) -> None:
    observer.job, observer.records = None, {peer: record(peer) for peer in (ANNA, BEN)}
    assert observer.misses_nothing()


@pytest.mark.parametrize("state", ["alive", "suspect"])
def test_one_of_whom_others_say_that_it_is_there_has_not_answered(observer: Observer, state: MemberState) -> None:
    observer.answered, observer.states[BEN] = {ANNA}, state
    assert not observer.misses_nothing()
    observer.states[BEN] = "dead"
    assert observer.misses_nothing()


def test_the_job_or_a_plan_is_missing(observer: Observer) -> None:
    observer.job = None
    assert not observer.misses_nothing()
    observer.job, observer.plans = JOB, {}
    assert not observer.misses_nothing()
