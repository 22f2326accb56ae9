"""In which order of memory a model is trained: channels last, which convolutions are fastest in, or as torch has it.

A model whose own code needs the usual order (``x.view(x.size(0), -1)``, strides, raw memory) gets it.

Invariant: the model is afterwards what it was, but for the order of its weights in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from p2ptrain.errors import JobError
from p2ptrain.learning.own.blame import own_code

_KNOWN = ("torch.nn.", "p2ptrain.")
TOLERANCE = 1e-2
"""Outputs may differ by so much of their size: kernels add up in another order."""


def is_of_known_layers(model: nn.Module) -> bool:
    """Whether every module's code is torch's or ours, none of which minds the order."""
    modules = list(model.modules())
    return all(type(m).__module__.startswith(_KNOWN) or type(m).__module__.startswith("torch.fx") for m in modules)


def order_of(model: nn.Module) -> torch.memory_format:
    """The order that is sure to do, without a look at samples."""
    return torch.channels_last if is_of_known_layers(model) else torch.contiguous_format


def arrange(model: nn.Module, samples: Tensor | None) -> torch.memory_format:
    """Put the model's weights into the order that it can be trained in, and say which. ``samples`` [N, ...]: two will
    do; None: only what is sure to mind no order gets another one."""
    if is_of_known_layers(model):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return torch.channels_last
    if samples is None or samples.dim() != 4 or not _minds_no_order(model, samples):
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return torch.contiguous_format
    return torch.channels_last


def _minds_no_order(model: nn.Module, samples: Tensor) -> bool:
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    was_training = model.training
    try:
        with torch.random.fork_rng(devices=[]), own_code("the model fails"):
            model.eval()
            with torch.no_grad():
                usual = model(samples.clone())
                model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                other = model(samples.clone(memory_format=torch.channels_last))
            model.train()
            model(samples.clone(memory_format=torch.channels_last)).float().sum().backward()
        close = torch.allclose(usual.float(), other.float(), rtol=TOLERANCE, atol=TOLERANCE * float(usual.abs().max()))
        return close
    except JobError:
        return False  # if it fails in any order, its first step says so
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        model.zero_grad(set_to_none=True)
        model.train(was_training)
