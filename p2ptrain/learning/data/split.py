"""Which samples a peer takes: shares, skewed shares, classes, and a part held out for testing.

Invariant: with equal data, seed and number of shares, all peers see one partition: the shares are disjoint and cover
everything, whatever else each peer asks for. So classes are picked after the share is cut.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data.binary import stratified_sample
from p2ptrain.learning.data.contract import class_map
from p2ptrain.learning.data.source import Indices, Source, Split, closest
from p2ptrain.learning.data.validation import subset
from p2ptrain.words import listed, match_class

MAX_SHARES = 10_000
_SHARD_HELP = "--shard 2/5 means the 2nd of 5 shares"
_MAX_DRAWS = 100


def select(
    source: Source,
    contract: DataConfig,
    split: Split,
    *,
    shard: str | None = None,
    dirichlet: float | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Indices:
    """Sorted indices into ``split``. Nothing is decoded.

    ``shard`` "2/5" is the second of five shares, each with the class shares of all. With ``dirichlet`` (the usual
    concentration: 0.1 very uneven, 10 nearly even) each class is divided by a draw from Dir(dirichlet), the same draw
    for all splits. ``classes`` keeps samples of these classes of the job. ``seed`` is the job's.

    The split is as the job divides the source (``Source.fitted``): "train" is without what is held out for validation.
    Raises ``DataError`` if that leaves nothing to train on; other splits may come out empty.
    """
    source = source.fitted(contract)
    labels = source.labels(split)
    keep = np.ones(len(labels), np.bool_)
    if shard is not None:
        share, num_shares = parse_shard(shard)
        if num_shares > source.num_samples("train"):
            raise DataError(
                f"--shard {shard}: {num_shares} shares of {source.num_samples('train')} samples; ask for fewer shares"
            )
        if dirichlet is None:
            shares = _even_shares(labels, num_shares, _rng(seed, split))
        else:
            shares = _dirichlet_shares(source, split, num_shares, dirichlet, seed)
        keep &= shares == share
    elif dirichlet is not None:
        raise DataError(f"--dirichlet {dirichlet:g}: needs a share to cut: add --shard ({_SHARD_HELP})")
    if classes is not None:
        keep &= np.isin(labels, _chosen(source, contract, classes))
    indices = np.flatnonzero(keep).astype(np.int64)
    if split == "train" and not len(indices):
        raise DataError(
            f"{source.spec}: no training samples are left after --shard/--dirichlet/--classes; "
            "ask for fewer shares, a larger --dirichlet or more classes"
        )
    return indices


def parse_shard(shard: str) -> tuple[int, int]:
    """``"2/5"`` as (1, 5): the share counted from 0, and the number of shares."""
    match = re.fullmatch(r"\s*([0-9]{1,6})\s*/\s*([0-9]{1,6})\s*", shard)
    if not match:
        raise DataError(f"--shard {shard}: not a share; {_SHARD_HELP}")
    share, num_shares = int(match[1]), int(match[2])
    if not 1 <= num_shares <= MAX_SHARES or not 1 <= share <= num_shares:
        raise DataError(f"--shard {shard}: expected 1/N to N/N with N up to {MAX_SHARES}; {_SHARD_HELP}")
    return share - 1, num_shares


def holdout(source: Source, fraction: float = 0.1, seed: int = 0) -> Source:
    """``source`` itself if it has test samples; else one whose test split is this part of its training samples.

    What a job holds out for validation then comes out of the others.
    """
    if source.num_samples("test"):
        return source
    labels = source.labels("train")
    num_test = round(fraction * len(labels))
    if not 0 < fraction < 1 or not 0 < num_test < len(labels):
        raise DataError(f"{source.spec}: can't hold out {fraction:g} of {len(labels)} samples; expected e.g. 0.1")
    test = stratified_sample(labels, num_test, _rng(seed, "holdout"))
    train = np.setdiff1d(np.arange(len(labels), dtype=np.int64), test)
    rows: dict[Split, Indices] = {"train": train, "test": test}
    return subset(source, rows)


def _rng(seed: int, purpose: str) -> np.random.RandomState:
    """NumPy promises that this generator's stream never changes, which peers with different versions rely on."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return np.random.RandomState(int.from_bytes(digest[:4], "big"))


def _even_shares(labels: Indices, num_shares: int, rng: np.random.RandomState) -> Indices:
    """Share of every sample. Shuffled, sorted by class and dealt like cards: classes and totals differ by at most 1."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    shares = np.empty(len(labels), np.int64)
    shares[order] = np.arange(len(labels)) % num_shares
    return shares


def _dirichlet_shares(source: Source, split: Split, num_shares: int, concentration: float, seed: int) -> Indices:
    if not math.isfinite(concentration) or not 1e-3 <= concentration <= 1e6:
        raise DataError(f"--dirichlet {concentration:g}: expected 0.001 to 1000000; 0.1 is very uneven, 10 nearly even")
    num_classes = len(source.classes)
    # Drawn for the training split also when another is asked for: a peer is tested on what it learns.
    counts = np.bincount(source.labels("train"), minlength=num_classes)
    proportions = _proportions(counts, num_shares, concentration, _rng(seed, "dirichlet"))
    labels = source.labels(split)
    rng = _rng(seed, split)
    order = rng.permutation(len(labels))
    shares = np.empty(len(labels), np.int64)
    for c in range(num_classes):
        members = order[labels[order] == c]
        ends = np.rint(np.cumsum(proportions[c]) * len(members)).astype(np.int64)
        shares[members] = np.searchsorted(ends[:-1], np.arange(len(members)), side="right")
    return shares


def _proportions(
    counts: Indices, num_shares: int, concentration: float, rng: np.random.RandomState
) -> NDArray[np.float64]:
    """Part of each class that goes to each share ``[classes, shares]``; drawn again while a share is nearly empty."""
    wanted = min(10.0, counts.sum() / (2 * num_shares))
    best, best_smallest = np.empty((0, 0)), -1.0
    for _ in range(_MAX_DRAWS):
        drawn = rng.dirichlet(np.full(num_shares, concentration), size=len(counts))
        drawn = np.nan_to_num(drawn.round(9))  # rounding hides the last bits, in which processors differ
        drawn /= np.maximum(drawn.sum(axis=1, keepdims=True), 1e-9)
        smallest = float((counts @ drawn).min())
        if smallest > best_smallest:
            best, best_smallest = drawn, smallest
        if smallest >= wanted:
            break
    return best


def _chosen(source: Source, contract: DataConfig, classes: Sequence[str]) -> Indices:
    """The source's classes that are meant by names of the job's."""
    if not classes:
        raise DataError(f"--classes: no class named; the job's classes: {listed(contract.classes, 24)}")
    mapped = class_map(source, contract, np.empty(0, np.int64))
    chosen: list[int] = []
    for name in classes:
        match = match_class(name, contract.classes)
        if match is None:
            hint = closest(name, contract.classes)
            known = listed(contract.classes, 24)
            raise DataError(f"--classes {name}: not a class of the job{hint}; its classes: {known}")
        here = np.flatnonzero(mapped == contract.classes.index(match)).tolist()
        if not here:
            raise DataError(f"--classes {name}: {source.spec} has no such class; it has: {listed(source.classes, 24)}")
        chosen.extend(here)
    return np.array(chosen, np.int64)
