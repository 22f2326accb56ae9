"""The promise of decoupling: the assembled model's logits are the sub-models', for every model, however divided."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p2ptrain.errors import JobError, LocalError
from p2ptrain.learning.models import MODELS, TEXT_MODELS, build_model
from p2ptrain.learning.submodels.decoupling import Decoupling
from p2ptrain.learning.submodels.dividing import split_counts
from p2ptrain.learning.submodels.views import take

SHAPE = (3, 12, 12)
GROUPS = {3: ((0, 3, 6), (7, 1, 4), (2, 5)), 5: ((0, 5), (6, 1), (2, 7), (3,), (4,))}
UNEQUAL = {3: (0.5, 0.2, 0.25), 5: (0.1, 0.3, 0.15, 0.25, 0.2)}
CLASSIFIERS = [name for name in MODELS if name not in TEXT_MODELS]
WIDTHS = dict.fromkeys(CLASSIFIERS, 0.25) | {
    "lenet": 0.5,
    "mobilenetv2": 0.35,
    "resnet20": 0.5,
    "resnet18": 0.15,
    "vgg16": 0.15,
    "vgg16_bn": 0.15,
    "alexnet": 0.1,
}


def randomise(module: nn.Module, seed: int) -> None:
    """Weights of the usual size, and statistics as after training, all different."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                tensor.fill_(seed + 1)
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif tensor.dim() > 1:
                tensor.copy_(noise * (2.0 / tensor[0].numel()) ** 0.5)
            else:
                tensor.copy_(0.3 * noise + (name.endswith("weight")))


def trained(decoupling: Decoupling, targets: str) -> dict[int, nn.Module]:
    """Sub-models with random weights, of the same trunk."""
    subs = {g: decoupling.submodel(g, targets).eval() for g in range(len(decoupling.groups))}  # type: ignore[arg-type]
    first: dict[str, Tensor] = {}
    for group, sub in subs.items():
        randomise(sub, group + 1)
        first = first or sub.state_dict()
        sub.load_state_dict({name: first[name] for name in decoupling.trunk_names}, strict=False)
    return subs


def expected_logits(
    decoupling: Decoupling, subs: dict[int, nn.Module], x: Tensor, targets: str, combine: str
) -> Tensor:
    if combine == "sum":
        return torch.stack([sub(x) for sub in subs.values()]).mean(0)
    logits = torch.zeros(len(x), decoupling.num_classes, dtype=x.dtype)
    for group, sub in subs.items():
        z, own = sub(x), list(decoupling.groups[group])
        logits[:, own] = {"all": lambda z=z, own=own: z[:, own], "own": lambda z=z: z}.get(
            targets, lambda z=z: z[:, :-1] - z[:, -1:]
        )()
    return logits


def prove(model: nn.Module, decoupling: Decoupling, shape: tuple[int, ...], cases: list[tuple[str, str]]) -> None:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    subs_of = {targets: trained(decoupling, targets) for targets in dict(cases)}
    for targets, combine in cases:
        subs = subs_of[targets]
        whole = decoupling.assemble({g: s.state_dict() for g, s in subs.items()}, targets=targets, combine=combine)  # type: ignore[arg-type]
        model.load_state_dict(whole)
        with torch.no_grad():
            got, want = model.eval()(x), expected_logits(decoupling, subs, x, targets, combine)
        assert want.std() > 1e-3, "the test says nothing about a constant"
        assert (want[0] - want[1]).abs().max() > 1e-4, "the test says nothing about features that died"
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


CASES = [("all", "own"), ("all", "sum"), ("rest", "own"), ("own", "own")]


@pytest.mark.parametrize("num_groups", [3, 5])
@pytest.mark.parametrize("equal", [True, False], ids=["equal", "unequal"])
@pytest.mark.parametrize("trunk", [0, 2])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_assembled_logits_are_the_submodels(name: str, trunk: int, equal: bool, num_groups: int) -> None:
    shape = (1, 12, 20) if name == "dscnn" else SHAPE
    width = WIDTHS[name]
    model = build_model(name, input_shape=shape, num_classes=8, width=width, seed=0).double()
    names = list(model.state_dict())
    shares = None if equal else UNEQUAL[num_groups]
    decoupling = Decoupling(model, shape, GROUPS[num_groups], shares=shares, trunk=trunk)
    assert bool(decoupling.trunk_names) == (trunk > 0)
    if num_groups == 3:
        assert list(decoupling.submodel(1, "rest").state_dict()) == names
        prove(model, decoupling, shape, CASES)
    else:  # half of the cases each: the rest is the same code
        prove(model, decoupling, shape, CASES[:2] if equal else CASES[2:])


def test_float32_is_within_tolerance() -> None:
    model = build_model("resnet20", input_shape=SHAPE, num_classes=8, seed=1)
    decoupling = Decoupling(model, SHAPE, GROUPS[3])
    subs = trained(decoupling, "rest")
    model.load_state_dict(decoupling.assemble({g: s.state_dict() for g, s in subs.items()}, targets="rest"))
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval()(x), expected_logits(decoupling, subs, x, "rest", "own"), rtol=1e-4, atol=1e-5
        )


class Own(nn.Module):
    """A user's model: adds, concatenation, squeeze-excitation, GroupNorm, grouped convolution, a layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.1))
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.GroupNorm(6, 12)
        self.again = nn.Conv2d(12, 12, 3, padding=1)
        self.left = nn.Conv2d(12, 12, 1)
        self.right = nn.Conv2d(12, 24, 3, padding=1, groups=6)
        self.deep = nn.Conv2d(36, 72, 3, stride=2, padding=1, groups=36)
        self.squeeze = nn.Linear(72, 6)
        self.excite = nn.Linear(6, 72)
        self.bn = nn.BatchNorm2d(72)
        self.slope = nn.PReLU(72)
        self.hidden = nn.Linear(72 * 9, 20)
        self.tie = nn.Conv2d(12, 36, 1)
        self.last = nn.Linear(20, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x - self.mean)))
        x = x + F.relu(self.again(x))
        x = torch.tanh(self.again(x)) + x
        x = F.max_pool2d(torch.cat([self.left(x), self.right(x)], dim=1) + self.tie(x), 2)
        x = self.slope(self.bn(self.deep(x)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3))))))
        x = x * gate.view(x.size(0), -1, 1, 1)
        x = x.reshape(x.shape[0], -1)
        return self.last(F.dropout(F.relu(self.hidden(x)), 0.5, self.training))


@pytest.mark.parametrize("trunk", [0, 3])
def test_a_users_own_model(trunk: int) -> None:
    model = Own().double()
    decoupling = Decoupling(model, SHAPE, GROUPS[3], trunk=trunk)
    assert decoupling.head == "last"
    prove(model, decoupling, SHAPE, CASES)


def test_everything_but_the_head_in_the_trunk() -> None:
    model = build_model("lenet", input_shape=SHAPE, num_classes=8, seed=0).double()
    prove(model, Decoupling(model, SHAPE, GROUPS[3], trunk=3), SHAPE, CASES)


def test_a_convolutional_head() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Conv2d(9, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    decoupling = Decoupling(model, SHAPE, GROUPS[3])
    assert decoupling.head == "2"
    prove(model, decoupling, SHAPE, CASES)


class ConstantView(nn.Module):
    def __init__(self, shuffle: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.shuffle = shuffle
        self.mixing = nn.Conv2d(12, 12, 1)
        self.last = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.shuffle:
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = self.mixing(x).mean((2, 3))
        return self.last(x if self.shuffle else x.view(-1, 12))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Linear(8, 8)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.one(x) + self.two(x)).mean((2, 3)))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3)))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.alpha = nn.Conv2d(3, 9, 1), nn.Linear(9, 8), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.conv(x) * self.alpha).mean((2, 3)))


def pooled(*layers: nn.Module, features: int = 12) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 8))


def conv(num_in: int = 3, num_out: int = 12, groups: int = 1) -> nn.Module:
    return nn.Conv2d(num_in, num_out, 3, padding=1, groups=groups)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (pooled(conv(), nn.GroupNorm(1, 12)), ["'0'", "'1' (GroupNorm)", "at least 3 norm groups"]),
        (pooled(conv(), nn.LayerNorm([12, 12, 12])), ["'1' (LayerNorm)", "GroupNorm", "tasks.trunk"]),
        (pooled(conv(), nn.LocalResponseNorm(3)), ["'1' (LocalResponseNorm)"]),
        (pooled(conv(), nn.PReLU()), ["'1' (PReLU)", "slope"]),
        (pooled(conv(), nn.Softmax(dim=1)), ["'1' (Softmax)"]),
        (pooled(conv(), conv(12, 12, groups=2)), ["'1' (Conv2d)", "2 separable"]),
        (pooled(conv(), nn.ConvTranspose2d(12, 12, 3)), ["'1' (ConvTranspose2d)", "replicas"]),
        (pooled(conv(3, 2), features=2), ["'0' has 2 channels", "3 class groups"]),
        (nn.Sequential(pooled(conv()), nn.LogSoftmax(1)), ["logits"]),
        (nn.Sequential(pooled(conv()), nn.ReLU()), ["'1' (ReLU)", "logits", "'0.3'"]),
        (ConstantView(shuffle=False), ["'view'", "torch.flatten"]),
        (ConstantView(shuffle=True), ["'mixing'", "reorders"]),
        (Tied(), ["one.weight", "two.weight", "tied"]),
        (Branching(), ["torch.fx", "Branching"]),
        (Scaled(), ["'alpha'"]),
        (pooled(nn.LSTM(12, 12)), ["LSTM"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_cant_be_divided_is_named(model: nn.Module, words: list[str]) -> None:
    with pytest.raises(JobError) as caught:
        Decoupling(model, SHAPE, GROUPS[3])
    for word in words:
        assert word in str(caught.value)


def test_what_mixes_channels_may_stand_in_the_trunk() -> None:
    model = pooled(conv(), nn.LayerNorm([12, 12, 12]), nn.PReLU(), conv(12, 12)).double()
    decoupling = Decoupling(model, SHAPE, GROUPS[3], trunk=1)
    assert decoupling.trunk_names == {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight"}
    prove(model, decoupling, SHAPE, CASES)


def test_a_residual_tie_draws_a_stage_into_the_trunk() -> None:
    model = build_model("resnet20", input_shape=SHAPE, num_classes=8, seed=0)
    trunk = Decoupling(model, SHAPE, GROUPS[3], trunk=1).trunk_names
    assert "conv1.weight" in trunk and "layer1.2.conv2.weight" in trunk and "layer1.2.conv1.weight" in trunk
    assert not any(name.startswith("layer2.0.") for name in trunk)


def test_trunk_and_groups_and_shares_are_checked() -> None:
    model = build_model("lenet", input_shape=(1, 8, 8), num_classes=8, width=0.5)
    for options, word in [
        ({"groups": [[0, 1], [1]]}, "one group only"),
        ({"groups": [[0, 8]]}, "0 to 7"),
        ({"groups": [[0], []]}, "at least one class"),
        ({"groups": [[0], [1]], "shares": [0.7, 0.5]}, "at most 1"),
        ({"groups": [[0], [1]], "trunk": 4}, "use 0 to 3"),
    ]:
        with pytest.raises(JobError, match=word):
            Decoupling(model, (1, 8, 8), **options)  # type: ignore[arg-type]


def test_shares_are_respected() -> None:
    assert split_counts(10, [0.5, 0.3, 0.2]) == [5, 3, 2]
    assert split_counts(16, [1 / 3] * 3) == [6, 5, 5]
    assert split_counts(64, [0.29] * 3) == [19, 19, 18]
    assert split_counts(5, [0.9, 0.03, 0.03, 0.02, 0.02]) == [1, 1, 1, 1, 1]
    assert split_counts(20, [0.9, 0.05, 0.05]) == [18, 1, 1]
    assert split_counts(8, [0.97, 0.01, 0.02]) == [6, 1, 1]


def test_views_are_disjoint_outside_the_trunk_and_tell_the_submodels_shapes() -> None:
    model = build_model("mobilenetv2", input_shape=SHAPE, num_classes=8, width=0.5, seed=0)
    decoupling = Decoupling(model, SHAPE, GROUPS[3], shares=UNEQUAL[3], trunk=1)
    views = [decoupling.view(group) for group in range(3)]
    for group, view in enumerate(views):
        sub = decoupling.submodel(group, "own")
        part = take(model.state_dict(), view)
        assert all(torch.equal(part[name], tensor) for name, tensor in sub.state_dict().items())
        assert part.keys() == model.state_dict().keys() == sub.state_dict().keys()
    for name, tensor in model.state_dict().items():
        if name in decoupling.trunk_names or tensor.dim() == 0:
            continue
        first = [view.axes[name][0] for view in views]
        merged = torch.cat([index for index in first if index is not None])
        assert len(merged) == len(merged.unique()), name


def test_submodels_do_not_share_memory_with_the_model_and_tell_their_sizes() -> None:
    model = Own()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sub = Decoupling(model, SHAPE, GROUPS[3]).submodel(0, "all")
    randomise(sub, 5)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert (sub.right.in_channels, sub.right.out_channels, sub.right.groups) == (4, 8, 2)
    assert (sub.deep.in_channels, sub.deep.out_channels, sub.deep.groups) == (12, 24, 12)
    assert (sub.norm.num_groups, sub.norm.num_channels, sub.bn.num_features) == (2, 4, 24)
    assert (sub.last.out_features, sub.hidden.in_features) == (8, 24 * 9)


def test_a_missing_group_keeps_the_base() -> None:
    model = build_model("vgg11_bn", input_shape=SHAPE, num_classes=8, width=0.2, seed=0).double()
    decoupling = Decoupling(model, SHAPE, GROUPS[3], trunk=1)
    old = trained(decoupling, "rest")
    base = decoupling.assemble({g: s.state_dict() for g, s in old.items()}, targets="rest")
    new = trained(decoupling, "rest")[1]
    with torch.no_grad():
        for name, tensor in new.state_dict().items():
            if name not in decoupling.trunk_names and tensor.is_floating_point():
                tensor.mul_(1.1)
    model.load_state_dict(decoupling.assemble({1: new.state_dict()}, targets="rest", base=base))
    x = torch.randn(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = expected_logits(decoupling, old | {1: new}, x, "rest", "own")
        torch.testing.assert_close(model.eval()(x), want)
    empty = decoupling.assemble({1: new.state_dict()}, targets="rest")
    assert not empty["classifier.weight"][[0, 3, 6, 2, 5]].any()


def test_different_trunks_need_an_average() -> None:
    model = build_model("lenet", input_shape=(1, 8, 8), num_classes=8, seed=0)
    decoupling = Decoupling(model, (1, 8, 8), GROUPS[3], trunk=1)
    parts = {g: decoupling.submodel(g, "own").state_dict() for g in range(3)}
    parts[2]["conv1.weight"] = parts[2]["conv1.weight"] + 1
    with pytest.raises(LocalError, match=r"conv1\.weight"):
        decoupling.assemble(parts, targets="own")
    trunk = {name: torch.ones_like(parts[0][name]) for name in decoupling.trunk_names}
    assert bool((decoupling.assemble(parts, targets="own", trunk=trunk)["conv1.weight"] == 1).all())
    with pytest.raises(LocalError, match="all"):
        decoupling.assemble(parts, targets="own", combine="sum", trunk=trunk)
    with pytest.raises(LocalError, match=r"fc2\.weight"):
        decoupling.assemble(parts, targets="rest", trunk=trunk)


def test_scores_give_each_group_its_best_channels() -> None:
    model = build_model("resnet20", input_shape=SHAPE, num_classes=8, seed=0).double()
    plain = Decoupling(model, SHAPE, GROUPS[3])
    assert plain.channel_layers["conv1"] == 16 and "fc" not in plain.channel_layers
    scores = {name: torch.full((8, count), 0.01) for name, count in plain.channel_layers.items()}
    scores["layer1.0.conv1"][2, 3:7] = 5.0  # class 2 is in group 2
    scores["layer1.0.conv1"][7, [0, 9]] = 5.0  # class 7 is in group 1
    decoupling = Decoupling(model, SHAPE, GROUPS[3], scores=scores)
    held = [decoupling.view(group).axes["layer1.0.conv1.weight"][0].tolist() for group in range(3)]
    assert {3, 4, 5, 6} <= set(held[2]) and {0, 9} <= set(held[1])
    assert sorted([*held[0], *held[1], *held[2]]) == list(range(16)) and sorted(map(len, held)) == [5, 5, 6]
    prove(model, decoupling, SHAPE, [("rest", "own"), ("all", "sum")])


def test_rest_row_is_deterministic_and_rescale_keeps_the_signal() -> None:
    model = build_model("vgg16", input_shape=SHAPE, num_classes=8, width=0.5, seed=0)
    decoupling = Decoupling(model, SHAPE, GROUPS[5])
    row = decoupling.submodel(1, "rest").classifier.weight
    assert torch.equal(row, decoupling.submodel(1, "rest").classifier.weight) and bool(row[-1].any())
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    small = decoupling.submodel(0, "own")(x).std()
    assert decoupling.submodel(0, "own", rescale=True)(x).std() > 100 * small
