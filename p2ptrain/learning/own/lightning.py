"""A LightningModule trains by its own ``training_step``, and with the optimizer of its ``configure_optimizers``, where
the job names them: ``lightning:training_step`` as its loss, ``lightning:configure_optimizers`` as its optimizer.

Lightning itself is not needed: what has such a method will do. There is no ``Trainer``: hooks and callbacks don't run,
what the module logs goes nowhere, and gradients are clipped and rounds counted as in every job.

Invariant: what such a module can't do here (several optimizers, optimizing by hand, no loss) is a ``JobError``.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from p2ptrain.errors import JobError
from p2ptrain.learning.own.blame import own_code
from p2ptrain.learning.own.outputs import whole_outputs
from p2ptrain.model_config import LIGHTNING_LOSS, LIGHTNING_OPTIMIZER

NO_TRAINER = "correct the model; there is no Trainer here, and a batch is (x, y)"
_PACKAGES = ("lightning", "pytorch_lightning")
_CALLED = frozenset(("__init__", "forward", "training_step", "configure_optimizers"))
_NOT_OF_TRAINING = ("validat", "test", "predict", "dataloader", "prepare_data", "checkpoint", "log", "print", "example")
"""What the names of methods have in them that have no part in how it is trained."""
_COUNTERS = ("current_epoch", "global_step")
"""What a module is told by its Trainer; without one it reads 0."""

# It says once more, of every process, what `job check` and the README say.
warnings.filterwarnings("ignore", message=r"You are trying to `self\.log\(\)`")


def is_lightning(model: nn.Module) -> bool:
    """Whether it is one of that class, by name: of lightning, or of pytorch_lightning."""
    return any(
        kind.__name__ == "LightningModule" and kind.__module__.partition(".")[0] in _PACKAGES
        for kind in type(model).__mro__
    )


def of_no_use(model: nn.Module) -> list[str]:
    """What of a LightningModule's own methods a Trainer would call, or tell, in training, and nobody does here, for
    people."""
    methods = [(n, code) for n, code in _own_methods(model) if not _is_of_lightning(model, n) or _is_of_training(n)]
    hooks = list(dict.fromkeys(n for n, _ in methods if _is_of_lightning(model, n) and n not in _CALLED))
    readers = {
        each: dict.fromkeys(n for n, code in methods if n not in hooks and each in code.co_names) for each in _COUNTERS
    }
    found = [f"{each} stays 0, which {', '.join(names)} of it reads" for each, names in readers.items() if names]
    if hooks:
        found.insert(0, f"{', '.join(hooks[:6])}{' ...' if len(hooks) > 6 else ''} of it are not called")
    return [f"{what}: there is no Trainer here" for what in found]


def _own_methods(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and code of what its author's own classes define."""
    for kind in type(model).__mro__:
        if kind.__module__.partition(".")[0] not in (*_PACKAGES, "torch", "builtins"):
            for name, method in vars(kind).items():
                if inspect.isfunction(method):
                    yield name, method.__code__


def _is_of_training(name: str) -> bool:
    """Whether a method of that name of Lightning's has a part in training."""
    return name in _CALLED or not (name.startswith("_") or any(word in name for word in _NOT_OF_TRAINING))


def _is_of_lightning(model: nn.Module, name: str) -> bool:
    """Whether a method of that name stands in for one of Lightning's own."""
    return any(name in vars(k) for k in type(model).__mro__ if k.__module__.partition(".")[0] in _PACKAGES)


def step_loss(model: nn.Module, x: Tensor, y: Tensor, step: int) -> Tensor:
    """What its ``training_step`` makes of a batch (x, y), in training mode: a number with a gradient."""
    method = _method(model, "training_step", LIGHTNING_LOSS)
    if getattr(model, "automatic_optimization", True) is False:
        raise JobError(
            f"{LIGHTNING_LOSS}: {type(model).__name__} optimizes by hand (automatic_optimization = False); here the "
            "device steps, so return the loss and let it be True"
        )
    with own_code("the model's training_step fails", model, NO_TRAINER), whole_outputs(model):
        found = method((x, y), step) if _takes_two(method) else method((x, y))
    loss: Any = found.get("loss") if isinstance(found, Mapping) else found
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point() or not loss.requires_grad:
        what = f"{loss.dtype} of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise JobError(f"the model's training_step returns {what}; expected the loss, one number with a gradient")
    return loss.reshape(())


def configured_optimizer(model: nn.Module) -> tuple[torch.optim.Optimizer, str]:
    """What its ``configure_optimizers`` returns, and what of that is not used, for people."""
    method = _method(model, "configure_optimizers", LIGHTNING_OPTIMIZER)
    with own_code("the model's configure_optimizers fails", model, NO_TRAINER):
        found = method()
    optimizers, schedulers = _split(found)
    if len(optimizers) != 1 or not isinstance(optimizers[0], torch.optim.Optimizer):
        what = f"{len(optimizers)} optimizers" if len(optimizers) > 1 else type(found).__name__
        raise JobError(
            f"{LIGHTNING_OPTIMIZER}: the model's configure_optimizers returns {what}; expected a torch.optim.Optimizer"
        )
    _undo_cycles(optimizers[0], schedulers)
    unused = "its learning-rate scheduler is not used: the job's schedule scales its optimizer's own rates"
    return optimizers[0], unused if schedulers else ""


def _undo_cycles(optimizer: torch.optim.Optimizer, schedulers: Sequence[Any]) -> None:
    """Schedulers that cycle have set what they begin with: the lowest rate, the highest momentum. The groups get what
    they mean at the height of a cycle: ``max_lr``, and the momentum that goes with it."""
    for scheduler in schedulers:
        made = scheduler.get("scheduler") if isinstance(scheduler, Mapping) else scheduler
        for each in (made, *getattr(made, "_schedulers", ())):
            for group, highest in zip(optimizer.param_groups, getattr(each, "max_lrs", ()), strict=False):
                group["max_lr"] = highest
    for group in optimizer.param_groups:
        if "base_momentum" in group:
            momentum = group["base_momentum"]
            group.update({"betas": (momentum, *group["betas"][1:])} if "betas" in group else {"momentum": momentum})


def own_rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    """By parameter group, the learning rate that its author means. A scheduler that was made with it has set other ones
    for the first step (0, where rates are to rise from there), and keeps what they were, or rise to, in the group."""
    rate = ("max_lr", "initial_lr", "lr")
    groups = enumerate(optimizer.param_groups)
    return {number: float(next(group[key] for key in rate if key in group)) for number, group in groups}


def _method(model: nn.Module, name: str, asked: str) -> Any:
    method = getattr(model, name, None)
    if not callable(method):
        raise JobError(
            f"{asked}: the job's model, {type(model).__name__}, has no method {name}; is it a LightningModule?"
        )
    return method


def _takes_two(method: Callable[..., Any]) -> bool:
    """Whether it wants the batch's number, too; as in Lightning it need not."""
    try:
        inspect.signature(method).bind(None, 0)
    except (TypeError, ValueError):
        return False
    return True


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
