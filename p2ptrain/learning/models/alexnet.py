"""AlexNet (Krizhevsky et al. 2012) for small inputs: 3x3 convolutions, two hidden layers with dropout.

Invariant: the five convolutions keep the original's widths (64/192/384/256/256); hidden layers have
1024 units, not 4096.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from p2ptrain.learning.models.layers import InputShape, Sides, init_weights, scaled


class AlexNet(nn.Module):
    def __init__(self, input_shape: InputShape, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        in_channels, height, side = input_shape
        sides = Sides(height, side)
        layers: list[nn.Module] = []
        for index, (base, pool) in enumerate([(64, True), (192, True), (384, False), (256, False), (256, True)]):
            channels = scaled(base, width)
            stride = 2 if index == 0 else 1
            layers += [nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1), nn.ReLU(inplace=True)]
            sides.stride(stride)
            if pool:
                layers += sides.halve_by_pool()
            in_channels = channels
        hidden = scaled(1024, width)
        self.features = nn.Sequential(*layers)  # 32x32 -> [N, 256, 2, 2]
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(in_channels * sides.area, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, num_classes),
        )
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        return self.classifier(torch.flatten(self.features(x), 1))  # [N, num_classes]
