"""Updates and their average: every block over the same samples, and nothing odd counts."""

from __future__ import annotations

import json

import pytest
import torch
from pipeline_group import builder
from split_group import meta_chain
from torch import Tensor

from p2ptrain.errors import RemoteError
from p2ptrain.learning.split.update import Copy, RoundAverage, make_update, sizes_of

CHAIN = meta_chain("lenet")
LENGTH = len(CHAIN.blocks)
Update = tuple[dict[str, Tensor], dict[str, str]]


def copy_of(first: int, stop: int, samples: int, seed: int) -> Copy:
    state = builder("lenet", seed)().state_dict()
    return Copy(first, stop, samples, {f"model.{n}": state[n] for n in CHAIN.tensor_names(first, stop)})


def update(*copies: tuple[int, int, int, int]) -> Update:
    return make_update(CHAIN, 3, [copy_of(*copy) for copy in copies])


def average() -> RoundAverage:
    return RoundAverage(CHAIN, 3)


def pieces(made: RoundAverage, *bounds: int) -> list[Update]:
    return made.pieces(bounds, rounds=9, samples_before=100, optimizer="sgd")


def test_an_update_is_the_mean_of_each_block_by_samples() -> None:
    tensors, metadata = update((0, LENGTH, 10, 0), (2, LENGTH, 30, 1))
    assert json.loads(metadata["samples"]) == [10, 10, 40, 40] and metadata["round"] == "3"
    one, other = builder("lenet", 0)().state_dict(), builder("lenet", 1)().state_dict()
    for block, expected in ((0, (1.0, 0.0)), (3, (0.25, 0.75))):
        for name in CHAIN.tensor_names(block, block + 1):
            mean = one[name] * expected[0] + other[name] * expected[1]
            torch.testing.assert_close(tensors[f"model.{name}"], mean)


def test_a_copy_that_nothing_trained_does_not_count() -> None:
    tensors, metadata = update((0, LENGTH, 10, 0), (0, LENGTH, 0, 1))
    assert all(torch.equal(tensors[f"model.{n}"], t) for n, t in builder("lenet", 0)().state_dict().items())
    assert json.loads(metadata["samples"]) == [10] * LENGTH


def test_the_average_over_unequal_runs_is_that_of_all_units() -> None:
    made = average()
    made.add("anna", *update((0, 1, 10, 0)))
    made.add("ben", *update((0, 3, 30, 1)))
    made.add("hal", *update((0, LENGTH, 60, 2), (1, LENGTH, 10, 3), (3, LENGTH, 30, 4)))
    found = pieces(made, 1, 3)
    assert [(m["first"], m["stop"]) for _, m in found] == [("0", "1"), ("1", "3"), ("3", str(LENGTH))]
    assert {(m["step"], m["samples"], m["total_steps"]) for _, m in found} == {("4", "200", "9")}
    states = [builder("lenet", seed)().state_dict() for seed in range(5)]
    by_block = {0: (0, 1), 1: (3, 1), 2: (3, 1), 3: (3, 4)}
    merged = {n: t for tensors, _ in found for n, t in tensors.items()}
    for block, (anna, ben) in by_block.items():
        for name in CHAIN.tensor_names(block, block + 1):
            mean = states[anna][name] * 0.1 + states[ben][name] * 0.3 + states[2][name] * 0.6
            torch.testing.assert_close(merged[f"model.{name}"], mean)


def test_without_one_update_there_is_no_average() -> None:
    made = average()
    made.add("anna", *update((0, 2, 10, 0)))
    with pytest.raises(RemoteError, match="not be of all units"):
        pieces(made)
    with pytest.raises(RemoteError, match="not be of all units"):
        pieces(average())
    with pytest.raises(RemoteError, match="a second one of anna"):
        made.add("anna", *update((0, 2, 10, 0)))


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("format", "p2ptrain-slice-1", "no update"),
        ("round", "2", "of round 2, expected 3"),
        ("first", "9", "blocks 9 to"),
        ("stop", "", "not a count"),
        ("samples", "[10]", "each block"),
        ("samples", "[" * 50_000, "each block"),
        ("samples", json.dumps([10, 10, -1, 10]), "can't be one"),
        ("samples", json.dumps([10, 10, 1 << 41, 10]), "can't be one"),
        ("samples", json.dumps([10, 10, True, 10]), "can't be one"),
        ("samples", json.dumps([10, 10, 1.5, 10]), "can't be one"),
        ("samples", "NaN", "each block"),
    ],
)
def test_what_does_not_say_what_it_is_is_refused(key: str, value: str, why: str) -> None:
    tensors, metadata = update((0, LENGTH, 10, 0))
    made = average()
    with pytest.raises(RemoteError, match=why):
        made.add("anna", tensors, metadata | {key: value})
    made.add("anna", tensors, metadata)  # the refused one has changed nothing
    assert len(pieces(made)) == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t * float("nan"), "not-finite|finite"),
        (lambda t: t * float("inf"), "not-finite|finite"),
        (lambda t: t.double(), "float64"),
        (lambda t: t.reshape(1, *t.shape), "shape"),
        (None, "misses"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: object, why: str) -> None:
    tensors, metadata = update((0, LENGTH, 10, 0))
    name = f"model.{CHAIN.tensor_names(0, 1)[0]}"
    bad = {n: t for n, t in tensors.items() if n != name}
    if callable(change):
        bad[name] = change(tensors[name])
    made = average()
    with pytest.raises(RemoteError, match=why):
        made.add("anna", bad, metadata)
    odd = tensors | {"optim.momentum_buffer.nobody": torch.zeros(1)}
    with pytest.raises(RemoteError, match="unknown"):
        made.add("anna", odd, metadata)
    made.add("anna", tensors, metadata)
    torch.testing.assert_close(pieces(made)[0][0][name], tensors[name])


def test_a_tensor_that_has_grown_absurdly_is_refused() -> None:
    tensors, metadata = update((0, LENGTH, 10, 0))
    sizes = sizes_of(tensors)
    name = f"model.{CHAIN.tensor_names(0, 1)[0]}"
    for factor, is_refused in ((50.0, False), (1e4, True)):
        made = RoundAverage(CHAIN, 3, None, sizes)
        grown = tensors | {name: tensors[name] * factor}
        if is_refused:
            with pytest.raises(RemoteError, match="tensor-norm"):
                made.add("anna", grown, metadata)
        made.add("anna", tensors if is_refused else grown, metadata)
        assert len(pieces(made)) == 1
    with pytest.raises(RemoteError, match="tensor-norm"):  # also where nothing is known of what it was before
        average().add("anna", tensors | {name: tensors[name] * 1e12}, metadata)


PLANNED = {"anna": {0: 10, 1: 10}, "hal": dict.fromkeys(range(2, LENGTH), 10)}


@pytest.mark.parametrize(
    ("copy", "why"),
    [((0, 2, 11, 0), "11 samples in block 0, which has 10"), ((0, 3, 10, 0), "others than"), ((0, 1, 1, 0), "others")],
)
def test_an_update_of_more_than_was_planned_is_refused(copy: tuple[int, int, int, int], why: str) -> None:
    made = RoundAverage(CHAIN, 3, PLANNED)
    with pytest.raises(RemoteError, match=why):
        made.add("anna", *update(copy))
    made.add("anna", *update((0, 2, 10, 0)))


@pytest.mark.parametrize(("anna", "hal", "suspect"), [(9, 10, "anna"), (10, 9, "hal"), (9, 9, ""), (10, 10, "")])
def test_whoever_says_too_few_samples_is_known_by_it(anna: int, hal: int, suspect: str) -> None:
    """A batch that did not count is missing in both halves of its unit."""
    made = RoundAverage(CHAIN, 3, PLANNED)
    made.add("anna", *update((0, 2, anna, 0)))
    made.add("hal", *update((2, LENGTH, hal, 0)))
    assert made.suspect() == suspect
    if suspect:
        with pytest.raises(RemoteError, match="not be of all units"):
            pieces(made)
    else:
        assert pieces(made)


def test_one_of_three_moves_no_block_far_and_is_named() -> None:
    whole = [(0, LENGTH, 10, seed) for seed in range(3)]
    name = f"model.{CHAIN.tensor_names(0, 1)[0]}"
    found = {}
    for how in ("none", "clip", "median"):
        made = RoundAverage(CHAIN, 3, robust=how)  # type: ignore[arg-type]
        for peer, copy in zip(("anna", "ben", "cleo"), whole, strict=True):
            tensors, metadata = update(copy)
            made.add(peer, {n: t * 1000 for n, t in tensors.items()} if peer == "cleo" else tensors, metadata)
        ((tensors, _),) = pieces(made)
        found[how] = float(tensors[name].norm()) / float(update(whole[0])[0][name].norm())
        assert made.counted().keys() == ({"cleo"} if how == "clip" else set())
    assert found["none"] > 100 and found["clip"] < 3 and found["median"] < 3


def test_copies_at_hand_count_each_by_itself() -> None:
    """The averager holds two copies, one other peer one: so there are three, of which one may be wrong."""
    own = [copy_of(0, LENGTH, 10, seed) for seed in range(2)]
    tensors, metadata = update((0, LENGTH, 10, 2))
    bad = {name: tensor * 1000 for name, tensor in tensors.items()}
    sizes = {}
    for apart in ((), own):
        made = RoundAverage(CHAIN, 3, robust="clip")
        made.add("anna", *make_update(CHAIN, 3, own), apart)
        made.add("ben", bad, metadata)
        ((mean, meta),) = pieces(made)
        assert meta["samples"] == "130"
        sizes[bool(apart)] = float(sum(t.norm() for t in mean.values()))
    assert sizes[True] < 0.05 * sizes[False]
    made = RoundAverage(CHAIN, 3, robust="clip")  # and where nobody lies nothing changes
    made.add("anna", *make_update(CHAIN, 3, own), own)
    made.add("ben", tensors, metadata)
    plain = RoundAverage(CHAIN, 3)
    plain.add("anna", *make_update(CHAIN, 3, own))
    plain.add("ben", tensors, metadata)
    for full, tensor in pieces(plain)[0][0].items():
        torch.testing.assert_close(pieces(made)[0][0][full], tensor)
    assert not made.counted()
