"""Figures that no device has, though each is within its bounds: there is a plan that all follow, or a sentence."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from test_split_planner import ANNA, BEN, HELPER, MODEL, START, job, peer, room

from p2ptrain.core.plan import plan_from_json
from p2ptrain.core.stages.figures import MeasuredPeer
from p2ptrain.errors import UserError
from p2ptrain.modes.split.plan import BODIES, body_of
from p2ptrain.modes.split.planner import Known, first_plan, follows, next_plan
from p2ptrain.planning.split.units import SplitPlan
from p2ptrain.wire.messages import LinkFigure


def with_figures(known: MeasuredPeer, **changes: Any) -> MeasuredPeer:
    """``changes`` to its profile, or to what its record says of it."""
    assert known.profile is not None
    fields = {field.name for field in dataclasses.fields(known.snapshot)}
    of_record = {key: value for key, value in changes.items() if key in fields}
    of_profile = {key: value for key, value in changes.items() if key not in fields}
    return MeasuredPeer(
        dataclasses.replace(known.snapshot, **of_record), dataclasses.replace(known.profile, **of_profile)
    )


def units_of(peers: list[MeasuredPeer], **values: Any) -> SplitPlan:
    plan = first_plan(job(**values), MODEL, peers, HELPER)
    assert follows(job(**values), MODEL, plan, None)
    assert plan_from_json(plan.to_json(), BODIES) == plan
    return body_of(plan).split


@pytest.mark.parametrize(
    "odd",
    [
        {"counts": (2**40,) * 4},
        {"link_bytes_per_s": 1e-300},
        {"slowdown": 1e-300},
        {"flops_per_s": 1e-300},
        {"memory_bytes": 1},
    ],
    ids=lambda odd: next(iter(odd)),
)
@pytest.mark.parametrize("tails", ["replica", "shared"])
def test_an_owner_of_such_figures_is_left_out_and_the_others_train(odd: dict[str, Any], tails: str) -> None:
    helper, anna, ben = room()
    split = units_of([helper, with_figures(anna, **odd), ben], tails=tails)
    assert [unit.owner for unit in split.units] == [BEN], odd
    assert ANNA in split.standby and split.round_s < 10


def test_a_room_of_such_figures_alone_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"days.*measure the devices"):
        first_plan(job(), MODEL, [with_figures(peer(ANNA, 1e-3, (2**40,) * 4))], ANNA)
    with pytest.raises(UserError, match="p2ptrain probe"):
        first_plan(job(), MODEL, [with_figures(each, slowdown=1e-300) for each in room()], HELPER)


def test_an_owner_with_fewer_samples_than_its_unit_had_micro_batches_gets_another_plan() -> None:
    """Before, nobody could plan any more."""
    helper, anna, ben = room()
    plan = first_plan(job(strategy="mid-cut"), MODEL, room(), HELPER)
    assert body_of(plan).split.units[0].micro_batches > 1
    fewer = [helper, with_figures(anna, counts=(1, 0, 0, 0)), ben]
    after = next_plan(job(strategy="mid-cut"), MODEL, plan, fewer, HELPER, Known(2, START))
    assert after is not None and body_of(after).split.units[0].micro_batches == 1
    assert follows(job(strategy="mid-cut"), MODEL, after, plan)


def some(rng: random.Random, known: MeasuredPeer) -> MeasuredPeer:
    others = [name for name in (HELPER, ANNA, BEN) if name != known.snapshot.peer]
    second = rng.choice([1e-300, 1e-12, 1e-3, 1.0, 1e3, 1e6])
    return with_figures(
        known,
        flops_per_s=rng.choice([0.0, 1e-300, 1.0, 1e18]),
        memory_bytes=rng.choice([0, 1, 10**9, 2**62]),
        counts=rng.choice([(), (1, 0, 0, 0), (40,) * 4, (2**48, 1, 1, 1)]),
        link_bytes_per_s=rng.choice([0.0, 1e-300, 1.0, 1e15]),
        slowdown=rng.choice([1e-300, 1e-6, 1.0, 1e6]),
        backward_s=tuple(tuple(rng.choice([0.0, second, 1e6]) for _ in MODEL.blocks) for _ in range(3)),
        update_s_per_byte=rng.choice([0.0, 1.0]),
        activation_s_per_byte=rng.choice([0.0, 1.0]),
        links=tuple(LinkFigure(p, rng.choice([1e-300, 1.0, 1e15]), rng.choice([0.0, 60.0, 1e9])) for p in others),
    )


@pytest.mark.parametrize("seed", range(8))
def test_whatever_peers_say_there_is_a_plan_that_all_follow_or_a_sentence(seed: int) -> None:
    rng = random.Random(seed)
    values = {"tails": rng.choice(["replica", "shared"]), "strategy": rng.choice(["planned", "mid-cut", "cuts-only"])}
    peers = [some(rng, known) if rng.random() < 0.5 else known for known in room()]
    before = first_plan(job(**values), MODEL, room(), HELPER)
    for parent in (None, before):
        try:
            if parent is None:
                plan = first_plan(job(**values), MODEL, peers, HELPER)
            else:
                plan = next_plan(job(**values), MODEL, parent, peers, HELPER, Known(2, START)) or before
        except UserError as error:
            assert str(error)
            continue
        assert follows(job(**values), MODEL, plan, parent if plan is not before else None)
        assert plan_from_json(plan.to_json(), BODIES) == plan
