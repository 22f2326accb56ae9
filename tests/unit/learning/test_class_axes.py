"""Which tensors have an entry a class."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from p2ptrain.config import DataConfig, Job, ModelConfig
from p2ptrain.learning.models import MODELS, TEXT_MODELS
from p2ptrain.learning.models.class_axes import class_axes

DATA = DataConfig(("ant", "bee", "cat"), (3, 32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
OWN = """
import torch
from torch import nn

class Odd(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Conv2d(3, num_classes, 1)
        self.pairs = nn.Parameter(torch.zeros(num_classes, 2, num_classes))
        self.two = nn.Linear(4, 2 * num_classes)

    def forward(self, x):
        return self.head(x).mean((2, 3))

def odd(num_classes):
    return Odd(num_classes)

def deaf():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))
"""


@pytest.mark.parametrize("name", sorted(MODELS.keys() - TEXT_MODELS))
def test_of_built_in_models_it_is_the_last_layer(name: str) -> None:
    found = class_axes(Job(model=ModelConfig(name, width=0.1), data=DATA), allow_user_code=False)
    assert set(found.values()) == {(0,)}
    assert {tensor.rpartition(".")[2] for tensor in found} == {"weight", "bias"} and len(found) == 2


def test_of_models_of_ones_own_whatever_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_heads.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_heads", raising=False)
    job = Job(model=ModelConfig("odd_heads:odd"), data=DATA)
    assert class_axes(job, allow_user_code=True) == {
        "pairs": (0, 2),
        "head.weight": (0,),
        "head.bias": (0,),
        "two.weight": (),
        "two.bias": (),
    }
    assert class_axes(dataclasses.replace(job, model=ModelConfig("odd_heads:deaf")), allow_user_code=True) == {}
