"""ResNet-18 in a pipeline of two stages: cut between residual blocks, it trains what the plain model would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pipeline_group import CONFIG, NUM_CLASSES, Group, builder, pipeline, shape_of
from test_pipeline_training import central
from torch import Tensor, nn

from p2ptrain.learning.blocks.chain import Chain

STEPS = 2


class BasicBlock(nn.Module):
    """As torchvision's: one ReLU for both places, which writes in place, and so does the sum."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != channels:
            shortcut = nn.Conv2d(inputs, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """As torchvision's ``resnet18``, narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 4
        for number, channels in enumerate((4, 6, 8, 10), 1):
            first = BasicBlock(inputs, channels, 2 if number > 1 else 1)
            self.add_module(f"layer{number}", nn.Sequential(first, BasicBlock(channels, channels, 1)))
            inputs = channels
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def as_torchvisions() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return ResNet()


MODELS: dict[str, Callable[[], nn.Module]] = {"built in": builder("resnet18"), "as torchvision's": as_torchvisions}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_it_is_cut_between_its_residual_blocks(build: Callable[[], nn.Module]) -> None:
    chain = Chain(build(), shape_of("resnet18"))
    residual = [f"layer{layer}.{block}" for layer in range(1, 5) for block in range(2)]
    names = [block.name for block in chain.blocks]
    assert [name for name in names if name.startswith("layer")] == residual and names[-1] == "fc"
    torch.manual_seed(1)
    x, model = torch.randn(3, *shape_of("resnet18")), chain.model.eval()
    expected = model(x.clone())
    for cut in range(1, len(names)):
        between = chain.slice(0, cut)(x.clone())
        assert isinstance(between, Tensor), "one tensor crosses"
        assert torch.equal(chain.slice(cut, len(names))(between), expected)


@pytest.mark.parametrize(
    ("kind", "where"), [("built in", "middle"), *(("as torchvision's", where) for where in ("first", "middle", "last"))]
)
def test_two_stages_train_what_the_plain_model_would(kind: str, where: str) -> None:
    """With running statistics, which follow the micro-batches."""
    build = MODELS[kind]
    with torch.device("meta"):
        num = len(Chain(build(), shape_of("resnet18")).blocks)
    cut = {"first": 1, "middle": num // 2, "last": num - 1}[where]
    group = Group("resnet18", pipeline([(cut, (8,)), (num, (8,))], units=2), build=build).run(STEPS)
    state, (model, loss) = group.state(), central("resnet18", group, CONFIG, STEPS, 20, build)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(state[f"model.{key}"], tensor, rtol=1e-4, atol=1e-6)
    assert group.peers["1a"].last_loss == pytest.approx(loss, rel=1e-4)
