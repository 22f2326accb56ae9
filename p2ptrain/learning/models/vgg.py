"""VGG-11/13/16 (Simonyan & Zisserman 2015) in the small-input form: one linear classifier, BatchNorm as a choice.

Invariant: VGG-11 with BatchNorm at 3x32x32 and ten classes costs about 306 MFLOPs forward (a multiply-add is two).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from p2ptrain.learning.models.layers import InputShape, Sides, init_weights, scaled

POOL = 0
PLANS = {
    11: (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL),
    13: (64, 64, POOL, 128, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL),
    16: (64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, 512, 512, 512, POOL, 512, 512, 512, POOL),
}


class VGG(nn.Module):
    def __init__(
        self, input_shape: InputShape, num_classes: int, width: float = 1.0, *, depth: int, batch_norm: bool
    ) -> None:
        super().__init__()
        in_channels, height, side = input_shape
        sides = Sides(height, side)
        layers: list[nn.Module] = []
        for step in PLANS[depth]:
            if step == POOL:
                layers += sides.halve_by_pool()
                continue
            channels = scaled(step, width)
            layers.append(nn.Conv2d(in_channels, channels, 3, padding=1, bias=not batch_norm))
            layers += [nn.BatchNorm2d(channels)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            in_channels = channels
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(in_channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        x = self.avgpool(self.features(x))  # [N, 512, 1, 1]
        return self.classifier(torch.flatten(x, 1))  # [N, num_classes]
