"""Costs on the meta device: known totals, the square law of sub-models, and memory that adds up."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from p2ptrain.learning.blocks.flops import Flops, fake_twin, memory_bytes, training_flops
from p2ptrain.learning.models import build_model
from p2ptrain.learning.submodels.decoupling import Decoupling

SHAPE = (3, 32, 32)


def test_vgg11_costs_what_its_papers_say() -> None:
    flops = training_flops(build_model("vgg11_bn", input_shape=SHAPE, num_classes=10), SHAPE)
    assert flops.forward == pytest.approx(306e6, rel=0.01)
    assert 1.9 < flops.backward / flops.forward < 2.0  # the first layer has no input gradient


def test_a_linear_layer_by_hand() -> None:
    assert training_flops(nn.Linear(5, 7), (5,)) == Flops(forward=70, backward=70)
    assert Flops(2, 3).total == 5


def test_a_depthwise_convolution_by_hand() -> None:
    layers = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8))
    pointwise, depthwise = 2 * 8 * 8 * 16, 2 * 8 * 9 * 16
    assert training_flops(layers, (8, 4, 4)) == Flops(pointwise + depthwise, pointwise + 2 * depthwise)


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18", "mobilenetv2"])
def test_submodels_cost_the_square_of_their_share(name: str) -> None:
    model = build_model(name, input_shape=SHAPE, num_classes=10, width=0.5, seed=0)
    decoupling = Decoupling(model, SHAPE, [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]], shares=[0.5, 0.25, 0.25])
    whole = training_flops(model, SHAPE).total
    for group, share in enumerate(decoupling.shares[:2]):
        part = training_flops(decoupling.submodel(group, "own"), SHAPE).total / whole
        # depthwise layers and the first layer fall with the share itself
        assert share**2 <= part < share**2 * (1.7 if name == "mobilenetv2" else 1.2)


def test_a_trunk_costs_everyone() -> None:
    model = build_model("vgg11_bn", input_shape=SHAPE, num_classes=10, seed=0)
    groups = [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    costs = [
        training_flops(Decoupling(model, SHAPE, groups, trunk=trunk).submodel(0, "own"), SHAPE).total
        for trunk in (0, 1, 3)
    ]
    assert costs == sorted(costs) and costs[2] > 2 * costs[0]


def test_counting_leaves_the_model_alone() -> None:
    model = build_model("lenet", input_shape=(1, 8, 8), num_classes=10).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training_flops(model, (1, 8, 8))
    memory_bytes(model, (1, 8, 8), 4, "sgd")
    assert not model.training and all(p.grad is None and p.device.type == "cpu" for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_memory_adds_up() -> None:
    model = build_model("vgg11_bn", input_shape=SHAPE, num_classes=10)
    parameters = sum(p.numel() * 4 for p in model.parameters())
    sgd, momentum, adam = (memory_bytes(model, SHAPE, 16, o) for o in ("sgd", "sgd_momentum", "adamw"))
    assert momentum - sgd == parameters and adam - sgd == 2 * parameters
    one, two, four = (memory_bytes(model, SHAPE, batch, "sgd") for batch in (8, 16, 32))
    assert four - two == pytest.approx(2 * (two - one), rel=0.01)
    # Saved per sample, in floats: what each convolution, BatchNorm (its ReLU works in place) and pooling puts out, the
    # pooling's indices (two floats each), the input, the head's input; and the two largest once more.
    convolutions = 64 * 1024 + 128 * 256 + 2 * 256 * 64 + 2 * 512 * 16 + 2 * 512 * 4
    pooled = 64 * 256 + 128 * 64 + 256 * 16 + 512 * 4 + 512
    floats = 2 * convolutions + 3 * pooled + 3 * 1024 + 512 + 2 * 64 * 1024
    assert (two - one) / 8 == pytest.approx(4 * floats, rel=0.01)


def test_a_submodel_needs_less_memory() -> None:
    model = build_model("vgg11_bn", input_shape=SHAPE, num_classes=10)
    sub = Decoupling(model, SHAPE, [[0], [1, 2]], shares=[0.25, 0.5]).submodel(0, "rest")
    assert memory_bytes(sub, SHAPE, 16, "adamw") < 0.3 * memory_bytes(model, SHAPE, 16, "adamw")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.out(x)
        return nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (build_model("lenet", input_shape=(1, 8, 8), num_classes=10), (1, 8, 8)),
        (build_model("mobilenetv2", input_shape=(3, 16, 16), num_classes=4, width=0.25), (3, 16, 16)),
        (Attention(), (6, 8)),
    ],
    ids=["lenet", "mobilenetv2", "attention"],
)
def test_a_small_models_count_is_that_of_a_large_one(
    model: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is counted while it computes, the other without numbers."""
    generator = torch.get_rng_state()
    computed = training_flops(model, shape)
    assert torch.equal(torch.get_rng_state(), generator)
    monkeypatch.setattr("p2ptrain.learning.blocks.flops.COMPUTED_BYTES", -1)
    assert training_flops(model, shape) == computed != Flops(0, 0)


def test_tensors_that_are_plain_attributes_are_no_obstacle_to_a_model_without_numbers() -> None:
    model = build_model("lenet", input_shape=(1, 8, 8), num_classes=2)
    vars(model)["seen"], vars(model)["defaults"] = torch.ones(3), {"seen": [torch.ones(2, 4).T]}
    with FakeTensorMode(allow_non_fake_inputs=True):
        twin = fake_twin(model)
    assert isinstance(twin.seen, FakeTensor) and twin.seen.shape == (3,)
    assert twin.defaults["seen"][0].stride() == (1, 4) and model.seen.sum() == 3
