"""Accuracy, confusion, and how they are told."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from p2ptrain.learning.evaluation import Evaluation, evaluate, own_class_accuracy


def test_evaluate_counts_every_sample_once() -> None:
    logits = torch.tensor([[5.0, 0, 0], [0, 5, 0], [0, 5, 0], [0, 0, 5], [float("nan"), 0, 0]])
    y = torch.tensor([0, 1, 2, 2, 0])
    model = nn.Identity().train()
    result = evaluate(model, [(logits[:2], y[:2]), (logits[2:], y[2:])], 3)
    assert model.training
    assert result.confusion == ((1, 1, 0), (0, 1, 0), (0, 1, 1))
    assert result.samples == 5 and result.accuracy == pytest.approx(0.6)
    assert result.per_class == pytest.approx((0.5, 1.0, 0.5))
    assert result.own_class_accuracy([1, 2]) == pytest.approx(2 / 3)
    assert math.isnan(result.loss)


def test_loss_is_the_mean_cross_entropy() -> None:
    x, y = torch.randn(7, 4), torch.randint(0, 4, (7,))
    result = evaluate(nn.Identity(), [(x[:3], y[:3]), (x[3:], y[3:])], 4)
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(x, y)), rel=1e-5)


def test_no_samples_is_not_an_error() -> None:
    result = evaluate(nn.Identity(), [], 2)
    assert result.samples == 0 and math.isnan(result.accuracy)
    assert json.loads(result.to_json())["accuracy"] is None
    assert "-" in result.to_text()


def test_text_and_json() -> None:
    result = Evaluation(((8, 2, 0), (0, 10, 0), (3, 1, 6)), 0.25)
    text = result.to_text(["cat", "dog", "a class with a very long name " * 4])
    assert "cat" in text and "80.0 %" in text and "cat (3), dog (1)" in text and "loss 0.2500" in text
    assert all(len(line) <= 100 for line in text.splitlines())
    data = json.loads(result.to_json(["cat", "dog", "cow"]))
    assert data["per_class"]["cow"] == pytest.approx(0.6) and data["confusion"][2] == [3, 1, 6]


def test_of_many_classes_only_those_that_come_up_are_listed() -> None:
    rows = tuple(tuple(int(t == p == 65) for p in range(256)) for t in range(256))
    lines = Evaluation(rows, 1.0).to_text().splitlines()
    assert len(lines) == 3 and lines[1].startswith("65")


def test_own_classes_among_themselves() -> None:
    logits = torch.tensor([[1.0, 9, 2], [3, 9, 4], [0, 9, 1], [9, 9, 9]])
    y = torch.tensor([2, 0, 2, 1])
    assert own_class_accuracy(nn.Identity(), [(logits, y)], [0, 2]) == pytest.approx(2 / 3)
    narrow = logits[:, [2, 0]]
    assert own_class_accuracy(nn.Identity(), [(narrow, y)], [0, 2], outputs=[2, 0]) == pytest.approx(2 / 3)
