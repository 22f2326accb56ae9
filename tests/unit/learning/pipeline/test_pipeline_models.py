"""Models of every kind in a pipeline: several tensors across a cut, nothing to train in a stage, frozen weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pipeline_group import Cut, Group, builder, cuts, pipeline, same, shape_of
from torch import Tensor, nn

from p2ptrain.errors import JobError
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.models import MODELS


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.flatten(1)
        return torch.tanh(self.layer(x)), x[:, :12]  # the second has no gradient


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def forward(self, x: Tensor, aside: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(self.layer(x)) + aside, x


class Plain(nn.Module):
    """Has no parameters."""

    def forward(self, x: Tensor, aside: Tensor) -> tuple[Tensor, Tensor]:
        return x * 0.5, aside


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 5)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, x: Tensor, aside: Tensor) -> Tensor:
        return self.layer(x + aside)


class Listed(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def pipeline_blocks(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        value: tuple[Tensor, ...] = (x,)
        for block in self.blocks:
            out = block(*value)
            value = out if isinstance(out, tuple) else (out,)
        return value[0]


def built(frozen: str = "") -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Listed(Stem(), Mixer(), Plain(), Head())
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not (frozen and name.startswith(frozen)))
        return model

    return build


@pytest.mark.parametrize("frozen", ["", "blocks.0", "blocks.1", "blocks.3"])
def test_several_tensors_may_cross_and_stages_may_have_nothing_to_train(frozen: str) -> None:
    one = Group("lenet", pipeline([(4, (8,))]), build=built(frozen))
    start, expected = one.state(), one.run(4).state()
    four: list[Cut] = [(1, (8,)), (2, (8,)), (3, (8,)), (4, (8,))]
    assert same(Group("lenet", pipeline(four), build=built(frozen)).run(4).state(), expected)
    shared: list[Cut] = [(1, (8,)), (2, (2, 6)), (3, (3, 4, 1)), (4, (4, 4))]
    state = Group("lenet", pipeline(shared), build=built(frozen)).run(4).state()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-6)
    for name in start:
        fixed = name.endswith("mask") or bool(frozen and frozen in name)
        assert torch.equal(start[name], expected[name]) == fixed
    assert all(frozen not in name for name in expected if frozen and name.startswith("optim."))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 8)
        self.register_buffer("ema", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x.flatten(1))
        self.ema.mul_(0.9).add_(out.detach().mean(0))
        return out


def test_buffers_that_can_not_be_averaged_are_said_where_peers_share_a_stage() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return Listed(Counting(), nn.Linear(8, 5))

    Group("lenet", pipeline([(1, (8,)), (2, (4, 4))]), build=build).run(2)
    with pytest.raises(JobError, match=r"blocks\.0\.ema.*single peer"):
        Group("lenet", pipeline([(1, (4, 4)), (2, (8,))]), build=build).run(2)


def test_weights_that_are_not_single_precision_are_refused() -> None:
    with pytest.raises(JobError, match="float32"):
        Group("lenet", pipeline([(4, (8,))]), build=lambda: builder("lenet")().double())


def test_dropout_follows_from_the_seed_and_the_place_alone() -> None:
    plan = pipeline(cuts("alexnet", ((8,), (8,), (3, 5))))
    states = [Group("alexnet", plan, order=order).run(3).state() for order in range(2)]
    assert same(states[0], states[1])
    pieces = [peer.snapshot() for peer in Group("alexnet", plan).run(1).peers.values()]
    resumed = Group("alexnet", plan, order=5)
    for peer in resumed.peers.values():
        peer.restore(pieces, 1)
    assert same(resumed.run(3).state(), states[0])


@pytest.mark.parametrize("name", [name for name in MODELS if name != "alexnet"])
def test_every_model_without_dropout_gives_the_same_bits_wherever_it_is_cut(name: str) -> None:
    num_blocks = len(Chain(builder(name)(), shape_of(name)).blocks)
    stages: list[Cut] = [(1, (3,)), (num_blocks // 2, (3,)), (num_blocks, (3,))]
    whole = Group(name, pipeline([(num_blocks, (3,))], units=2)).run(2).state()
    assert same(Group(name, pipeline(stages, units=2), order=1).run(2).state(), whole)


class StochasticDepth(nn.Module):
    """As torchvision's and timm's: it runs other code in training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(0.8)
        return x * keep / 0.8


class Scaling(nn.Module):
    """As in EfficientNet: channels are weighed by their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.scaling, self.depth = Scaling(channels), StochasticDepth()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.depth(self.scaling(torch.relu(self.conv(x))))


class Efficient(nn.Module):
    """Ends with a view, which knows one order of memory only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.Sequential(Block(4), Block(4))
        self.fc = nn.Linear(4 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.stem(x)))
        return self.fc(x.view(x.size(0), -1))


def efficient() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Efficient()


def test_stochastic_depth_and_views_train_in_stages_as_on_one_device() -> None:
    chain = Chain(efficient(), shape_of("lenet"))
    assert [block.name for block in chain.blocks] == ["stem", "blocks.0", "blocks.1", "fc"]
    x, model = torch.randn(3, 1, 8, 8), chain.model.eval()
    assert torch.equal(chain.slice(2, 4)(chain.slice(0, 2)(x)), model(x))
    whole = chain.slice(0, 4).train()
    assert not torch.equal(whole(x), whole(x))  # depth is at work
    one = Group("lenet", pipeline([(4, (8,))]), build=efficient).run(3).state()
    two: list[Cut] = [(1, (8,)), (4, (8,))]
    state = Group("lenet", pipeline(two), build=efficient).run(3).state()
    assert state.keys() == one.keys() and all(bool(tensor.isfinite().all()) for tensor in state.values())
    before = efficient().state_dict()
    assert all(not torch.equal(state[f"model.{name}"], tensor) for name, tensor in before.items())


class WithHeads(nn.Module):
    """Returns two things; the first is the logits."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 12), nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.one(x.flatten(1)))
        return self.two(x), x


def test_logits_of_a_tuple_are_trained_and_other_numbers_of_classes_refused() -> None:
    Group("lenet", pipeline([(1, (8,)), (2, (8,))]), build=WithHeads).run(1)
    with pytest.raises(JobError, match=r"returns \[7\] for a sample, where the job has 5 classes"):
        Group("lenet", pipeline([(1, (8,)), (2, (8,))]), build=lambda: WithHeads(7))
