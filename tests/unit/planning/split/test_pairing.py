"""Whom the search for split plans thinks of together in a large room."""

from __future__ import annotations

import dataclasses
import random

import pytest
from split_rooms import some_task, with_device

from p2ptrain.planning.split import pairing
from p2ptrain.planning.split.options import Pairs
from p2ptrain.planning.split.pairing import LEAST_CHOICES, MOST_PAIRS, Pairing, choices
from p2ptrain.planning.split.planned import planned
from p2ptrain.planning.split.room import Room
from p2ptrain.planning.split.search import Search
from p2ptrain.planning.split.task import SplitTask


def room_of(seed: int, num_owners: int, num_helpers: int, num_blocks: int) -> SplitTask:
    """Owners help nobody."""
    task = some_task(random.Random(seed), num_owners, num_helpers, num_blocks)
    peers = tuple(dataclasses.replace(peer, may_help=not peer.samples) for peer in task.peers)
    return dataclasses.replace(task, peers=peers)


def helpers_of(task: SplitTask) -> dict[str, set[str]]:
    found = Pairing(Pairs(Room(task))).owners_of
    return {owner: {name for name, its in found.items() if owner in its} for its in found.values() for owner in its}


def test_a_small_room_is_thought_of_whole() -> None:
    assert choices(8, num_free=300, num_owning=8) is None
    assert choices(40, num_free=10, num_owning=0) is None
    assert all(len(its) == 5 for its in helpers_of(room_of(1, 12, 5, 6)).values())


@pytest.mark.parametrize(("num_owners", "num_helpers"), [(80, 20), (160, 40), (500, 100), (1000, 400)])
def test_pairs_grow_with_the_owners_alone(num_owners: int, num_helpers: int) -> None:
    found = choices(num_owners, num_free=num_helpers, num_owning=0)
    assert found is not None
    assert num_owners * found <= max(MOST_PAIRS, LEAST_CHOICES * num_owners)


def test_each_owner_has_as_many_helpers_as_it_should_and_a_new_one_changes_no_other_choice() -> None:
    task = room_of(2, 60, 30, 5)
    before = helpers_of(task)
    num = choices(60, num_free=30, num_owning=0)
    assert {len(its) for its in before.values()} == {num}
    fewer = dataclasses.replace(task, peers=tuple(peer for peer in task.peers if peer.name != "h07"))
    after = helpers_of(fewer)
    assert all(its - {"h07"} <= after[owner] for owner, its in before.items())
    assert all(len(after[owner] - its) == ("h07" in its) for owner, its in before.items())


def test_who_could_not_be_helped_by_most_is_thought_of_with_those_that_can() -> None:
    task = room_of(3, 60, 30, 5)
    weak = {f"h{i:02}" for i in range(28)}
    peers = tuple(with_device(each, memory_bytes=1e4) if each.name in weak else each for each in task.peers)
    found = helpers_of(dataclasses.replace(task, peers=peers))
    assert set(found) == {peer.name for peer in task.owners}
    assert all(its == {"h28", "h29"} for its in found.values())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_some_pairs_give_about_the_plan_that_all_give(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    task = room_of(seed, 14, 10, 6)
    whole = Search(Room(task))
    assert len(whole.options) == 140
    monkeypatch.setattr(pairing, "MOST_PAIRS", 70)
    some = Search(Room(task))
    assert len(some.options) == 70
    assert planned(some).round_s <= 1.1 * planned(whole).round_s
