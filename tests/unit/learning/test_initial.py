"""Starting from somebody's weights: what fits is taken, and what was left out is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from p2ptrain.errors import JobError, UserError
from p2ptrain.learning.initial import fit, fitting_scores, read_weights, start_from
from p2ptrain.learning.models import build_model


def resnet(num_classes: int = 4, seed: int = 0) -> dict[str, Tensor]:
    model = build_model("resnet18", input_shape=(3, 96, 96), num_classes=num_classes, width=0.1, seed=seed)
    return dict(model.state_dict())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.backbone."])
def test_prefixes_come_off(prefix: str) -> None:
    theirs = {prefix + name: tensor for name, tensor in resnet(seed=1).items()}
    fitted = fit(theirs, resnet(), "resnet18")
    assert fitted.is_whole and fitted.sentence() == "all 122 tensors are taken"
    assert torch.equal(fitted.state["layer1.0.conv1.weight"], theirs[prefix + "layer1.0.conv1.weight"])


def test_another_number_of_classes_swaps_the_head() -> None:
    ours, theirs = resnet(4), resnet(1000, seed=1)
    fitted = fit(theirs, ours, "resnet18")
    assert set(ours) - set(fitted.state) == {"fc.weight", "fc.bias"}
    words = fitted.sentence()
    assert words.startswith("120 of 122 tensors are taken; other shapes, so with fresh weights: fc.weight, fc.bias")
    assert "[1000, 51] there and [4, 51] here" in words
    before = ours["fc.weight"].clone()
    start_from(ours, fitted)
    assert torch.equal(ours["fc.weight"], before) and torch.equal(ours["conv1.weight"], theirs["conv1.weight"])


def test_a_body_without_a_head_and_a_head_too_many() -> None:
    body = {name: tensor for name, tensor in resnet(seed=1).items() if not name.startswith("fc.")}
    assert "not in it, so with fresh weights: fc.weight, fc.bias" in fit(body, resnet(), "resnet18").sentence()
    more = body | {"aux.weight": torch.zeros(3, 3)}
    assert "in it, and not used: aux.weight" in fit(more, resnet(), "resnet18").sentence()
    inside = {f"encoder.{name}": tensor for name, tensor in resnet().items()}  # the model has a prefix that it lacks
    assert len(fit(body, inside).state) == 120


def test_names_of_older_versions_and_other_precisions() -> None:
    old = {"stem.0.weight": "conv1.weight", "blocks.2.shortcut.0.weight": "layer2.0.downsample.0.weight"}
    theirs = {old_name: resnet(seed=1)[name].half() for old_name, name in old.items()}
    fitted = fit(theirs, resnet(), "resnet18")
    assert set(fitted.state) == set(old.values())
    assert all(tensor.dtype == torch.float32 for tensor in fitted.state.values())
    assert set(fitting_scores({"blocks.0.conv1": torch.zeros(4, 6)}, resnet(), 4, "resnet18")) == {"layer1.0.conv1"}
    assert not fitting_scores({"layer1.0.conv1": torch.zeros(1000, 6)}, resnet(), 4, "resnet18")  # of other classes


def test_counters_that_old_checkpoints_lack_are_not_missed() -> None:
    theirs = {name: tensor for name, tensor in resnet(seed=1).items() if not name.endswith("num_batches_tracked")}
    assert fit(theirs, resnet(), "resnet18").is_whole


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    theirs = resnet(seed=1)
    theirs["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    with pytest.raises(JobError, match=r"1 of \d+ numbers of tensor 'layer1.0.conv1.weight' are not finite"):
        fit(theirs, resnet(), "resnet18")


def test_nothing_that_fits_is_refused() -> None:
    with pytest.raises(JobError, match=r"nothing in the checkpoint fits.*it has a\.weight, the model has conv1"):
        fit({"a.weight": torch.zeros(3, 3)}, resnet(), "resnet18")


def test_files_of_torch_save(tmp_path: Path) -> None:
    state, path = resnet(seed=1), tmp_path / "weights.pth"
    for found in (state, {"epoch": 3, "state_dict": state}, {"model": {"net": state}, "optimizer": {"lr": 0.1}}):
        torch.save(found, path)
        read = read_weights(path)
        assert read.keys() == state.keys() and torch.equal(read["fc.bias"], state["fc.bias"])
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(UserError, match=r"a whole model .* weights alone are taken.*state_dict"):
        read_weights(path)
    torch.save({"accuracy": 0.9}, path)
    with pytest.raises(UserError, match="no tensors by name"):
        read_weights(path)
    for content in (b"", b"nothing", b"PK\x03\x04 not a zip"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="no weights that torch can read"):
            read_weights(path)
