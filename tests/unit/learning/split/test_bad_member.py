"""One of four lies in all that it sends: what the model knows is what it knows without that member, or nearly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from pipeline_group import NUM_CLASSES, SEED, builder, samples
from split_group import SplitGroup, state_of
from torch import Tensor

from p2ptrain.config import Robust, TrainingConfig
from p2ptrain.experiment.measure import accuracy
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.pipeline.snapshots import Snapshot

CONFIG = TrainingConfig(rounds=3, learning_rate=0.1)
COUNTS = {"anna": 64, "ben": 64, "cleo": 64, "mal": 64}
CUTS = {
    "alone": dict.fromkeys(COUNTS, ("", 0)),
    "helped": {"anna": ("", 0), "ben": ("anna", 1), "cleo": ("anna", 2), "mal": ("anna", 1)},
}


def learnable(seed: int, num: int) -> Dataset:
    """Pictures whose class is which of their first rows is bright."""
    data = samples("lenet", seed, num)
    rng = np.random.default_rng(seed)
    y = rng.integers(0, NUM_CLASSES, num)
    x = rng.integers(0, 120, data.x.shape).astype(np.uint8)
    x[np.arange(num), :, y] = 250
    return Dataset(x, y, data.contract)


def sign_flip(peer: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: -t if peer == "mal" and t.is_floating_point() else t for n, t in tensors.items()}


def noise(peer: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {
        n: torch.randn(t.shape, generator=rng) * 2 * t.std() if peer == "mal" and t.is_floating_point() else t
        for n, t in tensors.items()
    }


def known(cuts: Mapping[str, tuple[str, int]], robust: Robust, lie: object = None) -> tuple[float, set[str]]:
    """Accuracy after all rounds, and who was drawn in."""
    data = {owner: learnable(place, COUNTS[owner]) for place, owner in enumerate(sorted(cuts))}
    group = SplitGroup("lenet", cuts, COUNTS, CONFIG, data=data, robust=robust, lie=lie, batch_size=16)  # type: ignore[arg-type]
    pieces: Sequence[Snapshot] = []
    drawn_in: set[str] = set()
    for number in range(CONFIG.rounds):
        pieces = group.round(number, pieces)
        drawn_in |= group.drawn_in.keys()
    model = builder("lenet", SEED)()
    model.load_state_dict(state_of(pieces))
    return accuracy(model, learnable(99, 300), NUM_CLASSES).accuracy, drawn_in


@pytest.mark.parametrize(("where", "lie"), [("alone", sign_flip), ("alone", noise), ("helped", noise)])
def test_what_it_can_spoil_is_bounded(where: str, lie: object) -> None:
    cuts = CUTS[where]
    without, nobody = known({owner: how for owner, how in cuts.items() if owner != "mal"}, "clip")
    assert without > 0.6 and not nobody
    bounded, drawn_in = known(cuts, "clip", lie)
    assert bounded > without - 0.05 and "mal" in drawn_in
    assert known(cuts, "none", lie)[0] < bounded - 0.1
