"""MobileNetV2 (Sandler et al. 2018): inverted residuals with linear bottlenecks.

Tensors have the names and, at width 1, the shapes of torchvision's ``mobilenet_v2``: its weights come in, and harvested
ones go out. There is no dropout before the last layer.

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


DROPOUT = 0.0
"""torchvision's is 0.2; its place is kept, for the names."""


def conv_bn_relu(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == channels
        hidden = in_channels * expansion
        expand = [conv_bn_relu(in_channels, hidden, 1)] if expansion != 1 else []
        depthwise = conv_bn_relu(hidden, hidden, 3, stride, groups=hidden)
        project = nn.Conv2d(hidden, channels, 1, bias=False)
        self.conv = nn.Sequential(*expand, depthwise, project, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, input_shape: InputShape, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        small = max(input_shape[1:]) <= SMALL_INPUT_SIDE
        channels = scaled(32, width)
        layers: list[nn.Module] = [conv_bn_relu(input_shape[0], channels, 3, stride=1 if small else 2)]
        for stage, (expansion, base, num_blocks, first_stride) in enumerate(STAGES):
            for index in range(num_blocks):
                stride = first_stride if index == 0 and not (small and stage == 1) else 1
                layers.append(InvertedResidual(channels, scaled(base, width), stride, expansion))
                channels = scaled(base, width)
        layers.append(conv_bn_relu(channels, scaled(1280, width), 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(scaled(1280, width), num_classes))
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        x = self.avgpool(self.features(x))  # [N, 1280, 1, 1]
        return self.classifier(torch.flatten(x, 1))  # [N, num_classes]


_LAST = 20
"""In older versions the stem's layers were 0 to 2, the blocks 3 to 19, the last layers from 20."""
_PLACES = ("0.0", "0.1", "0.2", "1.0", "1.1", "1.2", "2", "3")


def current_name(name: str) -> str:
    """What a tensor that older versions called ``name`` is called now. (Only to be asked of one of theirs.)"""
    if name.startswith("classifier."):
        return name.replace("classifier.", "classifier.1.")
    _, place, rest = name.split(".", 2)
    number = int(place)
    if not 3 <= number < _LAST:
        return f"features.0.{number}.{rest}" if number < 3 else f"features.{_LAST - 2}.{number - _LAST}.{rest}"
    _, inner, rest = rest.split(".", 2)
    places = _PLACES if number > 3 else ("0.0", "0.1", "0.2", "1", "2")  # the first block does not expand
    return f"features.{number - 2}.conv.{places[int(inner)]}.{rest}"
