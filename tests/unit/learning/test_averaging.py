"""Merging and averaging: the weighted mean, exactly, and nothing unchecked."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.learning.averaging import check_state, consensus_distance, merge, weighted_mean


def state(seed: int, batches: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(6, 3, 3, 3, generator=generator),
        "bn.running_mean": torch.randn(6, generator=generator),
        "bn.running_var": torch.rand(6, generator=generator) + 0.1,
        "bn.num_batches_tracked": torch.tensor(batches),
        "half": torch.randn(4, generator=generator).half(),
    }


def test_merge_is_the_weighted_mean_in_place() -> None:
    ours, theirs = state(1, 5), state(2, 9)
    expected = {n: (0.75 * ours[n].double() + 0.25 * theirs[n].double()) for n in ours}
    pointers = {n: t.data_ptr() for n, t in ours.items()}
    merge(ours, theirs, 3.0, 1.0)
    assert {n: t.data_ptr() for n, t in ours.items()} == pointers
    assert int(ours.pop("bn.num_batches_tracked")) == 9
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor.double(),
            expected[name],
            atol=1e-3 if name == "half" else 1e-6,
            rtol=1e-3 if name == "half" else 1e-6,
        )


def test_both_sides_get_the_same_bits() -> None:
    a, b = state(1), state(2)
    left, right = {n: t.clone() for n, t in a.items()}, {n: t.clone() for n, t in b.items()}
    merge(left, b, 7.0, 5.0)
    merge(right, a, 5.0, 7.0)
    assert all(torch.equal(left[n], right[n]) for n in left)
    before = {n: t.clone() for n, t in left.items()}
    merge(left, right, 1.0, 1.0)
    assert all(torch.equal(left[n], before[n]) for n in left), "two equal models are their own mean"


def test_merged_bits_are_those_of_two_products_and_their_sum() -> None:
    ours, theirs = state(1), state(2)
    expected = {
        n: (t.float() * 0.7 + theirs[n].float() * 0.3).to(t.dtype) for n, t in ours.items() if t.is_floating_point()
    }
    merge(ours, theirs, 7.0, 3.0)
    assert all(torch.equal(ours[n], t) for n, t in expected.items())


def test_merge_writes_through_channels_last_and_sparse_coordinates() -> None:
    dense = torch.arange(24.0).view(2, 3, 2, 2)
    ours = {"w": dense.clone().contiguous(memory_format=torch.channels_last)}
    merge(ours, {"w": torch.tensor([100.0, 100.0])}, 1.0, 1.0, indices={"w": torch.tensor([1, 23], dtype=torch.int32)})
    expected = dense.clone().flatten()
    expected[1], expected[23] = 50.5, 61.5
    assert torch.equal(ours["w"].flatten(), expected)
    assert ours["w"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("conv.weight", None, "tensor-names"),
        ("extra", torch.zeros(1), "tensor-names"),
        ("conv.weight", torch.zeros(6, 3, 3), "tensor-shape"),
        ("conv.weight", torch.zeros(6, 3, 3, 3, dtype=torch.float64), "tensor-dtype"),
        ("conv.weight", torch.full((6, 3, 3, 3), float("nan")), "tensor-not-finite"),
        ("conv.weight", torch.full((6, 3, 3, 3), float("inf")), "tensor-not-finite"),
        ("conv.weight", torch.full((6, 3, 3, 3), 1e30), "tensor-not-finite"),
        ("conv.weight", torch.full((6, 3, 3, 3), 1e6), "tensor-norm"),
        ("bn.running_var", torch.full((6,), -0.1), "tensor-negative"),
        ("bn.num_batches_tracked", torch.tensor(-1), "tensor-negative"),
    ],
)
def test_what_can_not_be_averaged_is_refused_and_changes_nothing(name: str, value: Tensor | None, reason: str) -> None:
    ours, before, theirs = state(1), state(1), state(2)
    if value is None:
        del theirs[name]
    else:
        theirs[name] = value
    with pytest.raises(RemoteError) as caught:
        merge(ours, theirs, 1.0, 1.0)
    assert caught.value.reason == reason
    assert all(torch.equal(ours[n], before[n]) for n in before)


@pytest.mark.parametrize("mass", [0.0, -1.0, math.nan, math.inf])
def test_masses_are_checked(mass: float) -> None:
    with pytest.raises(RemoteError):
        merge(state(1), state(2), 1.0, mass)
    if mass != 0.0:
        with pytest.raises(LocalError):
            merge(state(1), state(2), mass, 1.0)


def test_running_statistics_may_be_large() -> None:
    ours, theirs = state(1), state(2)
    theirs["bn.running_var"] = torch.full((6,), 1e6)
    check_state(theirs, ours)


def test_push_sum_converges_to_the_weighted_mean() -> None:
    generator = torch.Generator().manual_seed(3)
    states, masses = [{"w": torch.randn(20, generator=generator)} for _ in range(8)], [10.0, 20, 30, 40, 50, 60, 70, 80]
    target = sum(m * s["w"] for m, s in zip(masses, states, strict=True)) / sum(masses)
    assert consensus_distance(states, relative=True) > 1
    for _ in range(400):
        i, j = torch.randperm(8, generator=generator)[:2].tolist()
        masses[i] /= 2  # half of the mass travels with the parameters
        merge(states[j], states[i], masses[j], masses[i])
        masses[j] += masses[i]
    assert consensus_distance(states) < 1e-4
    torch.testing.assert_close(states[0]["w"], target, atol=1e-4, rtol=1e-4)


def test_weighted_mean_of_copies() -> None:
    a, b, c = state(1, 2), state(2, 7), state(3, 5)
    mean = weighted_mean([(1.0, a), (2.0, b), (1.0, c)])
    torch.testing.assert_close(mean["conv.weight"], (a["conv.weight"] + 2 * b["conv.weight"] + c["conv.weight"]) / 4)
    assert int(mean["bn.num_batches_tracked"]) == 7 and mean["half"].dtype == torch.float16
    assert torch.equal(weighted_mean([(0.0, a)])["conv.weight"], a["conv.weight"])
    with pytest.raises(LocalError):
        weighted_mean([])
    with pytest.raises(RemoteError):
        weighted_mean([(1.0, a), (1.0, {"conv.weight": a["conv.weight"]})])


def test_consensus_distance() -> None:
    assert consensus_distance([]) == 0.0
    states = [
        {"w": torch.tensor([1.0, 0.0]), "n": torch.tensor(1)},
        {"w": torch.tensor([3.0, 0.0]), "n": torch.tensor(5)},
    ]
    assert consensus_distance(states) == pytest.approx(1.0)
    assert consensus_distance(states, relative=True) == pytest.approx(0.5)
