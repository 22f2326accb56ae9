"""ResNet-18 and ResNet-20 (He et al. 2016) with 1x1-convolution shortcuts wherever the shape changes.

Invariant: inputs up to 64 px get a 3x3 stem without pooling; larger inputs (ResNet-18 only) the 7x7 stem with pooling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from p2ptrain.learning.models.layers import InputShape, init_weights, scaled

SMALL_INPUT_SIDE = 64


class BasicBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(
        self,
        input_shape: InputShape,
        num_classes: int,
        width: float = 1.0,
        *,
        stages: tuple[int, ...],
        blocks_per_stage: int,
    ) -> None:
        super().__init__()
        channels = scaled(stages[0], width)
        if max(input_shape[1:]) <= SMALL_INPUT_SIDE or len(stages) < 4:
            stem = [nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        else:
            stem = [
                nn.Conv2d(input_shape[0], channels, 7, stride=2, padding=3, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.MaxPool2d(3, stride=2, padding=1),
            ]
        self.stem = nn.Sequential(*stem)
        blocks: list[nn.Module] = []
        for stage, base in enumerate(stages):
            for index in range(blocks_per_stage):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(BasicBlock(channels, scaled(base, width), stride))
                channels = scaled(base, width)
        self.blocks = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        x = self.avgpool(self.blocks(self.stem(x)))  # [N, channels, 1, 1]
        return self.fc(torch.flatten(x, 1))  # [N, num_classes]
