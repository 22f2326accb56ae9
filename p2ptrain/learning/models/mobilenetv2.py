"""MobileNetV2 (Sandler et al. 2018): inverted residuals with linear bottlenecks.

Invariant: inputs up to 64 px keep their size in the stem and in the 24-channel stage, so that features end at
4x4 for 32x32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from p2ptrain.learning.models.layers import InputShape, init_weights, scaled

SMALL_INPUT_SIDE = 64
STAGES = (  # expansion, channels, blocks, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def conv_bn(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


class InvertedResidual(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == channels
        hidden = in_channels * expansion
        expand = [*conv_bn(in_channels, hidden, 1), nn.ReLU6(inplace=True)] if expansion != 1 else []
        depthwise = [*conv_bn(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6(inplace=True)]
        self.conv = nn.Sequential(*expand, *depthwise, *conv_bn(hidden, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, input_shape: InputShape, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        small = max(input_shape[1:]) <= SMALL_INPUT_SIDE
        channels = scaled(32, width)
        layers = [*conv_bn(input_shape[0], channels, 3, stride=1 if small else 2), nn.ReLU6(inplace=True)]
        for stage, (expansion, base, num_blocks, first_stride) in enumerate(STAGES):
            for index in range(num_blocks):
                stride = first_stride if index == 0 and not (small and stage == 1) else 1
                layers.append(InvertedResidual(channels, scaled(base, width), stride, expansion))
                channels = scaled(base, width)
        layers += [*conv_bn(channels, scaled(1280, width), 1), nn.ReLU6(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(scaled(1280, width), num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        x = self.avgpool(self.features(x))  # [N, 1280, 1, 1]
        return self.classifier(torch.flatten(x, 1))  # [N, num_classes]
