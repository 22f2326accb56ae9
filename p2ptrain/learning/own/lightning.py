"""A LightningModule trains by its own ``training_step``, and with the optimizer of its ``configure_optimizers``, where
the job names them: ``lightning:training_step`` as its loss, ``lightning:configure_optimizers`` as its optimizer.

Lightning itself is not needed: what has such a method will do. There is no ``Trainer``: hooks and callbacks don't run,
what the module logs goes nowhere, and gradients are clipped and rounds counted as in every job.

Invariant: what such a module can't do here (several optimizers, optimizing by hand, no loss) is a ``JobError``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from p2ptrain.errors import JobError
from p2ptrain.learning.own.blame import own_code
from p2ptrain.learning.own.outputs import whole_outputs
from p2ptrain.model_config import LIGHTNING_LOSS, LIGHTNING_OPTIMIZER


def is_lightning(model: nn.Module) -> bool:
    """Whether it is one of that class, by name: of lightning, or of pytorch_lightning."""
    return any(
        kind.__name__ == "LightningModule" and kind.__module__.partition(".")[0] in ("lightning", "pytorch_lightning")
        for kind in type(model).__mro__
    )


def step_loss(model: nn.Module, x: Tensor, y: Tensor, step: int) -> Tensor:
    """What its ``training_step`` makes of a batch (x, y), in training mode: a number with a gradient."""
    method = _method(model, "training_step", LIGHTNING_LOSS)
    if getattr(model, "automatic_optimization", True) is False:
        raise JobError(
            f"{LIGHTNING_LOSS}: {type(model).__name__} optimizes by hand (automatic_optimization = False); here the "
            "device steps, so return the loss and let it be True"
        )
    with own_code("the model's training_step fails", model), whole_outputs(model):
        found = method((x, y), step)
    loss: Any = found.get("loss") if isinstance(found, Mapping) else found
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point() or not loss.requires_grad:
        what = f"{loss.dtype} of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise JobError(f"the model's training_step returns {what}; expected the loss, one number with a gradient")
    return loss.reshape(())


def configured_optimizer(model: nn.Module) -> tuple[torch.optim.Optimizer, str]:
    """What its ``configure_optimizers`` returns, and what of that is not used, for people."""
    method = _method(model, "configure_optimizers", LIGHTNING_OPTIMIZER)
    with own_code("the model's configure_optimizers fails", model):
        found = method()
    optimizers, schedulers = _split(found)
    if len(optimizers) != 1 or not isinstance(optimizers[0], torch.optim.Optimizer):
        what = f"{len(optimizers)} optimizers" if len(optimizers) > 1 else type(found).__name__
        raise JobError(
            f"{LIGHTNING_OPTIMIZER}: the model's configure_optimizers returns {what}; expected a torch.optim.Optimizer"
        )
    unused = "its learning-rate scheduler is not used: the job's schedule scales its optimizer's own rates"
    return optimizers[0], unused if schedulers else ""


def _method(model: nn.Module, name: str, asked: str) -> Any:
    method = getattr(model, name, None)
    if not callable(method):
        raise JobError(
            f"{asked}: the job's model, {type(model).__name__}, has no method {name}; is it a LightningModule?"
        )
    return method


def _split(found: Any) -> tuple[list[Any], list[Any]]:
    """The forms that Lightning knows, as optimizers and schedulers."""
    if isinstance(found, Mapping):
        return [found.get("optimizer")], [found["lr_scheduler"]] if found.get("lr_scheduler") else []
    if isinstance(found, Sequence):
        if len(found) == 2 and all(isinstance(each, (list, tuple)) for each in found):
            return list(found[0]), list(found[1])
        pairs = [_split(each) for each in found]
        return [one for made, _ in pairs for one in made], [one for _, made in pairs for one in made]
    return [found], []
