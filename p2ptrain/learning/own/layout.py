"""In which order of memory a model is trained: channels last, which convolutions are fastest in, or as torch has it.

A model whose own code needs the usual order (``x.view(x.size(0), -1)``, strides, raw memory) gets it.

Invariant: the model is afterwards what it was, but for the order of its weights in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from p2ptrain.errors import JobError
from p2ptrain.learning.own.blame import own_code

_KNOWN = ("torch.nn.", "p2ptrain.")
_MINDING = frozenset(
    "as_strided view view_as view_as_complex view_as_real stride is_contiguous data_ptr storage_offset".split()  # noqa: SIM905
)
TOLERANCE = 1e-2
"""Outputs may differ by so much of their size: kernels add up in another order."""


def is_of_known_layers(model: nn.Module) -> bool:
    """Whether every module's code is torch's or ours, and every operation of a traced one's, none of which minds the
    order."""
    for module in model.modules():
        if isinstance(module, fx.GraphModule):
            if any(_minds(node) for node in module.graph.nodes):
                return False
        elif not type(module).__module__.startswith((*_KNOWN, "torch.fx")):
            return False
    return True


def _minds(node: fx.Node) -> bool:
    """Whether an operation looks at how tensors lie in memory, or may."""
    if node.op == "call_method":
        return node.target in _MINDING
    if node.op != "call_function":
        return False
    module = str(getattr(node.target, "__module__", ""))  # of torch's own, which are written in C: torch or none
    is_known = module in ("", "None", "_operator", "builtins", "math") or module.startswith("torch")
    return not is_known or getattr(node.target, "__name__", "") in _MINDING


def order_of(model: nn.Module) -> torch.memory_format:
    """The order that is sure to do, without a look at samples."""
    return torch.channels_last if is_of_known_layers(model) else torch.contiguous_format


def put_in_order(model: nn.Module, order: torch.memory_format) -> None:
    """Lay the tensors of four dimensions so; channels last is an order of no others (a Conv3d's weights have five)."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 4 and tensor.layout == torch.strided:
                tensor.data = tensor.data.to(memory_format=order)


def arrange(model: nn.Module, samples: Tensor | None) -> torch.memory_format:
    """Put the model's weights into the order that it can be trained in, and say which. ``samples`` [N, ...]: two will
    do; None: only what is sure to mind no order gets another one."""
    if is_of_known_layers(model):
        put_in_order(model, torch.channels_last)
        return torch.channels_last
    if samples is None or samples.dim() != 4 or not _minds_no_order(model, samples):
        put_in_order(model, torch.contiguous_format)
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
                put_in_order(model, torch.channels_last)
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
