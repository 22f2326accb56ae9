"""Whether what peers tell of lost batches is so, found out from what their trainers did."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))

from benchmarks.peers import Happened
from benchmarks.told import common, untrue

TOGETHER, APART, OTHERS = (1, 0, 0), (20, 12, 1), (30, 15, 1)
"""Epoch, and the step and the epoch that it goes on from."""


def event(kind: str, **fields: Any) -> Happened:
    return Happened(0.0, f"note:{kind}", fields)


def begin(epoch: int, step: int, from_epoch: int) -> Happened:
    return event("training", epoch=epoch, step=step, from_epoch=from_epoch)


def peer(*told: Happened, halted: int, goes_on: tuple[int, int, int]) -> list[Happened]:
    """It trained with all others, then apart from them, then by the plan that it ``goes_on`` with."""
    return [
        begin(*TOGETHER),
        event("halted", step=13, epoch=20),
        event("goes-back", step=12, batches=1),
        begin(*APART),
        event("halted", step=halted, epoch=40),
        *told,
        begin(*goes_on),
    ]


@pytest.mark.parametrize(
    ("goes_on", "told", "lost"),
    [
        ((40, 20, 20), [event("goes-back", step=20, batches=8)], 8),
        ((40, 28, 20), [], 0),
        ((40, 50, 30), [event("gives-way", first=13, batches=16)], 16),
    ],
    ids=["goes back", "goes on", "gives way"],
)
def test_what_is_told_is_what_the_trainer_had_and_the_next_plan_has_not(
    goes_on: tuple[int, int, int], told: list[Happened], lost: int
) -> None:
    other = [begin(*TOGETHER), begin(*OTHERS)]
    assert untrue({"a": peer(*told, halted=28, goes_on=goes_on), "b": other}) == []
    more = peer(*told, event("gives-way", first=1, batches=9), halted=28, goes_on=goes_on)
    (words,) = untrue({"a": more, "b": other})
    assert words == f"a told of {lost + 9} batches as lost, and {lost} are: plan 40"
    silent = untrue({"a": peer(halted=28, goes_on=goes_on), "b": other})
    assert silent == ([f"a told of 0 batches as lost, and {lost} are: plan 40"] if lost else [])


def test_who_has_no_stage_on_the_way_or_lost_its_trainer_tells_of_what_others_did() -> None:
    lost = [begin(*TOGETHER), event("halted", step=-1, epoch=20), event("goes-back", step=12, batches=7), begin(*APART)]
    assert untrue({"a": lost, "b": [event("goes-back", step=12, batches=7)]}) == []


def test_histories_part_where_the_first_of_their_plans_did() -> None:
    starts = {1: (0, 0), 20: (12, 1), 21: (18, 20), 30: (15, 1)}
    assert common((25, 21), (40, 30), starts) == 12
    assert common((25, 21), (22, 20), starts) == 18
    assert common((25, 21), (24, 21), starts) == 24
    assert common((9, 1), (40, 30), starts) == 9
    assert common((9, 50), (40, 30), starts) == 0
