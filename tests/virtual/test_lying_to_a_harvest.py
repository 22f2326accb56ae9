"""A member that lies to who harvests: damaged copies, none, a trickle, fresher ones than there are, another job, a plan
of its own. The harvest ends in a bounded time, with the others' copies, and says whose were of no use."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from liar import LIAR, honest, made_by, pretend, training_group
from peer_group import Room, job
from test_claims import Liar

from p2ptrain.core.harvest import Collected
from p2ptrain.protocol.blobs.fetching import TransferConfig
from p2ptrain.runtime import harvest as harvesting
from p2ptrain.runtime.misfits import FETCH_TIMEOUT_S
from p2ptrain.runtime.node.observer import Observer
from p2ptrain.simulation.room import Visitor
from p2ptrain.wire.messages import Chunk, Fetch, SnapshotRef

CONFIG = TransferConfig()
ROUNDS = 3


class Looker:
    """An observer's node, in virtual time."""

    def __init__(self, room: Room, number: int) -> None:
        self.room = room
        self.visitor: Visitor = room.visit(number, [device.number for device in room.on()])

    @property
    def observer(self) -> Observer:
        return self.visitor.core

    def now(self) -> float:
        return self.room.network.now

    async def look_around(self, wait_s: float, need_job: bool = False) -> None:
        self.room.run(2)

    async def fetch(self, holding: SnapshotRef, timeout_s: float) -> bytes | None:
        observer = self.observer
        if holding.blob not in self.visitor.blobs:
            self.visitor.fetch(holding)
            if not self.room.run(timeout_s, lambda: holding.blob in observer.blobs):
                self.room.perform(self.visitor, observer.give_up(holding, self.now()))
        return self.visitor.blobs.get(holding.blob)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harvesting, "AGAIN_S", 0.0)


def trained() -> Room:
    """All have had all their rounds, and serve."""
    room = training_group(rounds=ROUNDS, num_groups=2, replicas=2)
    assert room.run(90, lambda: all(device.done for device in room.on()))
    return room


def harvest(room: Room, number: int = 99) -> tuple[Collected, list[str], float]:
    """What came, what was said, and how long it took."""
    said: list[str] = []
    looker = Looker(room, number)
    begun = looker.now()
    collected = asyncio.run(harvesting.collect(looker, 5.0, say=said.append))  # type: ignore[arg-type]
    return collected, said, looker.now() - begun


def check_honest(room: Room, collected: Collected) -> None:
    """Both parts, by the group's plan, as those who trained them made them."""
    plan = room.devices[0].core.role.plan  # type: ignore[union-attr]
    assert plan is not None and collected.plan.hash == plan.hash and collected.job == room.devices[0].core.job
    assert sorted(collected.parts) == [part.index for part in plan.parts]
    for copies in collected.parts.values():
        for snapshot in copies:
            assert snapshot.holding.round == ROUNDS
            assert any(snapshot.data == device.disk.blobs.get(snapshot.holding.blob) for device in honest(room))


def test_damaged_copies_come_from_others() -> None:
    room = trained()
    room.devices[LIAR].served = lambda data: bytes(255 - each for each in data)
    collected, _, took = harvest(room)
    check_honest(room, collected)
    assert took < 60


def trickle(room: Room) -> None:
    """Of what it only says to have the liar hands out made-up bytes, two seconds after each question."""
    liar = room.devices[LIAR]
    core = liar.core
    serving = core.transfers._serving
    asked = serving.asked

    def ask(to: object, fetch: Fetch) -> list[object]:
        def answer() -> None:
            data = bytes(fetch.length)
            effects = core.sessions.send(to, Chunk(fetch.blob, fetch.offset, data), core.job_id, 0, room.network.now)  # type: ignore[arg-type]
            room.perform(liar, effects)

        if fetch.blob in liar.disk:
            return list(asked(to, fetch))  # type: ignore[arg-type]
        room.network.at(room.network.now + 2.0, answer)
        return []

    serving.asked = ask  # type: ignore[assignment,method-assign]


@pytest.mark.parametrize("how", ["refuses", "says nothing", "a trickle"])
def test_fresher_copies_that_are_not_handed_out_cost_a_bounded_time(how: str) -> None:
    """Forty of each part, in its own name: of a later step, and of rounds that the job does not have."""
    room = trained()
    liar = Liar(room.devices[LIAR], silent=how == "says nothing")
    if how == "a trickle":
        trickle(room)
    size = 50 << 20 if how == "a trickle" else 1000
    made = [
        liar.made(part, 10**6 + number, ROUNDS + late, 1 + number + 20 * part + 100 * late)
        for part in (0, 1)
        for number in range(20)
        for late in (0, 3)
    ]
    liar.says(room, *(made_by(room, liar.device, dataclasses.replace(ref, num_bytes=size)) for ref in made))
    collected, said, took = harvest(room)
    check_honest(room, collected)
    name = liar.device.record.name
    assert any(name in line and f"of rounds after {ROUNDS}, the job's last" in line for line in said)
    assert sum("left out" in line for line in said) <= len(made), "each is told of once"
    assert took < FETCH_TIMEOUT_S + CONFIG.overall_s + 60, said


@pytest.mark.parametrize("part", [0, 1])
def test_honest_copies_that_it_tells_of_as_its_own_hide_nobodys(part: int) -> None:
    """The very same bytes, as of an older round and as of the other part."""
    room = trained()
    liar = Liar(room.devices[LIAR], silent=False)
    own = {ref.blob: ref for device in honest(room) for ref in device.record.holdings if ref.kind == "part"}
    lies = [dataclasses.replace(ref, trainer=liar.device.id, part=part, round=1, step=1) for ref in own.values()]
    liar.says(room, *(made_by(room, liar.device, ref) for ref in lies))
    liar.true = lambda ref: False
    collected, _, _ = harvest(room)
    check_honest(room, collected)


def test_copies_of_another_job_and_a_plan_of_nowhere_are_not_the_groups() -> None:
    room = trained()
    liar = room.devices[LIAR]
    agreement = liar.core.agreement
    assert agreement is not None and agreement.current is not None
    other = job(name="other", rounds=ROUNDS).id
    false = dataclasses.replace(agreement.current, epoch=10**6, parent="f" * 64, proposer=liar.id)
    agreement._plans[false.hash] = (false, false.to_json().encode())
    pretend(room, lambda record: dataclasses.replace(record, epoch=false.epoch, plan=false.hash))
    room.run(2)
    check_honest(room, harvest(room)[0])
    pretend(room, lambda record: dataclasses.replace(record, job=other, holdings=()))
    room.run(2)
    collected, _, _ = harvest(room, 98)
    assert collected.job.id != other and collected.plan.epoch != false.epoch
