"""One bad member in the head fit: bounded in size and samples, and caught where its sums are no gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from p2ptrain.learning import head_fit
from p2ptrain.learning.head_fit import FitConfig
from p2ptrain.learning.robust.fitting import (
    MAX_VIOLATIONS,
    MOST_SAMPLES,
    REACH,
    GradientWatch,
    are_possible,
    bounded_gradients,
    bounded_moments,
)

CLASSES, FEATURES, PEERS = 4, 6, 4
CONFIG = FitConfig(steps=60)


def data(seed: int, num: int = 60, only: tuple[int, ...] = tuple(range(CLASSES))) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    y = rng.choice(only, num)
    x = rng.normal(size=(num, FEATURES)).astype(np.float32)
    x[:, :CLASSES] += 2.5 * np.eye(CLASSES, dtype=np.float32)[y]
    return torch.tensor(x), torch.tensor(y)


def head() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {"weight": 0.1 * torch.randn(CLASSES, FEATURES, generator=generator), "bias": torch.zeros(CLASSES)}


def fitted(sets: list[tuple[Tensor, Tensor]], bad: str = "", watch: GradientWatch | None = None) -> dict[str, Tensor]:
    """Of the last peer's gradients: ``bad`` says what it does with them."""
    state = head_fit.begin(head(), bounded_moments([head_fit.moments(x, y, CLASSES) for x, y in sets]), CONFIG)
    noise = torch.Generator().manual_seed(1)
    for step in range(1, CONFIG.steps + 1):
        sums = [head_fit.gradient(state, x, y, step) for x, y in sets]
        own, samples = sums[-1]
        if bad == "random":
            own = {n: torch.randn(t.shape, generator=noise) * t.norm() for n, t in own.items()}
        factor = {"sign flip": -1.0, "x100": 100.0, "x-100": -100.0}.get(bad, 1.0)
        sums[-1] = ({n: t * factor for n, t in own.items()}, samples * (10**6 if bad == "samples" else 1))
        given = {str(peer): (n, s) for peer, (s, n) in enumerate(sums)}
        if watch is not None:
            watch.look(state, given)
            given = {peer: each for peer, each in given.items() if peer not in watch.caught}
        state = head_fit.advance(state, bounded_gradients(list(given.values())), step, CONFIG)
    return state


def right(state: dict[str, Tensor]) -> float:
    x, y = data(99, 400)
    plain = head_fit.plain_head(state)
    return float((torch.addmm(plain["bias"], x, plain["weight"].T).argmax(1) == y).float().mean())


@pytest.mark.parametrize("bad", ["x100", "sign flip", "x-100", "random", "samples"])
def test_one_bad_member_of_four_spoils_nothing(bad: str) -> None:
    sets = [data(seed) for seed in range(PEERS)]
    watch = GradientWatch()
    without = right(fitted(sets[:-1]))
    assert without > 0.9
    assert right(fitted(sets, bad, watch)) > without - 0.03
    assert ("3" in watch.caught) == (bad in ("sign flip", "x-100")) or bad == "random"
    assert set(watch.caught) <= {"3"}


def test_honest_members_of_quite_different_classes_count_as_they_are() -> None:
    sets = [data(0, 60, (0, 1)), data(1, 50, (2,)), data(2, 70, (1, 3)), data(3, 40, (0,))]
    state = head_fit.begin(head(), [head_fit.moments(x, y, CLASSES) for x, y in sets], CONFIG)
    watch = GradientWatch()
    for step in range(1, CONFIG.steps + 1):
        sums = [head_fit.gradient(state, x, y, step) for x, y in sets]
        watch.look(state, {str(peer): (n, s) for peer, (s, n) in enumerate(sums)})
        state = head_fit.advance(state, [(n, s) for s, n in sums], step, CONFIG)
    assert watch.caught == ()
    assert abs(right(fitted(sets)) - right(state)) < 0.02


def test_bounds_as_plain_numbers_have_them() -> None:
    rng = np.random.default_rng(4)
    sums = [
        {
            "weight": torch.tensor(rng.normal(size=(2, 3))),
            "bias": torch.tensor(rng.normal(size=2)),
            "loss": torch.ones(()),
        }
        for _ in range(4)
    ]
    sums[3] = {name: tensor * 50 for name, tensor in sums[3].items()}
    counts = [10, 12, 14, 100]
    found = bounded_gradients(list(zip(counts, sums, strict=True)))
    shares = np.minimum(1, MOST_SAMPLES * np.median(counts) / np.array(counts))
    sizes = np.array([float(torch.cat([s["weight"].flatten(), s["bias"]]).norm()) for s in sums]) * shares
    taken = shares * counts
    bounds = REACH * np.maximum(np.sort(sizes)[1], np.sort(sizes / taken)[1] * taken)
    factors = np.where(sizes <= bounds, 1, (bounds / sizes) ** 2)
    assert factors[3] < 0.2
    for (samples, after), before, share, factor, count in zip(found, sums, shares, factors, taken, strict=True):
        assert samples == pytest.approx(count * factor)
        np.testing.assert_allclose(after["weight"].numpy(), before["weight"].numpy() * share * factor)
    assert [n for n, _ in bounded_gradients([(10, sums[0]), (99, sums[3])])] == [10, 99], "two have no majority"


def test_moments_that_no_samples_have_do_not_count() -> None:
    sums = [head_fit.moments(*data(seed), CLASSES) for seed in range(4)]
    assert all(map(are_possible, sums))
    kept = bounded_moments(sums)
    assert all(torch.equal(kept[i][name], sums[i][name]) for i in range(4) for name in sums[i])
    lies = [
        {**sums[3], "square": -sums[3]["square"]},
        {**sums[3], "sum": sums[3]["sum"] * 100 + 50},
        {**sums[3], "square": torch.full_like(sums[3]["square"], 9e9) + torch.diag(sums[3]["square"].diagonal())},
        {**sums[3], "counts": -sums[3]["counts"]},
        {**sums[3], "counts": torch.zeros(CLASSES, dtype=torch.float64)},
    ]
    lies[2]["square"].diagonal().copy_(sums[3]["square"].diagonal())
    for lie in lies:
        assert not are_possible(lie)
        assert len(bounded_moments([*sums[:3], lie])) == 3
    many = bounded_moments([*sums[:3], {name: tensor * 1e6 for name, tensor in sums[3].items()}])
    assert float(many[3]["counts"].sum()) == pytest.approx(2 * 60)


def test_a_part_out_of_all_proportion_hides_no_other() -> None:
    """Its features are a million times as large, and noise."""
    parts = [torch.arange(0, 2), torch.arange(2, 4), torch.arange(4, 6)]
    sets = []
    for seed in range(3):
        x, y = data(seed)
        x[:, 4:] *= 1e6
        sets.append((x, y))
    start = {"weight": head()["weight"].clone(), "bias": head()["bias"]}
    start["weight"][:, 4:] *= 100
    moments = [head_fit.moments(x, y, CLASSES) for x, y in sets]
    shares = []
    for columns in (parts, []):
        state = head_fit.begin(start, moments, CONFIG, columns)
        for step in range(1, CONFIG.steps + 1):
            state = head_fit.advance(state, [head_fit.gradient(state, x, y, step)[::-1] for x, y in sets], step, CONFIG)
        plain = head_fit.plain_head(state)
        x, y = data(99, 400)
        x[:, 4:] *= 1e6
        shares.append(float((torch.addmm(plain["bias"], x, plain["weight"].T).argmax(1) == y).float().mean()))
    assert shares[0] > 0.9 > 0.6 > shares[1]


def test_parts_in_proportion_are_measured_as_ever() -> None:
    moments = [head_fit.moments(*data(seed), CLASSES) for seed in range(3)]
    parts = [torch.arange(0, 2), torch.arange(2, 4), torch.arange(4, 6)]
    one, other = head_fit.begin(head(), moments, CONFIG, parts), head_fit.begin(head(), moments, CONFIG)
    for name in one:
        torch.testing.assert_close(one[name], other[name])


def test_a_negated_gradient_is_caught_at_once() -> None:
    sets, watch = [data(seed) for seed in range(3)], GradientWatch()
    fitted(sets, "sign flip", watch)
    assert watch.caught == ("2",) and MAX_VIOLATIONS == 3
