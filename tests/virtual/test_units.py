"""Groups that train split: whole peers in virtual time, whose trainers keep books of every round's samples."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import pytest
from blocks_trainer import FLOPS, MODEL, NUM_BLOCKS
from peer_group import LOSSY, NOTHING, RATE, Room, harvest, job, plan_of, refusals
from seeds import seeds
from unit_trainer import Ledger, UnitTrainer, UnitTraits, read_books

from p2ptrain.core import commands as c
from p2ptrain.modes.split import harvest as harvester
from p2ptrain.modes.split.commands import PieceMade
from p2ptrain.modes.split.config import SplitConfig
from p2ptrain.modes.split.plan import SplitBody
from p2ptrain.modes.split.rounds.pieces import whole_states
from p2ptrain.planning.devices.blocks import BlockTimes
from p2ptrain.planning.devices.profile_codec import profile_to_json
from p2ptrain.simulation.device import Device
from p2ptrain.simulation.network import LAN, Conditions

SAMPLES = (16,) * 6
WEAK, STRONG = 0.001, 0.00005
FREE_HANDING = 1e12
"""FLOP/s, of a device that hands on whatever there is in no time. By a speed as low as its blocks' times say it takes a
weak one 0.2 s a block, both ways, and a twentieth of a second a stage message (``test_unit_handing``)."""


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
    ballast_bytes: int = 0,
    weak_s: float = WEAK,
    num_val: int = 0,
    handing: float = 0.0,
    weak_bytes: int = 0,
    strong_s: float = STRONG,
    claimed: float = 1.0,
    **settings: object,
) -> Room:
    """Weak owners first, then strong helpers without samples. ``handing``: times what plans count with that handing on
    takes of each device; 0: plans count with nothing, and it is free. ``weak_bytes``: memory of the weak; 0: enough.
    ``claimed``: so many times their speed helpers say that they have."""
    room = Room(seed, conditions, traits=UnitTraits, bytes_per_s=RATE)
    count = owners + helpers
    work = job("split", rounds=rounds, min_peers=min_peers or count, settle_s=settle_s, replicas=replicas)
    work = work.with_table(SplitConfig(**settings))  # type: ignore[arg-type]
    for number in range(count):
        weak = number < owners
        counts, block_s = (SAMPLES, weak_s) if weak else (NOTHING, strong_s)
        traits = {"block_s": block_s, "ballast_bytes": ballast_bytes, "num_val": num_val}
        flops_per_s = FLOPS / block_s if handing else FREE_HANDING
        if not weak and claimed != 1:
            traits["profile"] = profile_of(block_s / claimed)
        if handing:
            traits["handing_flops_per_s"] = flops_per_s / handing
        device = {"flops_per_s": flops_per_s, "memory_bytes": weak_bytes if weak else 0}
        room.add(number, counts, job=work, **device, **traits)
    return room


def profile_of(block_s: float) -> str:
    """Of a device that takes so long for a sample in one block, forward."""
    sizes = (1, 4, 16)
    forward = tuple(tuple(block_s * size for _ in MODEL.blocks) for size in sizes)
    backward = tuple(tuple(2 * second for second in row) for row in forward)
    return profile_to_json(MODEL, BlockTimes(sizes, forward, backward))


def trainer(device: Device) -> UnitTrainer:
    assert isinstance(device.trainer, UnitTrainer)
    return device.trainer


def body_of(device: Device) -> SplitBody:
    body = plan_of(device).body
    assert isinstance(body, SplitBody)
    return body


def rounds_of(room: Room) -> int:
    work = room.on()[0].disk.job
    assert work is not None
    return work.training.rounds


def working(room: Room) -> list[Device]:
    """Those that have work, by the newest plan; [] before there is one."""
    plans = [d.core.agreement.current for d in room.on() if d.core.agreement and d.core.agreement.current]
    newest = max(plans, key=lambda plan: plan.epoch, default=None)
    return [device for device in room.on() if newest is not None and newest.part_of(device.id) is not None]


def all_at(room: Room, round: int) -> Callable[[], bool]:
    def looked_at() -> bool:
        devices = working(room)
        return bool(devices) and all(d.record.round >= round and d.trainer is not None for d in devices)

    return looked_at


def in_epoch(room: Room, epoch: int) -> Callable[[], bool]:
    """Whether all that work train by the plan of that epoch."""

    def looked_at() -> bool:
        if any(d.record.epoch != epoch for d in room.on()):
            return False
        return all(d.trainer is not None and [e for e, _ in trainer(d).begun][-1:] == [epoch] for d in working(room))

    return looked_at


def beyond(room: Room, epoch: int) -> Callable[[], bool]:
    """Whether all that work train by one plan that is later."""
    return lambda: (latest := max(d.record.epoch for d in room.on())) > epoch and in_epoch(room, latest)()


def newest_saved(devices: list[Device]) -> int:
    """The newest round whose state these truly have, together."""
    refs = [ref for device in devices for ref in device.disk.replicas if ref.blob in device.disk]
    return max((round for round, _, _ in whole_states(NUM_BLOCKS, refs)), default=0)


def check_done(room: Room, owners: int) -> Ledger:
    """The saved model has every round once, each of one set of owners, and no samples twice; its ledger."""
    rounds = rounds_of(room)
    found = harvest(room, harvester)
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
@pytest.mark.parametrize("strategy", ["planned", "alone"])
def test_three_owners_and_a_helper(seed: int, conditions: Conditions, strategy: str) -> None:
    room = group(seed, conditions=conditions, strategy=strategy)
    assert room.run(300, room.all_done), state_of(room)
    assert len(room.plans()) == 1
    if conditions is LAN:  # where messages get lost, rounds take longer than planned, and other plans may be due
        split = body_of(room.devices[0]).split
        helper = room.devices[3].id
        assert room.epochs() - {0} == {1}
        assert split.helpers == (() if strategy == "alone" else (helper,))
        assert split.standby == ((helper,) if strategy == "alone" else ())
        assert all(len(trainer(device).begun) == rounds_of(room) for device in working(room))
    assert set(owners_by_round(check_done(room, 3)).values()) == {3}
    assert not refusals(room)


# --- death, return, late comers ---------------------------------------------------------------------------------------


def victims(room: Room, who: str) -> list[Device]:
    """``owner``: one that is helped and does not average."""
    body = body_of(room.on()[0])
    by_id = {device.id: device for device in room.on()}
    averager = by_id[body.averager]
    helper = by_id[body.split.helpers[0]] if body.split.helpers else averager  # type: ignore[index]
    owner = next(by_id[unit.owner] for unit in body.split.units if unit.owner != averager.id)  # type: ignore[index]
    return {"averager": [averager], "helper": [helper], "owner": [owner], "both": [owner, averager]}[who]


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize(
    ("strategy", "who", "conditions"),
    [
        ("planned", "helper", LAN),
        ("planned", "helper", LOSSY),
        ("planned", "owner", LAN),
        ("planned", "both", LOSSY),
        ("alone", "averager", LAN),
    ],
    ids=["helper", "helper-lossy", "owner", "both-lossy", "averager"],
)
def test_some_die_and_no_finished_round_is_lost(seed: int, strategy: str, who: str, conditions: Conditions) -> None:
    room = group(seed, 4, 1, conditions, rounds=8, strategy=strategy, replicas=2 if who == "both" else 1)
    assert room.run(120, all_at(room, 2)), state_of(room)
    room.run(room.rng.uniform(0, 3))
    dead, epoch = victims(room, who), max(device.core.epoch for device in room.on())
    for device in dead:
        device.kill()
    newest = newest_saved(room.on())
    assert newest >= 1
    assert room.run(240, beyond(room, epoch)), state_of(room)
    starts = {trainer(device).begun[-1] for device in working(room)}
    assert all(round >= newest for _, round in starts), "a finished round is lost"
    assert room.run(600, room.all_done), state_of(room)
    counts = owners_by_round(check_done(room, 4))
    assert counts[1] == 4 and counts[8] == 4 - sum(any(d.traits.counts) for d in dead)  # type: ignore[attr-defined]
    assert not refusals(room)


@pytest.mark.parametrize("who", ["helper", "owner"])
def test_who_comes_back_without_its_work_gets_it_again(who: str) -> None:
    """Killed and started again before anybody noticed."""
    room = group(rounds=8)
    assert room.run(120, all_at(room, 2)), state_of(room)
    (device,) = victims(room, who)
    device.kill()
    room.run(0.3)
    room.restart(device.number)
    assert room.run(120, in_epoch(room, 2)), state_of(room)
    assert plan_of(device).part_of(device.id) is not None
    assert room.run(300, room.all_done), state_of(room)
    assert set(owners_by_round(check_done(room, 3)).values()) == {3}


def test_an_owner_that_was_away_is_in_again_from_the_next_round_on() -> None:
    room = group(rounds=14)
    assert room.run(120, all_at(room, 2)), state_of(room)
    (device,) = victims(room, "owner")
    device.kill()
    assert room.run(120, in_epoch(room, 2)), state_of(room)
    room.restart(device.number)
    assert room.run(120, in_epoch(room, 3)), state_of(room)
    assert room.run(600, room.all_done), state_of(room)
    counts = owners_by_round(check_done(room, 3))
    assert counts[1] == 3 and counts[14] == 3 and 2 in counts.values()


def test_a_trainer_that_dies() -> None:
    room = group(rounds=8)
    assert room.run(120, all_at(room, 2)), state_of(room)
    (device,) = victims(room, "helper")
    dead = trainer(device)
    dead.dead = True
    dead._say(c.TrainerFailed("killed (out of memory?)", user_error=False))
    assert room.run(120, in_epoch(room, 2)), state_of(room)
    assert trainer(device) is not dead
    assert room.run(300, room.all_done), state_of(room)
    check_done(room, 3)


def test_a_trainer_that_is_back_with_the_next_plan_is_left_at_work() -> None:
    """It dies when a plan has just been made for another's loss: that plan counts, though it was started again."""
    room = group(rounds=8)
    assert room.run(120, all_at(room, 2)), state_of(room)
    (helper,), (owner,) = victims(room, "helper"), victims(room, "owner")
    for device in (owner, helper):
        dead = trainer(device)
        dead.dead = True
        dead._say(c.TrainerFailed("killed (out of memory?)", user_error=False))
        room.run(60, lambda: any(other.record.epoch > 1 for other in room.on()))
    assert room.run(300, room.all_done), state_of(room)
    assert set(owners_by_round(check_done(room, 3)).values()) == {3}


@pytest.mark.parametrize("seed", seeds(1))
def test_all_die_and_come_back(seed: int) -> None:
    room = group(seed, rounds=8)
    assert room.run(120, all_at(room, 3)), state_of(room)
    for device in room.on():
        device.kill()
    newest = newest_saved(list(room.devices.values()))
    room.run(5)
    for number in range(4):
        room.restart(number)
        room.run(0.7)
    assert room.run(120, in_epoch(room, 2)), state_of(room)
    assert {trainer(device).begun[0][1] for device in working(room)} == {newest} and newest >= 2
    assert room.run(300, room.all_done), state_of(room)
    check_done(room, 3)


def test_a_helper_that_comes_late_helps_from_the_next_round_on() -> None:
    room = group(min_peers=3, rounds=12)
    helper = room.devices[3]
    helper.kill()
    assert room.run(120, all_at(room, 2)), state_of(room)
    assert body_of(room.devices[0]).split.helpers == ()
    room.restart(3)
    assert room.run(120, in_epoch(room, 2)), state_of(room)
    assert body_of(helper).split.helpers == (helper.id,)
    assert room.run(600, room.all_done), state_of(room)
    assert set(owners_by_round(check_done(room, 3)).values()) == {3}
    assert sum(trainer(device).lost_batches for device in room.on()) <= 3, "a round that had hardly begun"


@pytest.mark.parametrize("seed", seeds(6))
def test_whatever_comes_and_goes_no_sample_of_a_round_counts_twice_and_nobody_waits_for_ever(seed: int) -> None:
    room = group(seed, 3, 2, [LAN, LOSSY][seed % 2], rounds=10, min_peers=3)
    rng = room.rng
    for _ in range(rng.randrange(1, 6)):
        room.run(rng.expovariate(1 / 6))
        on, off = room.on(), [device for device in room.devices.values() if not device.is_on]
        what = rng.choice(["kill", "return", "trainer", "cut"])
        if what == "kill" and len(on) > 2:
            rng.choice(on).kill()
        elif what == "return" and off:
            room.restart(rng.choice(off).number)
        elif what == "trainer":
            device = rng.choice(on)
            if device.trainer is not None:
                dead = trainer(device)
                dead.dead = True
                dead._say(c.TrainerFailed("killed (out of memory?)", user_error=False))
        elif what == "cut" and len(on) > 2:
            numbers = [device.number for device in on]
            rng.shuffle(numbers)
            room.partition(numbers[:1], numbers[1:])
            room.run(rng.uniform(0, 40))
            room.heal()
    for device in list(room.devices.values()):
        if not device.is_on:
            room.restart(device.number)
    assert room.run(900, room.all_done), state_of(room)
    check_done(room, 3)


# --- slow devices, nonsense, nobody -----------------------------------------------------------------------------------


def test_a_helper_that_gets_slow_is_left_and_nothing_is_lost() -> None:
    room = group(rounds=16)
    assert room.run(120, all_at(room, 3)), state_of(room)
    (helper,) = victims(room, "helper")
    trainer(helper).slowdown = 600.0
    assert room.run(300, in_epoch(room, 2)), state_of(room)
    assert helper.record.slowdown == 600.0 or body_of(helper).seen[0].peer == helper.id
    assert body_of(room.devices[0]).split.helpers == ()
    assert room.run(900, room.all_done), state_of(room)
    assert set(owners_by_round(check_done(room, 3)).values()) == {3}


def nonsense() -> list[str]:
    sizes = (1, 4)
    rows = tuple(tuple(0.001 * size for _ in MODEL.blocks) for size in sizes)
    mad = tuple(tuple(1e7 * size for _ in MODEL.blocks) for size in sizes)
    return ["no JSON", profile_to_json(MODEL, BlockTimes(sizes, rows, mad))]


@pytest.mark.parametrize("profile", nonsense(), ids=["no JSON", "slower than anything"])
def test_a_peer_whose_profile_is_nonsense_is_left_out_and_told_why(profile: str) -> None:
    room = group(2, owners=2, helpers=0, min_peers=3)
    odd = room.add(2, SAMPLES, job=room.devices[0].disk.job, profile=profile)
    assert room.run(60, lambda: room.devices[0].record.round >= 1), state_of(room)
    room.run(1.5)
    assert "make no sense" in odd.record.waiting_for
    assert room.run(200, room.all_done), state_of(room)
    assert set(owners_by_round(check_done(room, 2)).values()) == {2}


def test_without_any_samples_there_is_no_plan_and_everyone_says_why() -> None:
    room = group(owners=0, helpers=2)
    room.run(30)
    assert all("nobody has samples" in device.record.waiting_for for device in room.on()), state_of(room)


def test_the_last_plan_stays_where_no_other_can_be_made() -> None:
    """The only peer with samples dies: the helper says what is missing, and helps on when it is back."""
    room = group(owners=1, helpers=1, rounds=8)
    assert room.run(120, all_at(room, 2)), state_of(room)
    owner, helper = room.devices[0], room.devices[1]
    owner.kill()
    room.run(40)
    assert plan_of(helper).epoch == 1 and not helper.done
    assert "nobody has samples" in helper.record.waiting_for, state_of(room)
    room.restart(0)
    assert room.run(300, room.all_done), state_of(room)
    assert set(owners_by_round(check_done(room, 1)).values()) == {1}


def test_an_average_that_can_not_be_saved_is_made_by_another() -> None:
    room = group(rounds=6, strategy="alone")
    assert room.run(120, all_at(room, 2)), state_of(room)
    (averager,) = victims(room, "averager")
    say = trainer(averager)._say
    trainer(averager)._say = lambda event: say(  # the disk refuses what its trainer makes
        dataclasses.replace(event, piece=b"") if isinstance(event, PieceMade) else event
    )
    assert room.run(120, in_epoch(room, 2)), state_of(room)
    assert body_of(averager).averager != averager.id
    assert averager.note_kinds()["average-not-saved"] == 1
    assert room.run(300, room.all_done), state_of(room)
    assert set(owners_by_round(check_done(room, 3)).values()) == {3}
