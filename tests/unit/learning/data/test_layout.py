"""What lies beside the samples, which folder is which split, and what names in a zip mean."""

from __future__ import annotations

import io
import struct
import unicodedata
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data import load, open_source
from p2ptrain.learning.data.source import Source


def picture(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 4), shade).save(out, "PNG")
    return out.getvalue()


BASE = {"cat/1.png": picture(10), "cat/2.png": picture(20), "dog/1.png": picture(30)}


def opened(path: Path, files: dict[str, bytes], *, packed: bool = False) -> Source:
    if packed:
        with zipfile.ZipFile(path / "x.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return open_source(f"images:{path / 'x.zip'}")
    for name, data in files.items():
        (path / name if name.endswith("/") else (path / name).parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            (path / name).write_bytes(data)
    return open_source(f"images:{path}")


@pytest.mark.parametrize("packed", [False, True])
def test_hidden_folders_are_left_out_and_said_whether_packed_or_not(tmp_path: Path, packed: bool) -> None:
    hidden = {"cat/.ipynb_checkpoints/1.png": picture(1), "cat/.ipynb_checkpoints/2.png": picture(1), ".old/1.png": b""}
    source = opened(tmp_path, BASE | hidden | {"dog/.x": b""}, packed=packed)
    assert source.counts("train") == {"cat": 2, "dog": 1}
    assert list(source.notes()) == ["not read: 1 hidden file (dog/.x)", "not read: 2 hidden folders (.old/, ...)"]


@pytest.mark.parametrize("packed", [False, True])
def test_what_systems_leave_behind_is_no_class_and_not_worth_a_word(tmp_path: Path, packed: bool) -> None:
    litter = {
        "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg": picture(1),
        "$RECYCLE.BIN/$R1.png": picture(1),
        "System Volume Information/x": b"",
        "__MACOSX/cat/._1.png": b"",
        "lost+found/": b"",
        "cat/Icon\r": b"",
        "dog/Thumbs.db": b"",
    }
    source = opened(tmp_path, BASE | litter, packed=packed)
    assert source.counts("train") == {"cat": 2, "dog": 1} and not source.notes()


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Training", "dev", "Testing"), ("TRAIN", "Valid", "Test")],
)
def test_splits_by_any_of_their_names(tmp_path: Path, train: str, val: str, test: str) -> None:
    files = {f"{train}/{name}": data for name, data in BASE.items()}
    source = opened(tmp_path, files | {f"{val}/cat/3.png": picture(3), f"{test}/dog/4.png": picture(4)})
    assert [source.counts(split) for split in ("train", "val", "test")] == [
        {"cat": 2, "dog": 1},
        {"cat": 1, "dog": 0},
        {"cat": 0, "dog": 1},
    ]


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    files = {f"{top}/{name}": data for name, data in BASE.items() for top in ("train", "Training")}
    with pytest.raises(DataError, match="Training/ and train/ are both training data; put them into one folder"):
        opened(tmp_path, files)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cat/1.wav", r"recordings are given as audio:"),
        ("more.zip", r"more\.zip: not image data .*; unpack it"),
        ("cat/more.tar.gz", "; unpack it"),
        ("cat/picture", "give it its suffix"),
        ("cat/1.heic", "convert it, e.g. magick"),
    ],
)
def test_advice_fits_the_file(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        opened(tmp_path, BASE | {name: b""})


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\x1f\x8b\x08\x00", "packed with gzip; unpack it"),
        (b"Rar!\x1a\x07\x01\x00", "packed with RAR; unpack it"),
        (bytes(257) + b"ustar\x0000", "packed with tar; unpack it"),
        (picture(1), "not a readable zip .*; expected a folder or a zip of class folders"),
    ],
)
def test_files_that_are_no_zip(tmp_path: Path, start: bytes, words: str) -> None:
    (tmp_path / "x").write_bytes(start + bytes(600))
    with pytest.raises(DataError, match=words):
        open_source(f"images:{tmp_path / 'x'}")


def old_zip(path: Path, files: dict[bytes, bytes], extra: bytes = b"") -> Source:
    """A zip that does not say how its names are coded."""
    body, directory = b"", b""
    for name, data in files.items():
        head = struct.pack("<5H3I2H", 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), len(extra))
        directory += b"PK\1\2\x14\0" + head + struct.pack("<3H2I", 0, 0, 0, 0, len(body)) + name + extra
        body += b"PK\3\4" + head + name + extra + data
    end = struct.pack("<4H2IH", 0, 0, len(files), len(files), len(directory), len(body), 0)
    (path / "x.zip").write_bytes(body + directory + b"PK\5\6" + end)
    return open_source(f"images:{path / 'x.zip'}")


@pytest.mark.parametrize("name", ["café", unicodedata.normalize("NFD", "café"), "猫", "Жук"])
def test_names_in_a_zip_are_utf_8_though_it_does_not_say_so(tmp_path: Path, name: str) -> None:
    source = old_zip(tmp_path, {f"{name}/1.png".encode(): picture(7), b"dog/1.png": picture(9)})
    classes = tuple(sorted([unicodedata.normalize("NFC", name), "dog"]))
    assert source.classes == classes and not source.notes()
    x = load(source, DataConfig(classes, (1, 4, 4), val=0.0), "train").x
    assert np.unique(x[:, 0, 0, 0]).tolist() == [7, 9]


def test_other_names_in_a_zip_are_those_of_dos_and_it_is_said(tmp_path: Path) -> None:
    source = old_zip(tmp_path, {b"caf\x82/1.png": picture(7), b"dog/1.png": picture(9)})
    assert source.classes == ("café", "dog")
    assert "does not say how its names are coded: read as by DOS, café is one" in source.notes()[0]
    name = "猫/1.png"
    raw, utf8 = name.encode("cp932"), name.encode()
    extra = struct.pack("<HHBI", 0x7075, 5 + len(utf8), 1, zlib.crc32(raw)) + utf8
    source = old_zip(tmp_path, {raw: picture(7)}, extra)
    assert source.classes == ("猫",) and not source.notes()
