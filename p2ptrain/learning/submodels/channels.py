"""Which channel of which layer each axis of each tensor belongs to.

Every channel has an id. Ids that a split must not separate are joined into *classes* (union-find).

Invariant: a recorded axis holds one id per index of the tensor; ids in the same class always go to the same sub-models.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from p2ptrain.errors import JobError

NEXT_STEP = 'change the layer, put it in the trunk that all share (tasks.trunk = N), or train with mode = "replicas"'


@dataclass(slots=True)
class Channels:
    """The channel ids of a model's tensors. ``axes[tensor][axis]``: an id per index; None: no channels on this axis."""

    axes: dict[str, tuple[Tensor | None, ...]] = field(default_factory=dict)
    modules: dict[str, Tensor] = field(default_factory=dict)  # leaf layer with tensors -> ids of its output channels
    created: dict[str, Tensor] = field(default_factory=dict)  # layers that make channels -> their ids
    layers: list[str] = field(default_factory=list)  # all weight layers, in the order in which they run
    inputs: list[int] = field(default_factory=list)  # ids of the input channels
    unsplittable: list[tuple[Tensor, str]] = field(default_factory=list)  # ids that must be in the trunk, and why
    mixed: list[tuple[int, str]] = field(default_factory=list)  # an id whose class something mixed, and what
    head: str = ""
    parents: list[int] = field(default_factory=list)
    traced: fx.GraphModule | None = None

    def fresh(self, num_ids: int) -> Tensor:
        first = len(self.parents)
        self.parents.extend(range(first, first + num_ids))
        return torch.arange(first, first + num_ids)

    def root(self, one: int) -> int:
        while self.parents[one] != one:
            self.parents[one] = self.parents[self.parents[one]]
            one = self.parents[one]
        return one

    def roots(self, ids: Tensor) -> list[int]:
        return [self.root(one) for one in ids.tolist()]

    def join(self, a: Tensor, b: Tensor) -> bool:
        """Put ids of equal position in the same class; whether that changed anything."""
        changed = False
        for one, other in set(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)):
            one, other = self.root(one), self.root(other)
            if one != other:
                self.parents[max(one, other)] = min(one, other)
                changed = True
        return changed

    def classes_in_trunk(self, trunk: int) -> set[int]:
        """The classes that all hold: the input, the first ``trunk`` layers' outputs, and what these depend on."""
        shared = {self.root(one) for one in self.inputs}
        for layer in self.layers[:trunk]:
            shared.update(self.roots(self.modules[layer]))
        grown = True
        while grown:
            grown = False
            for layer in self.layers:
                consumed = self.axes[f"{layer}.weight"][1]
                if layer == self.head or consumed is None or not shared.intersection(self.roots(self.modules[layer])):
                    continue
                before = len(shared)
                shared.update(self.roots(consumed))
                grown |= len(shared) > before
        for ids, why in self.unsplittable:
            if not shared.issuperset(self.roots(ids)):
                raise JobError(f"the model can't be divided into class sub-models: {why}; {NEXT_STEP}")
        return shared
