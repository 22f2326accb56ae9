"""What an optimizer remembers of each parameter, as snapshots carry it from device to device: ``optim.KEY.NAME``.

Of SGD and AdamW that is known. Of somebody's own optimizer it is found out: one like it makes a step on a parameter of
the same shape, and what it remembers then are the keys, shapes and types that its state has. Python's own numbers
travel as tensors of no dimension.

Invariant: what is taken over is what this very optimizer makes, all of it or nothing, and finite. What an own one
remembers otherwise is a ``JobError`` where it is, and never left out in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from p2ptrain.config import TrainingConfig
from p2ptrain.errors import JobError, RemoteError
from p2ptrain.learning.own.parts import own_optimizer, own_step

ADVICE = 'take mode "replicas" or "tasks", where each device has all parameters of what it trains'
_NUMBERS: Mapping[type, torch.dtype] = {int: torch.int64, float: torch.float64}


@dataclass(frozen=True, slots=True)
class Slot:
    """One thing that is remembered of a parameter. ``number``: Python's own type of it; None: it is a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    number: type | None = None


def slots_of(config: TrainingConfig, parameter: Tensor) -> Mapping[str, Slot]:
    """By key, once a step is made. Raises ``JobError`` for an own optimizer whose state can't travel."""
    shape, dtype, device = tuple(parameter.shape), parameter.dtype, parameter.device
    if config.own_optimizer:
        return _tried(config.own_optimizer, config.learning_rate, shape, dtype, device)
    like = Slot(shape, dtype, device)
    if config.optimizer == "sgd":
        return {"momentum_buffer": like}
    return {"step": Slot((), torch.float32, device), "exp_avg": like, "exp_avg_sq": like}


@lru_cache(maxsize=1024)
def _tried(
    name: str, rate: float, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Mapping[str, Slot]:
    with torch.random.fork_rng(devices=[]):
        parameter = nn.Parameter(torch.full(shape, 0.01, dtype=dtype, device=device))
        parameter.grad = torch.full_like(parameter, 0.01)
        optimizer = own_optimizer(name, [parameter], rate)
        own_step(name, optimizer)
    found = {}
    for key, value in optimizer.state.get(parameter, {}).items():
        if value is None:
            continue
        if not isinstance(key, str) or "." in key or not (isinstance(value, Tensor) or type(value) in _NUMBERS):
            raise JobError(
                f"optimizer {name!r} remembers {key!r} of a parameter, a {type(value).__name__}: tensors and numbers "
                f"can go from device to device, under names without a point; {ADVICE}"
            )
        if isinstance(value, Tensor):
            found[key] = Slot(tuple(value.shape), value.dtype, value.device)
        else:
            found[key] = Slot((), _NUMBERS[type(value)], torch.device("cpu"), type(value))
    return found


def state_tensors(
    config: TrainingConfig,
    optimizer: torch.optim.Optimizer | None,
    name: str,
    parameter: Tensor,
    taken: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """What is remembered of a parameter, by its name in a snapshot. ``taken``: how a tensor gets to the CPU."""
    held = optimizer.state.get(parameter, {}) if optimizer is not None else {}
    if not config.own_optimizer:
        return {f"optim.{key}.{name}": taken(value) for key, value in held.items() if isinstance(value, Tensor)}
    slots, found = slots_of(config, parameter) if held else {}, dict[str, Tensor]()
    for key, value in held.items():
        slot = slots.get(key)
        if value is None and slot is None:
            continue
        if slot is not None and slot.number is type(value):
            value = torch.tensor(value, dtype=slot.dtype)
        if (
            slot is None
            or not isinstance(value, Tensor)
            or (tuple(value.shape), value.dtype) != (slot.shape, slot.dtype)
        ):
            raise JobError(
                f"optimizer {config.own_optimizer!r}: what it remembers of {name!r} as {key!r} is not as it was after "
                f"its first step, so it can't go from device to device; {ADVICE}"
            )
        found[f"optim.{key}.{name}"] = taken(value)
    return found


def checked_state(config: TrainingConfig, name: str, parameter: Tensor, given: Mapping[str, Tensor]) -> dict[str, Any]:
    """A parameter's state by key, where it belongs, the parameter's layout in it, as fused kernels need. {} where none
    is given: it begins anew. Raises ``RemoteError`` for what does not fit."""
    slots = slots_of(config, parameter) if given else {}
    for key in given:
        if key not in slots:
            raise RemoteError("snapshot", f"optimizer state {key}.{name} is unknown")
    if len(given) != len(slots):
        raise RemoteError("snapshot", f"optimizer state of {name!r} is incomplete")
    placed: dict[str, Any] = {}
    for key, tensor in given.items():
        slot = slots[key]
        is_sound = tuple(tensor.shape) == slot.shape and tensor.dtype == slot.dtype and bool(tensor.isfinite().all())
        if not is_sound:
            raise RemoteError("snapshot", f"optimizer state {key}.{name} has a wrong shape, dtype, or is not finite")
        if not config.own_optimizer and key in ("exp_avg_sq", "step") and bool((tensor < 0).any()):
            raise RemoteError("snapshot", f"optimizer state {key}.{name} is below zero")
        if slot.number is not None:
            placed[key] = slot.number(tensor.item())
        else:
            is_like = (slot.shape, slot.dtype) == (tuple(parameter.shape), parameter.dtype)
            like = parameter.detach() if is_like else tensor
            placed[key] = torch.empty_like(like, device=slot.device).copy_(tensor)
    return placed
