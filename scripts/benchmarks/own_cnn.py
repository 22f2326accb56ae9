"""A model of one's own, as a user might write it: three convolutions, two linear layers. Used by ``overlap``."""

from __future__ import annotations

from torch import nn


def small_cnn(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    channels, height, width = input_shape
    return nn.Sequential(
        *_block(channels, 32),
        *_block(32, 64),
        *_block(64, 128),
        nn.Flatten(),
        nn.Linear(128 * (height // 8) * (width // 8), 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


def _block(channels: int, wider: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU(), nn.MaxPool2d(2)]
