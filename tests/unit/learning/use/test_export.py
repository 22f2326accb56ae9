"""Exports give the model's outputs, for any batch size."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from p2ptrain import lasting
from p2ptrain.config import DataConfig
from p2ptrain.errors import UserError
from p2ptrain.learning.checkpoint import ModelCard
from p2ptrain.learning.models import build_model
from p2ptrain.learning.use import export
from p2ptrain.learning.use.export import about, export_model

HAS_ONNX = all(importlib.util.find_spec(name) for name in export.ONNX_PACKAGES)


CARD = ModelCard("lenet", 0.25, DataConfig((*"abcd", "maté"), (1, 8, 8), mean=(0.3,), std=(0.25,)), "aa11")


def lenet() -> nn.Module:
    return build_model("lenet", input_shape=(1, 8, 8), num_classes=5, width=0.25, seed=1)


def test_pt2_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = lenet().train(), tmp_path / "out" / "model.pt2"
    synced: list[int] = []
    monkeypatch.setattr(lasting, "sync", lambda fd: synced.append(os.fstat(fd).st_ino))
    export_model(model, (1, 8, 8), path, "pt2", about(CARD))
    assert model.training and synced == [path.stat().st_ino]
    extra = {export.EXTRA_FILE: ""}
    loaded = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra[export.EXTRA_FILE]) == about(CARD)
    for n in (1, 2, 7):
        x = torch.randn(n, 1, 8, 8)
        torch.testing.assert_close(loaded(x), model.eval()(x), atol=1e-5, rtol=1e-5)
    assert [p.name for p in path.parent.iterdir()] == ["model.pt2"]


@pytest.mark.skipif(not HAS_ONNX, reason="onnx and onnxscript are not installed")
def test_onnx_there_and_back(tmp_path: Path) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    model, path = lenet().eval(), tmp_path / "model.onnx"
    export_model(model, (1, 8, 8), path, "onnx", about(CARD))
    onnx.checker.check_model(str(path))
    told = {each.key: each.value for each in onnx.load(str(path)).metadata_props}
    assert told.items() >= about(CARD).items() and json.loads(told["classes"])[4] == "maté"
    assert json.loads(told["mean"]) == [0.3] and "audio" not in told
    session = ReferenceEvaluator(str(path))
    for n in (1, 2, 7):
        x = torch.randn(n, 1, 8, 8)
        (logits,) = session.run(None, {"input": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(x).detach(), atol=1e-5, rtol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_missing_onnx_is_said_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install onnx onnxscript"):
        export_model(lenet(), (1, 8, 8), tmp_path / "m.onnx", "onnx")


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if float(x.sum()) > 0 else -self.fc(x)


def test_a_model_that_can_not_be_exported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be exported"):
        export_model(Branching(), (4,), tmp_path / "m.pt2", "pt2")
    assert not (tmp_path / "m.pt2").exists()
    with pytest.raises(UserError, match=r"data-dependent.*take control flow that depends on tensor values out"):
        export_model(Branching(), (4,), tmp_path / "m.pt2", "pt2")


@pytest.mark.skipif(not HAS_ONNX, reason="onnx and onnxscript are not installed")
def test_what_onnx_lacks_is_named(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveMaxPool2d(4), nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(UserError, match=r"ONNX has no adaptive_max_pool2d.*export to pt2") as caught:
        export_model(model, (1, 9, 9), tmp_path / "m.onnx", "onnx")
    assert "step 3/3" not in str(caught.value) and "\n" not in str(caught.value)
