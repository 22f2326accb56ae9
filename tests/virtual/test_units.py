"""Groups that train split: whole peers in virtual time, whose trainers keep books of every round's samples."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from peer_group import Room, job
from seeds import seeds
from stage_trainer import NUM_BLOCKS
from unit_trainer import Ledger, UnitTrainer, UnitTraits, read_books

from p2ptrain.core.plan import Plan
from p2ptrain.modes.split import harvest as harvester
from p2ptrain.modes.split.config import SplitConfig
from p2ptrain.modes.split.plan import SplitBody, workers
from p2ptrain.simulation.device import Device
from p2ptrain.simulation.network import LAN, Conditions
from p2ptrain.wire.messages import SnapshotRef

LOSSY = Conditions(delay_s=0.002, jitter_s=0.02, loss=0.1)
RATE = 12.5e6
FORGIVEN = ("old-epoch", "replay", "session", "echo")
SAMPLES = (16,) * 6
NOTHING = (0,) * 6
STRONG = 0.0002


def group(
    seed: int = 0,
    owners: int = 3,
    helpers: int = 1,
    conditions: Conditions = LAN,
    *,
    rounds: int = 6,
    min_peers: int = 0,
    settle_s: float = 1.0,
    replicas: int = 1,
    **settings: object,
) -> Room:
    """Weak owners first, then strong helpers without samples."""
    room = Room(seed, conditions, traits=UnitTraits, bytes_per_s=RATE)
    count = owners + helpers
    work = job("split", rounds=rounds, min_peers=min_peers or count, settle_s=settle_s, replicas=replicas)
    work = work.with_table(SplitConfig(**settings))  # type: ignore[arg-type]
    for number in range(count):
        weak = number < owners
        room.add(number, SAMPLES if weak else NOTHING, job=work, block_s=0.004 if weak else STRONG)
    return room


def trainer(device: Device) -> UnitTrainer:
    assert isinstance(device.trainer, UnitTrainer)
    return device.trainer


def plan_of(device: Device) -> Plan:
    assert device.core.agreement is not None and device.core.agreement.current is not None
    return device.core.agreement.current


def body_of(device: Device) -> SplitBody:
    body = plan_of(device).body
    assert isinstance(body, SplitBody)
    return body


def rounds_of(room: Room) -> int:
    work = room.on()[0].disk.job
    assert work is not None
    return work.training.rounds


def working(room: Room) -> list[Device]:
    names = set(workers(body_of(room.on()[0]).split))
    return [device for device in room.on() if device.id in names]


def all_at(room: Room, round: int) -> Callable[[], bool]:
    return lambda: all(device.record.round >= round and device.trainer is not None for device in working(room))


def in_epoch(room: Room, epoch: int) -> Callable[[], bool]:
    """Whether all that work train by the plan of that epoch."""

    def looked_at() -> bool:
        if any(d.record.epoch != epoch for d in room.on()):
            return False
        return all(
            d.trainer is not None and trainer(d).begun[-1:][0:1] and trainer(d).begun[-1][0] == epoch
            for d in working(room)
        )

    return looked_at


def harvest(room: Room, visitor_number: int = 99) -> dict[int, tuple[SnapshotRef, bytes]]:
    """As ``p2ptrain harvest`` does it, through an observer."""
    on = room.on()
    visitor = room.visit(visitor_number, [device.number for device in on])
    room.run(3)
    holdings = {h.blob: h for device in on for h in device.record.holdings}

    async def fetch(holding: SnapshotRef, what: str) -> bytes | None:
        visitor.fetch(holding)
        room.run(20, lambda: holding.blob in visitor.blobs)
        return visitor.blobs.get(holding.blob)

    _, parts = asyncio.run(harvester.fetch(plan_of(on[0]), list(holdings.values()), fetch))
    return {first: (snapshot.holding, snapshot.data) for first, (snapshot,) in parts.items()}


def check_done(room: Room, owners: int) -> Ledger:
    """The saved model has every round once, each of one set of owners, and no samples twice; its ledger."""
    rounds = rounds_of(room)
    found = harvest(room)
    assert found, "no whole model is saved"
    blocks: dict[int, Ledger] = {}
    for _, data in found.values():
        blocks |= read_books(data, rounds)
    assert sorted(blocks) == list(range(NUM_BLOCKS))
    ledger = blocks[0]
    assert all(each == ledger for each in blocks.values())
    for round in range(1, rounds + 1):
        of_round = [value for (r, _), value in ledger.items() if r == round]
        assert 1 <= len(of_round) <= owners
        assert {samples for samples, _ in of_round} == {sum(SAMPLES)}
        assert len({epoch for _, epoch in of_round}) == 1, "a round of two plans"
    return ledger


def owners_by_round(ledger: Ledger) -> Counter[int]:
    return Counter(round for round, _ in ledger)


def refusals(room: Room) -> Counter[str]:
    total: Counter[str] = Counter()
    for device in room.on():
        total += device.core.refused + device.core.sessions.refused
    return Counter({reason: n for reason, n in total.items() if reason not in FORGIVEN})


def state_of(room: Room) -> list[tuple[object, ...]]:
    """For a person who reads a failure."""
    return [
        (
            d.number,
            d.record.phase,
            d.core.epoch,
            d.record.part,
            d.record.round,
            d.record.waiting_for,
            d.core.role and getattr(d.core.role, "_state", None),
            [(h.kind, h.part, h.span, h.round, h.epoch) for h in d.record.holdings],
            d.trainer and (trainer(d).begun, trainer(d).averaged),
        )
        for d in room.on()
    ]


# --- from nothing to done ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("conditions", [LAN, LOSSY], ids=["lan", "lossy"])
@pytest.mark.parametrize("strategy", ["planned", "alone", "middle"])
def test_three_owners_and_a_helper(seed: int, conditions: Conditions, strategy: str) -> None:
    room = group(seed, conditions=conditions, strategy=strategy)
    assert room.run(300, room.all_done), state_of(room)
    assert len(room.plans()) == 1 and room.epochs() - {0} == {1}
    split = body_of(room.devices[0]).split
    helper = room.devices[3].id
    assert split.helpers == (() if strategy == "alone" else (helper,))
    assert split.standby == ((helper,) if strategy == "alone" else ())
    assert all(len(trainer(device).begun) == rounds_of(room) for device in working(room))
    assert set(owners_by_round(check_done(room, 3)).values()) == {3}
    assert not refusals(room)
