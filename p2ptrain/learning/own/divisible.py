"""Whether an own optimizer can be divided among devices: each has some parameters, and they change hands.

Tried, not asked: on four small parameters it makes some steps, once with all of them in one optimizer, and once with
two for half of them each, which others take over half-way with what was remembered by parameter. If the numbers come
out the same, a pipeline's stages train what one process would. They don't where a step hangs on all gradients (their
norm, say), where something is counted for all parameters together, or where random numbers are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from p2ptrain.config import TrainingConfig
from p2ptrain.errors import JobError
from p2ptrain.learning.own.parts import own_optimizer, own_step
from p2ptrain.learning.pipeline.optimizer_state import ADVICE, checked_state, state_tensors
from p2ptrain.learning.snapshots import copy_to_cpu

SHAPES = ((4, 3, 3, 3), (4,), (5, 4), (5,))
STEPS = 3
"""In each half."""


def check_divisible(config: TrainingConfig) -> None:
    """Raises ``JobError`` saying why not. Built-in optimizers can."""
    if not config.own_optimizer:
        return
    with torch.random.fork_rng(devices=[]):
        whole = _trained(config, [[[0, 1, 2, 3]]] * 2, anew=False)
        divided = _trained(config, [[[0, 1], [2, 3]], [[0], [1, 2, 3]]], anew=True)
    for one, other in zip(whole, divided, strict=True):
        if not torch.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise JobError(
                f"optimizer {config.own_optimizer!r} can't be divided among devices: with some of the parameters, and "
                "with what it remembers of each, it makes other steps than with all. Perhaps a step of one parameter "
                f"hangs on the others, or it counts for all together; {ADVICE}"
            )


def _trained(config: TrainingConfig, halves: Sequence[Sequence[Sequence[int]]], *, anew: bool) -> list[Tensor]:
    """``halves``: in each, which parameters the optimizers have; ``anew``: others than in the half before."""
    draw = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]
    optimizers: list[torch.optim.Optimizer] = []
    for number, half in enumerate(halves):
        if anew or not optimizers:
            held = [_held(config, optimizers, number, p) for number, p in enumerate(parameters)]
            optimizers = [
                own_optimizer(config.own_optimizer, [parameters[i] for i in own], config.learning_rate) for own in half
            ]
            for own, optimizer in zip(half, optimizers, strict=True):
                for i in own:
                    if state := checked_state(config, str(i), parameters[i], held[i]):
                        optimizer.state[parameters[i]] = state
        for step in range(STEPS):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=draw)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate / (1 + number * STEPS + step)
                own_step(config.own_optimizer, optimizer)
    return [parameter.detach() for parameter in parameters]


def _held(
    config: TrainingConfig, optimizers: Sequence[torch.optim.Optimizer], number: int, parameter: nn.Parameter
) -> dict[str, Tensor]:
    """By key, what any of them remembers of a parameter."""
    found: dict[str, Tensor] = {}
    for optimizer in optimizers:
        for name, tensor in state_tensors(config, optimizer, str(number), parameter, copy_to_cpu).items():
            found[name.split(".")[1]] = tensor
    return found
