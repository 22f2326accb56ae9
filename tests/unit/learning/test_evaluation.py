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


def test_a_text_is_told_in_bits_and_characters() -> None:
    class Same(torch.nn.Module):
        """Every byte is as likely as the other."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(*x.flatten(1).shape, 256)

    text = torch.tensor([list(b"aaa b\n\x80a")])
    found = evaluate(Same(), [(text.view(1, 1, 1, -1), text)], 256)
    assert found.bits_per_byte == pytest.approx(8.0) and found.perplexity == pytest.approx(256.0)
    words = found.to_text([str(byte) for byte in range(256)])
    assert "8.000 bits per byte, perplexity 256.00" in words and "'\\n'" in words and "0x80" in words
    assert words.splitlines()[1].split()[:2] == ["'a'", "4"] and "97" not in words
    assert json.loads(found.to_json())["bits_per_byte"] == pytest.approx(8.0)
    pictures = evaluate(torch.nn.Flatten(), [(torch.eye(3).view(3, 1, 1, 3), torch.arange(3))], 3)
    assert "bits" not in pictures.to_text() and "perplexity" not in json.loads(pictures.to_json())
