"""Models as chains of blocks: slices that do what the whole does, legal cuts only, and errors that say why not."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p2ptrain.errors import JobError, LocalError
from p2ptrain.learning.blocks import partial
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.blocks.partial import named_tensors, partial_model
from p2ptrain.learning.models import MODELS, TEXT_MODELS, build_model
from p2ptrain.learning.objective import training_loss

WIDTH = 0.1
NUM_CLASSES = 5


def shape_of(name: str) -> tuple[int, int, int]:
    return (1, 1, 12) if name in TEXT_MODELS else (1, 12, 20) if name == "dscnn" else (3, 16, 16)


def built(name: str) -> nn.Module:
    return build_model(name, input_shape=shape_of(name), num_classes=NUM_CLASSES, width=WIDTH, seed=0)


def batch(name: str, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    if name in TEXT_MODELS:
        return torch.randint(0, NUM_CLASSES, (size, *shape_of(name)), generator=generator)
    return torch.randn(size, *shape_of(name), generator=generator)


def labels(name: str, size: int) -> Tensor:
    """Of the last position, or of every one."""
    y = torch.arange(size) % NUM_CLASSES
    return y[:, None].expand(size, 12) if name == "gpt_mini" else y


def run_slices(slices: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Slice by slice as peers would: what crosses is cut out of the graph, and its gradient is carried by hand."""
    value: Tensor | tuple[Tensor, ...] = x
    for module in slices:
        value = module(*value) if isinstance(value, tuple) else module(value)
    assert isinstance(value, Tensor)
    return value


def backward_slices(slices: Sequence[nn.Module], x: Tensor, y: Tensor) -> Tensor:
    inputs: list[tuple[Tensor, ...]] = [(x,)]
    outputs: list[tuple[Tensor, ...]] = []
    for module in slices:
        value = module(*inputs[-1])
        outputs.append(value if isinstance(value, tuple) else (value,))
        inputs.append(tuple(one.detach().clone().requires_grad_() for one in outputs[-1]))
    logits = inputs[-1][0]
    training_loss(logits, y).backward()
    for into, out in zip(reversed(inputs[1:]), reversed(outputs), strict=True):
        torch.autograd.backward(out, [one.grad for one in into])
    return logits.detach()


@pytest.mark.parametrize("name", MODELS)
def test_blocks_one_by_one_do_what_the_whole_does(name: str) -> None:
    whole = built(name)
    parts = copy.deepcopy(whole)
    chain = Chain(parts, shape_of(name))
    num_blocks = len(chain.blocks)
    assert num_blocks >= 4
    assert len({block.name for block in chain.blocks}) == num_blocks
    slices = [chain.slice(i, i + 1) for i in range(num_blocks)]
    names = [name for module in slices for name in module.state_dict()]
    assert sorted(names) == sorted(whole.state_dict()) == sorted(chain.tensor_names(0, num_blocks))
    for size, training in ((3, True), (2, True), (1, False)):
        x, y = batch(name, size), labels(name, size)
        whole.train(training).zero_grad()
        for module in slices:
            module.train(training).zero_grad()
        torch.manual_seed(0)  # dropout
        logits = whole(x)
        training_loss(logits, y).backward()
        torch.manual_seed(0)
        assert torch.equal(backward_slices(slices, x, y), logits)
        gradients = {n: p.grad for module in slices for n, p in module.named_parameters()}
        assert all(torch.equal(gradients[n], p.grad) for n, p in whole.named_parameters())
        state = {n: t for module in slices for n, t in module.state_dict().items()}
        assert all(torch.equal(state[n], t) for n, t in whole.state_dict().items())  # running statistics


@pytest.mark.parametrize("name", MODELS)
def test_slices_of_several_blocks_and_their_shapes(name: str) -> None:
    whole = built(name).eval()
    chain = Chain(whole, shape_of(name))
    num_blocks = len(chain.blocks)
    x = batch(name, 2)
    expected = whole(x)
    for cut in (1, num_blocks // 2, num_blocks - 1):
        first, second = chain.slice(0, cut), chain.slice(cut, num_blocks)
        assert not first.training and not second.training  # as the model is
        (crossing,) = chain.blocks[cut - 1].outputs
        middle = first(x)
        assert (middle.shape, middle.dtype) == ((2, *crossing.shape), crossing.dtype)
        assert torch.equal(second(middle), expected)
    assert chain.inputs(0)[0].shape == shape_of(name) and chain.inputs(1) == chain.blocks[0].outputs


def test_residual_blocks_stay_whole() -> None:
    names = [block.name for block in Chain(built("resnet20"), (3, 16, 16)).blocks]
    assert names == ["conv1", *(f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)), "fc"]


def test_cuts_are_where_the_fewest_bytes_cross() -> None:
    chain = Chain(built("vgg11_bn"), (3, 16, 16))
    assert len(chain.blocks) == 9
    assert set(chain.blocks[0].tensors) == {"features.0.weight", *(f"features.1.{n}" for n in BATCH_NORM)}
    assert chain.blocks[0].outputs[0].shape == (6, 8, 8)  # after the pooling
    assert chain.blocks[0].outputs[0].num_bytes == 6 * 8 * 8 * 4


BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_bad_ranges_are_our_own_bug() -> None:
    chain = Chain(built("lenet"), (3, 16, 16))
    for first, stop in ((0, 0), (2, 1), (-1, 2), (0, 9)):
        with pytest.raises(LocalError):
            chain.slice(first, stop)


# Slices without the rest of the model


@pytest.mark.parametrize("name", MODELS)
def test_a_slice_is_built_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "_dropped", lambda *_: pytest.fail("built in full"))
    with torch.device("meta"):
        chain = Chain(built(name), shape_of(name))
    whole = built(name).state_dict()
    num_blocks = len(chain.blocks)
    state: dict[str, Tensor] = {}
    for first, stop in ((0, num_blocks // 2), (num_blocks // 2, num_blocks)):
        state |= chain.build_slice(lambda: built(name), first, stop).state_dict()
    assert state.keys() == whole.keys()
    assert all(torch.equal(state[n], t) for n, t in whole.items())


@pytest.mark.parametrize("name", MODELS)
def test_a_slice_without_values_takes_those_of_another(name: str) -> None:
    with torch.device("meta"):
        chain = Chain(built(name), shape_of(name))
    half, whole = len(chain.blocks) // 2, built(name)
    x = batch(name, 2)
    for first, stop in ((0, half), (half, len(chain.blocks))):
        blank = chain.blank_slice(first, stop)
        true = chain.build_slice(lambda: built(name), first, stop)
        if blank is None:  # GPT's and BERT's masks and positions are no part of their state
            assert named_tensors(true).keys() > true.state_dict().keys()
            continue
        blank.load_state_dict(true.state_dict())
        assert {n: p.requires_grad for n, p in blank.named_parameters()} == {
            n: p.requires_grad for n, p in true.named_parameters()
        }
        assert blank.state_dict().keys() == set(chain.tensor_names(first, stop)) <= whole.state_dict().keys()
        if first == 0:
            assert torch.equal(blank.eval()(x), true.eval()(x))
    assert all(tensor.is_meta for tensor in chain.model.state_dict().values()), "the chain's own model is left alone"


class Orthogonal(nn.Module):
    """Tensors that come about in unusual ways: by a decomposition, from each other, of no factory."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.register_buffer("mask", torch.tril(torch.ones(4, 4)), persistent=False)
        self.scale = torch.ones(1) / 3
        nn.init.orthogonal_(self.second.weight)
        with torch.no_grad():
            self.first.weight.copy_(self.second.weight.t())

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x) @ (self.mask * self.scale))
        return self.second(y + torch.tensor([1.0, 2.0, 3.0, 4.0]))


def seeded(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return kind()


def test_unusual_tensors() -> None:
    whole = seeded(Orthogonal)
    x = torch.randn(3, 4)
    chain = Chain(whole, (4,))
    slices = [chain.slice(0, 1), chain.slice(1, 2)]
    assert torch.equal(run_slices(slices, x), whole(x))
    assert sorted(n for s in slices for n in s.state_dict()) == sorted(whole.state_dict())
    rebuilt = [chain.build_slice(lambda: seeded(Orthogonal), i, i + 1) for i in range(2)]
    assert torch.equal(run_slices(rebuilt, x), whole(x))
    assert chain.blank_slice(0, 1) is None, "nobody would bring its scale and mask"
    part = partial_model(lambda: seeded(Orthogonal), {"first.weight"})
    assert {n for n, t in named_tensors(part).items() if not t.is_meta} == {"first.weight"}
    assert torch.equal(part.first.weight, whole.first.weight)


class Moved(nn.Module):
    """As code does that asks for a GPU and finds none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4).to("cpu"), nn.Linear(4, 3).cpu()
        self.register_buffer("scale", torch.rand(4).to(device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.scale)


def test_what_goes_to_the_cpu_is_built_in_part_all_the_same() -> None:
    whole, in_part = seeded(Moved), list[bool]()

    def build() -> nn.Module:
        model = seeded(Moved)
        in_part.append(any(tensor.is_meta for tensor in model.parameters()))
        return model

    part = partial_model(build, {"first.weight", "scale"})
    assert in_part == [True, True], "never in full"
    assert {n for n, t in named_tensors(part).items() if not t.is_meta} == {"first.weight", "scale"}
    assert torch.equal(part.first.weight, whole.first.weight) and torch.equal(part.scale, whole.scale)


# Models of a user's own


class Tied(nn.Module):
    def __init__(self, head: bool = True) -> None:
        super().__init__()
        self.embedding, self.hidden, self.output = nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(4, 8)
        self.tail = nn.Linear(8, 2) if head else nn.Identity()
        self.output.weight = nn.Parameter(self.output.weight)
        self.embedding.weight = nn.Parameter(torch.randn(4, 8))
        self.decoder = nn.Linear(8, 4)
        self.decoder.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.decoder(self.output(self.hidden(self.embedding(x))))[:, :4] @ torch.ones(4, 8))


def test_tied_tensors_are_never_parted() -> None:
    assert [b.name for b in Chain(Tied(), (8,)).blocks] == ["embedding", "tail"]
    with pytest.raises(JobError, match=r"'embedding.weight' and 'decoder.weight' are one and the same"):
        Chain(Tied(head=False), (8,))
    layer = nn.Linear(4, 4)
    with pytest.raises(JobError, match=r"tensor '0.weight' is used on both sides"):
        Chain(nn.Sequential(layer, nn.ReLU(), layer), (4,))


class ByValue(nn.Module):
    """Can't be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 6), Branching(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


class Listed(ByValue):
    def pipeline_blocks(self) -> list[nn.Module]:
        return [self.first, self.middle, self.last]


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            x = -x
        return x @ self.weight


def test_what_cant_be_traced_says_which_line_and_what_to_do() -> None:
    message = r"test_blocks.py, line \d+ \(if x.sum\(\) > 1e9:\).*nn.Sequential.*pipeline_blocks"
    with pytest.raises(JobError, match=message) as caught:
        Chain(ByValue(), (4,))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["listed", "sequential"])
def test_blocks_that_cant_be_traced(kind: str) -> None:
    model: nn.Module = Listed() if kind == "listed" else nn.Sequential(*ByValue().children())
    chain = Chain(model, (4,))
    assert len(chain.blocks) == 3 and not chain.on_meta
    x = torch.randn(5, 4)
    assert torch.equal(run_slices([chain.slice(i, i + 1) for i in range(3)], x), model(x))
    with pytest.raises(JobError, match="fails on batches"), torch.device("meta"):
        Chain(Listed(), (4,))


def test_samples_cross_no_cut() -> None:
    """What a list begins with that has no weights hands on the samples themselves."""

    class Flattened(Listed):
        def __init__(self) -> None:
            super().__init__()
            self.flat, self.scaled = nn.Flatten(), nn.LayerNorm(4)

        def pipeline_blocks(self) -> list[nn.Module]:
            return [self.flat, self.scaled, *super().pipeline_blocks()]

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.scaled(self.flat(x)))

    model = Flattened()
    chain = Chain(model, (2, 2))
    assert chain.blocks[0].tensors == tuple(
        f"{layer}.{kind}" for layer in ("first", "scaled") for kind in ("weight", "bias")
    )
    assert len(chain.blocks) == 3
    x = torch.randn(5, 2, 2)
    assert torch.equal(run_slices([chain.slice(i, i + 1) for i in range(3)], x), model(x))

    class Short(Flattened):
        def pipeline_blocks(self) -> list[nn.Module]:
            return [self.flat, self.first]

    with pytest.raises(JobError, match="fewer than two blocks with weights"):
        Chain(Short(), (2, 2))


class TwoWays(nn.Module):
    """Two tensors cross everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.c(a) * self.d(b) + a


class Passing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = Start(), End()

    def pipeline_blocks(self) -> list[nn.Module]:
        return [self.start, self.end]

    def forward(self, x: Tensor) -> Tensor:
        return self.end(*self.start(x))


class Start(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


class End(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x * y)


def test_a_stated_number_of_tensors_may_cross() -> None:
    with pytest.raises(JobError, match=r"[234] tensors cross .* at most 1"):
        Chain(TwoWays(), (4,))
    for model, chain in ((m := TwoWays(), Chain(m, (4,), max_tensors=3)), (p := Passing(), Chain(p, (4,)))):
        num_blocks = len(chain.blocks)
        assert num_blocks >= 2 and max(len(block.outputs) for block in chain.blocks) >= 2
        slices = [chain.slice(i, i + 1) for i in range(num_blocks)]
        x = torch.randn(3, 4)
        assert torch.equal(run_slices(slices, x), model(x))


def lambda_model(forward, **layers: nn.Module) -> nn.Module:  # type: ignore[no-untyped-def]
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, layer in layers.items():
                setattr(self, name, layer)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    return Own()


def with_size(model: nn.Module, x: Tensor) -> Tensor:
    size = x.size(0)
    return model.b(model.a(x)).view(size, 4)


A, B = nn.Linear(4, 4), nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (lambda_model(lambda m, x: m.b(F.dropout(m.a(x), 0.5, m.training)), a=A, b=B), "nn.Dropout"),
        (lambda_model(with_size, a=A, b=B), "a number from operation 'size'"),
        (lambda_model(lambda m, x: m.b(m.a(x)) * x, a=A, b=B), "of the input batch and layer 'a'"),
        (lambda_model(lambda m, x: m.b(m.a(x.unsqueeze(0))).squeeze(0), a=A, b=B), "does not begin with the batch"),
        (lambda_model(lambda m, x: {"a": m.a(x), "b": m.b(x)}, a=A, b=B), "must return one tensor"),
        (lambda_model(lambda m, x: m.b(m.a(x)), a=A, b=nn.Linear(5, 4)), "fails on batches of samples of shape"),
        (lambda_model(lambda m, x: m.b(m.a(x)), a=A, b=B, c=nn.Linear(2, 2)), "'c.weight'.*takes no part"),
        (lambda_model(lambda m, x: m.a(x), a=A), "no place to cut it: it has 1 layer"),
        (lambda_model(lambda m, x: m.b(x), a=A, b=B, pipeline_blocks=nn.Linear(1, 1)), "pipeline_blocks"),
    ],
)
def test_what_stands_in_the_way_is_named(model: nn.Module, word: str) -> None:
    with pytest.raises(JobError, match=word) as caught:
        Chain(model, (4,))
    assert "\n" not in str(caught.value)


def test_never_before_what_writes_in_place() -> None:
    """The received tensor must stay as it is: it is a leaf whose gradient goes back."""
    model = lambda_model(lambda m, x: m.b(F.relu(m.a(x).add(0).flatten(1), inplace=True)), a=A, b=B)
    chain = Chain(model, (4,))
    x, y = torch.randn(3, 4), torch.zeros(3, dtype=torch.int64)
    assert torch.equal(backward_slices([chain.slice(0, 1), chain.slice(1, 2)], x, y), model(x))
    residual = lambda_model(lambda m, x: m.b(m.a(x).mul_(2).relu_()), a=A, b=B)
    assert len(Chain(residual, (4,)).blocks) == 2


class Asking(nn.Sequential):
    """Asks of every class that is made of it."""

    def __init_subclass__(cls, *, task: str) -> None:
        cls.task = task


def test_a_class_that_asks_things_of_those_made_of_it_is_cut_as_others() -> None:
    model = Asking(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    chain, x = Chain(model, (4,)), torch.randn(3, 4)
    assert len(chain.blocks) == 2 and type(model) is Asking
    assert torch.equal(run_slices([chain.slice(0, 1), chain.slice(1, 2)], x), model(x))
