"""The built-in models and the door for a user's own."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from p2ptrain.errors import JobError
from p2ptrain.learning.models import MODELS, TEXT_MODELS, build_model, current_names, mobilenetv2
from p2ptrain.learning.models.resnet import current_name


def test_the_registry_is_this() -> None:
    names = "lenet alexnet vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn resnet18 resnet20 mobilenetv2 dscnn"
    names += " bert_small gpt_mini"
    assert " ".join(MODELS) == names


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (3, 20, 33)], ids=str)
@pytest.mark.parametrize("name", [name for name in MODELS if name not in TEXT_MODELS])
def test_any_input_gives_logits_and_gradients(name: str, shape: tuple[int, int, int]) -> None:
    model = build_model(name, input_shape=shape, num_classes=7, width=0.1, seed=0)
    logits = model(torch.randn(2, *shape))
    assert logits.shape == (2, 7) and bool(logits.isfinite().all())
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2"])
def test_large_inputs_shrink_early(name: str) -> None:
    model = build_model(name, input_shape=(3, 96, 96), num_classes=4, width=0.1, seed=0).eval()
    seen = []
    last = model.layer4 if name == "resnet18" else model.features
    last.register_forward_hook(lambda _, __, out: seen.append(out.shape[-1]))
    model(torch.zeros(1, 3, 96, 96))
    assert seen[-1] == 3


def test_classes_and_names_of_well_known_layers() -> None:
    vgg = build_model("vgg16_bn", input_shape=(3, 32, 32), num_classes=10, width=0.1).state_dict()
    assert {"features.0.weight", "features.1.running_mean", "classifier.weight"} <= vgg.keys()
    resnet = build_model("resnet20", input_shape=(3, 32, 32), num_classes=10).state_dict()
    assert resnet["layer2.0.downsample.0.weight"].shape == (32, 16, 1, 1)
    assert sum(name.endswith("conv1.weight") or name.endswith("conv2.weight") for name in resnet) == 19
    with_blocks = {current_name(name, 3) for name in OLD_RESNET20}
    assert with_blocks <= resnet.keys()


OLD_RESNET20 = ("stem.0.weight", "stem.1.running_var", "blocks.2.conv1.weight", "blocks.3.shortcut.1.bias", "fc.bias")


def torchvision_resnet18() -> dict[str, tuple[int, ...]]:
    """Its tensors but for counters, as torchvision documents and its weights have them: 1,000 classes."""
    found: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}

    def norm(name: str, channels: int) -> None:
        found.update({f"{name}.{n}": (channels,) for n in ("weight", "bias", "running_mean", "running_var")})

    norm("bn1", 64)
    before = 64
    for stage, channels in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            place = f"layer{stage}.{block}"
            found[f"{place}.conv1.weight"] = (channels, before, 3, 3)
            found[f"{place}.conv2.weight"] = (channels, channels, 3, 3)
            norm(f"{place}.bn1", channels)
            norm(f"{place}.bn2", channels)
            if before != channels:
                found[f"{place}.downsample.0.weight"] = (channels, before, 1, 1)
                norm(f"{place}.downsample.1", channels)
            before = channels
    return found | {"fc.weight": (1000, 512), "fc.bias": (1000,)}


def torchvision_mobilenet_v2() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}

    def layer(conv: str, norm: str, shape: tuple[int, ...]) -> None:
        found[f"{conv}.weight"] = shape
        found.update({f"{norm}.{n}": shape[:1] for n in ("weight", "bias", "running_mean", "running_var")})

    layer("features.0.0", "features.0.1", (32, 3, 3, 3))
    before, number = 32, 1
    settings = [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]
    for expansion, channels, repeats in settings:
        for _ in range(repeats):
            place, hidden, index = f"features.{number}.conv", before * expansion, 0
            if expansion != 1:
                layer(f"{place}.0.0", f"{place}.0.1", (hidden, before, 1, 1))
                index = 1
            layer(f"{place}.{index}.0", f"{place}.{index}.1", (hidden, 1, 3, 3))
            layer(f"{place}.{index + 1}", f"{place}.{index + 2}", (channels, hidden, 1, 1))
            before, number = channels, number + 1
    layer("features.18.0", "features.18.1", (1280, 320, 1, 1))
    return found | {"classifier.1.weight": (1000, 1280), "classifier.1.bias": (1000,)}


@pytest.mark.parametrize(
    ("name", "theirs", "num_tensors"),
    [("resnet18", torchvision_resnet18(), 122), ("mobilenetv2", torchvision_mobilenet_v2(), 314)],
)
def test_names_and_shapes_are_torchvisions(name: str, theirs: dict[str, tuple[int, ...]], num_tensors: int) -> None:
    ours = build_model(name, input_shape=(3, 224, 224), num_classes=1000).state_dict()
    assert len(ours) == num_tensors
    shapes = {n: tuple(tensor.shape) for n, tensor in ours.items() if not n.endswith("num_batches_tracked")}
    assert shapes == theirs


def test_files_of_older_versions_have_every_tensor_under_another_name() -> None:
    """Each new name is reached from exactly one old one."""
    resnet = build_model("resnet18", input_shape=(3, 32, 32), num_classes=4, width=0.1).state_dict()
    kinds = {"conv1": "conv1", "bn1": "bn1", "conv2": "conv2", "bn2": "bn2", "downsample": "shortcut"}
    old: dict[str, str] = {}
    for name in resnet:
        head, _, rest = name.partition(".")
        if head.startswith("layer"):
            index, kind, rest = rest.split(".", 2)
            old[f"blocks.{(int(head[5:]) - 1) * 2 + int(index)}.{kinds[kind]}.{rest}"] = name
        else:
            old[{"conv1": "stem.0", "bn1": "stem.1", "fc": "fc"}[head] + "." + rest] = name
    assert current_names("resnet18", old) == old
    model = build_model("mobilenetv2", input_shape=(3, 32, 32), num_classes=4, width=0.1)
    flat: list[tuple[str, nn.Module]] = []  # the layers of older versions, in one list
    for name, module in model.features.named_children():
        place = f"features.{name}"
        is_block = isinstance(module, mobilenetv2.InvertedResidual)
        flat += [(place, module)] if is_block else [(f"{place}.{n}", each) for n, each in module.named_children()]
    old = {}
    for number, (name, module) in enumerate(flat):
        if not isinstance(module, mobilenetv2.InvertedResidual):
            old |= {f"features.{number}.{n}": f"{name}.{n}" for n in module.state_dict()}
            continue
        leaves = [(n, m) for n, m in module.conv.named_modules() if not list(m.children())]
        for index, (n, leaf) in enumerate(leaves):
            old |= {f"features.{number}.conv.{index}.{t}": f"{name}.conv.{n}.{t}" for t in leaf.state_dict()}
    old |= {"classifier.weight": "classifier.1.weight", "classifier.bias": "classifier.1.bias"}
    assert sorted(old.values()) == sorted(model.state_dict())
    assert current_names("mobilenetv2", old) == old
    assert current_names("mobilenetv2", model.state_dict()) == {name: name for name in model.state_dict()}


def test_a_seed_fixes_the_weights_and_leaves_the_generator_alone() -> None:
    arguments = {"input_shape": (1, 8, 8), "num_classes": 3}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = build_model("lenet", **arguments, seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected)
    two = build_model("lenet", **arguments, seed=1).state_dict()
    other = build_model("lenet", **arguments, seed=2).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "lenett"}, "lenett.*lenet, alexnet"),
        ({"input_shape": (1, 8)}, "input shape"),
        ({"input_shape": (0, 8, 8)}, "input shape"),
        ({"num_classes": 0}, "num_classes"),
        ({"width": 0.0}, "width"),
    ],
)
def test_bad_arguments(change: dict[str, object], word: str) -> None:
    with pytest.raises(JobError, match=word):
        build_model(**({"name": "lenet", "input_shape": (1, 8, 8), "num_classes": 3} | change))  # type: ignore[arg-type]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "their_models_for_test.py").write_text(
        textwrap.dedent("""
            from torch import nn

            constant = 3

            def small(num_classes):
                return nn.Linear(4, num_classes)

            def all_of_it(**arguments):
                return nn.Linear(arguments["input_shape"][2], int(arguments["num_classes"] * arguments["width"]))

            def needs_more(num_classes, depth):
                return nn.Linear(depth, num_classes)

            def no_module(num_classes):
                return num_classes

            def broken(num_classes):
                return nn.Linear(4, num_classes)[0]
            """)
    )
    (tmp_path / "their_broken_for_test.py").write_text("def (:\n")
    monkeypatch.chdir(tmp_path)
    return "their_models_for_test"


def test_a_users_own_function(own: str) -> None:
    arguments = {"input_shape": (1, 1, 4), "num_classes": 6}
    assert build_model(f"{own}:small", **arguments).weight.shape == (6, 4)
    assert build_model(f"{own}:all_of_it", **arguments, width=0.5).weight.shape == (3, 4)
    one, two = (build_model(f"{own}:small", **arguments, seed=4).weight for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("{own}:missing", "no function 'missing'"),
        ("{own}:constant", "no function 'constant'"),
        ("{own}:needs_more", "depth"),
        ("{own}:no_module", "must return a torch.nn.Module"),
        ("{own}:broken", "TypeError"),
        ("not_there_for_test:small", "can't be imported"),
        ("their_broken_for_test:small", "can't be imported"),
        (":small", "can't be imported"),
    ],
)
def test_a_users_function_that_does_not_work(own: str, name: str, word: str) -> None:
    name = name.format(own=own)
    with pytest.raises(JobError, match=word) as caught:
        build_model(name, input_shape=(1, 8, 8), num_classes=3)
    assert name in str(caught.value)
