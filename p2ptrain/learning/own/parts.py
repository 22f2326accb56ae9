"""Parts of training that a job may name as somebody's own code: loss, optimizer, schedule, and what is done to samples.

    def loss(logits, y): ...                        # [M, classes] and [M] -> the mean over M, a number with a gradient
    def schedule(step, total_steps): ...            # factor on the learning rate, from 0 on
    def optimizer(parameters, learning_rate): ...   # a torch.optim.Optimizer
    def transform(x): ...                           # [N, C, H, W], pixels from 0 to 1 -> the same shape

Whether the code may run on this device was asked when the job was taken: no code comes over the network.

Invariant: what such code raises, or returns that can't be used, is a ``JobError`` that names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from p2ptrain.errors import JobError
from p2ptrain.learning.own.blame import own_code
from p2ptrain.learning.own.building import function_of
from p2ptrain.learning.own.importing import working_directory_on_path

_SIGNATURES = {
    "loss": "def loss(logits, y): ... return the mean loss",
    "schedule": "def schedule(step, total_steps): ... return a factor on the learning rate",
    "optimizer": "def optimizer(parameters, learning_rate): ... return a torch.optim.Optimizer",
    "transform": "def transform(x): ... return x changed, in the same shape",
}


@lru_cache(maxsize=16)
def _function(kind: str, name: str) -> Callable[..., Any]:
    with working_directory_on_path():
        return function_of(name, f"{kind} {name!r}", _SIGNATURES[kind])


def own_loss(name: str, logits: Tensor, y: Tensor) -> Tensor:
    """Of logits [M, classes] and labels [M]: a number."""
    with own_code(f"loss {name!r} fails", advice="correct it"):
        loss = _function("loss", name)(logits, y)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        what = f"{loss.dtype} of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise JobError(f"loss {name!r} returns {what}; expected one number: the mean over the batch")
    if torch.is_grad_enabled() and logits.requires_grad and not loss.requires_grad:
        raise JobError(f"loss {name!r} has no gradient, so nothing can be learnt; take .item() and detach() out of it")
    return loss.reshape(())


def own_factor(name: str, step: int, total_steps: int) -> float:
    """On the learning rate, at a step from 0 on."""
    with own_code(f"schedule {name!r} fails at step {step} of {total_steps}", advice="correct it"):
        factor = float(_function("schedule", name)(step, total_steps))
    if not 0 <= factor < math.inf:
        raise JobError(f"schedule {name!r} returns {factor} at step {step} of {total_steps}; expected 0 or more")
    return factor


def own_optimizer(name: str, parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    with own_code(f"optimizer {name!r} fails", advice="correct it"):
        optimizer = _function("optimizer", name)(list(parameters), learning_rate)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise JobError(f"optimizer {name!r} returns {type(optimizer).__name__}; expected a torch.optim.Optimizer")
    return optimizer


def own_step(name: str, optimizer: torch.optim.Optimizer) -> None:
    """A step of an optimizer; ``name``: its own one's, "" where it is one of p2ptrain's."""
    if not name:
        optimizer.step()
        return
    with own_code(f"optimizer {name!r} fails in a step", advice="correct it; it is called without a closure"):
        optimizer.step()


def own_transform(name: str, x: Tensor, seed: int) -> Tensor:
    """[N, C, H, W] float32, not normalised. With the seed torch draws the same numbers again."""
    with torch.random.fork_rng(devices=[]), own_code(f"transform {name!r} fails", advice="correct it"):
        torch.default_generator.manual_seed(seed)
        changed = _function("transform", name)(x)
    if not isinstance(changed, Tensor) or changed.shape != x.shape or not changed.is_floating_point():
        what = list(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        raise JobError(f"transform {name!r} returns {what} for samples {list(x.shape)}; expected floats of that shape")
    if not bool(changed.isfinite().all()):
        raise JobError(f"transform {name!r} returns infinite or missing numbers")
    return changed.detach().to(torch.float32)
