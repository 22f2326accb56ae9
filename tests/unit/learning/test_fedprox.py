"""FedProx' proximal term against its formula."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from p2ptrain.config import DataConfig, Job, TrainingConfig
from p2ptrain.errors import JobError
from p2ptrain.learning.training import LocalTrainer
from p2ptrain.modes.jobs import check_job

DATA = DataConfig(("a", "b"), (1, 4, 4), "image", (0.0,), (1.0,))


def test_steps_are_those_of_the_formula() -> None:
    """F(w) + mu / 2 |w - w0|^2 by autograd, over two rounds: each has a w0 of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    plain = copy.deepcopy(model)
    mu, rate = 0.7, 0.1
    config = TrainingConfig(
        proximal=mu, learning_rate=rate, momentum=0.0, weight_decay=0.0, clip=0.0, warmup=0.0, schedule="constant"
    )
    trainer = LocalTrainer(model, config, num_classes=2, total_steps=6)
    for _ in range(2):
        trainer.begin_round()
        start = [p.detach().clone() for p in plain.parameters()]
        for _ in range(3):
            x, y = torch.randn(8, 1, 4, 4), torch.arange(8) % 2
            distance = sum(((p - w0) ** 2).sum() for p, w0 in zip(plain.parameters(), start, strict=True))
            loss = F.cross_entropy(plain(x), y) + mu / 2 * distance
            gradients = torch.autograd.grad(loss, list(plain.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                    parameter -= rate * gradient
            trainer.step(x, y)
    for ours, theirs in zip(trainer.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mode", ["pipeline", "split"])
def test_modes_of_blocks_say_why_not(mode: str) -> None:
    with pytest.raises(JobError, match=r"training\.proximal: .* where it began"):
        check_job(Job(mode=mode, data=DATA, training=TrainingConfig(proximal=0.1)))


def test_a_job_without_it_has_the_id_that_it_had() -> None:
    assert "proximal" not in Job(data=DATA).to_json()
