"""Scores of channels by class: as differentiating sample by sample says, and worth choosing by."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from p2ptrain.config import TrainingConfig
from p2ptrain.errors import LocalError
from p2ptrain.learning.evaluation import own_class_accuracy
from p2ptrain.learning.models import build_model
from p2ptrain.learning.submodels import attribution
from p2ptrain.learning.submodels.attribution import attribute
from p2ptrain.learning.submodels.decoupling import Decoupling
from p2ptrain.learning.training import LocalTrainer


def slow(model: nn.Module, layers: list[str], x: Tensor, num_classes: int, labels: Tensor | None) -> dict[str, Tensor]:
    model.eval()
    weights = [model.get_submodule(name).weight for name in layers]
    sums = {name: torch.zeros(num_classes, w.shape[0]) for name, w in zip(layers, weights, strict=True)}
    for c in range(num_classes):
        rows = [i for i in range(len(x)) if labels is None or labels[i] == c] or list(range(len(x)))
        for i in rows:
            grads = torch.autograd.grad(model(x[i : i + 1])[0, c], weights)
            for name, g in zip(layers, grads, strict=True):
                sums[name][c] += g.abs().flatten(1).mean(1) / len(rows)
    return sums


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=8, padding_mode="reflect"),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 6, 1, groups=2),
            nn.Flatten(),
            nn.Linear(6 * 16, 5),
            nn.ReLU(inplace=True),
            nn.Linear(5, 4),
        )


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("small_chunks", [False, True])
def test_the_fast_way_is_the_slow_way(labelled: bool, small_chunks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small_chunks:
        monkeypatch.setattr(attribution, "MAX_ELEMENTS", 1)
    model, x = net().train(), torch.randn(6, 3, 8, 8)
    labels = torch.tensor([0, 1, 1, 0, 2, 2]) if labelled else None
    layers = ["0", "3", "5", "7"]
    before = {n: t.clone() for n, t in model.state_dict().items()}
    scores = attribute(model, layers, x, 4, labels=labels)
    assert model.training and all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(not m._forward_hooks for m in model.modules())
    for name, expected in slow(model, layers, x, 4, labels).items():
        torch.testing.assert_close(scores[name], expected, atol=1e-6, rtol=1e-4)


def test_layers_without_channels_are_refused() -> None:
    with pytest.raises(LocalError):
        attribute(net(), ["1"], torch.randn(2, 3, 8, 8), 4)


def test_choosing_by_attribution_keeps_more_of_what_was_learnt() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x = torch.from_numpy(digits.images).float().unsqueeze(1) / 16.0
    x, y = (x - x.mean()) / x.std(), torch.from_numpy(digits.target).long()
    model = build_model("lenet", input_shape=(1, 8, 8), num_classes=10, seed=0)
    trainer = LocalTrainer(model, TrainingConfig(), num_classes=10, total_steps=120)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        batch = torch.randint(0, 1400, (64,), generator=generator)
        trainer.step(x[batch], y[batch])
    groups = [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    plain = Decoupling(model, (1, 8, 8), groups)
    scores = attribute(model, plain.channel_layers, x[:256], 10, labels=y[:256])
    chosen = Decoupling(model, (1, 8, 8), groups, scores=scores)
    kept = {
        name: sum(
            own_class_accuracy(decoupling.submodel(g, "own"), [(x[1400:], y[1400:])], own, outputs=own) / 3
            for g, own in enumerate(groups)
        )
        for name, decoupling in (("runs", plain), ("attribution", chosen))
    }
    assert kept["attribution"] > kept["runs"] + 0.05, kept
