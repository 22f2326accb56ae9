"""Robust means: as plain numpy has them, bounded in what one contribution moves, the mean where all are equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2ptrain.config import Robust
from p2ptrain.errors import RemoteError
from p2ptrain.learning.averaging import weighted_mean
from p2ptrain.learning.robust.means import REACH, clipped_mean, median, robust, robust_mean, sound, trimmed_mean

HOWS: tuple[Robust, ...] = ("clip", "trimmed-mean", "median")
counts = st.integers(3, 9)
seeds = st.integers(0, 10_000)


def contributions(num: int, seed: int, size: int = 6) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=(num, size))), torch.tensor(rng.uniform(0.5, 4.0, num))


def plain_trimmed(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    num, size = values.shape
    cut = max(1, num // 4)
    out = np.empty(size)
    for column in range(size):
        kept = np.argsort(values[:, column])[cut : num - cut]
        out[column] = np.average(values[kept, column], weights=weights[kept])
    return out


def plain_clipped(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    middle = np.median(values, axis=0)
    distances = np.linalg.norm(values - middle, axis=1)
    bound = REACH * np.sort(distances)[(len(values) - 1) // 2]
    out = np.zeros(values.shape[1])
    for value, weight, distance in zip(values, weights, distances, strict=True):
        factor = 1.0 if distance <= bound else (bound / distance) ** 2
        out += weight / weights.sum() * (middle + factor * (value - middle))
    return out


@settings(max_examples=60, deadline=None)
@given(counts, seeds, st.booleans())
def test_as_plain_numpy_has_them(num: int, seed: int, with_outlier: bool) -> None:
    values, weights = contributions(num, seed)
    if with_outlier:
        values[seed % num] *= 1e3
    v, w = values.numpy(), weights.numpy()
    np.testing.assert_allclose(trimmed_mean(values, weights).numpy(), plain_trimmed(v, w), atol=1e-9)
    np.testing.assert_allclose(median(values).numpy(), np.median(v, axis=0), atol=1e-12)
    np.testing.assert_allclose(clipped_mean(values, weights).numpy(), plain_clipped(v, w), atol=1e-9)
    np.testing.assert_allclose(robust(values, weights, "none").numpy(), np.average(v, axis=0, weights=w), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(counts, seeds, st.sampled_from(HOWS), st.integers(1, 3))
def test_the_order_does_not_matter(num: int, seed: int, how: Robust, step: int) -> None:
    values, weights = contributions(num, seed)
    values = (values * step).round() / step  # with ties
    order = torch.tensor(np.random.default_rng(seed + 1).permutation(num))
    torch.testing.assert_close(robust(values[order], weights[order], how), robust(values, weights, how))


@settings(max_examples=60, deadline=None)
@given(counts, seeds, st.sampled_from(HOWS), st.floats(-1e6, 1e6), st.floats(0.0, 1e6))
def test_one_contribution_moves_little_whatever_it_is(
    num: int, seed: int, how: Robust, scale: float, weight: float
) -> None:
    values, weights = contributions(num, seed)
    others = values[:-1]
    values[-1] = torch.randn(values.shape[1], generator=torch.Generator().manual_seed(seed)).double() * scale
    weights[-1] = weight
    found = robust(values, weights, how)
    low, high = others.amin(0), others.amax(0)
    if how == "clip":  # at most as far from the median as the bound, which the others' spread limits
        spread = (high - low).norm()
        assert float((found - others.median(0).values).norm()) <= 2 * (REACH + 1) * float(spread)
    else:
        assert bool((found >= low - 1e-9).all() and (found <= high + 1e-9).all())


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("num", [1, 2, 3, 4, 8])
def test_equal_contributions_are_their_mean(how: Robust, num: int) -> None:
    values, weights = contributions(num, 5)
    same = values[:1].expand(num, -1).contiguous()
    torch.testing.assert_close(robust(same, weights, how), same[0], rtol=0, atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(counts, seeds)
def test_clip_is_the_plain_mean_where_nothing_is_far(num: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = torch.tensor(rng.normal(size=40) + rng.normal(size=(num, 40)))
    weights = torch.tensor(rng.uniform(0.5, 4.0, num))
    expected = np.average(values.numpy(), axis=0, weights=weights.numpy())
    np.testing.assert_allclose(clipped_mean(values, weights).numpy(), expected, atol=1e-9)


def test_weights_count_among_what_is_kept() -> None:
    values = torch.tensor([[0.0], [1.0], [2.0], [1e9]], dtype=torch.float64)
    weights = torch.tensor([1.0, 1.0, 3.0, 1e9], dtype=torch.float64)
    assert float(trimmed_mean(values, weights)) == pytest.approx(1.75)
    assert float(trimmed_mean(values, torch.zeros(4, dtype=torch.float64))) == pytest.approx(1.5)


# --- copies of a part ---


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(4, 3, generator=generator),
        "mask": torch.tensor([0.0, -torch.inf]),
        "bn.num_batches_tracked": torch.tensor(seed),
    }


@pytest.mark.parametrize("how", HOWS)
def test_unsound_copies_are_left_out_and_named(how: Robust) -> None:
    copies = [(1.0, state(seed)) for seed in (1, 2, 3, 4)]
    copies[1][1]["weight"][0, 0] = torch.nan
    copies[3] = (1.0, {"weight": torch.zeros(4, 3)})
    assert sound(copies, state(9)) == [0, 2]
    expected = weighted_mean([copies[0], copies[2]])
    found = robust_mean(copies, how, state(9))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with pytest.raises(RemoteError, match="none of 2"):
        robust_mean([copies[1], copies[3]], how, state(9))


@pytest.mark.parametrize("how", HOWS)
def test_of_three_copies_one_is_outvoted(how: Robust) -> None:
    honest = [(1.0, state(1)), (1.0, {**state(1), "weight": state(1)["weight"] + 1e-3})]
    bad = {**state(1), "weight": state(1)["weight"] * -1e6, "bn.num_batches_tracked": torch.tensor(2**52)}
    found = robust_mean([*honest, (1e12, bad)], how, state(1))
    assert float((found["weight"] - state(1)["weight"]).abs().max()) < 0.02
    assert int(found["bn.num_batches_tracked"]) == 1 and torch.equal(found["mask"], state(1)["mask"])
    assert found["weight"].dtype == torch.float32


def test_none_takes_all_as_they_come() -> None:
    copies = [(1.0, state(1)), (2.0, state(2)), (1.0, state(3))]
    expected = weighted_mean(copies)
    assert all(torch.equal(robust_mean(copies, "none", state(1))[n], t) for n, t in expected.items())
    with pytest.raises(RemoteError, match="mass"):
        robust_mean([(float("nan"), state(1)), *copies], "clip", state(1))
