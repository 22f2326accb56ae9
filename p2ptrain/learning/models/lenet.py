"""LeNet-size CNN for digits (after LeCun et al. 1998), from 8x8 to 32x32 and beyond.

Invariant: widths are multiples of 24, so that 2, 3 or 4 class groups get whole, even shares.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from p2ptrain.learning.models.layers import InputShape, Sides, init_weights, scaled


class LeNet(nn.Module):
    def __init__(self, input_shape: InputShape, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        in_channels, height, side = input_shape
        c1, c2, hidden = scaled(24, width), scaled(48, width), scaled(120, width)
        sides = Sides(height, side)
        self.conv1 = nn.Conv2d(in_channels, c1, 5, padding=2)
        self.pool1 = nn.Sequential(*sides.halve_by_pool())
        self.conv2 = nn.Conv2d(c1, c2, 5, padding=2)
        self.pool2 = nn.Sequential(*sides.halve_by_pool())
        self.fc1 = nn.Linear(c2 * sides.area, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        x = self.pool1(torch.relu(self.conv1(x)))  # [N, c1, H/2, W/2]
        x = self.pool2(torch.relu(self.conv2(x)))  # [N, c2, H/4, W/4]
        x = torch.relu(self.fc1(torch.flatten(x, 1)))  # [N, hidden]
        return self.fc2(x)  # [N, num_classes]
