"""A helper that is not as fast as it says, or is not any more: those that it helps see it, and do not wait for the end
of the round."""

from __future__ import annotations

from blocks_trainer import MODEL
from test_units import (
    SAMPLES,
    all_at,
    body_of,
    check_done,
    group,
    in_epoch,
    owners_by_round,
    state_of,
    trainer,
    victims,
)

from p2ptrain.modes.split.plan import SeenPace
from p2ptrain.simulation.device import Device

WEAK_S = 0.003
SLOW_S = 10 * WEAK_S
ALONE_S = sum(SAMPLES) * len(MODEL.blocks) * 3 * WEAK_S
"""Of a round of an owner alone, 8 s. With a helper as slow as that it would be 200 s."""


def seen_of(device: Device) -> SeenPace:
    (seen,) = body_of(device).seen
    return seen


def test_a_helper_that_claims_a_hundred_times_its_speed_holds_nobody_up_for_long() -> None:
    """It says nothing else, ever. The round in which that shows is trained again without it, and so are those after."""
    room = group(rounds=3, weak_s=WEAK_S, strong_s=SLOW_S, claimed=1000.0)
    assert room.run(60, lambda: all(device.record.phase == "training" for device in room.on())), state_of(room)
    began, helper = room.network.now, room.devices[3]
    planned = body_of(helper).split
    assert planned.round_s < ALONE_S / 2 and planned.helpers
    assert room.run(90, in_epoch(room, 2)), state_of(room)
    seen, true_s = seen_of(helper), 3 * len(MODEL.blocks) * SLOW_S
    assert body_of(helper).from_round == 0 and helper.id not in body_of(helper).split.helpers
    assert seen.peer == helper.id and 0.3 * true_s < seen.sample_s < 3 * true_s
    assert any(device.note_kinds()["helper-slow"] for device in room.on())
    assert room.run(300, room.all_done), state_of(room)
    assert room.network.now - began < 3 * 1.2 * ALONE_S + 75, "as all alone, and the lie cost a minute or so"
    assert set(owners_by_round(check_done(room, 3)).values()) == {3}


def test_a_round_is_dropped_whose_helper_is_overloaded_in_the_middle_of_it() -> None:
    """It says nothing of it: its trainer has no time to. No finished round is trained again, no sample counts twice."""
    room = group(rounds=4, weak_s=WEAK_S)
    assert room.run(120, all_at(room, 1)), state_of(room)
    helper, at = room.devices[3], max(device.record.round for device in room.on())
    trainer(helper).slowdown = 2000.0
    assert room.run(40, in_epoch(room, 2)), state_of(room)
    body = body_of(helper)
    assert body.from_round >= at and len(body.split.units_of(helper.id)) < 3 and body.split.round_s < 1.2 * ALONE_S
    assert helper.record.slowdown == 1.0 and seen_of(helper).peer == helper.id
    trainer(helper).slowdown = 1.0
    assert room.run(300, room.all_done), state_of(room)
    assert set(owners_by_round(check_done(room, 3)).values()) == {3}


def test_slow_starts_and_drift_change_no_plan() -> None:
    """A quarter of a minute until the helper's first answer, and then speeds that go up and down by half."""
    room = group(rounds=8, weak_s=WEAK_S)
    assert room.run(60, lambda: all(device.record.phase == "training" for device in room.on())), state_of(room)
    odd = trainer(room.devices[3])
    odd.slowdown = 250.0
    assert room.run(10, lambda: odd._computing), state_of(room)
    odd.slowdown = 1.0
    room.run(15)
    assert all(device.record.round == 0 for device in room.on()), "its first answer takes long"
    while not room.all_done() and room.network.now < 100:
        room.run(1)
        odd.slowdown = room.rng.uniform(0.5, 2.0)
    assert room.all_done(), state_of(room)
    assert room.epochs() - {0} == {1} and not any(device.record.helper_s for device in room.on())


def test_one_owner_of_three_can_not_speak_ill_of_their_helper() -> None:
    room = group(rounds=3)
    assert room.run(120, all_at(room, 1)), state_of(room)
    (liar,) = victims(room, "owner")
    room.perform(liar, liar.core.run(liar.core.records.update(room.network.now, helper_s=1e6), room.network.now))
    assert room.run(300, room.all_done), state_of(room)
    assert room.epochs() - {0} == {1}
