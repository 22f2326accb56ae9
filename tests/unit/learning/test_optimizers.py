"""Optimizers that don't load torch's compiler take the very steps of torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from p2ptrain.config import TrainingConfig
from p2ptrain.learning.training import make_optimizer


def steps(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter], count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        optimizer.zero_grad(set_to_none=True)
        sum((w * torch.randn(w.shape, generator=generator)).square().sum() for w in weights).backward()  # type: ignore[union-attr]
        optimizer.step()


def weights() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4)), torch.nn.Parameter(torch.ones(5))]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_steps_and_state_are_torchs(name: Any) -> None:
    ours, theirs = weights(), weights()
    config = TrainingConfig(optimizer=name, learning_rate=0.1, weight_decay=0.01)
    made = make_optimizer({"w": ours[0], "b": ours[1]}, config)
    groups = [{**group, "params": [theirs[number]]} for number, group in enumerate(made.param_groups)]
    plain = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name](groups)
    steps(made, ours, 2)
    steps(plain, theirs, 2)
    made.load_state_dict(made.state_dict())
    steps(made, ours, 2)
    steps(plain, theirs, 2)
    assert all(torch.equal(own, their) for own, their in zip(ours, theirs, strict=True))
    assert isinstance(made, type(plain))
    assert all(not w.grad_fn and w.requires_grad for w in ours)
