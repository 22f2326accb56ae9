"""Which axes of a model's tensors have a place for each class: those that grow when the model gets one class more.

Invariant: nothing is known of the architecture but what it does with its number of classes, so a last layer of any
kind is found, and a model whose function takes no notice of ``num_classes`` has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from p2ptrain.config import Job
from p2ptrain.learning.models import MODELS, global_model


def class_axes(job: Job, *, allow_user_code: bool) -> dict[str, tuple[int, ...]]:
    """By tensor that grows with the number of classes, the axes that have an entry a class, in the job's order.

    None of one that grows in another way, by two entries a class, say. Raises ``JobError`` for what can't be built.
    """
    num_classes = len(job.data.classes)
    now = _shapes(job, num_classes, allow_user_code=allow_user_code)
    more = _shapes(job, num_classes + 1, allow_user_code=allow_user_code)
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in now.items():
        grown = more.get(name, shape)
        if grown == shape:
            continue
        axes = [axis for axis, (size, larger) in enumerate(zip(shape, grown, strict=False)) if size != larger]
        is_plain = all((shape[axis], grown[axis]) == (num_classes, num_classes + 1) for axis in axes)
        found[name] = tuple(axes) if is_plain and len(grown) == len(shape) else ()
    return found


def _shapes(job: Job, num_classes: int, *, allow_user_code: bool) -> Mapping[str, torch.Size]:
    classes = tuple(map(str, range(num_classes)))
    other = dataclasses.replace(job, data=dataclasses.replace(job.data, classes=classes))
    with torch.device("meta" if job.model.name in MODELS else "cpu"):  # somebody's own code may look at its numbers
        model = global_model(other, allow_user_code=allow_user_code)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
