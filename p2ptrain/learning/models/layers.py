"""What the built-in models share: scaled widths, pooling that never shrinks a side to zero, and one initialisation.

Invariant: nothing here is a module with parameters of its own, so tensor names are those of plain ``torch.nn`` layers.
"""

from __future__ import annotations

import math

from torch import nn

InputShape = tuple[int, int, int]


def scaled(channels: int, width: float) -> int:
    """A channel count times the width, at least one."""
    return max(1, round(channels * width))


class Sides:
    """Height and width of the features while a model is being put together."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width

    def halve_by_pool(self) -> list[nn.Module]:
        """A 2x2 max-pool over every side that is still longer than one; no layer when neither is."""
        kernel = (2 if self.height > 1 else 1, 2 if self.width > 1 else 1)
        if kernel == (1, 1):
            return []
        self.height, self.width = self.height // kernel[0], self.width // kernel[1]
        return [nn.MaxPool2d(kernel)]

    def stride(self, stride: int) -> None:
        """A 'same'-padded convolution with this stride."""
        self.height, self.width = math.ceil(self.height / stride), math.ceil(self.width / stride)

    @property
    def area(self) -> int:
        return self.height * self.width


def init_weights(model: nn.Module) -> None:
    """He et al. 2015 for convolutions and hidden layers (fan-in); ones and zeros for norms; small for the head."""
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and module is not linears[-1]):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1.0 / math.sqrt(module.in_features))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
