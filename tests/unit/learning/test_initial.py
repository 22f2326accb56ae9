"""Starting from somebody's weights: what fits is taken, and what was left out is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from p2ptrain.config import DataConfig, Job, ModelConfig
from p2ptrain.errors import JobError, UserError
from p2ptrain.learning.checkpoint import save_model
from p2ptrain.learning.initial import (
    fit,
    fitting_scores,
    read_start,
    read_weights,
    same_classes,
    start_from,
    told_classes,
)
from p2ptrain.learning.models import build_model, global_model


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


DATA = DataConfig(("cat", "Käse", "a,b"), (1, 8, 8), mean=(0.0,), std=(1.0,))
JOB = Job(data=DATA, seed=5)


def other(*classes: str, model: str = "lenet") -> Job:
    return dataclasses.replace(JOB, data=dataclasses.replace(DATA, classes=classes), model=ModelConfig(model))


def written(path: Path, job: Job = JOB, **more: Tensor) -> dict[str, Tensor]:
    """A model of the job that has been trained."""
    state = {n: t + 1 for n, t in global_model(job, allow_user_code=False).state_dict().items()}
    save_model(path, state | more, job)
    return state


def fresh(job: Job) -> dict[str, Tensor]:
    return dict(global_model(job, allow_user_code=False).state_dict())


@pytest.mark.parametrize(
    ("classes", "places"),
    [
        (("cat", "Käse", "a,b", "ant"), {0: 0, 1: 1, 2: 2}),
        (("ant", "cat", "Käse", "a,b"), {1: 0, 2: 1, 3: 2}),
        (("a,b", "cat", "Käse"), {0: 2, 1: 0, 2: 1}),
        (("a,b", "ant", "Cat", "Ka\u0308se"), {0: 2, 2: 0, 3: 1}),
        (("ant", "a,b"), {1: 2}),
        (("ant", "bee", "dog"), {}),
    ],
)
def test_rows_of_classes_go_by_their_names(tmp_path: Path, classes: tuple[str, ...], places: dict[int, int]) -> None:
    theirs, job = written(tmp_path / "model.safetensors"), other(*classes)
    start = read_start(tmp_path / "model.safetensors", job, allow_user_code=False)
    new = fresh(job)
    for name in ("fc2.weight", "fc2.bias"):
        assert len(start.tensors[name]) == len(classes)
        for place, row in enumerate(start.tensors[name]):
            assert torch.equal(row, theirs[name][places[place]] if place in places else new[name][place])
    assert all(torch.equal(start.tensors[name], theirs[name]) for name in theirs if not name.startswith("fc2."))
    assert start.kept == tuple(classes[place] for place in sorted(places))
    assert set(start.kept) | set(start.fresh) == set(classes) and len(start.unused) == 3 - len(places)
    assert fit(start.tensors, new, "lenet").is_whole


def test_what_becomes_of_classes_is_said(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    written(path)
    said = read_start(path, other("ant", "a,b", "bee"), allow_user_code=False).sentence()
    assert said == (
        "1 of 3 classes keep what it has learnt of them; new, so with fresh weights: ant, bee; "
        "in it, and not in this job: cat, Käse"
    )
    assert read_start(path, JOB, allow_user_code=False).sentence() == ""


def test_names_that_could_be_two_are_not_guessed() -> None:
    assert same_classes(("Cat", "CAT"), ("cat", "dog")) == {}
    assert same_classes(("Cat",), ("cat", "CAT")) == {}
    assert same_classes(("cat", "Cat"), ("cat",)) == {0: 0}
    assert same_classes(("CAT", "Cat"), ("Cat", "cat")) == {1: 0, 0: 1}


def test_scores_go_by_names_too_and_a_new_class_has_none(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    written(path, **{"attribution/conv1": torch.arange(72.0).view(3, 24)})
    scores = read_start(path, other("ant", "a,b", "cat"), allow_user_code=False).scores["conv1"]
    assert torch.equal(scores, torch.stack([torch.zeros(24), torch.arange(48.0, 72.0), torch.arange(24.0)]))
    written(path, **{"attribution/conv1": torch.zeros(2, 24)})
    with pytest.raises(JobError, match="it has 3 classes, and other scores of 'conv1'"):
        read_start(path, other("ant", "a,b", "cat"), allow_user_code=False)


def test_a_checkpoint_that_says_no_classes_is_taken_as_it_is(tmp_path: Path) -> None:
    theirs = fresh(JOB)
    save_file(theirs, tmp_path / "plain.safetensors")
    assert told_classes(tmp_path / "plain.safetensors") is None
    start = read_start(tmp_path / "plain.safetensors", other("x", "y", "z"), allow_user_code=False)
    assert not start.sentence() and all(torch.equal(start.tensors[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("classes", ["7", "[]", '["a", 7]', '["a", "a"]', "no", "[" * 100_000])
def test_a_damaged_list_of_classes_is_refused(tmp_path: Path, classes: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", {"classes": classes})
    with pytest.raises(UserError, match="harvest or copy it again"):
        told_classes(tmp_path / "model.safetensors")


def test_fewer_rows_than_classes_are_refused_and_another_width_swaps_the_head(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, fresh(other("a", "b")), JOB)
    with pytest.raises(JobError, match=r"it says that it has 3 classes, and its tensor 'fc2\.\w+' is \[2"):
        read_start(path, other("ant", "cat"), allow_user_code=False)
    written(path)
    wide = dataclasses.replace(other("ant", "cat"), model=ModelConfig("lenet", width=2.0))
    start = read_start(path, wide, allow_user_code=False)
    assert start.tensors["fc2.weight"].shape == (3, 120)


def test_a_model_that_takes_no_notice_of_classes_may_not_have_them_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "three_outputs.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    own = dataclasses.replace(JOB, model=ModelConfig("three_outputs:build"))
    path = tmp_path / "model.safetensors"
    save_model(path, global_model(own, allow_user_code=True).state_dict(), own)
    assert read_start(path, own, allow_user_code=True).tensors["1.bias"].shape == (3,)
    with pytest.raises(JobError, match="does not say which numbers belong to which, as it takes no notice of num_cl"):
        read_start(path, other("a,b", "cat", "Käse", model="three_outputs:build"), allow_user_code=True)
