"""What a merge may change: honest copies all of it, others as much as honest ones would."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2ptrain.learning.averaging import merge
from p2ptrain.learning.robust.merging import REACH, MergeGuard

State = dict[str, Tensor]


def model(seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn(8, 5, generator=generator),
        "a.bias": torch.randn(8, generator=generator) * 0.01,
        "mask": torch.tensor([0.0, -torch.inf]),
        "steps": torch.tensor(3),
    }


def trained(state: State, seed: int, size: float = 0.1) -> State:
    generator = torch.Generator().manual_seed(seed)
    moved = {n: t.clone() for n, t in state.items()}
    for name in ("a.weight", "a.bias"):
        step = torch.randn(state[name].shape, generator=generator)
        moved[name] += size * state[name].norm() * step / step.norm()
    return moved


def guarded(state: State, how: str = "clip", rounds: int = 2) -> MergeGuard:
    """After some rounds, each of which changed a tenth of every tensor's norm."""
    guard = MergeGuard(how)  # type: ignore[arg-type]
    for seed in range(rounds):
        guard.begin_round(state)
        guard.end_round(trained(state, 100 + seed))
    guard.begin_round(state)
    return guard


def merged(guard: MergeGuard, partner: str, mine: State, theirs: State, masses: tuple[float, float]) -> float:
    counts = guard.begin_merge(partner, mine, theirs)
    merge(mine, theirs, *masses, toward=guard.toward)
    guard.end_merge(mine)
    return counts


def moved(before: State, after: State) -> float:
    """In rounds."""
    squares = [
        (float((after[n] - before[n]).norm()) / (0.1 * float(before[n].norm()))) ** 2 for n in ("a.weight", "a.bias")
    ]
    return math.sqrt(sum(squares) / 2)


def test_an_honest_copy_merges_as_if_nothing_were_there() -> None:
    start = model()
    mine, plain, theirs = trained(start, 1), trained(start, 1), trained(start, 2)
    guard = guarded(start)
    assert merged(guard, "bob", mine, theirs, (3.0, 1.0)) == 1.0
    merge(plain, theirs, 3.0, 1.0)
    assert all(torch.equal(mine[n], plain[n]) for n in plain)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(0, 1e9), st.integers(0, 1000), st.booleans())
def test_whatever_comes_moves_no_further_than_the_bound(size: float, mass: float, seed: int, flips: bool) -> None:
    start = model()
    mine, theirs = trained(start, 1), trained(start, seed, size)
    if flips:
        theirs["a.weight"] *= -1
    before = {n: t.clone() for n, t in mine.items()}
    counts = merged(guarded(start), "mallory", mine, theirs, (1.0, mass + 1e-6))
    far = moved(before, theirs)
    bound = REACH * 1.05  # the guard's rounds were measured at the round's start, ours where it is now
    assert moved(before, mine) <= bound * 1.1
    if far > bound * 1.1:  # by the square, as plain numbers have it
        assert counts == pytest.approx((REACH / far) ** 2, rel=0.25)
        share = (mass + 1e-6) / (1 + mass + 1e-6)
        expected = before["a.weight"].double() + share * counts * (theirs["a.weight"] - before["a.weight"]).double()
        np.testing.assert_allclose(mine["a.weight"].double().numpy(), expected.numpy(), atol=2e-5)


def test_what_merges_change_does_not_widen_the_bound() -> None:
    start = model()
    guard, mine = guarded(start), {n: t.clone() for n, t in start.items()}
    for step in range(30):  # always as far as is let through
        merged(guard, "mallory", mine, trained(mine, 7, 0.1 * REACH), (1.0, 1.0))
        if step % 5 == 4:
            trained_on = trained(mine, step)
            guard.end_round(trained_on)
            mine = trained_on
            guard.begin_round(mine)
    patient = guard.begin_merge("mallory", mine, trained(mine, 7, 50.0))
    fresh = guarded(mine).begin_merge("mallory", mine, trained(mine, 7, 50.0))
    assert patient < 2 * fresh


def test_most_partners_may_be_far_away_a_minority_not() -> None:
    start = model()
    guard = guarded(start)
    far = {name: trained(start, seed, 1.0) for seed, name in enumerate(("bob", "carol", "dave"))}
    mine = {n: t.clone() for n, t in start.items()}
    first = merged(guard, "bob", mine, far["bob"], (1.0, 1.0))
    assert first < 0.1  # it could be anybody
    for name in ("carol", "dave", "bob"):
        last = merged(guard, name, mine, far[name], (1.0, 1.0))
    assert last == 1.0  # it is the others who agree

    guard = guarded(start)
    for _ in range(5):
        merged(guard, "bob", {n: t.clone() for n, t in start.items()}, trained(start, 3), (1.0, 1.0))
        share = merged(guard, "mallory", {n: t.clone() for n, t in start.items()}, far["bob"], (1.0, 1.0))
        assert share < 0.1


def test_before_the_first_round_has_ended_what_it_changed_so_far_counts() -> None:
    start = model()
    guard = guarded(start, rounds=0)
    mine = trained(start, 1)
    assert merged(guard, "bob", mine, trained(start, 2), (1.0, 1.0)) == 1.0
    assert merged(guard, "mallory", mine, trained(start, 3, 5.0), (1.0, 1.0)) < 0.01


def test_rounding_of_what_never_changes_is_no_distance() -> None:
    start = {"frozen": torch.randn(50, generator=torch.Generator().manual_seed(1))}
    guard = MergeGuard("clip")
    guard.begin_round(start)
    guard.end_round(start)
    assert guard.begin_merge("bob", start, {"frozen": start["frozen"].half().float()}) == 1.0


@pytest.mark.parametrize("how", ["trimmed-mean", "median"])
def test_with_a_third_copy_the_middle_one_is_taken(how: str) -> None:
    start = model()
    guard = guarded(start, how)
    mine = {n: t.clone() for n, t in start.items()}
    bob, carol = trained(start, 1), trained(start, 2)
    merged(guard, "bob", mine, bob, (1.0, 1.0))
    before = {n: t.clone() for n, t in mine.items()}
    merged(guard, "carol", mine, carol, (1.0, 1.0))
    stacked = np.stack([before["a.weight"].numpy(), carol["a.weight"].numpy(), bob["a.weight"].numpy()])
    expected = (before["a.weight"].numpy() + np.median(stacked, axis=0)) / 2
    np.testing.assert_allclose(mine["a.weight"].numpy(), expected, atol=1e-6)


def test_coordinates_of_top_k_are_bounded_too() -> None:
    start = model()
    guard, mine = guarded(start), {"a.weight": start["a.weight"].clone()}
    at = torch.tensor([1, 7, 39])
    theirs = {"a.weight": torch.tensor([50.0, -80.0, 1e3])}
    counts = guard.begin_merge("mallory", mine, theirs, {"a.weight": at})
    merge(mine, theirs, 1.0, 9.0, indices={"a.weight": at}, toward=guard.toward)
    guard.end_merge(mine)
    assert 0 < counts < 0.01
    change = mine["a.weight"] - start["a.weight"]
    assert float(change.norm()) <= REACH * 0.1 * float(start["a.weight"].norm()) * 1.01
    assert int((change != 0).sum()) == 3
