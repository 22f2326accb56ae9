"""Layers that stay as they are while the others are trained: fine-tuning.

A pattern is a layer's name (``layer1``: all that is in it), or has wildcards (``*.bias``). A frozen batch norm keeps
its statistics too: it runs as in eval mode.

Invariant: every pattern names something, and something is left to train.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from p2ptrain.errors import JobError


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Raises ``JobError`` for a pattern that names no parameter, and where none is left."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            layers = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise JobError(f"model.freeze: {pattern!r} names no parameter of the model; its layers are {layers[:300]}")
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if any(_matches(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise JobError("model.freeze: nothing is left to train; freeze fewer layers")
    for module in model.modules():
        if _is_frozen_norm(module):
            module.register_forward_pre_hook(_as_in_eval_mode)


def frozen_names(model: nn.Module, patterns: Sequence[str]) -> frozenset[str]:
    """Tensors of the state of a model with frozen layers that never change: nobody need send them."""
    if not patterns:
        return frozenset()
    found = {name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    for prefix, module in model.named_modules():
        if _is_frozen_norm(module):
            found |= {f"{prefix}.{name}".lstrip(".") for name, _ in module.named_buffers(recurse=False)}
    return frozenset(found)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def _is_frozen_norm(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return is_norm and bool(own) and not any(each.requires_grad for each in own)


def _as_in_eval_mode(module: nn.Module, inputs: Any) -> None:
    module.train(False)
