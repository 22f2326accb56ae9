"""How good the assembled model is on everybody's validation samples, beside its parts alone: sums that peers add up.

Each peer runs the frozen parts over its own validation samples and counts, class by class, what each *candidate* gets
right (see ``candidates``): the head that the group fitted, the parts' own rows put together, and, where parts know all
classes, each part alone. So a group can take the best of them, and say where it is worse than one of its parts. Only
the counts leave a peer.

Invariant: the counts of several peers add up to those of one peer with all their samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2ptrain.errors import RemoteError
from p2ptrain.learning.candidates import CORRECT, TOTAL, WITHIN

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


@torch.inference_mode()
def count(
    x: Tensor, y: Tensor, candidates: Mapping[str, Head], own: Mapping[int, tuple[Head, Sequence[int]]], main: str
) -> dict[str, Tensor]:
    """The sums of these samples, features ``x`` [n, F] and labels ``y`` [n].

    ``own``: each part's head and the classes that it was trained on; among these alone, samples of these classes are
    asked of the part and of the candidate ``main`` ("within", [2, C]), which is the fair comparison of the two.
    """
    num_classes = candidates[main].bias.numel()
    sums = {TOTAL: _by_class(torch.ones_like(y, dtype=torch.bool), y, num_classes)}
    logits = {name: head.logits(x) for name, head in candidates.items()}
    for name, answer in logits.items():
        sums[CORRECT + name] = _by_class(_right(answer, y), y, num_classes)
    for part, (head, classes) in own.items():
        among = torch.tensor(sorted(set(classes)))
        kept = torch.isin(y, among)
        rows = [
            _by_class(among[answer[kept][:, among].argmax(1)] == y[kept], y[kept], num_classes)
            for answer in (head.logits(x), logits[main])
        ]
        sums[f"{WITHIN}{part}"] = torch.stack(rows)
    return sums


def empty(like: Iterable[str], own: Iterable[int], num_classes: int) -> dict[str, Tensor]:
    """The sums of no samples, for these candidates and parts."""
    sums = {TOTAL: torch.zeros(num_classes, dtype=torch.float64)}
    sums |= {CORRECT + name: torch.zeros(num_classes, dtype=torch.float64) for name in like}
    return sums | {f"{WITHIN}{part}": torch.zeros(2, num_classes, dtype=torch.float64) for part in own}


def add(contributions: Sequence[Mapping[str, Tensor]], num_classes: int) -> dict[str, Tensor]:
    """The sums of all. Raises ``RemoteError`` for what can't be counts, or is of other candidates than the first's."""
    total: dict[str, Tensor] = {}
    for sums in contributions:
        if TOTAL not in sums or (total and sums.keys() != total.keys()):
            raise RemoteError("validation", f"counts of {sorted(sums)[:5]}")
        for name, tensor in sums.items():
            shape = (2, num_classes) if name.startswith(WITHIN) else (num_classes,)
            known = name == TOTAL or name.startswith((WITHIN, CORRECT))
            if not known or tuple(tensor.shape) != shape or tensor.dtype != torch.float64:
                raise RemoteError("validation", f"{name[:40]}: {tensor.dtype} {tuple(tensor.shape)}, not {shape}")
            if not bool((tensor >= 0).all() and (tensor <= sums[TOTAL]).all() and (tensor <= MAX_COUNT).all()):
                raise RemoteError("validation", f"{name[:40]}: more right answers than samples, or no count")
            total[name] = total[name] + tensor if name in total else tensor
    return total


def _right(logits: Tensor, y: Tensor) -> Tensor:
    """Logits that are NaN count as wrong."""
    return (logits.argmax(1) == y) & ~logits.isnan().any(1)


def _by_class(right: Tensor, y: Tensor, num_classes: int) -> Tensor:
    return torch.bincount(y[right], minlength=num_classes).double()
