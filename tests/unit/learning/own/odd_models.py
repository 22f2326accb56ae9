"""Models whose code does more than to compute: it looks at its numbers, counts, draws, hides, or grows."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import torch
from strangers import Net, scripted
from torch import Tensor, nn


class Rates(Net):
    """As ConvNeXt and DeiT write it: rates of stochastic depth as numbers, made by torch."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.rates = [each.item() for each in torch.linspace(0, 0.1, 3)]
        self.scales = [torch.linspace(0.9, 1.1, 4), torch.ones(4)]

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * self.scales[0] * self.scales[1] * (1 - self.rates[1])


class Looking(Net):
    """Looks at the weights that it has drawn."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        if float(self.conv.weight.detach().std()) > 10:
            raise ValueError("odd weights")


class Drawn(nn.Module):
    """Draws numbers in ways that are not torch.randn's, before weights that come later."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.normal(1.0, 0.1, size=(8, 1, 1)))
        self.register_buffer("kept", torch.bernoulli(torch.full((8, 1, 1), 0.9)))
        self.conv, self.fc = nn.Conv2d(1, 8, 3), nn.Linear(8 * 36, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((torch.relu(self.conv(x)) * self.scale * self.kept).flatten(1))


class Frozen(nn.Module):
    """Its first norm never learns: ``train`` leaves it out."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.next, self.fc = nn.Conv2d(8, 8, 3), nn.Linear(8 * 16, num_classes)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.next(torch.relu(self.norm(self.conv(x))))).flatten(1))


class LeftOut(Net):
    """Layers are left out by chance: in some steps they have no gradient."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.layers = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)])

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        for layer in self.layers:
            if not self.training or torch.rand(1).item() > 0.5:
                x = x + 0.1 * torch.relu(layer(x))
        return x


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Binary(Net):
    """With a gradient of its own, which a trace would lose."""

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) + 0.1 * Sign.apply(super().features(x))


class Backbone(Net):
    """Its body has no gradient."""

    def features(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().features(x)


class Waves(Net):
    """Looks at memory: complex numbers are two real ones side by side."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.waves = nn.Parameter(torch.randn(8, 4, 3, 2) * 0.02)

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        found = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.waves)
        return x + torch.fft.irfft2(found, s=(4, 4), norm="ortho")


class Loose(Net):
    """Takes what it is given, and has options of all kinds."""

    def forward(
        self, *inputs: Tensor, sizes: tuple[int, int] = (8, 8), mode: str = "nearest", **more: object
    ) -> object:
        return super().forward(nn.functional.interpolate(inputs[0], sizes, mode=mode))


class Asking(Net):
    """Asks its own tensors where they are, and has one of truth values that is not trained."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.kept = nn.Parameter(torch.ones(8, 1, 1, dtype=torch.bool), requires_grad=False)

    def features(self, x: Tensor) -> Tensor:
        return super().features(x.to(next(self.parameters()).device)) * self.kept


class Pixels(nn.Module):
    """Logits [N, classes, 1, 1]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 32, 8), nn.Conv2d(32, num_classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.fc(torch.relu(self.conv(x)))}


class Locked(Net):
    """Has what can't be copied."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> object:
        with self.lock:
            return super().forward(x)


class Hiding(Net):
    """Leaves its teacher out of the state."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.teacher = nn.Linear(128, 128).requires_grad_(False)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        state = super().state_dict(*args, **options)
        return {name: tensor for name, tensor in state.items() if not name.startswith("teacher")}

    def forward(self, x: Tensor) -> object:
        return self.fc(self.features(x).flatten(1) + 0.1 * self.teacher(self.features(x).flatten(1)))


class Expanded(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("scale", torch.ones(1).expand(4))

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * self.scale


def hooked(num_classes: int) -> nn.Module:
    model = Net(num_classes)
    model.register_forward_hook(lambda module, inputs, output: output * 2)
    return model


class Doubling(Net):
    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x) * 2


def patched(num_classes: int) -> nn.Module:
    model = Net(num_classes)
    plain = model.forward
    model.forward = lambda x: plain(x) * 2  # type: ignore[method-assign]
    return model


class Counting(Net):
    """Its temperature falls from call to call."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.temperature = 2.0

    def forward(self, x: Tensor) -> object:
        self.temperature = max(1.0, self.temperature * 0.9)
        return super().forward(x) / self.temperature  # type: ignore[operator]


class Shaken(Net):
    """Noise of one size, by torch, numpy and Python."""

    def features(self, x: Tensor) -> Tensor:
        factor = float(np.random.uniform(0.95, 1.05)) * random.uniform(0.95, 1.05)
        return super().features(x) * factor + 0.01 * torch.randn(1, 8, 1, 1)


def deep(num_classes: int) -> nn.Module:
    """Of torch's own layers, some for five dimensions."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.Unflatten(1, (2, 4)),
        nn.Conv3d(2, 4, 3),
        nn.ReLU(),
        nn.Conv3d(4, 8, (2, 1, 1)),
        nn.Flatten(),
        nn.Linear(8 * 16, num_classes),
    )


TRAINED = (
    deep,
    Rates,
    Looking,
    Drawn,
    Frozen,
    LeftOut,
    Binary,
    Backbone,
    Waves,
    Loose,
    Asking,
    Pixels,
    Locked,
    Hiding,
    Expanded,
    hooked,
    Doubling,
    patched,
    Counting,
    Shaken,
)


# --- what can't be trained, and what to do about it -------------------------------------------------------------------


class Growing(Net):
    """A cache that is as large as it was needed."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("cache", torch.ones(0))

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        self.cache = torch.ones(x.shape[-1])
        return x * self.cache


class Late(Net):
    """Makes a layer when it knows the size."""

    def forward(self, x: Tensor) -> object:
        x = self.features(x).flatten(1)
        if not hasattr(self, "last"):
            self.last = nn.Linear(x.shape[1], self.fc.out_features)
        return self.last(x) + self.fc(x)


class Unseeded(Net):
    """Draws its weights from a generator that no seed reaches."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.fc.weight.data += torch.from_numpy(np.random.default_rng().normal(0, 0.1, self.fc.weight.shape)).float()


class Copying(Net):
    def state_dict(self, *args: Any, **options: Any) -> Any:
        return {name: tensor.clone() for name, tensor in super().state_dict(*args, **options).items()}


class Sparse(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("graph", torch.eye(4).to_sparse())


class Unsigned(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("table", torch.zeros(4, dtype=torch.uint16))


class NoEval(Net):
    def eval(self) -> NoEval:
        raise NotImplementedError("this model is always in training")


def on_meta(num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return Net(num_classes)


def moved_to_meta(num_classes: int) -> nn.Module:
    return Net(num_classes).to("meta")


class HalfOnMeta(Net):
    """Its last layer alone is made so."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.fc = nn.Linear(128, num_classes, device="meta")


class LooseOnMeta(Net):
    """A buffer that is no part of the state is made so."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("table", torch.empty(4, device="meta"), persistent=False)


class Graph(Net):
    """Whose outputs go through a sparse table that is kept beside its state; backward, too."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.graph = torch.eye(num_classes).to_sparse()

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.graph, super().forward(x).T).T


class LooseGraph(Graph):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        del self.graph
        self.register_buffer("graph", torch.eye(num_classes).to_sparse(), persistent=False)


class Quantized(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.tables = [torch.quantize_per_tensor(torch.ones(num_classes), 0.1, 0, torch.qint8)]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.tables[0].dequantize()


class Nested(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("rows", torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.rows.unbind()[0]


class Beside(Net):
    """What it makes lies where its weights lie, which may be nowhere."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.scale = nn.Parameter(torch.ones(8, 1, 1, device=self.conv.weight.device))

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * self.scale


def filled(num_classes: int) -> nn.Module:
    """Made on the meta device, and filled: it has numbers."""
    with torch.device("meta"):
        model = Net(num_classes)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.1, 0.1)
    return model


class LongNamed(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.add_module("l" * 300, nn.Linear(1, 1))


class ManyAxes(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("grid", torch.zeros([1] * 9))


REFUSED = {
    LongNamed: "'llll.*' of its state has 307 characters, and 200 can be exchanged",
    ManyAxes: "'grid' of its state has 9 dimensions, and 8 can be exchanged",
    Growing: r"'cache' of its state becomes \[4\] where it was \[0\] .* persistent=False",
    Late: "'last.weight' of its state comes about when the model runs",
    Unseeded: "'fc.weight' is another one each time it is built.*np.random.normal",
    Copying: r"its state_dict\(\) gives 'conv.weight' as a copy",
    Sparse: "'graph' of its state is sparse_coo.*keep it dense",
    Unsigned: "'table' of its state is uint16",
    NoEval: r"can't be put into eval mode: .*(strangers|odd_models)\.py, line .*always in training",
    on_meta: "'conv.weight' is on the meta device",
    moved_to_meta: "'conv.weight' is on the meta device",
    HalfOnMeta: "'fc.weight' is on the meta device",
    LooseOnMeta: "'table' is on the meta device",
}

CUT = (Rates, Looking, Drawn, Waves, Loose, Asking, Pixels)
"""What is cut into blocks."""
ODD_LAYOUTS = {
    Graph: "'graph' of the model is sparse_coo, and a model with such a tensor can't be",
    LooseGraph: "'graph' of the model is sparse_coo, and a model with such a tensor can't be",
    Quantized: "'tables' of the model is qint8, and a model with such a tensor can't be",
    Nested: "'rows' of the model is nested, and a model with such a tensor can't be",
}
NO_BLOCKS = {
    **ODD_LAYOUTS,
    hooked: "has a hook of its own around it",
    Doubling: "has a __call__ of its own",
    patched: "has a forward that was put on the object",
    Counting: "the forward of the model Counting changes 'temperature'.*register_buffer",
    Shaken: "the model Shaken draws random numbers in a way that torch.fx can't trace",
    Locked: "can't be copied: .*lock",
    scripted: "is TorchScript",
    Binary: "Sign has a gradient of its own",
    Backbone: r"a trace does not keep no_grad\(\)",
}
"""What trains whole, and is no chain of blocks and no class sub-models: with the reason."""
