"""How good the assembled model is on everybody's validation samples, beside its parts alone: sums that peers add up.

Each peer runs the frozen parts over its own validation samples and counts, class by class, what each *candidate* gets
right (see ``candidates``): the head that the group fitted, the parts' own rows put together, and, where parts know all
classes, each part alone. So a group can take the best of them, and say where it is worse than what one of its members
trained. Only the counts leave a peer.

Invariant: the counts of several peers add up to those of one peer with all their samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from p2ptrain.errors import RemoteError
from p2ptrain.learning.candidates import CORRECT, TOTAL, WITHIN, WITHOUT
from p2ptrain.learning.objective import matched

UNKNOWN = -1e4
"""The logit of a class that a part alone does not know: never the largest."""
MAX_COUNT = 2.0**53


@dataclass(frozen=True, slots=True)
class Head:
    """``weight`` [C, F] and ``bias`` [C] over the features of all parts."""

    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """[n, C] of features [n, F]."""
        return torch.addmm(self.bias, x.float(), self.weight.T)


@dataclass(frozen=True, slots=True)
class Member:
    """What one peer's own copy of its part knows: [C] right answers, asked among the classes that it was trained on."""

    classes: tuple[int, ...]
    right: Tensor
    among_all: Tensor
    """[C] right answers, asked among all classes."""


@torch.inference_mode()
def count(
    x: Tensor,
    y: Tensor,
    heads: Mapping[str, Head],
    members: Mapping[str, Member],
    main: str,
    without: Mapping[str, tuple[Tensor, Head]],
) -> dict[str, Tensor]:
    """The sums of these samples, features ``x`` [n, F] and labels ``y`` [n].

    ``main``: the candidate that each member is compared with, both asked among the member's classes. ``without``: by
    peer the features and the head that there are without it.
    """
    num_classes = heads[main].bias.numel()
    sums = {TOTAL: _by_class(torch.ones_like(y, dtype=torch.bool), y, num_classes)}
    for name, head in heads.items():
        sums[CORRECT + name] = _by_class(right_of(head.logits(x), y), y, num_classes)
    answers = heads[main].logits(x)
    for peer, member in members.items():
        sums[WITHIN + peer] = within(sums[TOTAL], member, among(answers, y, member.classes))
    for peer, (others, head) in without.items():
        sums[WITHOUT + peer] = _by_class(right_of(head.logits(others), y), y, num_classes)
    return sums


def within(total: Tensor, member: Member, group: Tensor) -> Tensor:
    """[3, C]: samples of the member's classes, its own right answers, and the group's."""
    asked = torch.zeros_like(total)
    asked[list(member.classes)] = total[list(member.classes)]
    return torch.stack([asked, member.right, group])


def among(logits: Tensor, y: Tensor, classes: Sequence[int]) -> Tensor:
    """[C] right answers of logits [n, C] on the samples of these classes, asked among them. NaN counts as wrong."""
    asked = torch.tensor(sorted(set(classes)))
    kept = torch.isin(y, asked)
    own, labels = logits[kept][:, asked], y[kept]
    return _by_class((asked[own.argmax(1)] == labels) & ~own.isnan().any(1), labels, logits.shape[1])


@torch.no_grad()
def answers_of(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    outputs: Sequence[int],
    sets: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
) -> tuple[Tensor, list[Tensor]]:
    """Samples of each class [C], and, for each set of classes, right answers [C] of the model asked among these.

    ``outputs``: the class of each output; outputs beyond them are not asked.
    """
    total = torch.zeros(num_classes, dtype=torch.float64)
    right = [torch.zeros(num_classes, dtype=torch.float64) for _ in sets]
    was_training = model.training
    model.eval()
    model.to(device)
    for x, y in batches:
        own, y = matched(model(x.to(device)).float().cpu(), y.to(torch.int64))
        logits = torch.full((len(y), num_classes), -torch.inf)
        logits[:, list(outputs)] = own[:, : len(outputs)]
        total += _by_class(torch.ones_like(y, dtype=torch.bool), y, num_classes)
        for counted, classes in zip(right, sets, strict=True):
            counted += among(logits, y, classes)
    model.train(was_training)
    return total, right


def empty(
    heads: Iterable[str], members: Iterable[str], num_classes: int, without: Iterable[str] = ()
) -> dict[str, Tensor]:
    """The sums of no samples, for these candidates and members."""
    sums = {TOTAL: torch.zeros(num_classes, dtype=torch.float64)}
    sums |= {CORRECT + name: torch.zeros(num_classes, dtype=torch.float64) for name in heads}
    sums |= {WITHOUT + peer: torch.zeros(num_classes, dtype=torch.float64) for peer in without}
    return sums | {WITHIN + peer: torch.zeros(3, num_classes, dtype=torch.float64) for peer in members}


def add(contributions: Sequence[Mapping[str, Tensor]], num_classes: int) -> dict[str, Tensor]:
    """The sums of all. Raises ``RemoteError`` for what can't be counts, or is of other candidates than the first's."""
    total: dict[str, Tensor] = {}
    for sums in contributions:
        if TOTAL not in sums or (total and sums.keys() != total.keys()):
            raise RemoteError("validation", f"counts of {sorted(sums)[:5]}")
        for name, tensor in sums.items():
            shape = (3, num_classes) if name.startswith(WITHIN) else (num_classes,)
            known = name == TOTAL or name.startswith((WITHIN, CORRECT, WITHOUT))
            if not known or tuple(tensor.shape) != shape or tensor.dtype != torch.float64:
                raise RemoteError("validation", f"{name[:40]}: {tensor.dtype} {tuple(tensor.shape)}, not {shape}")
            if not bool((tensor >= 0).all() and (tensor <= sums[TOTAL]).all() and (tensor <= MAX_COUNT).all()):
                raise RemoteError("validation", f"{name[:40]}: more right answers than samples, or no count")
            total[name] = total[name] + tensor if name in total else tensor
    return total


def right_of(logits: Tensor, y: Tensor) -> Tensor:
    """Logits that are NaN count as wrong."""
    return (logits.argmax(1) == y) & ~logits.isnan().any(1)


def _by_class(right: Tensor, y: Tensor, num_classes: int) -> Tensor:
    return torch.bincount(y[right], minlength=num_classes).double()
