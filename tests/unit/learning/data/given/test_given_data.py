"""Data sets of a person's own function, and of Hugging Face's datasets (a stand-in where they are not installed)."""

from __future__ import annotations

import io
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data import load, open_source, propose_contract, select

OWN = """
import numpy as np, torch
from PIL import Image
from torch.utils.data import Dataset

class Pictures(Dataset):
    classes = ["cat", "dog"]
    def __init__(self, num): self.num = num
    def __len__(self): return self.num
    def __getitem__(self, i):
        return torch.full((3, 4, 4), i, dtype=torch.uint8), i % 2

def pictures(): return {"train": Pictures(20), "test": Pictures(6)}
def texts(): return [(np.arange(1, 2 + i % 5), "odd" if i % 2 else "even") for i in range(20)]
def floats(): return [(np.zeros((2, 3, 3)), 1.0 * (i % 2)) for i in range(8)]
def single(): return [np.zeros((2, 3, 3))]
def ragged(): return [(np.zeros((1, 3, 3 + i)), i) for i in range(2)]
def endless(): return iter([])
def vector(): return [(np.zeros(3), 0)]
def opened(mode, value):
    picture = Image.new("RGBA", (6, 5), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 2, 2))
    return [(picture.convert(mode) if value is None else Image.new(mode, (6, 5), value), i % 2) for i in range(4)]
def clear(): return opened("RGBA", None)
def clear_grey(): return opened("LA", None)
def black_and_white(): return opened("1", 1)
def deep(): return opened("I;16", 300)
def deep_floats(): return opened("F", 0.5)
def last(): return [(np.zeros((8, 9, 3), np.uint8), i % 2) for i in range(4)]
def sensors(): return [(np.ones((6, 100, 1)), i % 2) for i in range(4)]
def bytes_of_one(): return [(np.zeros((8, 9, 1), np.uint8), i % 2) for i in range(4)]
def floats_last(): return [(np.ones((8, 9, 3)), i % 2) for i in range(4)]
def features(): return [(np.ones((64, 8, 8)), i % 2) for i in range(4)]
def below(): return [(np.zeros((1, 3, 3)), -2)]
def no_number(): return [(np.zeros((1, 3, 3)), float("nan"))]
def two_names():
    found = Pictures(20)
    found.classes = ["cat", "cat"]
    return found
def unknown(): return {"train": Pictures(3), "extra": Pictures(3)}
def wrong():
    return [][0]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "given_by_me.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "given_by_me", raising=False)
    return "given_by_me"


def test_pictures_of_ones_own(own: str) -> None:
    source = open_source(f"{own}:pictures")
    contract = propose_contract(source)
    assert contract.classes == ("cat", "dog") and contract.input_shape == (3, 4, 4)
    data = load(source, contract, "train", select(source, contract, "train"))
    val = load(source, contract, "val", select(source, contract, "val"))
    assert len(data) + len(val) == 20 and len(val) > 0 and len(load(source, contract, "test")) == 6
    assert all(int(x[0, 0, 0]) % 2 == y for x, y in zip(data.x, data.y, strict=True))


def test_texts_of_ones_own(own: str) -> None:
    source = open_source(f"{own}:texts")
    contract = propose_contract(source)
    assert (contract.kind, contract.vocabulary, contract.input_shape) == ("tokens", 6, (1, 1, 8))
    x, y = load(source, contract, "train").tensors()
    assert x.shape[1:] == (1, 1, 8) and x[0].flatten().tolist()[:2] == [1, 0] and y.dim() == 1


def test_longer_texts_are_cut_and_counted(own: str) -> None:
    import dataclasses

    source = open_source(f"{own}:texts")
    contract = dataclasses.replace(propose_contract(source), input_shape=(1, 1, 2))
    data = load(source, contract, "train")
    assert data.x.shape[3] == 2 and any("are longer than the job's samples" in note for note in data.notes)


def test_tokens_beyond_the_jobs_are_refused(own: str) -> None:
    import dataclasses

    source = open_source(f"{own}:texts")
    with pytest.raises(DataError, match=r"token numbers up to 5, and data\.vocabulary"):
        load(source, dataclasses.replace(propose_contract(source), vocabulary=4), "train")


def test_floats_of_ones_own(own: str) -> None:
    contract = propose_contract(open_source(f"{own}:floats"))
    assert contract.classes == ("0", "1") and contract.input_shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("function", "shape", "corners"),
    [
        ("clear", (3, 5, 6), (0, 255)),
        ("clear_grey", (1, 5, 6), (0, 255)),
        ("black_and_white", (1, 5, 6), (255, 255)),
        ("features", (64, 8, 8), (1, 1)),
    ],
)
def test_pictures_that_somebody_opened(
    own: str, function: str, shape: tuple[int, int, int], corners: tuple[int, int]
) -> None:
    """What is transparent is white, as in files."""
    source = open_source(f"{own}:{function}")
    x = load(source, DataConfig(("0", "1"), shape, val=0.0), "train").x
    assert source.natural_shape == shape
    assert (x[:, :, 0, 0] == corners[0]).all() and (x[:, :, -1, -1] == corners[1]).all()


@pytest.mark.parametrize(
    ("function", "shape"), [("sensors", (6, 100, 1)), ("bytes_of_one", (8, 9, 1)), ("floats_last", (8, 9, 3))]
)
def test_what_may_be_channels_last_is_taken_as_it_is_and_said(
    own: str, function: str, shape: tuple[int, int, int]
) -> None:
    source = open_source(f"{own}:{function}")
    assert source.natural_shape == shape
    (note,) = [each for each in source.notes() if "give channels first" in each]
    assert f"taken for {shape[0]} channels of {shape[1]} x {shape[2]}" in note
    assert not any("channels first" in each for each in open_source(f"{own}:features").notes())


@pytest.mark.parametrize(
    ("function", "why"),
    [
        ("single", r"train sample 0 is ndarray; expected a pair"),
        ("ragged", r"train sample 1 is float32 of shape \[1, 3, 4\]"),
        ("endless", "without a length"),
        ("vector", r"expected a picture \[channels, height, width\]"),
        ("deep", r"sample 0 is Image, which can't be read .*more than 8 bits a channel \(mode I;16\)"),
        ("deep_floats", r"\(mode F\): scale it to floats from 0 to 1"),
        ("last", r"shape \[8, 9, 3\], which looks like \[height, width, channels\]; give channels first"),
        ("below", "train sample 0: its class is '-2'"),
        ("no_number", "train sample 0: its class is 'nan'"),
        ("two_names", r"its \.classes: cat names more than one class"),
        ("unknown", "splits are train, val and test"),
        ("wrong", r"given_by_me\.py, line \d+ .*IndexError"),
        ("nothing", "has no function 'nothing'"),
    ],
)
def test_what_is_wrong_is_named(own: str, function: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        open_source(f"{own}:{function}")


def test_a_module_that_is_not_there_is_a_kind_that_is_not_known(own: str) -> None:
    with pytest.raises(DataError, match=r"unknown kind of data set.*package\.module:function"):
        open_source("no_such_module_of_mine:load")


# --- hf:DIR -----------------------------------------------------------------------------------------------------------


class Value:
    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


class ClassLabel:
    def __init__(self, names: list[str]) -> None:
        self.names, self.dtype = names, "int64"


class Image:
    dtype = "image"

    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class Rows:
    """As much of ``datasets.Dataset`` as is used."""

    def __init__(self, features: dict[str, Any], columns: dict[str, list[Any]]) -> None:
        self.features, self._columns = features, columns

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, at: Any) -> dict[str, Any]:
        return {name: values[at] for name, values in self._columns.items()}

    def select_columns(self, names: list[str]) -> Rows:
        return Rows({n: self.features[n] for n in names}, {n: self._columns[n] for n in names})

    def with_format(self, kind: None) -> Rows:
        return self

    def cast_column(self, name: str, feature: Any) -> Rows:
        return Rows(self.features | {name: feature}, self._columns)


def labelled(texts: list[Any], column: str = "text") -> Rows:
    features = {column: Value("string"), "label": ClassLabel(["neg", "pos"])}
    return Rows(features, {column: texts, "label": [i % 2 for i in range(len(texts))]})


def png(shade: int) -> dict[str, Any]:
    file = io.BytesIO()
    Pillow.fromarray(np.full((6, 5, 3), shade, np.uint8)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the stand-in finds in a folder, by the folder's name."""
    there: dict[str, Any] = {}

    def load_from_disk(path: str) -> Any:
        if Path(path).name not in there:
            raise FileNotFoundError("neither a Dataset nor a DatasetDict")
        return there[Path(path).name]

    module = types.ModuleType("datasets")
    module.__dict__.update(load_from_disk=load_from_disk)
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.chdir(tmp_path)
    for name in ("texts", "pictures", "other", "plain", "ids"):
        (tmp_path / name).mkdir()
    return there


def test_labelled_texts_are_bytes(saved: dict[str, Any]) -> None:
    saved["texts"] = {
        "train": labelled(["ab", "é"] * 10),
        "validation": labelled(["x", "y"]),
        "unsupervised": Rows({}, {}),
    }
    source = open_source("hf:texts")
    contract = propose_contract(source)
    assert contract == DataConfig(("neg", "pos"), (1, 1, 8), "tokens", (0.0,), (1.0,), vocabulary=256)
    x, y = load(source, contract, "train").tensors()
    assert x[0].flatten().tolist() == [97, 98, 0, 0, 0, 0, 0, 0] and x[1].flatten().tolist()[:3] == [195, 169, 0]
    assert y.tolist() == [0, 1] * 10 and source.num_samples("val") == 2
    assert source.notes() == ["not read: splits unsupervised"]


def test_token_numbers_are_taken_as_they_are(saved: dict[str, Any]) -> None:
    saved["ids"] = labelled([[5, 700], [3]] * 5, "input_ids")
    contract = propose_contract(open_source("hf:ids"))
    assert (contract.kind, contract.vocabulary) == ("tokens", 701)


def test_pictures_are_decoded_as_files(saved: dict[str, Any]) -> None:
    features = {"image": Image(), "label": Value("string")}
    saved["pictures"] = Rows(
        features, {"image": [png(9), png(200), {"bytes": b"no", "path": None}] * 2, "label": ["a", "b", "a"] * 2}
    )
    source = open_source("hf:pictures")
    contract = DataConfig(("a", "b"), (3, 6, 5), "image", (0.0,) * 3, (1.0,) * 3, val=0.0)
    with pytest.raises(DataError, match="train sample 2: not a readable image"):
        load(source, contract, "train", strict=True)
    data = load(source, contract, "train")
    assert len(data) == 4 and data.x[1].min() == 200
    assert any("2 of 6 samples can't be read" in note for note in data.notes)


def test_texts_without_labels_are_read_on_and_on(saved: dict[str, Any]) -> None:
    saved["plain"] = Rows({"text": Value("string")}, {"text": ["some words", None, "more"] * 200})
    source = open_source("hf:plain")
    assert source.kind == "text" and bytes(source.text[:11]) == b"some words\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (None, "not a data set that save_to_disk"),
        ({"test": labelled(["a"])}, "no split named train"),
        (
            {name: labelled(["a"]) for name in ("train", "dev", "valid")},
            "more than one split for val: train, dev, valid",
        ),
        (Rows({"text": Value("string"), "label": Value("int64")}, {"text": ["a"], "label": [-2]}), "which is no class"),
        (Rows({"a": Value("string"), "b": Value("string")}, {"a": ["x"], "b": ["y"]}), "which column"),
        (labelled(["a", None, None, None]), "text is missing"),
        (Rows({"text": Value("string"), "label": Value("float")}, {"text": ["a"], "label": [0.5]}), "is no class"),
    ],
)
def test_what_is_wrong_with_a_saved_data_set_is_named(saved: dict[str, Any], found: Any, why: str) -> None:
    if found is not None:
        saved["other"] = found
    with pytest.raises(DataError, match=why):
        propose_contract(open_source("hf:other"))


def test_datasets_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install datasets$"):
        open_source(f"hf:{tmp_path}")


def test_the_real_datasets(tmp_path: Path) -> None:
    datasets: Any = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = datasets.Dataset.from_dict({"text": ["bad", "good"] * 6, "label": [0, 1] * 6}, features=features)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    source = open_source(f"hf:{tmp_path / 'saved'}")
    contract = propose_contract(source)
    assert contract.classes == ("neg", "pos") and len(load(source, contract, "test")) == 12
