"""Array data sets: digits, idx, CIFAR's binary release, npz."""

from __future__ import annotations

import dataclasses
import gzip
import io
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data import load, open_source, propose_contract

RNG = np.random.default_rng(11)


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, packed: bool = False, dots: bool = False) -> tuple[np.ndarray, np.ndarray]:
    x, y = RNG.integers(0, 256, (30, 6, 5), np.uint8), np.arange(30, dtype=np.uint8) % 3 + 1
    sep = "." if dots else "-"
    for name, array in {
        f"train-images{sep}idx3-ubyte": x[:20],
        f"train-labels{sep}idx1-ubyte": y[:20],
        f"t10k-images{sep}idx3-ubyte": x[20:],
        f"t10k-labels{sep}idx1-ubyte": y[20:],
    }.items():
        data = idx_bytes(array)
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)
    return x, y


def test_digits_split_is_fixed_and_stratified() -> None:
    pytest.importorskip("sklearn")
    source = open_source("digits")
    assert (source.num_samples("train"), source.num_samples("test")) == (1437, 360)
    assert source.classes == tuple("0123456789")
    assert all(35 <= n <= 37 for n in source.counts("test").values())
    contract = propose_contract(source)
    data = load(source, contract, "test")
    assert data.x.dtype == np.uint8 and data.x.max() == 255 and data.x.shape == (360, 1, 8, 8)
    assert data.y[:12].tolist() == load(open_source("digits"), contract, "test").y[:12].tolist()
    x, _ = load(source, contract, "train").tensors()
    assert abs(float(x.mean())) < 0.02 and abs(float(x.std()) - 1) < 0.02
    assert load(source, DataConfig(source.classes, (3, 16, 16)), "test", np.arange(4)).x.shape == (4, 3, 16, 16)


def test_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    raw, target = datasets.load_digits(return_X_y=True)
    source = open_source("digits")
    contract = DataConfig(source.classes, source.natural_shape, val=0.0)
    both = [load(source, contract, split) for split in ("train", "test")]
    ours = sorted((*x.ravel().tolist(), int(y)) for data in both for x, y in zip(data.x, data.y, strict=True))
    theirs = np.rint(raw * (255 / 16)).astype(int)
    assert ours == sorted((*x.tolist(), int(y)) for x, y in zip(theirs, target, strict=True))


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match=r'pip install "p2ptrain\[demo\]"'):
        open_source("digits")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dots", [False, True])
def test_idx(tmp_path: Path, packed: bool, dots: bool) -> None:
    x, y = write_idx(tmp_path, packed, dots)
    source = open_source(f"idx:{tmp_path}")
    assert source.classes == ("1", "2", "3") and source.natural_shape == (1, 6, 5)
    assert source.counts("test") == {"1": 3, "2": 3, "3": 4}
    data = load(source, DataConfig(("3", "2", "1"), (1, 6, 5), val=0.0), "train", np.array([5, 0]))
    np.testing.assert_array_equal(data.x[:, 0], x[[5, 0]])
    assert data.y.tolist() == (3 - y[[5, 0]].astype(int)).tolist()
    assert load(source, DataConfig(("1", "2", "3"), (3, 8, 8)), "test").x.shape == (10, 3, 8, 8)


def test_idx_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no train-images-idx3-ubyte"):
        open_source(f"idx:{tmp_path}")
    write_idx(tmp_path)
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    good = images.read_bytes()
    for broken, words in [
        (good[:-1], "its header says 616"),
        (good + b"x", "its header says 616"),
        (b"\0\0\x0d\x03" + good[4:], "begins with 00000d03; expected an idx file"),
        (good[:7], "expected an idx file"),
        (good[:4] + struct.pack(">I", 2**32 - 1) + good[8:], "absurd dimensions"),
        (idx_bytes(np.zeros((19, 6, 5), np.uint8)), "19 images, but 20 labels"),
        (idx_bytes(np.zeros((20, 5, 5), np.uint8)), "differ in size"),
    ]:
        images.write_bytes(broken)
        with pytest.raises(DataError, match=words):
            open_source(f"idx:{tmp_path}")
    images.write_bytes(good)
    labels.unlink()
    with pytest.raises(DataError, match="no train-labels-idx1-ubyte"):
        open_source(f"idx:{tmp_path}")


@pytest.mark.parametrize("packed", [False, True])
def test_idx_is_packed_if_it_is_whatever_its_name(tmp_path: Path, packed: bool) -> None:
    """What downloads such files may unpack them, or take the suffix off."""
    x, y = write_idx(tmp_path, packed)
    for file in list(tmp_path.iterdir()):
        file.rename(file.with_suffix("") if packed else file.with_name(file.name + ".gz"))
    source = open_source(f"idx:{tmp_path}")
    data = load(source, DataConfig(source.classes, (1, 6, 5), val=0.0), "train")
    assert (data.x[:, 0] == x[:20]).all() and [source.classes[c] for c in data.y] == [str(label) for label in y[:20]]


def test_idx_validation_folders_of_the_same_name_and_pictures_that_lie(tmp_path: Path) -> None:
    x, _ = write_idx(tmp_path)
    (tmp_path / "train-images.idx3-ubyte").mkdir()
    for what in ("images-idx3", "labels-idx1"):
        (tmp_path / f"val-{what}-ubyte").write_bytes((tmp_path / f"t10k-{what}-ubyte").read_bytes())
    source = open_source(f"idx:{tmp_path}")
    assert source.num_samples("val") == 10 and not source.notes()
    assert (load(source, DataConfig(source.classes, (1, 6, 5)), "val").x[:, 0] == x[20:]).all()
    for file in tmp_path.glob("*-ubyte"):
        file.rename(tmp_path / f"emnist-letters-{file.name}")
    assert "EMNIST's pictures lie on their side" in open_source(f"idx:{tmp_path}").notes()[0]


@pytest.mark.parametrize("packed", [False, True])
def test_garbage_idx_is_a_data_error_and_nothing_else(tmp_path: Path, packed: bool) -> None:
    write_idx(tmp_path, packed)
    rng = np.random.default_rng(2)
    files = sorted(tmp_path.iterdir())
    for _ in range(300):
        file = files[rng.integers(len(files))]
        good = file.read_bytes()
        data = bytearray(good[: rng.integers(0, len(good) + 1)] if rng.random() < 0.5 else good)
        for at in rng.integers(0, max(1, len(data)), 2):
            if at < len(data):
                data[at] = rng.integers(0, 256)
        file.write_bytes(data)
        try:
            source = open_source(f"idx:{tmp_path}")
            load(source, DataConfig(source.classes, (1, 6, 5)), "train")
        except DataError as error:
            assert str(tmp_path) in str(error)
        file.write_bytes(good)


def write_cifar(folder: Path, fine: bool) -> np.ndarray:
    num_classes = 100 if fine else 10
    names = "".join(f"class{i:02}\n" for i in range(num_classes))
    (folder / ("fine_label_names.txt" if fine else "batches.meta.txt")).write_text(names + "\n")
    records = RNG.integers(0, 256, (12, (2 if fine else 1) + 3072), np.uint8)
    records[:, 0] = 7
    records[:, int(fine)] = np.arange(12) % num_classes
    if fine:
        records[:8].tofile(folder / "train.bin")
    else:
        records[:5].tofile(folder / "data_batch_1.bin")
        records[5:8].tofile(folder / "data_batch_2.bin")
    records[8:].tofile(folder / ("test.bin" if fine else "test_batch.bin"))
    return records


@pytest.mark.parametrize("fine", [False, True])
def test_cifar(tmp_path: Path, fine: bool) -> None:
    inner = tmp_path / ("cifar-100-binary" if fine else "cifar-10-batches-bin")
    inner.mkdir()
    records = write_cifar(inner, fine)
    source = open_source(f"cifar:{tmp_path}")
    assert len(source.classes) == (100 if fine else 10)
    assert (source.num_samples("train"), source.num_samples("test")) == (8, 4)
    contract = DataConfig(source.classes, (3, 32, 32), val=0.0)
    data = load(source, contract, "train", np.array([7, 1, 5]))
    np.testing.assert_array_equal(data.x.reshape(3, -1), records[[7, 1, 5], -3072:])
    assert data.y.tolist() == records[[7, 1, 5], int(fine)].tolist()


def test_cifar_100_in_coarse_classes(tmp_path: Path) -> None:
    """Each record has two labels, the coarse one first."""
    write_cifar(tmp_path, fine=True)
    with pytest.raises(
        DataError, match=r"no label names there; expected CIFAR-100's train\.bin and coarse_label_names"
    ):
        open_source(f"cifar-coarse:{tmp_path}")
    (tmp_path / "coarse_label_names.txt").write_text("".join(f"group{i:02}\n" for i in range(20)))
    fine, coarse = open_source(f"cifar:{tmp_path}"), open_source(f"cifar-coarse:{tmp_path}")
    assert (len(fine.classes), len(coarse.classes)) == (100, 20)
    assert [split.tolist() for split in (coarse.labels("train"), coarse.labels("test"))] == [[7] * 8, [7] * 4]
    pixels = [load(s, DataConfig(s.classes, (3, 32, 32), val=0.0), "train").x for s in (fine, coarse)]
    np.testing.assert_array_equal(*pixels)
    (tmp_path / "batches.meta.txt").write_text("0\n")  # CIFAR-10 beside it has no coarse classes
    assert open_source(f"cifar-coarse:{tmp_path}").classes == coarse.classes


def test_cifar_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no label names there"):
        open_source(f"cifar:{tmp_path}")
    write_cifar(tmp_path, fine=False)
    batch = tmp_path / "data_batch_2.bin"
    good = batch.read_bytes()
    for broken, words in [
        (good[:-1], "expected a multiple of 3073"),
        (b"", "expected a multiple of 3073"),
        (b"\x0a" + good[1:], "label 10 where 10 classes"),
    ]:
        batch.write_bytes(broken)
        with pytest.raises(DataError, match=words):
            open_source(f"cifar:{tmp_path}")
    (tmp_path / "batches.meta.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="expected 10 class names"):
        open_source(f"cifar:{tmp_path}")


def arrays(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    base = {
        "x_train": RNG.integers(0, 256, (6, 4, 5, 3), np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 10]),
        "x_test": RNG.integers(0, 256, (2, 4, 5, 3), np.uint8),
        "y_test": np.array([[1], [2]]),
    }
    return {k: v for k, v in {**base, **changes}.items() if v is not None}


def npz(tmp_path: Path, values: dict[str, np.ndarray], packed: bool = False) -> str:
    (np.savez_compressed if packed else np.savez)(tmp_path / "x.npz", **values)
    return f"npz:{tmp_path / 'x.npz'}"


@pytest.mark.parametrize("packed", [False, True])
def test_npz_pixels(tmp_path: Path, packed: bool) -> None:
    values = arrays()
    source = open_source(npz(tmp_path, values, packed))
    assert source.classes == ("0", "1", "2", "10") and source.natural_shape == (3, 4, 5)
    contract = DataConfig(source.classes, (3, 4, 5), val=0.0)
    data = load(source, contract, "train", np.array([5, 1]))
    np.testing.assert_array_equal(data.x, values["x_train"][[5, 1]].transpose(0, 3, 1, 2))
    assert data.y.tolist() == [3, 1] and load(source, contract, "test").y.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"samples have shape \[3, 4, 5\], the job expects \[3, 8, 8\]"):
        load(source, DataConfig(source.classes, (3, 8, 8)), "train")


def test_npz_floats_and_names(tmp_path: Path) -> None:
    x = RNG.normal(2, 3, (6, 4, 5))
    values = arrays(x_train=x, y_train=np.array(list("abcabc")), x_test=None, y_test=None)
    source = open_source(npz(tmp_path, values))
    contract = dataclasses.replace(propose_contract(source), val=0.0)
    assert source.classes == ("a", "b", "c") and source.num_samples("test") == 0
    assert len(load(source, contract, "test")) == 0
    data = load(source, contract, "train")
    assert data.x.dtype == np.float32 and data.x.shape == (6, 1, 4, 5)
    assert abs(float(data.tensors()[0].mean())) < 1e-3
    named = open_source(npz(tmp_path, arrays(y_train=np.arange(6) % 3, classes=np.array(["x", "y", "w"]))))
    assert named.counts("train") == {"w": 2, "x": 2, "y": 2}
    x[3, 0, 0] = np.nan
    with pytest.raises(DataError, match="infinite or missing"):
        load(open_source(npz(tmp_path, values | {"x_train": x})), contract, "train")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_train": None}, "no array x_train; expected x_train, y_train"),
        ({"y_test": None}, "no array y_test"),
        ({"y_train": np.arange(5)}, r"y_train has shape \[5\]; expected \[6\]"),
        ({"y_train": np.array([object()] * 6)}, "objects"),
        ({"x_train": np.array([{}] * 6)}, "objects"),
        ({"y_train": np.full(6, 0.5)}, "numbers that are not whole"),
        ({"y_train": np.full(6, -1)}, "labels from -1 to -1"),
        ({"y_train": np.arange(6), "classes": np.array(["a"])}, "expected 0 to 0"),
        ({"y_train": np.full(6, 0x110000, np.uint32).view("U1")}, "no valid text"),
        ({"y_train": np.full(6, 0xD800, np.uint32).view("U1")}, "can't name a class"),
        ({"x_train": np.zeros((6, 20), np.uint8)}, r"shape \[6, 20\]; expected"),
        ({"x_train": np.zeros((6, 4, 5, 3), np.int64)}, "expected uint8 pixels or floats"),
        ({"x_test": np.zeros((2, 9, 9, 3), np.uint8)}, "differ in shape"),
        ({"x_train": np.zeros((0, 4, 5, 3), np.uint8), "y_train": np.zeros(0, int)}, "no training samples"),
    ],
)
def test_npz_errors(tmp_path: Path, changes: dict[str, np.ndarray | None], words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_source(npz(tmp_path, arrays(**changes)))


def test_npz_headers_that_lie(tmp_path: Path) -> None:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 4, 4)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x_train.npy", out.getvalue() + bytes(64))
    with pytest.raises(DataError, match="header and length differ"):
        open_source(f"npz:{tmp_path / 'x.npz'}")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_garbage_npz_is_a_data_error_and_nothing_else(tmp_path: Path, packed: bool) -> None:
    rng = np.random.default_rng(4)
    spec = npz(tmp_path, arrays(y_train=np.array(list("abcabc"))), packed)
    path = tmp_path / "x.npz"
    good = path.read_bytes()
    for _ in range(400):
        data = bytearray(good[: rng.integers(0, len(good) + 1)] if rng.random() < 0.2 else good)
        for at in rng.integers(0, max(1, len(data)), rng.integers(1, 6)):
            if at < len(data):
                data[at] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            source = open_source(spec)
            load(source, DataConfig(source.classes, source.natural_shape), "train")
        except DataError as error:
            assert "x.npz" in str(error)


def test_nothing_unpickles() -> None:
    folder = Path(__file__).parents[4] / "p2ptrain" / "learning" / "data"
    text = "".join(p.read_text() for p in folder.glob("*.py"))
    assert "allow_pickle=True" not in text and "import pickle" not in text and "np.load(" not in text
