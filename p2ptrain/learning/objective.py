"""What a model's outputs are asked for: the one place that knows that text has a label at every position, and what a
loss of somebody's own is given where not all classes are trained.

Invariant: answers and labels that come out of ``matched`` are one to one; what is neither a label a sample nor a label
a position is our own bug. A loss of somebody's own always gets an output for each class of the job, in their order.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from p2ptrain.errors import LocalError
from p2ptrain.learning.own.blame import own_code
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


LOW = 50.0
"""So far below the others an output lies that does not compete: exp(-50) is nothing in float32."""


class OfAllClasses:
    """Makes outputs of all classes, [M, classes], of the logits [M, K] that there are. ``of_class`` [classes] int64: by
    which of the K each class competes; below 0: by none.

    A class without one gets ``LOW`` less than the mean of those that compete. So a softmax or sigmoid sees nothing of
    it, and what a loss asks of it all the same, as label smoothing does, is asked evenly of those that compete. Of an
    output that stands for several classes each gets an equal share of its probability.
    """

    def __init__(self, of_class: Tensor) -> None:
        self._places = (of_class >= 0).nonzero().squeeze(1)
        self._outputs = of_class[self._places]
        self._competing = self._outputs.unique()
        self._shares = self._outputs.bincount()[self._outputs].log()
        self._num_classes = len(of_class)

    def __call__(self, logits: Tensor) -> Tensor:
        low = logits[:, self._competing].mean(1, keepdim=True) - LOW
        there = logits[:, self._outputs] - self._shares
        return low.expand(-1, self._num_classes).index_copy(1, self._places, there)


def why_not_some(own: str, num_classes: int) -> str:
    """Why a loss of one's own can't train where outputs of some classes don't compete; "" where it can.

    Tried with one class less than there are. Raises ``JobError`` where it fails.
    """
    if num_classes < 3:
        return ""  # with a single output there is nothing to learn, whatever the loss
    whole = OfAllClasses(torch.arange(num_classes).where(torch.arange(num_classes) < num_classes - 1, -1))
    logits = whole(torch.randn(4, num_classes - 1, generator=torch.Generator().manual_seed(0)))
    lower = logits.clone()
    lower[:, -1] -= LOW / 2
    slope, other = _slope(own, logits), _slope(own, lower)
    if not bool(slope.isfinite().all() and other.isfinite().all()):
        why = "it or its gradient is not finite then"
    elif (slope - other).abs().max() > slope.abs().max() / 100:
        why = "what is learnt hangs on how far below they are"
    else:
        return ""
    return (
        f"loss {own!r} does not do where a device trains some of the classes only, or lacks samples of some: it gets "
        f"outputs {LOW:.0f} below the others for the rest, and {why}; let it take a softmax or a sigmoid of its logits"
    )


def _slope(own: str, logits: Tensor) -> Tensor:
    """Of that loss by its logits [M, classes], the labels being 0, 1, ... without the last; nan where it has none."""
    logits = logits.clone().requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # one that draws numbers draws the same each time
        loss = own_loss(own, logits, torch.arange(len(logits)) % (logits.shape[1] - 1))
        with own_code(f"loss {own!r} fails", advice="correct it"):
            loss.backward()  # type: ignore[no-untyped-call]
    if logits.grad is None or not bool(loss.isfinite()):
        return torch.full_like(logits, torch.nan)
    return logits.grad


def training_loss(
    logits: Tensor,
    y: Tensor,
    label_smoothing: float = 0.0,
    in_play: Tensor | None = None,
    own: str = "",
    whole: OfAllClasses | None = None,
) -> Tensor:
    """Mean cross-entropy over all answers; ``own``: or the loss of that name, for which ``whole`` makes outputs of all
    classes where the model has or trains fewer: then ``y`` is of all.

    ``in_play`` [K]: the outputs that compete, and ``y`` counts among these; None = all. Who has no sample of a class
    would only learn that nothing is ever of it: left out of the softmax, its output stays as others made it (FedRS, Li
    and Zhan, KDD 2021, with the scale of missing classes at 0).
    """
    logits, y = matched(logits, y)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()  # the sum over classes is not for half precision
    if own:
        return own_loss(own, logits if whole is None else whole(logits), y)
    if in_play is not None:
        logits = logits[:, in_play]
    return F.cross_entropy(logits, y, label_smoothing=label_smoothing)
