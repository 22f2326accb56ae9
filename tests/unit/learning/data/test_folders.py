"""Class folders and zips: layout, order, formats, sizes, and what happens to broken or hostile files."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data import folders as folders_module
from p2ptrain.learning.data import load, open_source, propose_contract

ROOT = Path(__file__).parents[4]
DATA = Path(os.environ.get("P2PTRAIN_DATA", ROOT.parent / "shared" / "data"))
RNG = np.random.default_rng(5)


def picture(color: tuple[int, int, int] = (200, 30, 90), size: tuple[int, int] = (32, 24), form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, form)
    return out.getvalue()


def write_zip(path: Path, files: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_dir(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name if name.endswith("/") else (path / name).parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            (path / name).write_bytes(data)
    return path


SPLIT_FILES = {
    "train/cat/1.png": picture((10, 0, 0)),
    "train/cat/2.png": picture((20, 0, 0)),
    "train/dog/1.png": picture((30, 0, 0)),
    "test/dog/9.png": picture((40, 0, 0)),
}


@pytest.mark.parametrize("prefix", ["", "photos/", "a/b/"])
def test_dir_and_zip_agree(tmp_path: Path, prefix: str) -> None:
    files = {prefix + name: data for name, data in SPLIT_FILES.items()} | {f"{prefix}README.md": b"hi"}
    sources = [
        open_source(f"images:{write_dir(tmp_path / 'dir', files)}"),
        open_source(f"images:{write_zip(tmp_path / 'x.zip', dict(reversed(files.items())))}"),
        open_source(f"images:{write_zip(tmp_path / 'y.zip', {'./' + k: v for k, v in files.items()})}"),
    ]
    contract = DataConfig(("dog", "bird", "cat"), (3, 24, 32), val=0.0)
    for source in sources:
        assert source.classes == ("cat", "dog")
        assert source.counts("train") == {"cat": 2, "dog": 1}
        assert source.counts("test") == {"cat": 0, "dog": 1}
        assert source.natural_shape == (3, 24, 32)
        data = load(source, contract, "train")
        assert data.y.tolist() == [2, 2, 0]
        assert data.x[:, 0, 0, 0].tolist() == [10, 20, 30]
        assert load(source, contract, "test").x[0, 0, 0, 0] == 40


def test_without_splits_everything_trains_and_train_may_be_a_class(tmp_path: Path) -> None:
    files = {"car/1.png": picture(), "train/1.png": picture(), "10/1.png": picture(), ".DS_Store": b"", "car/.x": b""}
    source = open_source(f"images:{write_dir(tmp_path, files)}")
    assert source.classes == ("10", "car", "train") and source.num_samples("test") == 0


def test_numbers_sort_as_numbers(tmp_path: Path) -> None:
    source = open_source(f"images:{write_dir(tmp_path, {f'{n}/1.png': picture() for n in (10, 9, 0)})}")
    assert source.classes == ("0", "9", "10")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"cat/": b""}, "cat: class folder without image files"),
        ({"1.png": b""}, r"1\.png: not in a class folder"),
        ({"dog/a/b.png": b""}, r"dog/a/b\.png: nested too deep"),
        ({"test/dog/b.png": b""}, r"no train/ beside test/; to read test/ alone, name that folder itself"),
        ({"dog/a.heic": b""}, r"dog/a\.heic: not image data that can be read; expected \.apng, \.bmp"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_layout_errors_name_the_file(tmp_path: Path, extra: dict[str, bytes], words: str, packed: bool) -> None:
    files = {"dog/1.png": picture(), **extra}
    path = write_zip(tmp_path / "x.zip", files) if packed else write_dir(tmp_path / "d", files)
    with pytest.raises(DataError, match=words):
        open_source(f"images:{path}")


def test_more_layout_errors(tmp_path: Path) -> None:
    def opening(files: dict[str, bytes]) -> None:
        open_source(f"images:{write_zip(tmp_path / 'x.zip', files)}")

    with pytest.raises(DataError, match=r"more/.*only train/, val/ and test/ are read: rename or move more/"):
        opening({"train/a/1.png": picture(), "more/a/1.png": picture()})
    with pytest.raises(DataError, match="valid/ and validation/ are both validation data; put them into one folder"):
        opening({"train/a/1.png": picture(), "valid/a/1.png": picture(), "validation/a/1.png": picture()})
    with pytest.raises(DataError, match="no class folders with image files to train on"):
        opening({"notes.txt": b""})
    with pytest.raises(DataError, match="not a relative name"):
        opening({"../a/1.png": picture()})
    with pytest.raises(DataError, match="can't name a class"):
        opening({"a\x07/1.png": picture()})


def test_every_format_and_mode_is_converted(tmp_path: Path) -> None:
    grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    for name, image in {
        "1.png": Image.fromarray(grey),
        "2.jpg": Image.fromarray(grey).convert("RGB"),
        "3.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "4.gif": Image.fromarray(grey).convert("P"),
        "5.bmp": Image.fromarray(grey).convert("RGB"),
        "6.webp": Image.fromarray(grey).convert("RGB"),
        "7.tiff": Image.fromarray(grey).convert("CMYK"),
        "8.ppm": Image.fromarray(grey).convert("RGB"),
        "9.png": Image.fromarray(grey).convert("RGBA"),
    }.items():
        (tmp_path / "a").mkdir(exist_ok=True)
        image.save(tmp_path / "a" / name)
    source = open_source(f"images:{tmp_path}")
    assert source.natural_shape == (3, 32, 32)
    for channels in (1, 3):
        data = load(source, DataConfig(("a", "b"), (channels, 32, 32), val=0.0), "train")
        assert np.abs(data.x.astype(int) - grey).max() <= 8
    small = load(source, DataConfig(("a", "b"), (3, 8, 8), val=0.0), "train")
    assert small.x.shape == (9, 3, 8, 8) and np.abs(small.x[0].astype(int) - grey[::4, 2::4]).max() <= 16


def test_photos_are_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (0, 0, 20, 20))  # left half white; shown turned, the top half is
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / "1.jpg", exif=exif)
    source = open_source(f"images:{tmp_path}")
    assert source.natural_shape == (3, 40, 20)
    x = load(source, DataConfig(("a",), (3, 40, 20)), "train").x[0, 0]
    assert x[:18].min() > 200 and x[22:].max() < 50


def test_large_files_decode_on_threads_to_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {}
    for i in range(70):
        out = io.BytesIO()
        Image.fromarray(RNG.integers(0, 256, (40, 40, 3), np.uint8)).save(out, "PNG")
        files[f"a/{i:03}.png"] = out.getvalue()
    source = open_source(f"images:{write_zip(tmp_path / 'x.zip', files)}")
    contract = DataConfig(("a",), (3, 40, 40), val=0.0)
    alone = load(source, contract, "train").x
    monkeypatch.setattr(folders_module, "THREADED_BYTES", 0)
    monkeypatch.setattr(folders_module, "_visible_cores", lambda: 4)
    np.testing.assert_array_equal(load(source, contract, "train").x, alone)
    np.testing.assert_array_equal(load(source, contract, "train", np.array([69, 3])).x, alone[[69, 3]])
    for i in (41, 66):
        files[f"a/{i:03}.png"] = b"broken"
    broken = open_source(f"images:{write_zip(tmp_path / 'y.zip', files)}")
    with pytest.raises(DataError, match=r"a/041\.png: not a readable image"):
        load(broken, contract, "train", strict=True)
    left = load(broken, contract, "train")
    np.testing.assert_array_equal(left.x, np.delete(alone, [41, 66], axis=0))
    assert re.match(
        r"2 of 70 samples can't be read and are left out: .*a/041\.png: not a readable image", left.notes[0]
    )


def test_absurd_sizes_are_refused_before_decoding(tmp_path: Path) -> None:
    for size in (9000, 200_000):
        data = bytearray(picture())
        data[16:24] = size.to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        with pytest.raises(DataError, match=r"a/1\.png: .*pixels"):
            open_source(f"images:{write_zip(tmp_path / 'x.zip', {'a/1.png': bytes(data)})}")
    bomb = write_zip(tmp_path / "bomb.zip", {"a/1.png": bytes(20 * 2**20)})
    with pytest.raises(DataError, match=r"a/1\.png: unpacks to 20,971,520 bytes"):
        open_source(f"images:{bomb}")
    odd = write_zip(tmp_path / "odd.zip", {"a/1.png": picture()}, zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match="packed in an unusual way"):
        open_source(f"images:{odd}")


def test_a_job_that_needs_more_memory_than_there_is(tmp_path: Path) -> None:
    source = open_source(f"images:{write_dir(tmp_path, {'a/1.png': picture()})}")
    indices = np.zeros(10_000, np.int64)
    with pytest.raises(DataError, match="GiB of memory"):
        load(source, DataConfig(("a",), (3, 4096, 4096)), "train", indices)


def test_specs_that_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no zip")
    for spec, words in [
        ("imges:x", r"unknown kind of data set; did you mean 'images'\?; known: digits"),
        ("./photos.zip", r"did you mean images:\./photos\.zip"),
        ("", "unknown kind"),
        ("images:", "expected images:DIR_OR_ZIP"),
        ("images:a\0b", "expected images:DIR_OR_ZIP"),
        ("images:~nobody_here/x", "images:DIR_OR_ZIP"),
        ("digits:x", "takes no path"),
        (f"images:{tmp_path}/none", "no such file or folder; expected images:DIR_OR_ZIP"),
        (f"images:{tmp_path}/file", "not a readable zip"),
        (f"npz:{tmp_path}", "not a readable npz"),
        (f"idx:{tmp_path}/file", "expected a folder with idx files"),
    ]:
        with pytest.raises(DataError, match=words):
            open_source(spec)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
@pytest.mark.filterwarnings("ignore")
def test_garbage_images_are_data_errors_and_nothing_else(tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(len(form))
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(out, form)
    good = out.getvalue()
    file = tmp_path / "a" / "1.png"
    file.parent.mkdir()
    contract = DataConfig(("a",), (1, 12, 12))
    for _ in range(150):
        data = bytearray(good[: rng.integers(1, len(good) + 1)] if rng.random() < 0.3 else good)
        for at in rng.integers(0, min(len(data), 200), rng.integers(0, 8)):
            data[at] = rng.integers(0, 256)
        file.write_bytes(data)
        try:
            assert load(open_source(f"images:{tmp_path}"), contract, "train").x.shape == (1, 1, 12, 12)
        except DataError as error:
            assert "1.png" in str(error)


@pytest.mark.filterwarnings("ignore")
def test_garbage_zips_are_data_errors_and_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    good = write_zip(tmp_path / "good.zip", SPLIT_FILES).read_bytes()
    path = tmp_path / "x.zip"
    contract = DataConfig(("cat", "dog"), (3, 8, 8))
    for _ in range(600):
        data = bytearray(good[: rng.integers(0, len(good) + 1)] if rng.random() < 0.2 else good)
        for at in rng.integers(0, max(1, len(data)), rng.integers(1, 8)):
            if at < len(data):
                data[at] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            load(open_source(f"images:{path}"), contract, "train")
        except DataError as error:
            assert "x.zip" in str(error)


def test_class_names_need_no_torch(tmp_path: Path) -> None:
    write_dir(tmp_path, SPLIT_FILES)
    code = (
        "import sys\nfrom p2ptrain.learning.data import *\n"
        f"s = open_source('images:{tmp_path}')\nc = propose_contract(s)\n"
        "assert len(load(s, c, 'train')) + len(load(s, c, 'val')) == 3\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_large_pictures_are_proposed_small(tmp_path: Path) -> None:
    files = {"a/1.png": picture((255, 0, 0), (300, 200)), "b/1.png": picture((255, 0, 51), (300, 200))}
    source = open_source(f"images:{write_dir(tmp_path, files)}")
    contract = propose_contract(source)
    assert source.natural_shape == (3, 200, 300) and contract.input_shape == (3, 64, 64)
    assert contract.mean == (1.0, 0.0, 0.1) and contract.std == (1.0, 1.0, 0.1)
    assert propose_contract(source, (1, 32, 48)).input_shape == (1, 32, 48)


def real(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no {path}; P2PTRAIN_DATA names the folder with the real data")
    return path


def test_real_pictures() -> None:
    source = open_source(f"images:{real('cifar10-images.zip')}")
    assert len(source.classes) == 10 and source.natural_shape == (3, 32, 32)
    assert set(source.counts("train").values()) == {5000} and set(source.counts("test").values()) == {1000}
    contract = propose_contract(source, num_samples=64)
    assert all(0.3 < m < 0.7 for m in contract.mean) and all(0.15 < s < 0.35 for s in contract.std)
    assert load(source, contract, "test", np.array([0, 9999])).y.tolist() == [0, 9]


def test_real_words() -> None:
    source = open_source(f"audio:{real('spoken-digits.zip')}")
    assert source.sample_rate == 8000 and source.num_samples("train") == 2700
    contract = propose_contract(source, num_samples=32)
    assert contract.input_shape == (1, 40, 61) and contract.audio.seconds == 1.0
    x, y = load(source, contract, "test", np.array([0, 299])).tensors()
    assert x.shape == (2, 1, 40, 61) and y.tolist() == [0, 9] and abs(float(x.mean())) < 2
