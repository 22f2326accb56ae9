"""The outer optimizer of replicas: Nesterov momentum over what whole rounds changed (DiLoCo; Douillard et al., 2023).

Between two of its steps training goes on as ever, the *inner* steps. What they changed is taken for one gradient:

    delta = x - start
    velocity = momentum velocity + delta
    x = start = start + rate (delta + momentum velocity)

DiLoCo averages the deltas of all peers before each such step. Here each peer makes the step of its own delta, and
gossip averages what comes out (as NoLoCo does by pairs; Kolehmainen et al., 2025). The step is linear, so the mean of
all peers moves as DiLoCo's model does, whoever averages with whom; only their distances from it are gossip's. What a
merge changes is nobody's training: it moves x and start alike.

Invariant: training from a snapshot of ``tensors`` goes on as if it had not stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from p2ptrain.errors import RemoteError
from p2ptrain.learning.averaging import check_state

PREFIX = "outer."
START, VELOCITY = f"{PREFIX}start.", f"{PREFIX}velocity."


class OuterNesterov:
    """Of one model's ``parameters``, which it changes in place."""

    @torch.no_grad()
    def __init__(self, parameters: Mapping[str, Tensor], rate: float, momentum: float) -> None:
        self._parameters = {name: tensor.detach() for name, tensor in parameters.items()}
        self._rate, self._momentum = rate, momentum
        self._start = {name: tensor.clone() for name, tensor in self._parameters.items()}
        self._velocity = {name: torch.zeros_like(tensor) for name, tensor in self._parameters.items()}

    @torch.no_grad()
    def step(self) -> None:
        """After the inner steps."""
        for name, x in self._parameters.items():
            start, velocity = self._start[name], self._velocity[name]
            delta = x - start
            velocity.mul_(self._momentum).add_(delta)
            start.add_(delta.add_(velocity, alpha=self._momentum), alpha=self._rate)
            x.copy_(start)

    @contextmanager
    def merging(self) -> Iterator[None]:
        """What changes within it is a merge, which may fail, and nobody's training."""
        for name, x in self._parameters.items():
            self._start[name].sub_(x)
        try:
            yield
        finally:
            for name, x in self._parameters.items():
                self._start[name].add_(x)

    def tensors(self) -> dict[str, Tensor]:
        """A copy on the CPU, for a snapshot."""
        kept = {f"{START}{name}": tensor for name, tensor in self._start.items()}
        kept |= {f"{VELOCITY}{name}": tensor for name, tensor in self._velocity.items()}
        return {name: tensor.cpu().clone() for name, tensor in kept.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """From a snapshot, which may be another peer's (``RemoteError``); of none it begins with what there is."""
        if not tensors:
            for name, x in self._parameters.items():
                self._start[name].copy_(x)
                self._velocity[name].zero_()
            return
        starts = {n.removeprefix(START): t for n, t in tensors.items() if n.startswith(START)}
        velocities = {n.removeprefix(VELOCITY): t for n, t in tensors.items() if n.startswith(VELOCITY)}
        if len(starts) + len(velocities) != len(tensors):
            raise RemoteError("snapshot", "a tensor of the outer optimizer that does not exist")
        for kept, own in ((starts, self._start), (velocities, self._velocity)):
            check_state(kept, own)
        for kept, own in ((starts, self._start), (velocities, self._velocity)):
            for name, tensor in own.items():
                tensor.copy_(kept[name])
