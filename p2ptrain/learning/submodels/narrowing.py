"""How a copy of a model becomes a sub-model: fewer channels in the same layers, under the same names.

Invariant: the copy's tensors are its own, and a layer's attributes tell the sizes that its tensors have.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from p2ptrain.learning.submodels.kinds import CHANNEL_NORMS, CONVS


def replace_tensors(prefix: str, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a module tensors of its own."""
    for short, old in module.named_parameters(recurse=False):
        new = weights[f"{prefix}.{short}" if prefix else short]
        setattr(module, short, nn.Parameter(new, requires_grad=old.requires_grad))
    for short, buffer in module.named_buffers(recurse=False):
        setattr(module, short, weights.get(f"{prefix}.{short}" if prefix else short, buffer).clone())


def set_sizes(module: nn.Module, num_channels: int, weight: Tensor | None) -> None:
    """Make a narrowed layer's attributes tell the truth: some are used in forward, all are read by people."""
    if isinstance(module, CONVS) and weight is not None:
        if module.groups > 1:
            module.groups = num_channels // (module.out_channels // module.groups)
        module.out_channels, module.in_channels = num_channels, weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear) and weight is not None:
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, CHANNEL_NORMS):
        module.num_features = num_channels
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = num_channels // (module.num_channels // module.num_groups)
        module.num_channels = num_channels
    elif isinstance(module, nn.PReLU) and module.num_parameters > 1:
        module.num_parameters = num_channels
