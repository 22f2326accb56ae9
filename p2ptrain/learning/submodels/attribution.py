"""Which channels matter to which classes, from gradients: the scores that ``Decoupling(scores=...)`` divides by.

The score of channel f for class c is the mean over samples and over f's weights of |d logit_c / d weight|. One
backward pass a class gives d logit_c / d (layer output) for all samples at once; with the layer's inputs, kept from
one forward pass, that gives every sample's own weight gradients without a backward pass a sample.

Invariant: equal to differentiating sample by sample (a test does), and the model is left as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p2ptrain.errors import LocalError

MAX_ELEMENTS = 1 << 26
"""Upper bound on the numbers held at once for one layer's gradients by sample (256 MB)."""


def attribute(
    model: nn.Module, layers: Iterable[str], x: Tensor, num_classes: int, *, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """By layer: [num_classes, channels] float32. ``x`` [N, ...]: some samples, 32 to 256 of them.

    With ``labels`` [N] class c is scored over its own samples, if there are any, else over all samples.
    """
    modules = {name: model.get_submodule(name) for name in layers}
    for name, module in modules.items():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            raise LocalError(f"layer {name!r} is a {type(module).__name__}; scores are for Conv2d and Linear layers")
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    hooks = [module.register_forward_hook(_recorder(name, inputs, outputs)) for name, module in modules.items()]
    was_training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            logits = model(x.detach().clone().requires_grad_())  # [N, num_classes]; frozen weights do no harm
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    missing = modules.keys() - outputs.keys()
    if missing or logits.shape != (x.shape[0], num_classes):
        raise LocalError(f"layers {sorted(missing)} are not called, or logits have shape {tuple(logits.shape)}")
    scores = {name: torch.zeros(num_classes, _num_channels(module)) for name, module in modules.items()}
    names = list(modules)
    for c in range(num_classes):
        chosen = torch.arange(x.shape[0])
        if labels is not None and bool((labels == c).any()):
            chosen = (labels == c).nonzero().squeeze(1)
        # Samples don't mix in eval mode, so the gradient of the sum holds every sample's own.
        slopes = torch.autograd.grad(
            logits[chosen, c].sum(), [outputs[name] for name in names], retain_graph=True, allow_unused=True
        )
        for name, slope in zip(names, slopes, strict=True):
            if slope is not None:
                scores[name][c] = _mean_weight_gradient(modules[name], inputs[name][chosen], slope[chosen].detach())
    return scores


def _num_channels(module: nn.Module) -> int:
    return module.out_channels if isinstance(module, nn.Conv2d) else int(module.out_features)  # type: ignore[arg-type]


def _recorder(name: str, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> Callable[..., Tensor]:
    def record(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if name in outputs:
            raise LocalError(f"layer {name!r} is called more than once")
        inputs[name], outputs[name] = args[0].detach().clone(), output
        return output.clone()  # an in-place ReLU behind the layer must not overwrite the output kept here

    return record


@torch.no_grad()
def _mean_weight_gradient(module: nn.Module, x: Tensor, slope: Tensor) -> Tensor:
    """[channels]: mean over samples and weights of |gradient|; x: the layer's input, slope: d logit / d output."""
    n = x.shape[0]
    if isinstance(module, nn.Linear):  # gradient = slope_f * x_i, so its mean size is a product
        rows, xs = slope.reshape(n, -1, slope.shape[-1]), x.reshape(n, -1, x.shape[-1])  # [n, T, F], [n, T, I]
        if rows.shape[1] == 1:
            return torch.einsum("nf,n->f", rows[:, 0].abs(), xs[:, 0].abs().mean(1)) / n
        return torch.einsum("ntf,nti->nfi", rows, xs).abs().mean((0, 2))
    assert isinstance(module, nn.Conv2d)
    groups, channels = module.groups, module.out_channels
    num_weights = math.prod(module.weight.shape[1:])
    per_sample = channels * num_weights + x[0].numel() * math.prod(module.kernel_size)
    total = torch.zeros(channels)
    for first in range(0, n, chunk := max(1, MAX_ELEMENTS // per_sample)):
        xs, ss = x[first : first + chunk], slope[first : first + chunk]
        m = xs.shape[0]
        columns = _unfold(module, xs).view(m, groups, num_weights, -1)  # [m, g, I*kh*kw, positions]
        rows = ss.reshape(m, groups, channels // groups, -1)  # [m, g, F/g, positions]
        gradients = rows @ columns.transpose(2, 3)  # [m, g, F/g, I*kh*kw]
        total += gradients.abs_().mean(3).sum(0).flatten().cpu()
    return total / n


def _unfold(module: nn.Conv2d, x: Tensor) -> Tensor:
    padding = module._reversed_padding_repeated_twice  # what torch itself pads by, "same" and other modes included
    x = F.pad(x, padding, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
    return F.unfold(x, module.kernel_size, dilation=module.dilation, stride=module.stride)
