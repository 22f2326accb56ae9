"""Copies of a model that somebody wrote: what it computed last and still holds is no obstacle.

Invariant: the copy computes what the model does; the model stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def copied(model: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """``copy.deepcopy``, which refuses tensors that were computed from others: here they lose where they came from.

    ``memo``: what stands for what in the copy, by ``id``. Raises what the model's own parts raise when copied.
    """
    known: dict[int, Any] = dict(memo or {})
    for module in model.modules():
        for value in vars(module).values():
            for tensor in tensors_in(value):
                if not tensor.is_leaf:
                    known.setdefault(id(tensor), tensor.detach())
    return copy.deepcopy(model, known)


def tensors_in(value: object, depth: int = 3) -> Iterator[Tensor]:
    """In lists and tables, too."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (dict, list, tuple)) and not isinstance(value, nn.Module):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(each, depth - 1)
