"""What a model's outputs are asked for: the one place that knows that text has a label at every position.

Invariant: answers and labels that come out of ``matched`` are one to one; what is neither a label a sample nor a label
a position is our own bug.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from p2ptrain.errors import LocalError
from p2ptrain.learning.own.outputs import flat_logits
from p2ptrain.learning.own.parts import own_loss


def matched(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [M, classes] and the label of each [M].

    From logits [N, classes] (or [N, classes, 1, 1]) with labels [N]; [N, T, classes] with [N, T]; or a model that
    answers once a sample, [N, classes], with labels at every position [N, T]: it is asked for the last, which is what
    follows the sample.
    """
    logits = flat_logits(logits)
    if logits.dim() == 2 and y.dim() == 2:
        y = y[:, -1]
    if logits.shape[:-1] != y.shape:
        raise LocalError(f"outputs {tuple(logits.shape)} for labels {tuple(y.shape)}")
    return logits.flatten(0, -2), y.flatten()


def training_loss(
    logits: Tensor, y: Tensor, label_smoothing: float = 0.0, in_play: Tensor | None = None, own: str = ""
) -> Tensor:
    """Mean cross-entropy over all answers; ``own``: or the loss of that name.

    ``in_play`` [K]: the outputs that compete, and ``y`` counts among these; None = all. Who has no sample of a class
    would only learn that nothing is ever of it: left out of the softmax, its output stays as others made it (FedRS, Li
    and Zhan, KDD 2021, with the scale of missing classes at 0).
    """
    logits, y = matched(logits, y)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()  # the sum over classes is not for half precision
    if in_play is not None:
        logits = logits[:, in_play]
    if own:
        return own_loss(own, logits, y)
    return F.cross_entropy(logits, y, label_smoothing=label_smoothing)
