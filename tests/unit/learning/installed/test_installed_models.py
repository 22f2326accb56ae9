"""Models of installed packages: by stand-ins for the packages, and by the packages themselves where they are there."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from p2ptrain.config import DataConfig, Job
from p2ptrain.errors import JobError
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.checkpoint import load_model, save_model
from p2ptrain.learning.installed import vision
from p2ptrain.learning.models import global_model, model_for
from p2ptrain.model_config import ModelConfig, is_own_code, package_of
from p2ptrain.modes.jobs import job_from_json

GREY = DataConfig(("a", "b", "c"), (1, 32, 32), "image", (0.5,), (0.5,))
TEXTS = DataConfig(("neg", "pos"), (1, 1, 12), "tokens", (0.0,), (1.0,), vocabulary=256)


class Net(nn.Module):
    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 4, 3, stride=2, bias=False), nn.ReLU())
        self.head = nn.Linear(4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x).mean((2, 3)))


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Packages that note what they are called with."""
    called: dict[str, list[Any]] = {"torchvision": [], "timm": []}
    models = types.ModuleType("torchvision.models")

    def get_model(name: str, weights: object, num_classes: int, **rest: object) -> nn.Module:
        called["torchvision"].append((name, weights, rest))
        return Net(3, num_classes)

    def create_model(name: str, pretrained: bool, num_classes: int, in_chans: int, **rest: object) -> nn.Module:
        called["timm"].append((name, pretrained, rest))
        return Net(in_chans, num_classes)

    models.__dict__.update(get_model=get_model, list_models=lambda module: ["net18", "vit_b_16"])
    torchvision, timm = types.ModuleType("torchvision"), types.ModuleType("timm")
    torchvision.__dict__.update(models=models)
    timm.__dict__.update(
        create_model=create_model,
        list_models=lambda: ["net18", "vit_tiny"],
        get_pretrained_cfg=lambda name, **_: types.SimpleNamespace(fixed_input_size=name == "vit_tiny"),
    )
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "timm", timm)
    return called


def test_whose_code_a_name_is() -> None:
    assert [package_of(n) for n in ("torchvision:a", "timm:a", "hf:A", "lenet", "my.timm:a")] == [
        *("torchvision", "timm", "transformers"),
        *("", ""),
    ]
    assert [is_own_code(n) for n in ("mine:net", "timm.models:net", "hf:A", "timm:a", "lenet")] == [True, True] + [
        False
    ] * 3


@pytest.mark.parametrize("name", ["torchvision:net18", "timm:net18"])
def test_a_model_by_its_name(name: str, stand_ins: dict[str, list[Any]], tmp_path: Path) -> None:
    """Without weights, with the job's classes and channels, the same on every device, in a harvested file too."""
    job = Job(mode="replicas", seed=3, model=ModelConfig(name), data=GREY)
    model = global_model(job, allow_user_code=False)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    (called,) = stand_ins[name.partition(":")[0]]
    assert called == ("net18", None if name.startswith("torch") else False, {})
    again = global_model(job, allow_user_code=False).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in model.state_dict().items())
    save_model(tmp_path / "m.safetensors", model.state_dict(), job)
    loaded, card = load_model(tmp_path / "m.safetensors")
    x = torch.randn(2, 1, 32, 32)
    assert card.model == name and torch.equal(loaded(x), model.eval()(x))


def test_sizes_are_told_to_models_that_have_one(stand_ins: dict[str, list[Any]]) -> None:
    model_for("timm:vit_tiny", GREY)
    model_for("torchvision:vit_b_16", GREY)
    assert stand_ins["timm"][0][2] == {"img_size": (32, 32)}
    assert stand_ins["torchvision"][0][2] == {"image_size": 32}
    with pytest.raises(JobError, match="square"):
        vision.build("torchvision:vit_b_16", (3, 32, 48), 3)


@pytest.mark.parametrize("name", ["torchvision:net81", "timm:../net18", "timm:hf-hub:who/what", "torchvision:"])
def test_only_names_that_the_package_lists(name: str, stand_ins: dict[str, list[Any]]) -> None:
    with pytest.raises(JobError, match="has no model"):
        model_for(name, GREY)
    assert stand_ins == {"torchvision": [], "timm": []}


def test_what_is_missing_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torchvision", "timm", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    for name, data in (("torchvision:a", GREY), ("timm:a", GREY), ("hf:A", TEXTS)):
        with pytest.raises(JobError, match=f"pip install {package_of(name)}$"):
            model_for(name, data, config='{"model_type": "bert"}')


def test_a_package_for_another_torch_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(JobError, match=r"does not go with this torch.*nms"):
        vision.check("timm:a")


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("timm:net18", TEXTS, "reads pictures"),
        ("hf:BertForSequenceClassification", GREY, "reads text"),
        ("lenet", TEXTS, "take one of bert_small"),
    ],
)
def test_data_that_a_model_can_not_read(name: str, data: DataConfig, why: str) -> None:
    with pytest.raises(JobError, match=why):
        global_model(Job(mode="replicas", model=ModelConfig(name), data=data), allow_user_code=False)


def test_width_is_for_models_that_have_one(stand_ins: dict[str, list[Any]]) -> None:
    with pytest.raises(JobError, match="have one width"):
        model_for("timm:net18", GREY, width=0.5)


def test_small_pictures_are_told() -> None:
    assert "built-in resnet18" in vision.note("timm:resnet18", (3, 32, 32))
    assert "input-shape" in vision.note("timm:net", (3, 64, 64))
    assert vision.note("timm:resnet18", (3, 224, 224)) == ""


def test_a_job_carries_the_configuration_and_old_ids_stay() -> None:
    job = Job(mode="replicas", data=TEXTS, model=ModelConfig("hf:A", config='{"model_type": "bert"}'))
    assert job_from_json(job.to_json()) == job
    assert '"config"' not in Job(data=GREY).to_json() and '"vocabulary"' not in Job(data=GREY).to_json()


def test_tokens_need_a_vocabulary() -> None:
    plain = json.loads(Job(mode="replicas", data=TEXTS).to_json())
    del plain["data"]["vocabulary"]
    with pytest.raises(JobError, match=r"data\.vocabulary"):
        job_from_json(json.dumps(plain))


def test_texts_are_classified_by_a_built_in_model() -> None:
    model = model_for("bert_small", TEXTS, width=0.25)
    assert model(torch.randint(256, (3, 1, 1, 12))).shape == (3, 2)


# --- the packages themselves ------------------------------------------------------------------------------------------


def saved_bert(folder: Path, **settings: Any) -> Path:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertConfig(**sizes, **settings).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
def test_the_real_resnet(name: str) -> None:
    try:
        vision.check(name)
    except JobError as error:
        pytest.skip(str(error))
    with torch.device("meta"):
        model = model_for(name, GREY)
        assert len(Chain(model, GREY.input_shape).blocks) == 10
    assert model.conv1.weight.shape == (64, 1, 7, 7) and model.fc.out_features == 3


def test_the_real_bert(tmp_path: Path) -> None:
    """Whole, in blocks, and as transformers itself runs it: the same logits, whatever is padding."""
    from p2ptrain.learning.installed import hugging_face

    transformers: Any = pytest.importorskip("transformers")
    chosen, weights = hugging_face.of_folder(saved_bert(tmp_path), TEXTS)
    assert chosen.name == "hf:BertForSequenceClassification" and weights is None
    job = Job(mode="replicas", model=chosen, data=TEXTS)
    model = global_model(job, allow_user_code=False).eval()
    x = torch.randint(1, 256, (3, 1, 1, 12))
    x[1, ..., 4:] = 0
    x[2] = 0
    theirs = transformers.BertForSequenceClassification(model.config).eval()
    theirs.load_state_dict(model.state_dict())
    mask = (x.flatten(1) != 0).long()
    mask[:, 0] = 1
    logits = model(x)
    assert torch.equal(logits, theirs(input_ids=x.flatten(1), attention_mask=mask).logits)
    chain = Chain(model, TEXTS.input_shape)
    value = x
    for index in range(len(chain.blocks)):
        part = chain.build_slice(lambda: global_model(job, allow_user_code=False), index, index + 1)
        value = part.eval()(value)
    assert torch.equal(value, logits)
    save_model(tmp_path / "m.safetensors", model.state_dict(), job)
    assert torch.equal(load_model(tmp_path / "m.safetensors")[0](x), logits)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"attn_implementation": "kernels-community/x"}, "is no key"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "is no key"),
        ({"_name_or_path": "who/what"}, "is no key"),
        ({"num_hidden_layers": 10**6}, "absurdly large"),
        ({"hidden_size": 2**30}, "absurdly large"),
        ({"model_type": "../bert"}, "has no model"),
    ],
)
def test_a_strangers_configuration_is_checked(changes: dict[str, Any], why: str) -> None:
    pytest.importorskip("transformers")
    config = json.dumps({"model_type": "bert"} | changes)
    with pytest.raises(JobError, match=why):
        model_for("hf:BertForSequenceClassification", TEXTS, config=config)


def test_only_classes_for_the_task(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(JobError, match="has no model"):
        model_for("hf:BertForQuestionAnswering", TEXTS, config='{"model_type": "bert"}')
