"""Exchanges of one peer: whom they reach, when one is due, and what becomes of a payload that can't be made."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from records import record

from p2ptrain.config import DataConfig, GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.core.effects import ForgetBlob, ToTrainer
from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.tasks.averaging.exchanges import MAX_MERGING, TURNS_MISSED, Exchanges, exchange_due, gossip_config
from p2ptrain.modes.tasks.commands import MakePayload, Merge, Merged, PayloadMade, Reclaim
from p2ptrain.modes.tasks.config import TasksConfig
from p2ptrain.modes.tasks.plan import parts_of
from p2ptrain.modes.tasks.planning.assignment import first_plan
from p2ptrain.protocol import gossip as g
from p2ptrain.protocol.machine import Send
from p2ptrain.simulation.names import peer_ids
from p2ptrain.wire import messages as m

ME, ANN, BEN = NAMES = peer_ids(3)
BLOB = BlobId("b" * 64)
OWN = m.SnapshotRef(0, ME, 1, 4, 40, 100, BlobId("a" * 64), 10)


def job(**changes: Any) -> Job:
    data = DataConfig(tuple("abcd"), (1, 8, 8), mean=(0.5,), std=(0.25,), val=0.0)
    made = Job(mode="replicas", model=ModelConfig("lenet"), data=data, training=TrainingConfig(rounds=50))
    group = GroupConfig(**{name: value for name, value in changes.items() if name == "compression"})
    return dataclasses.replace(made, group=group).with_table(
        TasksConfig(**{name: value for name, value in changes.items() if name != "compression"})
    )


class Peer:
    """One of three in replicas; the others follow its plan and train."""

    def __init__(self, the_job: Job) -> None:
        self.plan = first_plan(the_job, [PeerSnapshot(each, 1e9, 0, (9,) * 4, ()) for each in NAMES], ME)
        told: dict[str, Any] = {"plan": self.plan.hash, "part": 0, "phase": "training", "round": 4}
        self.records = {each: dataclasses.replace(record(each), **told) for each in NAMES}
        group: Any = SimpleNamespace(
            own_id=ME, alive=lambda: [ANN, BEN], record=self.records.get, name_of=lambda peer: peer
        )
        group.own = self.records[ME]
        self.group = group
        downloads: Any = SimpleNamespace(fetch=lambda *about, **how: [])
        self.exchanges = Exchanges(group, downloads, random.Random(0), the_job)
        self.exchanges.members_changed(self.plan, self.plan.hash, 0.0)
        self.shards = parts_of(self.plan)[0].shards

    def run(self, effects: Sequence[object]) -> list[object]:
        """What becomes of them, where the exchanges themselves carry them out."""
        done: list[object] = []
        for effect in effects:
            handler = self.exchanges.handlers.get(type(effect))
            done += self.run(handler(effect, 0.0)) if handler is not None else [effect]  # type: ignore[arg-type]
        return done

    def asked(self, by: PeerId) -> int:
        """``by`` starts an exchange; the number of the payload that the trainer is asked for."""
        masses = tuple(m.ShardMass(shard, 1.0) for shard in self.shards)
        push = m.GossipPush(7, self.plan.epoch, masses, BLOB, 100, True)
        self.exchanges.handlers = {**self.exchanges.handlers, g.FetchAndMerge: lambda effect, now: []}
        (asked,) = [e.command for e in self.run(self.exchanges.pushed(by, push, 0.0)) if isinstance(e, ToTrainer)]
        assert isinstance(asked, MakePayload)
        return asked.exchange

    def made(self, exchange: int, mass: float = 1.0) -> list[object]:
        masses = tuple((shard, mass) for shard in self.shards) if mass else ()
        made = PayloadMade(exchange, masses, b"")
        return self.run(self.exchanges.payload_made(made, BLOB if mass else None, 100, 0.0))


def sent(effects: Sequence[object]) -> list[m.GossipPush]:
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, m.GossipPush)]


def test_who_has_no_mass_yet_answers_at_once_that_it_has_none() -> None:
    peer = Peer(job())
    (push,) = sent(peer.made(peer.asked(ANN), mass=0.0))
    assert (push.exchange, push.num_bytes, push.want_reply) == (7, 0, False)
    assert {mass.mass for mass in push.masses} == {0.0}


def test_a_payload_that_is_made_when_its_exchange_is_over_gives_its_half_back() -> None:
    peer = Peer(job())
    exchange = peer.asked(ANN)
    peer.run(peer.exchanges.tick(100.0))
    effects = peer.made(exchange)
    (back,) = [e.command for e in effects if isinstance(e, ToTrainer)]
    assert isinstance(back, Reclaim) and dict(back.masses) == dict.fromkeys(peer.shards, 1.0) and not sent(effects)
    assert ForgetBlob(BLOB) in effects, "nobody will fetch it"


def test_a_trainer_that_hangs_is_given_few_payloads_and_they_are_kept_no_longer_than_it() -> None:
    peer = Peer(job())
    masses = tuple(m.ShardMass(shard, 1.0) for shard in peer.shards)
    given: list[BlobId] = []
    for number in range(100):
        blob, now = BlobId(f"{number:064x}"), 1.0 * number
        push = m.GossipPush(number, peer.plan.epoch, masses, blob, 100, False)
        peer.run(peer.exchanges.pushed(ANN, push, now))
        for merge in peer.exchanges.blob_arrived(blob, now):  # nothing, where it was not fetched
            assert isinstance(merge, ToTrainer) and isinstance(merge.command, Merge)
            if number < 20:  # so its usual pace is known
                merged = peer.exchanges.merged(Merged(merge.command.exchange, ANN, ""), now + 0.1)
                assert ForgetBlob(blob) in merged
            else:
                given.append(blob)
        peer.run(peer.exchanges.tick(now + 0.9))
    assert MAX_MERGING <= len(given) <= 2 * MAX_MERGING, "after a minute it is tried again"
    assert peer.exchanges.trainer_lost() == [ForgetBlob(blob) for blob in given]
    assert peer.exchanges.trainer_lost() == []


def test_a_payload_that_comes_while_there_is_no_trainer_is_forgotten_and_the_next_one_is_not_taken_for_busy() -> None:
    peer = Peer(job())
    masses = tuple(m.ShardMass(shard, 1.0) for shard in peer.shards)
    peer.exchanges.trainer_lost()
    for number in range(MAX_MERGING + 1):
        blob, is_new = BlobId(f"{number:064x}"), number == MAX_MERGING
        if is_new:
            peer.exchanges.trainer_begins_anew()
        peer.run(peer.exchanges.pushed(ANN, m.GossipPush(number, peer.plan.epoch, masses, blob, 100, False), 1.0))
        effects = peer.run(peer.exchanges.blob_arrived(blob, 1.0))
        assert effects and (ForgetBlob(blob) not in effects) == is_new
        assert any(isinstance(effect, ToTrainer) for effect in effects) == is_new


def test_what_is_learnt_is_with_those_that_a_payload_reached_lately() -> None:
    peer = Peer(job())
    peer.made(peer.asked(ANN))
    assert not peer.exchanges.has_reached(ANN, OWN), "it trains along, and nothing of ours ever got there"
    peer.exchanges.served(ANN, BLOB, 60)
    assert not peer.exchanges.has_reached(ANN, OWN)
    peer.exchanges.served(ANN, BLOB, 100)
    assert peer.exchanges.has_reached(ANN, OWN) and not peer.exchanges.has_reached(BEN, OWN)
    limit = 4 + TURNS_MISSED * len(NAMES)
    assert peer.exchanges.has_reached(ANN, dataclasses.replace(OWN, round=limit))
    assert not peer.exchanges.has_reached(ANN, dataclasses.replace(OWN, round=limit + 1)), "all others had their turns"
    peer.exchanges.trainer_begins_anew()
    assert not peer.exchanges.has_reached(ANN, OWN)


@pytest.mark.parametrize("changes", [{"phase": "trained"}, {"plan": "f" * 64}, {"part": 1}])
def test_who_does_something_else_by_now_is_not_reached(changes: dict[str, Any]) -> None:
    peer = Peer(job())
    peer.made(peer.asked(ANN))
    peer.exchanges.served(ANN, BLOB, 100)
    peer.records[ANN] = dataclasses.replace(peer.records[ANN], **changes)
    assert not peer.exchanges.has_reached(ANN, OWN)


@pytest.mark.parametrize("changes", [{"compression": "topk"}, {"exchange_every": 2}])
def test_where_little_is_averaged_nobody_is_reached(changes: dict[str, Any]) -> None:
    peer = Peer(job(**changes))
    peer.exchanges._reached[ANN] = 4
    assert not peer.exchanges.has_reached(ANN, OWN)


def test_an_exchange_is_due_after_some_rounds_and_after_the_last_one() -> None:
    every = job(exchange_every=3)
    due = [exchange_due(every, round, finished=round == 8) for round in range(1, 9)]
    assert due == [None, None, 1, None, None, 2, None, 2]
    assert gossip_config(job(compression="topk")).replies_after_merge and not gossip_config(every).replies_after_merge
