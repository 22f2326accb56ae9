"""Class sub-models decoupled from one model, and the fold that puts them back into one of the original architecture.

Each space of channels that belong together (see ``channels``) is divided among the class groups. A sub-model keeps
its group's channels on both axes of every decoupled layer, the whole trunk, and its classes' rows of the last layer.
Put back, the sub-models are the blocks of a block-diagonal model (Chen & Qin, SEC 2020).

Invariant: in eval mode the assembled model gives exactly the sub-models' logits, to float tolerance.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from p2ptrain.errors import JobError, LocalError
from p2ptrain.learning.own.copying import copied
from p2ptrain.learning.submodels.analysis import analyse, check
from p2ptrain.learning.submodels.channels import Channels
from p2ptrain.learning.submodels.dividing import SHARED, assign, checked_groups, checked_shares
from p2ptrain.learning.submodels.narrowing import replace_tensors, set_sizes
from p2ptrain.learning.submodels.views import Axes, View, put, take

Targets = Literal["all", "rest", "own"]
Combine = Literal["own", "sum"]

MIN_CHANNELS = 4
"""A sub-model's narrowest layer has so many at least, where nobody asked for a number of groups."""


class Decoupling:
    """How one model is divided among class groups. Reads the model's weights when asked for a sub-model, never writes.

    ``shares``: each group's part of the channels, 1/G each by default. ``trunk``: this many weight layers, in the order
    in which they run, are held by everyone, with all that they depend on. ``scores``: by layer, how much each class
    needs each channel [classes, channels]; without them a group's channels are a run.
    """

    def __init__(
        self,
        model: nn.Module,
        input_shape: Sequence[int],
        groups: Sequence[Sequence[int]],
        *,
        shares: Sequence[float] | None = None,
        trunk: int = 0,
        scores: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._model = model
        self._channels: Channels = analyse(model, input_shape)
        self.head = self._channels.head
        self.num_classes = self._channels.created[self.head].numel()
        self.groups = checked_groups(groups, self.num_classes)
        self.shares = checked_shares(shares, len(self.groups))
        num_layers = len(self._channels.layers)
        if not 0 <= trunk < num_layers:
            raise JobError(
                f"tasks.trunk is {trunk}, but the model has {num_layers} weight layers and the last can't be shared; "
                f"use 0 to {num_layers - 1}"
            )
        self._shared = self._channels.classes_in_trunk(trunk)
        self._views: dict[tuple[int, bool], View] = {}
        self._owner = assign(self._channels, self._shared, self.groups, self.shares, scores or {})
        self._axes = {name: self._axes_owners(name) for name in model.state_dict()}
        self.trunk_names = frozenset(name for name in self._axes if self._is_shared(name))
        self._refuse_half_shared()
        for group in range(len(self.groups)):
            check(self._channels, self._held(group))

    @property
    def channel_layers(self) -> Mapping[str, int]:
        """The layers that make decoupled channels, in the order in which they run, with how many they make."""
        created = self._channels.created
        layers = [name for name in self._channels.layers if name in created and name != self.head]
        return MappingProxyType(
            {n: created[n].numel() for n in layers if not self._shared.issuperset(self._channels.roots(created[n]))}
        )

    def view(self, group: int, targets: Targets = "own") -> View:
        """What a sub-model holds of the global state. Head rows: own classes in the group's order, or all of them."""
        every_row = targets == "all"
        if (group, every_row) not in self._views:
            self._views[group, every_row] = self._make_view(group, every_row)
        return self._views[group, every_row]

    def submodel(self, group: int, targets: Targets, *, rescale: bool = False) -> nn.Module:
        """The group's sub-model: same forward code and tensor names, narrowed layers, weights taken from the model.

        Logits: "all" every class in global order; "own" the group's classes in its order; "rest" these, then one fresh
        row for everything else. ``rescale`` is for a freshly initialised model: weights grow by sqrt(fan-in / own
        fan-in), so that signals keep their size through narrowed layers.
        """
        weights = take(self._model.state_dict(), self.view(group, targets))
        if rescale:
            for name, owners in self._axes.items():
                if len(owners) > 1 and owners[1] is not None:
                    weights[name] *= math.sqrt(owners[1].numel() / weights[name].shape[1])
        if targets == "rest":
            for name in filter(self._is_head, self._axes):
                weights[name] = torch.cat([weights[name], self._rest_row(weights[name], group)])
        shared_memory = [*self._model.parameters(), *self._model.buffers()]
        narrow = copied(self._model, {id(tensor): tensor for tensor in shared_memory})
        held = self._held(group)
        for name, module in narrow.named_modules():
            replace_tensors(name, module, weights)
            if name == self.head:
                set_sizes(module, weights[f"{name}.weight"].shape[0], weights[f"{name}.weight"])
            elif name in self._channels.modules:
                num_channels = int(held[self._channels.modules[name]].sum())
                set_sizes(module, num_channels, weights.get(f"{name}.weight"))
        return narrow

    def assemble(
        self,
        parts: Mapping[int, Mapping[str, Tensor]],
        *,
        targets: Targets,
        combine: Combine = "own",
        base: Mapping[str, Tensor] | None = None,
        trunk: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The global state of the original architecture from the sub-models' states; zeros off the diagonal.

        "own": the logit of a class is its own sub-model's, less that one's rest logit if there is one. "sum" (targets
        "all"): the logits are the mean of all the given sub-models'. Groups without a part keep the base's coordinates,
        or zero (with "sum" their columns of the head stay zero: they have no vote). Trunks that differ must have been
        averaged: ``trunk``.
        """
        if combine == "sum" and targets != "all":
            raise LocalError('combine "sum" needs targets "all": every sub-model must know every class')
        whole = {name: torch.zeros_like(tensor) for name, tensor in self._model.state_dict().items()}
        for group in range(len(self.groups)):
            if group not in parts and base is not None:
                view = self.view(group)
                kept = {n: a for n, a in view.axes.items() if not (combine == "sum" and self._is_head(n))}
                put(take(base, View(kept)), View(kept), whole)
        for group in sorted(parts):
            axes = self.view(group).axes
            body = {n: a for n, a in axes.items() if not self._is_head(n) and n not in self.trunk_names}
            put(parts[group], View(body), whole)
            self._fold_head(whole, parts[group], group, targets, len(parts) if combine == "sum" else None)
        for name in whole:
            if not whole[name].is_floating_point() and parts:  # counters: the largest
                whole[name].copy_(torch.stack([torch.as_tensor(part[name]) for part in parts.values()]).amax(0))
        if parts:
            shared = {name: self._trunk_tensor(name, parts, trunk) for name in self.trunk_names}
            put(shared, View({name: (None,) * whole[name].dim() for name in shared}), whole)
        return whole

    # Assembling.

    def _fold_head(
        self, whole: dict[str, Tensor], part: Mapping[str, Tensor], group: int, targets: Targets, num_voters: int | None
    ) -> None:
        """Add a sub-model's rows of the last layer, which is linear: differences and means of logits fold into it."""
        own = torch.tensor(self.groups[group])
        view = self.view(group, targets)
        for name in filter(self._is_head, self._axes):
            into, rows = whole[name], part[name].detach().to(whole[name])
            expected = list(view.shape(name, into.shape))
            expected[0] += targets == "rest"
            if list(rows.shape) != expected:
                raise LocalError(f"head tensor {name!r} of group {group} has shape {tuple(rows.shape)}, not {expected}")
            if num_voters is not None:
                classes, rows = torch.arange(self.num_classes), rows / num_voters
            else:
                classes = own
                rows = {"all": lambda r: r[own], "own": lambda r: r, "rest": lambda r: r[:-1] - r[-1:]}[targets](rows)
            wide = torch.zeros_like(into)
            axes = (classes, *view.axes[name][1:])
            put({name: rows}, View({name: axes}), {name: wide})
            if num_voters is None:
                into[own] = 0  # a shared column of the base's is replaced, not added to
            into += wide

    def _trunk_tensor(
        self, name: str, parts: Mapping[int, Mapping[str, Tensor]], trunk: Mapping[str, Tensor] | None
    ) -> Tensor:
        if trunk is not None:
            if name in trunk:
                return trunk[name]
            if next(iter(parts.values()))[name].is_floating_point():
                raise LocalError(f"the given trunk has no tensor {name!r}")
        first, *others = (part[name] for _, part in sorted(parts.items()))
        if not first.is_floating_point():
            return torch.stack([first, *others]).amax(0)
        if not all(torch.equal(first, other) for other in others):
            raise LocalError(f"the parts' trunks differ (tensor {name!r}): average them first and give trunk=")
        return first

    # Who holds what.

    def _refuse_half_shared(self) -> None:
        for name, owners in self._axes.items():
            if self._is_head(name) or not owners or owners[0] is None:
                continue
            shared = owners[0] == SHARED
            if bool(shared.any()) and not bool(shared.all()):
                raise JobError(
                    f"layer {name.rpartition('.')[0]!r} holds channels of the shared trunk and of the sub-models in "
                    "one tensor; end the trunk before or after the layers that it is joined with (tasks.trunk)"
                )

    def _make_view(self, group: int, every_row: bool) -> View:
        axes: dict[str, Axes] = {}
        for name, owners in self._axes.items():
            indices = [None if o is None else _index((o == group) | (o == SHARED)) for o in owners]
            if self._is_head(name) and not every_row:
                indices[0] = torch.tensor(self.groups[group])
            axes[name] = tuple(indices)
        return View(MappingProxyType(axes))

    def _held(self, group: int) -> Tensor:
        return (self._owner == group) | (self._owner == SHARED)

    def _axes_owners(self, name: str) -> tuple[Tensor | None, ...]:
        return tuple(None if ids is None else self._owner[ids] for ids in self._channels.axes[name])

    def _is_head(self, name: str) -> bool:
        return name.rpartition(".")[0] == self.head

    def _is_shared(self, name: str) -> bool:
        """Held whole by every sub-model: a tensor of a layer whose channels are all in the trunk."""
        layer = name if name in self._channels.modules else name.rpartition(".")[0]
        made = self._channels.modules.get(layer)
        return not self._is_head(name) and (made is None or bool((self._owner[made] == SHARED).all()))

    def _rest_row(self, rows: Tensor, group: int) -> Tensor:
        """A small random row, the same on every device; zero for a bias."""
        if rows.dim() == 1:
            return torch.zeros_like(rows[:1])
        generator = torch.Generator().manual_seed(group)
        bound = 1.0 / math.sqrt(rows[0].numel())
        row = (torch.rand((1, *rows.shape[1:]), generator=generator, dtype=torch.float64) * 2 - 1) * bound
        return row.to(rows)


def most_groups(model: nn.Module, input_shape: Sequence[int], limit: int, trunk: int = 0) -> int:
    """Into how many groups, at most ``limit``, the model can be divided so that none is too narrow; 1 = not at all."""
    try:
        layers = Decoupling(model, input_shape, [(0,), (1,)], trunk=trunk).channel_layers
        narrowest = min(layers.values(), default=0)
        for num_groups in range(min(limit, narrowest // MIN_CHANNELS), 1, -1):
            with contextlib.suppress(JobError):  # a norm over groups of channels, say, allows fewer
                Decoupling(model, input_shape, [(group,) for group in range(num_groups)], trunk=trunk)
                return num_groups
    except JobError:
        pass
    return 1


def _index(mask: Tensor) -> Tensor | None:
    return None if bool(mask.all()) else mask.nonzero().flatten()
