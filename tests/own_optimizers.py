"""Optimizers as somebody may write them: some can be divided among devices by parameters, some can't."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Counted(torch.optim.Optimizer):
    """Signs of a running mean (Lion; Chen et al. 2023), smaller with each step, which Python counts."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                mean = state.setdefault("exp_avg", torch.zeros_like(p))
                state["count"] = state.get("count", 0) + 1
                p.add_(torch.tanh(50 * mean + 5 * p.grad), alpha=-group["lr"] / state["count"])
                mean.lerp_(p.grad, 0.1)


class Together(torch.optim.SGD):
    """Its steps are of one length in all."""

    def step(self, closure: Any = None) -> None:
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([g.norm() for g in grads]).norm()
        for g in grads:
            g.div_(norm)
        super().step()


class Grouped(torch.optim.SGD):
    """Counts its steps for all parameters together."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            group["lr"] /= group["k"]
        super().step()


class Listing(torch.optim.SGD):
    """Remembers all gradients."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("all", []).append(p.grad.clone())
        super().step()


class Growing(torch.optim.SGD):
    """Remembers something else later than at first."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["last"] = torch.zeros(len(state.get("last", ())) + 1)
        super().step()


def adam(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=learning_rate, amsgrad=True)


def counted(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    return Counted(parameters, learning_rate)


def factored(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(parameters, lr=learning_rate)


def plain(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=learning_rate)


def together(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    return Together(parameters, lr=learning_rate)


def grouped(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    return Grouped(parameters, lr=learning_rate)


def listing(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    return Listing(parameters, lr=learning_rate)


def growing(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    return Growing(parameters, lr=learning_rate)


def by_place(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    first, *others = parameters
    groups = [{"params": [first], "momentum": 0.9}, *([{"params": others}] if others else [])]
    return torch.optim.SGD(groups, lr=learning_rate)


def lbfgs(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, lr=learning_rate)


Make = Callable[[Iterable[Tensor], float], torch.optim.Optimizer]
DIVISIBLE: dict[str, Make] = {"adam": adam, "counted": counted, "factored": factored, "plain": plain}
