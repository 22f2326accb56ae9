"""A model of your own: change what is between, keep the function's name and arguments.

p2ptrain job new --data SPEC --model my_model:build -o job.toml      (in the folder that holds this file)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *block(channels, 32),
            *block(32, 64),
            *block(64, 128),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # [batch, channels, height, width], normalised floats
        x = self.pool(self.body(x))
        return self.head(torch.flatten(x, 1))  # logits [batch, num_classes]: no softmax


def block(in_channels: int, channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]


def build(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Called on every device, with the job's shape and number of classes; ``width`` is given too if it is asked for."""
    return Net(input_shape[0], num_classes)
