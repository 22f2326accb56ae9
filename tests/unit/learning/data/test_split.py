"""Shares, skew, classes, hold-out, and the match of class names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data import Source, holdout, load, open_source, propose_contract, select
from p2ptrain.learning.data.binary import ArraySource


def source_of(*counts: int, names: tuple[str, ...] = (), num_test: int = 12) -> Source:
    """A source whose only pixel holds the sample's number."""
    classes = names or tuple(f"c{i}" for i in range(len(counts)))
    train = np.repeat(np.arange(len(counts)), counts)
    test = np.arange(num_test) % len(counts)

    def pixels(split: str, indices: np.ndarray) -> np.ndarray:
        return (indices % 256).astype(np.uint8).reshape(-1, 1, 1, 1)

    return ArraySource("made up", classes, (1, 1, 1), {"train": train, "test": test}, pixels)


def contract_of(source: Source) -> DataConfig:
    """Nothing is held out, so that the shares are of everything."""
    return DataConfig(source.classes, (1, 1, 1), val=0.0)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    num_shares=st.integers(1, 9),
    seed=st.integers(-(2**70), 2**70),
    dirichlet=st.none() | st.sampled_from([0.01, 0.3, 100.0]),
)
def test_shares_are_disjoint_and_cover_everything(
    counts: list[int], num_shares: int, seed: int, dirichlet: float | None
) -> None:
    source = source_of(*counts)
    contract = contract_of(source)
    num_shares = min(num_shares, sum(counts))
    for split in ("train", "test"):
        shares = []
        for i in range(num_shares):
            try:
                shares.append(
                    select(source, contract, split, shard=f"{i + 1}/{num_shares}", dirichlet=dirichlet, seed=seed)
                )
            except DataError:  # a share that the draw left empty
                assert dirichlet is not None and split == "train"
        together = np.concatenate(shares)
        assert sorted(together.tolist()) == list(range(source.num_samples(split)))
        if dirichlet is None:
            tables = np.array([np.bincount(source.labels(split)[s], minlength=len(counts)) for s in shares])
            assert np.ptp(tables, axis=0).max() <= 1 and np.ptp(tables.sum(axis=1)) <= 1


def test_skew_follows_the_concentration_and_the_test_split_follows_the_training_split() -> None:
    source = source_of(*[400] * 5, num_test=1000)
    contract = contract_of(source)

    def table(split: Any, concentration: float) -> np.ndarray:
        shares = [select(source, contract, split, shard=f"{i}/4", dirichlet=concentration, seed=3) for i in range(1, 5)]
        return np.array([np.bincount(source.labels(split)[s], minlength=5) for s in shares])

    skewed, even = table("train", 0.1), table("train", 1000)
    assert skewed.max() > 250 and even.min() > 80
    assert skewed.sum(axis=1).min() >= 10
    assert np.abs(table("test", 0.1) * 2 - skewed).max() <= 4


def test_one_partition_for_all_peers_and_all_time() -> None:
    source = source_of(7, 5)
    contract = contract_of(source)
    assert select(source, contract, "train", shard="1/3", seed=1).tolist() == FROZEN_SHARE
    assert select(source, contract, "train", shard="1/2", dirichlet=0.5, seed=1).tolist() == FROZEN_SKEWED
    assert select(source, contract, "train", shard="1/3", seed=2).tolist() != FROZEN_SHARE


# Peers with different versions must cut alike: a change here breaks running groups.
FROZEN_SHARE = [1, 4, 6, 9]
FROZEN_SKEWED = [1, 2, 3, 7, 8, 9, 11]


def test_classes_are_picked_after_the_share() -> None:
    source = source_of(40, 40, 40)
    contract = contract_of(source)
    share = select(source, contract, "train", shard="2/5")
    some = select(source, contract, "train", shard="2/5", classes=["c2", "C0"])
    assert set(some) == {i for i in share.tolist() if source.labels("train")[i] != 1}
    assert len(select(source, contract, "train")) == 120


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shard": "5"}, "--shard 2/5 means the 2nd of 5 shares"),
        ({"shard": "0/5"}, "--shard 2/5 means the 2nd of 5 shares"),
        ({"shard": "6/5"}, "--shard 2/5 means the 2nd of 5 shares"),
        ({"shard": "1/0"}, "--shard 2/5 means the 2nd of 5 shares"),
        ({"shard": "-1/5"}, "--shard 2/5 means the 2nd of 5 shares"),
        ({"shard": "1/99999"}, "up to 10000"),
        ({"shard": "1/5000"}, "5000 shares of 120 samples"),
        ({"dirichlet": 0.3}, r"add --shard \(--shard 2/5 means"),
        ({"shard": "1/2", "dirichlet": -1.0}, "0.1 is very uneven"),
        ({"shard": "1/2", "dirichlet": float("nan")}, "0.1 is very uneven"),
        ({"classes": []}, "no class named"),
        ({"classes": ["c0", "cc2"]}, "cc2: not a class of the job; did you mean 'c2'.*its classes: c0, c1, c2"),
    ],
)
def test_bad_arguments_say_what_to_do(options: dict[str, Any], words: str) -> None:
    source = source_of(40, 40, 40)
    with pytest.raises(DataError, match=words):
        select(source, contract_of(source), "train", **options)


def test_holdout() -> None:
    source = source_of(100, 50, num_test=0)
    held = holdout(source, 0.2, seed=4)
    assert held.counts("test") == {"c0": 20, "c1": 10} and held.counts("train") == {"c0": 80, "c1": 40}
    contract = contract_of(source)
    train, test = load(held, contract, "train").x.ravel(), load(held, contract, "test").x.ravel()
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(150))
    np.testing.assert_array_equal(load(holdout(source, 0.2, seed=4), contract, "test").x.ravel(), test)
    with_test = source_of(3, 3)
    assert holdout(with_test) is with_test
    with pytest.raises(DataError, match=r"can't hold out 0\.001 of 150"):
        holdout(source, 0.001)
    assert len(select(held, contract, "train", shard="1/2")) == 60


def test_class_names_match_exactly_then_without_case() -> None:
    source = source_of(2, 2, 2, names=("CAT", "Dog", "dog"))
    data = load(source, DataConfig(("dog", "cat", "Dog"), (1, 1, 1), val=0.0), "train")
    assert data.y.tolist() == [1, 1, 2, 2, 0, 0]
    merged = load(source, DataConfig(("dog", "cat"), (1, 1, 1), val=0.0), "train")
    assert merged.y.tolist() == [1, 1, 0, 0, 0, 0]


def test_a_class_that_the_job_does_not_know() -> None:
    source = source_of(2, 2, names=("Zebre", "cat"))
    contract = DataConfig(("cat", "zebra"), (1, 1, 1), val=0.0)
    with pytest.raises(
        DataError, match=r"does not know the class 'Zebre'; did you mean 'zebra'.*its classes: cat, zebra"
    ):
        load(source, contract, "train")
    cats = select(source, contract, "train", classes=["CAT"])
    assert load(source, contract, "train", cats).y.tolist() == [0, 0]
    with pytest.raises(DataError, match="made up has no such class; it has: Zebre, cat"):
        select(source, contract, "train", classes=["zebra"])


def test_a_wrong_number_of_channels_for_pictures(tmp_path: Path) -> None:
    source = source_of(2, 2)
    with pytest.raises(DataError, match=r"pictures have 1 .grey. or 3"):
        load(source, DataConfig(source.classes, (4, 8, 8)), "train")


def test_digits_shares_need_no_decoding() -> None:
    pytest.importorskip("sklearn")
    source = open_source("digits")
    contract = dataclasses.replace(propose_contract(source), val=0.0)
    sizes = [len(select(source, contract, "train", shard=f"{i}/5")) for i in range(1, 6)]
    assert sum(sizes) == 1437 and max(sizes) - min(sizes) <= 1
