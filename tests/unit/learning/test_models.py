"""The built-in models and the door for a user's own."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch

from p2ptrain.errors import JobError
from p2ptrain.learning.models import MODELS, TEXT_MODELS, build_model


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
    next(model.children())[-1].register_forward_hook(lambda _, __, out: seen.append(out.shape[-1]))
    if name == "resnet18":
        model.blocks.register_forward_hook(lambda _, __, out: seen.append(out.shape[-1]))
    model(torch.zeros(1, 3, 96, 96))
    assert seen[-1] == 3


def test_classes_and_names_of_well_known_layers() -> None:
    vgg = build_model("vgg16_bn", input_shape=(3, 32, 32), num_classes=10, width=0.1).state_dict()
    assert {"features.0.weight", "features.1.running_mean", "classifier.weight"} <= vgg.keys()
    resnet = build_model("resnet20", input_shape=(3, 32, 32), num_classes=10).state_dict()
    assert resnet["blocks.3.shortcut.0.weight"].shape == (32, 16, 1, 1)
    assert sum(name.endswith("conv1.weight") or name.endswith("conv2.weight") for name in resnet) == 18


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
