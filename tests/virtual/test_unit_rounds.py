"""The end of a round in split training: its averager dies in it, or gets what is of no use."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from test_units import (
    NUM_BLOCKS,
    RATE,
    all_at,
    body_of,
    check_done,
    group,
    in_epoch,
    newest_saved,
    owners_by_round,
    plan_of,
    state_of,
    trainer,
    victims,
    working,
)

from p2ptrain.core.stages.commands import Taken
from p2ptrain.modes.split import words
from p2ptrain.modes.split.commands import UnitRefused, UpdateMade
from p2ptrain.simulation.device import Device


def rounds_told(devices: list[Device]) -> int:
    """After how many rounds somebody has begun the next one, or has said that the last one is over."""
    return max(max((round for _, round in trainer(d).begun), default=0) for d in devices if d.trainer is not None)


@pytest.mark.parametrize("strategy", ["mid-cut", "alone"])
@pytest.mark.parametrize("moment", (1, 4, 6, 9))
def test_a_round_that_somebody_goes_on_from_survives_its_averager_whenever_that_dies(
    moment: int, strategy: str
) -> None:
    """From when the average is in the making until all have had its pieces for a while. With "alone" each owner needs
    all of it; with "mid-cut" nobody but the helper, which averages, needs its tails."""
    room = group(rounds=6, strategy=strategy, ballast_bytes=400_000)
    assert room.run(120, all_at(room, 1)), state_of(room)
    (averager,) = victims(room, "averager")
    assert room.run(60, lambda: averager.note_kinds()["averaging"] == 2), state_of(room)
    room.run(0.02 + 0.04 * moment)
    averager.kill()
    told = rounds_told(room.on())
    assert told in (1, 2)
    assert newest_saved(room.on()) >= told
    assert room.run(240, in_epoch(room, 2)), state_of(room)
    assert all(trainer(device).begun[-1][1] >= told for device in working(room)), "a finished round is lost"


@pytest.mark.parametrize("moment", (0, 2, 5))
def test_the_last_round_survives_its_averager_once_somebody_has_said_that_all_is_done(moment: int) -> None:
    room = group(rounds=2, strategy="mid-cut", ballast_bytes=400_000)
    assert room.run(120, all_at(room, 1)), state_of(room)
    (averager,) = victims(room, "averager")
    assert room.run(60, lambda: averager.note_kinds()["averaging"] == 2), state_of(room)
    room.run(0.02 + 0.08 * moment)
    said = any(device.record.phase in ("trained", "done") for device in room.on())
    averager.kill()
    assert newest_saved(room.on()) == 2 if said else newest_saved(room.on()) >= 1
    assert room.run(240, room.all_done), state_of(room)
    check_done(room, 3)


def test_two_peers_have_every_round_and_further_copies_are_made_now_and_then() -> None:
    """Nobody but the helper trains the last blocks. Rounds are short beside what lies between two states with all of
    their copies."""
    room = group(rounds=6, strategy="mid-cut", replicas=2)
    most: Counter[int] = Counter()

    def looked_at() -> bool:
        held = Counter(
            round
            for device in room.on()
            for round in {r.round for r in device.disk.replicas if r.part + r.span == NUM_BLOCKS and r.round}
        )
        most.update({round: num - most[round] for round, num in held.items() if num > most[round]})
        return room.all_done()

    assert room.run(300, looked_at), state_of(room)
    assert sorted(most) == list(range(1, 7)) and min(most.values()) >= 2
    assert 1 <= sum(num >= 3 for num in most.values()) <= 3, most


# --- work of no use ---------------------------------------------------------------------------------------------------


def spoil(device: Device) -> None:
    """From now on its updates are nonsense."""
    odd = trainer(device)
    say = odd._say
    odd._say = lambda event: say(
        dataclasses.replace(event, update=b"nonsense") if isinstance(event, UpdateMade) else event
    )


@pytest.mark.parametrize("who", ["owner", "helper"])
def test_who_sends_what_is_no_update_is_shut_out_and_named(who: str) -> None:
    """The others train the very round again without it; it is in again after four rounds, and out for longer then."""
    room = group(rounds=16)
    assert room.run(120, all_at(room, 2)), state_of(room)
    (odd,) = victims(room, who)
    (averager,) = victims(room, "averager")
    spoil(odd)
    assert room.run(120, in_epoch(room, 2)), state_of(room)
    assert averager.note_kinds()["blamed"] == 1
    body = body_of(room.devices[1 if odd.number == 0 else 0])
    (out,) = body.shut_out
    assert (out.peer, out.by, out.times) == (odd.id, averager.id, 1) and out.until_round == body.from_round + 4
    assert plan_of(odd).part_of(odd.id) is None
    plan = plan_of(room.devices[0])
    assert any(odd.id in line and "shut out" in line for line in words.plan_lines(plan, room.devices[0].disk.job))
    assert words.plan_plain(plan)["shut_out"][0]["peer"] == odd.id
    room.run(2)
    assert "shut out" in odd.record.waiting_for
    assert room.run(900, room.all_done), state_of(room)
    assert max((each.times for each in body_of(room.on()[0]).shut_out), default=0) >= (2 if who == "owner" else 1)
    assert owners_by_round(check_done(room, 3))[3] == (2 if who == "owner" else 3)


def test_a_helper_goes_on_without_a_unit_that_diverges() -> None:
    room = group(rounds=16)
    assert room.run(120, all_at(room, 2)), state_of(room)
    (helper,), (owner,) = victims(room, "helper"), victims(room, "owner")
    trainer(helper)._say(UnitRefused(body_of_epoch(helper), owner.id, helper.record.round, "the loss is not finite"))
    assert room.run(120, in_epoch(room, 2)), state_of(room)
    assert [each.peer for each in body_of(helper).shut_out] == [owner.id]
    assert room.run(600, room.all_done), state_of(room)
    assert owners_by_round(check_done(room, 3))[16] == 3, "in again by then"


def body_of_epoch(device: Device) -> int:
    return plan_of(device).epoch


def test_stage_messages_of_no_use_are_blamed_on_their_sender_by_its_helper_alone() -> None:
    room = group(rounds=16)
    assert room.run(120, all_at(room, 2)), state_of(room)
    (helper,), (owner,) = victims(room, "helper"), victims(room, "owner")
    other = next(device for device in room.on() if device not in (helper, owner))
    trainer(other)._say(Taken(1, owner.id, 0, "tensor-shape: (1, 2)"))  # it shares no unit with it
    room.run(0.5)
    assert room.epochs() == {1} and other.record.blames
    trainer(helper)._say(Taken(1, owner.id, 0, "tensor-shape: (1, 2)"))
    assert room.run(120, in_epoch(room, 2)), state_of(room)
    assert [each.peer for each in body_of(helper).shut_out] == [owner.id]


def test_a_link_that_gets_slow_is_measured_again_within_two_rounds() -> None:
    room = group(rounds=12, ballast_bytes=400_000)
    assert room.run(120, all_at(room, 3)), state_of(room)
    at = max(device.record.round for device in room.on())
    room.bytes_per_s = RATE / 50
    slow = RATE / 10
    found = room.run(200, lambda: any(link.bytes_per_s < slow for device in room.on() for link in device.record.links))
    assert found, state_of(room)
    assert max(device.record.round for device in room.on()) <= at + 2
    assert room.run(900, room.all_done), state_of(room)


def test_a_helper_that_slows_down_makes_other_cuts_within_two_rounds() -> None:
    room = group(rounds=12, weak_s=0.003)
    assert room.run(120, all_at(room, 3)), state_of(room)
    before, at = body_of(room.devices[0]).split, max(device.record.round for device in room.on())
    (helper,) = victims(room, "helper")
    trainer(helper).slowdown = 25.0
    assert room.run(120, in_epoch(room, 2)), state_of(room)
    body = body_of(helper)
    assert [unit.cut for unit in body.split.units] != [unit.cut for unit in before.units]
    assert body.from_round <= at + 2
    assert sum(trainer(device).lost_batches for device in room.on()) <= 3


def test_the_only_owner_is_in_again_at_once_as_nobody_else_can_train() -> None:
    room = group(owners=1, helpers=1, rounds=6)
    assert room.run(120, all_at(room, 1)), state_of(room)
    (helper,) = victims(room, "helper")
    trainer(helper)._say(UnitRefused(1, room.devices[0].id, 1, "the loss is not finite"))
    assert room.run(120, in_epoch(room, 2)), state_of(room)
    assert plan_of(helper).part_of(room.devices[0].id) is not None
    assert room.run(300, room.all_done), state_of(room)


def test_who_came_later_and_the_one_that_is_left_go_on_together() -> None:
    """Of the two peers of a plan one dies, and the fastest one here has come since: it has no vote, and proposes."""
    room = group(owners=2, helpers=1, rounds=20, min_peers=2, strategy="mid-cut")
    helper = room.devices[2]
    helper.kill()
    assert room.run(120, all_at(room, 2)), state_of(room)
    assert plan_of(room.devices[0]).epoch == 1 and len(plan_of(room.devices[0]).peers) == 2
    room.restart(2)
    assert room.run(30, lambda: "before this peer came" in helper.record.waiting_for), state_of(room)
    room.devices[1].kill()
    assert room.run(400, room.all_done), state_of(room)
    assert plan_of(helper).part_of(helper.id) is not None
