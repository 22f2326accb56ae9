"""Views: which coordinates of the global model a part holds, and how to take them out and put them back.

Invariant: ``put(take(state, view), view, state)`` changes nothing, and ``put`` touches no coordinate outside the view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from p2ptrain.errors import LocalError

Axes = tuple[Tensor | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """For every global tensor that a part holds, by name, an index per axis (1-D int64, no repeats) or None for all."""

    axes: Mapping[str, Axes]

    def __post_init__(self) -> None:
        for name, axes in self.axes.items():
            for axis, index in enumerate(axes):
                if index is None:
                    continue
                if index.dtype != torch.int64 or index.dim() != 1:
                    raise LocalError(f"view of {name!r}: the index of axis {axis} must be 1-D int64")
                if index.numel() and (int(index.min()) < 0 or index.unique().numel() != index.numel()):
                    raise LocalError(f"view of {name!r}: the index of axis {axis} is negative or repeats itself")

    def shape(self, name: str, full: torch.Size) -> tuple[int, ...]:
        """The shape that a part of a tensor with this full shape has."""
        return tuple(size if i is None else i.numel() for size, i in zip(full, self.axes[name], strict=True))


def take(state: Mapping[str, Tensor], view: View) -> dict[str, Tensor]:
    """The part of a global state that a view names: contiguous copies, detached."""
    part: dict[str, Tensor] = {}
    for name, axes in view.axes.items():
        whole = _whole(state, name, axes)
        piece = whole
        for axis, index in enumerate(axes):
            if index is not None:
                piece = piece.index_select(axis, index.to(piece.device))
        part[name] = piece.clone(memory_format=torch.contiguous_format) if piece is whole else piece.contiguous()
    return part


def put(part: Mapping[str, Tensor], view: View, into: Mapping[str, Tensor]) -> None:
    """Write a part into a global state, in place; tensors of the view that the part lacks are an error."""
    for name, axes in view.axes.items():
        whole = _whole(into, name, axes)
        if name not in part:
            raise LocalError(f"the part has no tensor {name!r}")
        piece = part[name].detach()
        if tuple(piece.shape) != view.shape(name, whole.shape):
            expected = view.shape(name, whole.shape)
            raise LocalError(f"tensor {name!r} of the part has shape {tuple(piece.shape)}, the view says {expected}")
        whole[_selection(whole.shape, axes, whole.device)] = piece.to(whole)


def _whole(state: Mapping[str, Tensor], name: str, axes: Axes) -> Tensor:
    if name not in state:
        raise LocalError(f"the global state has no tensor {name!r}")
    whole = state[name].detach()
    if whole.dim() != len(axes):
        raise LocalError(f"tensor {name!r} has {whole.dim()} axes, its view has {len(axes)}")
    for axis, index in enumerate(axes):
        if index is not None and index.numel() and int(index.max()) >= whole.shape[axis]:
            raise LocalError(f"tensor {name!r}: the view's index of axis {axis} passes its size {whole.shape[axis]}")
    return whole


def _selection(shape: torch.Size, axes: Axes, device: torch.device) -> tuple[Tensor | slice, ...]:
    """Indices that name the product of the axes' indices; slices before and after, so that no axis moves."""
    indexed = [axis for axis, index in enumerate(axes) if index is not None]
    if not indexed:
        return (slice(None),) * len(axes) or (...,)  # type: ignore[return-value]
    run = range(indexed[0], indexed[-1] + 1)
    selection: list[Tensor | slice] = []
    for axis, index in enumerate(axes):
        if axis not in run:
            selection.append(slice(None))
            continue
        one = torch.arange(shape[axis]) if index is None else index
        selection.append(one.to(device).view([-1 if other == axis else 1 for other in run]))
    return tuple(selection)
