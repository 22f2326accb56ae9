"""DS-CNN for keyword spotting (Zhang et al. 2017, "Hello Edge"): strided convolution, depthwise-separable blocks.

Invariant: the input is one channel of mels x frames; width 1.0 is the paper's small model (64 channels), 2.7 its
medium one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from p2ptrain.learning.models.layers import InputShape, init_weights, scaled

NUM_BLOCKS = 4


class DSCNN(nn.Module):
    def __init__(self, input_shape: InputShape, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(64, width)
        layers: list[nn.Module] = [
            nn.Conv2d(input_shape[0], channels, (4, 10), stride=2, padding=(2, 5), bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
        for _ in range(NUM_BLOCKS):
            layers += [
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:  # [N, 1, mels, frames]
        x = self.avgpool(self.features(x))  # [N, channels, 1, 1]
        return self.classifier(torch.flatten(x, 1))  # [N, num_classes]
