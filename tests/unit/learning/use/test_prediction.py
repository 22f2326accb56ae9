"""What a model takes single files for is what it takes them for as a data set."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError, UserError
from p2ptrain.learning.data import load, open_source, propose_contract
from p2ptrain.learning.use.prediction import Prediction, files_in, predict

RNG = np.random.default_rng(4)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name, level in (("bright", 200), ("dark", 20)):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            pixels = RNG.integers(0, 50, (14, 12, 3), np.uint8) + np.uint8(level)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def of_brightness() -> torch.nn.Module:
    """Two classes, by the mean of all pixels."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(2))
    model(torch.zeros(1, 3, 14, 12))
    with torch.no_grad():
        model[1].weight[0], model[1].weight[1] = 0.01, -0.01
        model[1].bias.zero_()
    return model.eval()


def test_a_file_is_read_as_training_read_it(photos: Path) -> None:
    source = open_source(f"images:{photos}")
    contract = dataclasses.replace(propose_contract(source), val=0.0)
    model = of_brightness()
    x, _ = load(source, contract, "train").tensors()
    expected = model(x).softmax(1)
    files = files_in([photos / "bright", photos / "dark"], contract)
    found = list(predict(model, contract, files, top=2))
    assert [each.file.parent.name for each in found] == ["bright"] * 3 + ["dark"] * 3
    for row, each in zip(expected.tolist(), found, strict=True):
        shares = dict(each.top)
        assert [shares["bright"], shares["dark"]] == pytest.approx(row, abs=1e-6)
        assert each.top[0][0] == each.file.parent.name, "the likeliest comes first"


def test_what_can_not_be_read_is_named_and_the_others_are_answered(photos: Path, tmp_path: Path) -> None:
    contract = propose_contract(open_source(f"images:{photos}"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG but no more")
    gone, other = tmp_path / "gone.jpg", io.BytesIO()
    Image.new("L", (40, 30)).save(other, "JPEG")
    (tmp_path / "grey.jpg").write_bytes(other.getvalue())
    found = list(predict(of_brightness(), contract, [broken, gone, tmp_path / "grey.jpg"], top=9))
    assert [type(each) for each in found] == [DataError, DataError, Prediction]
    assert "broken.png" in str(found[0]) and "gone.jpg" in str(found[1])
    assert len(found[2].top) == 2, "no more than there are"


def test_of_a_folder_what_is_hidden_is_left_and_what_would_be_black_is_refused(photos: Path) -> None:
    contract = propose_contract(open_source(f"images:{photos}"))
    (photos / "bright" / "._0.png").write_bytes(b"what macOS keeps beside a file")
    Image.fromarray(np.full((14, 12), 4095, np.uint16)).save(photos / "bright" / "deep.png")
    files = files_in([photos / "bright"], contract)
    assert [file.name for file in files] == ["0.png", "1.png", "2.png", "deep.png"]
    *_, deep = predict(of_brightness(), contract, files, top=1)
    assert isinstance(deep, DataError) and "they would be almost black" in str(deep)
    *_, deep = predict(of_brightness(), dataclasses.replace(contract, white=65535.0), files, top=1)
    assert isinstance(deep, Prediction) and deep.top[0][0] == "dark"


def test_no_number_is_no_answer(photos: Path) -> None:
    contract = propose_contract(open_source(f"images:{photos}"))
    model = of_brightness()
    torch.nn.init.constant_(model[1].bias, float("nan"))
    (found,) = predict(model, contract, [photos / "dark" / "0.png"])
    assert isinstance(found, DataError) and "missing numbers" in str(found)


def test_a_folder_without_pictures_and_a_model_of_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no files in this folder"):
        files_in([tmp_path], DataConfig(kind="image"))
    with pytest.raises(UserError, match="generate"):
        files_in([tmp_path], DataConfig(kind="text"))


def test_a_text_is_read_as_its_bytes(tmp_path: Path) -> None:
    """Two classes, by the first byte; a text that is longer than samples is cut, one that is shorter padded."""
    contract = DataConfig(("a", "b"), (1, 1, 4), "tokens", (0.0,), (1.0,), vocabulary=256)
    (tmp_path / "one.txt").write_text("a text of some length")
    (tmp_path / "two.txt").write_text("b")
    seen: list[list[int]] = []

    class First(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.flatten().tolist())
            return torch.stack([x[:, 0, 0, 0] == ord("a"), x[:, 0, 0, 0] == ord("b")], 1).float()

    found = list(predict(First(), contract, files_in([tmp_path], contract), top=1))
    assert [each.top[0][0] for each in found if isinstance(each, Prediction)] == ["a", "b"]
    assert seen == [[97, 32, 116, 101], [98, 0, 0, 0]]
    with pytest.raises(UserError, match="numbers of a tokenizer"):
        files_in([tmp_path], dataclasses.replace(contract, vocabulary=701))
