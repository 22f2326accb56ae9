"""How good a model is: accuracy, per class, confusion and loss over batches, as numbers, as text and as JSON.

Invariant: every number follows from the confusion matrix [true class, predicted class], except the loss.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p2ptrain.learning.objective import matched
from p2ptrain.learning.own.blame import own_code

MANY_CLASSES = 100
FREQUENT = 16
"""So many characters of a text are shown."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``confusion[t][p]``: samples of class t that the model takes for class p. ``loss``: mean cross-entropy."""

    confusion: tuple[tuple[int, ...], ...]
    loss: float
    is_text: bool = False
    """Whether samples are positions of a text, and classes the bytes that follow."""

    @property
    def bits_per_byte(self) -> float:
        """Of a text: what a byte costs that is coded with the model's predictions."""
        return self.loss / math.log(2)

    @property
    def perplexity(self) -> float:
        """Of a text: among so many bytes that are equally likely the model is, as a mean, undecided."""
        return math.exp(min(self.loss, 700.0)) if math.isfinite(self.loss) else self.loss

    @property
    def samples(self) -> int:
        return sum(map(sum, self.confusion))

    @property
    def accuracy(self) -> float:
        """Share of right answers; NaN without samples."""
        return _share(sum(row[c] for c, row in enumerate(self.confusion)), self.samples)

    @property
    def per_class(self) -> tuple[float, ...]:
        """Share of each class's samples that were recognised; NaN for a class without samples."""
        return tuple(_share(row[c], sum(row)) for c, row in enumerate(self.confusion))

    def own_class_accuracy(self, classes: Collection[int]) -> float:
        """Accuracy over the samples of these classes alone, any class allowed as the answer."""
        own = sorted(set(classes))
        return _share(sum(self.confusion[c][c] for c in own), sum(sum(self.confusion[c]) for c in own))

    def to_json(self, classes: Sequence[str] = ()) -> str:
        """NaN becomes null."""
        names = _names(classes, len(self.confusion))
        of_text = {"bits_per_byte": _number(self.bits_per_byte), "perplexity": _number(self.perplexity)}
        return json.dumps(
            {
                "samples": self.samples,
                "accuracy": _number(self.accuracy),
                "loss": _number(self.loss),
                **(of_text if self.is_text else {}),
                "per_class": {name: _number(a) for name, a in zip(names, self.per_class, strict=True)},
                "confusion": self.confusion,
            },
            allow_nan=False,
        )

    def to_text(self, classes: Sequence[str] = (), *, max_width: int = 100) -> str:
        """A table: a line a class with its accuracy and what it is most often taken for, and the total.

        Of many classes only those that come up. Of a text: bits per byte and perplexity, and what becomes of its most
        frequent characters.
        """
        if self.is_text:
            return self._text_in_words(max_width)
        names = _names(classes, len(self.confusion))
        width = min(max(len("class"), *map(len, names)), max(8, max_width - 50))
        lines = [f"{'class':<{width}}  samples  accuracy  most often taken for"]
        for c, (name, row) in enumerate(zip(names, self.confusion, strict=True)):
            if not any(row) and len(names) > MANY_CLASSES:
                continue
            wrong = sorted(((n, names[p]) for p, n in enumerate(row) if p != c and n), key=lambda one: -one[0])[:3]
            mistakes = ", ".join(f"{other} ({n})" for n, other in wrong)
            line = f"{_cut(name, width):<{width}}  {sum(row):>7}  {_percent(self.per_class[c]):>8}  {mistakes}"
            lines.append(line.rstrip()[:max_width])
        lines.append(f"{'all':<{width}}  {self.samples:>7}  {_percent(self.accuracy):>8}  loss {self.loss:.4f}")
        return "\n".join(lines)

    def _text_in_words(self, max_width: int) -> str:
        counts = [sum(row) for row in self.confusion]
        frequent = sorted((c for c, n in enumerate(counts) if n), key=lambda c: -counts[c])[:FREQUENT]
        lines = ["next    positions  right  most often taken for"]
        for c in frequent:
            wrong = sorted(((n, p) for p, n in enumerate(self.confusion[c]) if p != c and n), key=lambda one: -one[0])
            taken = ", ".join(f"{character(p)} ({n})" for n, p in wrong[:3])
            line = f"{character(c):<6}  {counts[c]:>9}  {_percent(self.per_class[c]):>6}  {taken}"
            lines.append(line.rstrip()[:max_width])
        lines.append(f"all     {self.samples:>9}  {_percent(self.accuracy):>6}  loss {self.loss:.4f}")
        lines.append(f"{self.bits_per_byte:.3f} bits per byte, perplexity {self.perplexity:.2f}")
        return "\n".join(lines)


def character(byte: int) -> str:
    """How a byte of a text is shown: as the character that it is, if it can be seen."""
    return repr(chr(byte)) if byte < 128 and (chr(byte).isprintable() or chr(byte) in "\n\t\r") else f"0x{byte:02x}"


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int, *, device: torch.device | str = "cpu"
) -> Evaluation:
    """Run the model in eval mode over (x [N, ...], y [N]); its mode is put back. Logits that are NaN count as wrong.

    A text's samples are its positions (see ``matched``).
    """
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64)
    loss_sum, samples, is_text = 0.0, 0, False
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for x, y in batches:
                with own_code("the model fails on a batch of samples", model):
                    outputs = model(x.to(device))
                is_text = is_text or y.dim() > 1
                logits, y = matched(outputs.float().cpu(), y.cpu().to(torch.int64))
                predicted = logits.argmax(1)
                broken = logits.isnan().any(1)
                predicted[broken] = (y[broken] + 1) % num_classes  # argmax would take NaN for the largest
                confusion += torch.bincount(y * num_classes + predicted, minlength=num_classes * num_classes)
                loss_sum += float(F.cross_entropy(logits, y, reduction="sum"))
                samples += y.numel()
    finally:
        model.train(was_training)
    rows = tuple(tuple(row) for row in confusion.view(num_classes, num_classes).tolist())
    return Evaluation(rows, loss_sum / samples if samples else math.nan, is_text)


@torch.no_grad()
def own_class_accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: Sequence[int],
    *,
    outputs: Sequence[int] = (),
    device: torch.device | str = "cpu",
) -> float:
    """Accuracy over samples of ``classes`` with only these classes' logits in play.

    ``outputs``: the class of each output of the model, if its outputs are not all classes in order.
    """
    was_training = model.training
    model.eval()
    own = torch.tensor(sorted(set(classes)))
    rows = torch.tensor([list(outputs).index(c) for c in own.tolist()]) if outputs else own
    right = samples = 0
    for x, y in batches:
        with own_code("the model fails on a batch of samples", model):
            answers = model(x.to(device))
        logits, y = matched(answers.float().cpu(), y)
        kept = torch.isin(y, own)
        right += int((own[logits[:, rows].argmax(1)] == y)[kept].sum())
        samples += int(kept.sum())
    model.train(was_training)
    return _share(right, samples)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "-"


def _names(classes: Sequence[str], num_classes: int) -> list[str]:
    return [classes[c] if c < len(classes) else str(c) for c in range(num_classes)]


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"
