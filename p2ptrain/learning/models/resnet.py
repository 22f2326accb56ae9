"""ResNet-18 and ResNet-20 (He et al. 2016) with 1x1-convolution shortcuts wherever the shape changes.

Tensors have the names and, of pictures above 64 px, the shapes of torchvision's ``resnet18``: its weights come in, and
harvested ones go out.

Invariant: inputs up to 64 px get a 3x3 stem without pooling; larger inputs (ResNet-18 only) the 7x7 stem with pooling.
"""

from __future__ import annotations

import re

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
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


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
        small = max(input_shape[1:]) <= SMALL_INPUT_SIDE or len(stages) < 4
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(input_shape[0], channels, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        layers: list[nn.Module] = []
        for stage, base in enumerate(stages):
            blocks: list[nn.Module] = []
            for index in range(blocks_per_stage):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(BasicBlock(channels, scaled(base, width), stride))
                channels = scaled(base, width)
            layers.append(nn.Sequential(*blocks))
        self.num_stages = len(layers)
        for number, layer in enumerate(layers, 1):
            self.add_module(f"layer{number}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for number in range(1, self.num_stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))  # [N, num_classes]


def current_name(name: str, blocks_per_stage: int) -> str:
    """What a tensor that older versions called ``name`` is called now."""
    name = re.sub(r"^stem\.0\.", "conv1.", re.sub(r"^stem\.1\.", "bn1.", name))
    found = re.match(r"blocks\.(\d+)\.(.*)", name)
    if found is None:
        return name
    stage, index = divmod(int(found[1]), blocks_per_stage)
    return f"layer{stage + 1}.{index}.{found[2].replace('shortcut.', 'downsample.')}"
