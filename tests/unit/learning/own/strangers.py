"""Models as strangers write them: each trains in plain PyTorch, and most of them stumbled over something here."""

from __future__ import annotations

import collections
import dataclasses
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Outputs = collections.namedtuple("Outputs", "logits aux")


class Net(nn.Module):
    """A convolution, a pooling and a classifier; subclasses change what happens in between."""

    def __init__(self, num_classes: int, *, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 16, num_classes, bias=bias)

    def features(self, x: Tensor) -> Tensor:
        return F.max_pool2d(torch.relu(self.conv(x)), 2)  # [N, 8, 4, 4]

    def forward(self, x: Tensor) -> object:
        return self.fc(self.features(x).flatten(1))


class Viewed(Net):
    def forward(self, x: Tensor) -> object:
        x = self.features(x)
        return self.fc(x.view(x.size(0), -1))


class Pair(Net):
    def forward(self, x: Tensor) -> object:
        logits = super().forward(x)
        return logits, x.mean()


class OnlyInTraining(Net):
    def forward(self, x: Tensor) -> object:
        logits = super().forward(x)
        return (logits, logits * 0) if self.training else logits


class Table(Net):
    def forward(self, x: Tensor) -> object:
        return {"loss": None, "logits": super().forward(x)}


class Named(Net):
    def forward(self, x: Tensor) -> object:
        return Outputs(super().forward(x), None)


@dataclasses.dataclass
class Answer:
    loss: object
    logits: Tensor


class Answering(Net):
    def forward(self, x: Tensor) -> object:
        return Answer(None, super().forward(x))


class Optional(Net):
    """With more than the batch, if somebody gives it."""

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0, *, both: bool = False) -> object:
        x = self.features(x).flatten(1)
        if mask is not None:
            x = x * mask
        if scale != 1.0:
            x = x * scale
        return (self.fc(x), x) if both else self.fc(x)


class Unsqueezed(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Conv2d(1, 32, 8), nn.ReLU(), nn.Conv2d(32, num_classes, 1))


class LogSoftmax(Net):
    def forward(self, x: Tensor) -> object:
        return F.log_softmax(super().forward(x), 1)


class Probable(Net):
    def forward(self, x: Tensor) -> object:
        return F.softmax(super().forward(x), 1)


class Auxiliary(Net):
    """As Inception and GoogLeNet: a second head in training."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.aux = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> object:
        return (super().forward(x), self.aux(x.flatten(1))) if self.training else super().forward(x)


class OnData(Net):
    def forward(self, x: Tensor) -> object:
        if x.sum() > 0:
            x = x * 2
        return super().forward(x)


class Normed(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.conv = nn.utils.parametrizations.weight_norm(self.conv)


class OldNormed(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.conv = nn.utils.weight_norm(self.conv)


class Tied(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)
        self.two.weight = self.one.weight
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(x.flatten(1))))))


class Masked(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
        self.register_buffer("offsets", torch.arange(-2, 2))
        self.register_buffer("passing", torch.ones(4, 4), persistent=False)

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        return (x + self.mask).softmax(-1) @ (x * self.passing) + self.offsets * 0.01


class Frozen(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.conv.requires_grad_(False)


class Checkpointed(Net):
    def forward(self, x: Tensor) -> object:
        return self.fc(checkpoint(self.features, x, use_reentrant=False).flatten(1))


class InPlace(Net):
    def forward(self, x: Tensor) -> object:
        x.sub_(0.5).div_(0.5)
        return super().forward(x)


class Talking(Net):
    def forward(self, x: Tensor) -> object:
        print("shape", tuple(x.shape))
        return super().forward(x)


class Extra(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> object:
        return super().forward(x * scale)


class Remembering(Net):
    """Keeps what it computed, as for saliency maps: it can't be copied once it has run."""

    def features(self, x: Tensor) -> Tensor:
        self.seen = super().features(x)
        return self.seen


class Caching(Net):
    """Makes a constant when it first needs it."""

    scale: Tensor | None = None

    def forward(self, x: Tensor) -> object:
        if self.scale is None:
            self.scale = torch.ones(1, 1, 8, 8)
        return super().forward(x * self.scale)


class Stubborn(Net):
    """``train`` returns nothing."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


class Lazy(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes))


class Noisy(Net):
    """Draws weights with numpy and Python, and noise in forward."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        with torch.no_grad():
            self.fc.weight.copy_(torch.as_tensor(np.random.normal(0, 0.1, self.fc.weight.shape)))
            self.fc.bias.fill_(random.random())

    def forward(self, x: Tensor) -> object:
        return super().forward(x + 0.01 * torch.randn_like(x) if self.training else x)


class HeadFirst(nn.Module):
    """The classifier is defined first."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(32, num_classes)
        self.body = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.body(x.flatten(1))))


class Sparse(nn.Module):
    """Looks pixels up; the gradient of its table is sparse."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.table = nn.Embedding(256, 4, sparse=True)
        self.fc = nn.Linear(256, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.table((x * 30 + 100).clamp(0, 255).long().flatten(1)).flatten(1))


class Strided(Net):
    """Reads memory as it lies."""

    def forward(self, x: Tensor) -> object:
        x = self.features(x)
        return self.fc(torch.as_strided(x, (x.size(0), 128), (128, 1)))


def scripted(num_classes: int) -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, num_classes)))


def compiled(num_classes: int) -> nn.Module:
    model = Net(num_classes)
    model.conv = torch.compile(model.conv)  # type: ignore[assignment]
    return torch.compile(model)  # type: ignore[return-value]


def in_parallel(num_classes: int) -> nn.Module:
    return nn.DataParallel(Net(num_classes))


def in_bfloat16(num_classes: int) -> nn.Module:
    return Net(num_classes).bfloat16()


def in_half(num_classes: int) -> nn.Module:
    return Net(num_classes).half()


def in_double(num_classes: int) -> nn.Module:
    return Net(num_classes).double()


TRAINED = (
    Optional,
    *(Net, Viewed, Pair, OnlyInTraining, Table, Named, Answering, Unsqueezed, LogSoftmax, OnData, Normed, OldNormed),
    *(Tied, Masked, Frozen, Checkpointed, InPlace, Talking, Extra, Remembering, Caching, Stubborn, Lazy, Noisy),
    *(HeadFirst, Auxiliary, Sparse, Strided, scripted, compiled, in_parallel, in_bfloat16, in_half, in_double),
)


# --- what can't be trained --------------------------------------------------------------------------------------------


def one_output(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))


def many_outputs(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 100))


class Across(Net):
    def forward(self, x: Tensor) -> object:
        return self.fc(self.features(x).flatten(1)).T


class FeaturesFirst(Net):
    def forward(self, x: Tensor) -> object:
        x = self.features(x).flatten(1)
        return x, self.fc(x)


class Words(Net):
    def forward(self, x: Tensor) -> object:
        return "cat"


class Numbers(Net):
    def forward(self, x: Tensor) -> object:
        return self.fc(self.features(x).flatten(1)).argmax(1)


class NotANumber(Net):
    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        return torch.log(x - 100.0)


class RootOfZero(Net):
    def features(self, x: Tensor) -> Tensor:
        return torch.sqrt(super().features(x) * 0.0)


class Failing(Net):
    def features(self, x: Tensor) -> Tensor:
        table = {"a": 1}
        return super().features(x) * table["b"]


class Custom(Exception):
    pass


class Unknown(Net):
    def features(self, x: Tensor) -> Tensor:
        raise Custom("this is mine\nand goes on")


class Leaving(Net):
    def features(self, x: Tensor) -> Tensor:
        raise SystemExit(0)


class Needing(Net):
    def forward(self, x: Tensor, mask: Tensor) -> object:
        return super().forward(x * mask)


class Detached(Net):
    def forward(self, x: Tensor) -> object:
        with torch.no_grad():
            return super().forward(x)


class Counting(Net):
    """Only in training, and only of a batch of its own size."""

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        return x.reshape(2, 8, 4, 4)


class Complex(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.phase = nn.Parameter(torch.ones(8, dtype=torch.complex64))


class Stateful(Net):
    def get_extra_state(self) -> object:
        return {"version": 1}

    def set_extra_state(self, state: object) -> None:
        pass


def misshapen(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, num_classes))


def frozen_whole(num_classes: int) -> nn.Module:
    return Net(num_classes).requires_grad_(False)


def leaving_when_built(num_classes: int) -> nn.Module:
    raise SystemExit(3)


REFUSED = {
    one_output: r"returns \[2, 1\]: for 2 samples and 10 classes it must return logits \[2, 10\]; give its last layer",
    many_outputs: r"returns \[2, 100\]: .* logits \[2, 10\]",
    Across: "the samples of the batch must be its first axis",
    FeaturesFirst: r"returns \[2, 128\]",
    Words: "returns str: .* alone, first in a tuple, or as .logits",
    Numbers: r"returns \[2\]",
    NotANumber: r"not finite, .*strangers.py, line \d+ \(return torch.log\(x - 100.0\)\)",
    RootOfZero: "the gradient of 'conv.weight' is not finite in the first step",
    Failing: r"strangers.py, line \d+ \(return super\(\).features\(x\) \* table\[\"b\"\]\): KeyError: 'b'",
    Unknown: r"strangers.py, line \d+ .*Custom: this is mine; correct",
    Leaving: r"strangers.py, line \d+ .*sys.exit\(0\)",
    Needing: "mask",
    Detached: "its outputs have no gradient",
    Counting: r"strangers.py, line \d+ \(return x.reshape\(2, 8, 4, 4\)\)",
    Complex: "'phase' is of complex numbers.*view_as_real",
    Stateful: "'_extra_state' of its state is a dict",
    misshapen: r"layer '3' \(Linear\): RuntimeError: mat1 and mat2",
    frozen_whole: "no parameter to train",
    leaving_when_built: r"strangers.py, line \d+ .*sys.exit\(3\)",
}


# --- text -------------------------------------------------------------------------------------------------------------


class Bytes(nn.Module):
    """An answer at every position; takes token numbers as they come."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(256, 8), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.table(x.flatten(1))))


class OneByte(Bytes):
    """An answer for what follows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, -1]


class NoBytes(Bytes):
    """Takes text for pictures."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)
