"""Means of copies by their samples: those of ``means``, in chunks, with room for who trained on more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2ptrain.config import Robust
from p2ptrain.learning.robust import copies as module
from p2ptrain.learning.robust.copies import CHANCE, FURTHEST, mean_of_copies
from p2ptrain.learning.robust.means import REACH, clipped_mean, robust

HOWS: tuple[Robust, ...] = ("clip", "trimmed-mean", "median")


def copies_of(num: int, seed: int, size: int = 7) -> list[tuple[int, Tensor]]:
    rng = np.random.default_rng(seed)
    return [
        (int(rng.integers(1, 50)), torch.tensor(rng.normal(size=(size, 3)), dtype=torch.float32)) for _ in range(num)
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 7), st.integers(0, 10_000), st.sampled_from(HOWS), st.booleans())
def test_in_chunks_it_is_what_it_is_at_once(num: int, seed: int, how: Robust, is_even: bool) -> None:
    given_ = [(20 if is_even else samples, tensor) for samples, tensor in copies_of(num, seed)]
    given_[seed % num] = (given_[seed % num][0], given_[seed % num][1] * (1.0 if seed % 3 else 1e3))
    values, weights = torch.stack([t for _, t in given_]).double(), torch.tensor([float(s) for s, _ in given_])
    whole = mean_of_copies(given_, how)
    before, module.CHUNK = module.CHUNK, 4
    try:
        found = mean_of_copies(given_, how)
    finally:
        module.CHUNK = before
    torch.testing.assert_close(found[0], whole[0])
    np.testing.assert_allclose(found[1], whole[1], rtol=1e-5)
    if how != "clip" or (is_even and whole[1] == [1.0] * num):
        torch.testing.assert_close(found[0].double(), robust(values, weights, how), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num", [1, 2, 3, 5])
def test_it_is_the_plain_mean_to_the_bit_where_nothing_is_far(num: int) -> None:
    base = torch.randn(64, generator=torch.Generator().manual_seed(0))
    given_ = [
        (10 * (n + 1), base + 0.01 * torch.randn(64, generator=torch.Generator().manual_seed(n))) for n in range(num)
    ]
    plain, counted = mean_of_copies(given_, "none")
    found, factors = mean_of_copies(given_, "clip")
    assert torch.equal(found, plain) and counted == factors == [1.0] * num
    expected = sum(s * t.double() for s, t in given_) / sum(s for s, _ in given_)
    torch.testing.assert_close(plain.double(), expected, rtol=1e-6, atol=1e-6)


def test_who_trained_on_more_may_be_further_away_but_not_for_ever() -> None:
    """Of four, the last one lies 10 times as far from the others' middle as they do."""
    near = [torch.randn(10_000, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    far = 10 * torch.randn(10_000, generator=torch.Generator().manual_seed(3))
    counted = {}
    for samples in (100, 400, 1_000_000):
        _, factors = mean_of_copies([*((100, each) for each in near), (samples, far)], "clip")
        assert factors[:3] == [1.0] * 3
        counted[samples] = factors[3]
    assert counted[100] < 0.5 and counted[400] == counted[1_000_000] == 1.0 and REACH * FURTHEST >= 10
    _, factors = mean_of_copies([*((100, each) for each in near), (1_000_000, 10 * far)], "clip")
    assert factors[3] < 0.1


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 7), st.integers(0, 10_000), st.sampled_from(HOWS), st.floats(-1e6, 1e6), st.integers(1, 10**9))
def test_one_copy_moves_little_whatever_it_is(num: int, seed: int, how: Robust, scale: float, samples: int) -> None:
    given_ = copies_of(num, seed)
    others = torch.stack([tensor for _, tensor in given_[:-1]]).double()
    given_[-1] = (samples, given_[-1][1] * scale)
    mean, _ = mean_of_copies(given_, how)
    spread = float((others - others.mean(0)).norm()) * 2
    assert float((mean.double() - others.mean(0)).norm()) <= (1 + REACH * (1 + CHANCE) * FURTHEST) * spread


def test_clipping_is_around_the_median_by_the_square() -> None:
    given_ = [*copies_of(4, 3), (30, torch.full((7, 3), 50.0))]
    found, factors = mean_of_copies(given_, "clip")
    values, weights = torch.stack([t for _, t in given_]).double(), torch.tensor([s for s, _ in given_]).double()
    middle = values.median(0).values
    distances = (values - middle).flatten(1).norm(dim=1)
    counts = weights.sort().values[2]
    reach = REACH * (1 + CHANCE / 21**0.5)
    bound = reach * distances.sort().values[2] * (weights[4] / counts).clamp(1, FURTHEST)
    assert factors[4] == pytest.approx(float((bound / distances[4]) ** 2), rel=1e-5)
    torch.testing.assert_close(
        found.double(), clipped_mean(values, weights, torch.tensor(factors)), rtol=1e-5, atol=1e-5
    )


def test_counters_come_out_as_the_highest_or_as_the_median() -> None:
    given_ = [(1, torch.tensor(value)) for value in (5, 7, 2**40)]
    assert int(mean_of_copies(given_, "none")[0]) == 2**40
    assert int(mean_of_copies(given_[1:], "clip")[0]) == 2**40
    for how in HOWS:
        assert int(mean_of_copies(given_, how)[0]) == 7


def test_other_precisions_stay_what_they_are() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        given_ = [(1, torch.ones(5, dtype=dtype) * value) for value in (1.0, 1.5, 2.0, 900.0)]
        for how in HOWS:
            found, _ = mean_of_copies(given_, how)
            assert found.dtype == dtype and bool((found < 4).all())


def test_a_bias_of_few_numbers_may_be_further_away_than_a_large_tensor() -> None:
    for size, is_drawn_in in ((4, False), (40_000, True)):
        near = [torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
        _, factors = mean_of_copies(
            [*((10, each) for each in near), (10, near[0] + 6 * near[0].norm() / size**0.5)], "clip"
        )
        assert (factors[4] < 1) == is_drawn_in
