"""What people's folders and arrays hold beside what was meant: nothing is read wrongly, or left out, in silence."""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from p2ptrain.config import AudioConfig, DataConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data import check_learnable, load, open_source, propose_contract, read_wav, select
from p2ptrain.learning.data.source import Source

RNG = np.random.default_rng(8)


def picture(size: tuple[int, int] = (20, 20), *, grey: bool = False) -> bytes:
    out = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, size if grey else (*size, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def wav(
    seconds: float = 0.2,
    rate: int = 8000,
    *,
    size: int | None = None,
    riff: int | None = None,
    bits: int = 16,
    tag: int = 1,
    scale: float = 0.5,
) -> bytes:
    tone = scale * np.sin(np.arange(round(seconds * rate)) * 2 * np.pi * 440 / rate)
    body = (tone.astype(f"<f{bits // 8}") if tag == 3 else np.rint(tone * 32767).astype("<i2")).tobytes()
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, tag, 1, rate, rate * bits // 8, bits // 8, bits)
    rest = head + b"data" + struct.pack("<I", len(body) if size is None else size) + body
    return b"RIFF" + struct.pack("<I", len(rest) if riff is None else riff) + rest


def tree(path: Path, files: dict[str, bytes], kind: str = "images") -> Source:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return open_source(f"{kind}:{path}")


def many(data: Any, suffix: str, num: int = 6) -> dict[str, bytes]:
    return {f"{name}/{i}.{suffix}": data() for name in "ab" for i in range(num)}


def proposed(source: Source) -> tuple[DataConfig, list[str]]:
    said: list[str] = []
    return propose_contract(source, say=said.append), said


# --- the contract follows most files -------------------------------------------------------------------------------


def test_one_grey_picture_does_not_make_a_grey_job_nor_a_thumbnail_a_small_one(tmp_path: Path) -> None:
    files = many(picture, "png") | {"a/0.png": picture((9, 9), grey=True)}
    contract, said = proposed(tree(tmp_path, files))
    assert contract.input_shape == (3, 20, 20)
    assert said[0] == "of 12 files looked at: 1 grey, 11 in colour; all are read in colour"
    assert "heights are 9 to 20 and widths 9 to 20 pixels" in said[1]


def test_one_coloured_picture_makes_a_job_in_colour(tmp_path: Path) -> None:
    files = many(lambda: picture(grey=True), "png") | {"b/3.png": picture()}
    assert proposed(tree(tmp_path, files))[0].input_shape == (3, 20, 20)


def test_the_rate_of_most_recordings_is_taken_and_what_is_cut_is_said(tmp_path: Path) -> None:
    files = many(lambda: wav(rate=16_000), "wav") | {"a/0.wav": wav(rate=8000), "b/long.wav": wav(12.0, 16_000)}
    contract, said = proposed(tree(tmp_path, files, "audio"))
    assert contract.audio.sample_rate == 16_000
    assert said[0] == "of 13 files looked at: 1 at 8,000 Hz, 12 at 16,000 Hz; all are read at one rate"
    assert "1 are longer than" in said[1] and "(up to 12.0 s)" in said[1]


# --- nothing is dropped in silence -------------------------------------------------------------------------------


def test_broken_files_are_left_out_and_counted(tmp_path: Path) -> None:
    files = many(picture, "png") | {"a/0.png": picture()[:200], "b/5.png": b""}
    source = tree(tmp_path, files)
    contract, said = proposed(source)
    assert any(line.startswith("2 of 12 samples can't be read and are left out: ") for line in said)
    assert source.check_files("train") == source.check_files("train", contract)[1:]  # of a cut one the header is sound
    whole = dataclasses.replace(contract, val=0.0)
    data = load(source, whole, "train")
    assert data.counts().tolist() == [5, 5] and "a/0.png" in data.notes[0]
    with pytest.raises(DataError, match=r"a/0\.png: not a readable image"):
        load(source, whole, "train", strict=True)
    for name in list(files)[:7]:
        (tmp_path / name).write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"a/0\.png: .*\(8 of 12 files like this\)"):
        load(source, whole, "train")


def test_samples_are_no_side_files_whatever_their_names(tmp_path: Path) -> None:
    files = many(picture, "png", 2) | {"a/README.png": picture(), "b/License.PNG": picture()}
    others = {"LICENSE": b"", "notes.md": b"", "a/.hidden.png": b"", "a/._0.png": b"", "a/.DS_Store": b""}
    source = tree(tmp_path, files | others)
    assert source.counts("train") == {"a": 3, "b": 3}
    assert list(source.notes()) == ["not read: 1 hidden file (a/.hidden.png)", "not read: 2 side files (LICENSE, ...)"]
    assert tree(tmp_path / "w", many(wav, "wav", 1) | {"a/license.wav": wav()}, "audio").num_samples("train") == 3


def test_folders_may_lie_deep_and_loops_of_links_end(tmp_path: Path) -> None:
    deep = {f"1/2/3/4/5/6/7/{name}": data for name, data in many(picture, "png", 1).items()}
    assert tree(tmp_path / "x", deep).classes == ("a", "b")
    (tmp_path / "x" / "1" / "2" / "back").symlink_to(tmp_path / "x")
    with pytest.raises(DataError, match="back: a link to a folder that it lies in itself"):
        open_source(f"images:{tmp_path / 'x'}")
    with pytest.raises(DataError, match="nested too deep"):
        tree(tmp_path / "y", many(picture, "png", 1) | {"a/2/3/4/5/6/7.png": picture()})


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    source = tree(tmp_path, many(picture, "png", 3))
    (tmp_path / "a" / "0.png").unlink()
    os.mkfifo(tmp_path / "a" / "0.png")
    assert "0.png: can't be read (no ordinary file)" in source.check_files("train")[0]


def test_a_missing_cifar_batch_is_said(tmp_path: Path) -> None:
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    for number in (1, 2, 4, 5):
        record = np.zeros((10, 3073), np.uint8)
        record[:, 0] = np.arange(10)
        (tmp_path / f"data_batch_{number}.bin").write_bytes(record.tobytes())
    notes = open_source(f"cifar:{tmp_path}").notes()
    assert "without data_batch_3.bin, test_batch.bin: that is not all" in notes[0]
    assert "data_batch_1.bin: 10 samples, where the data set's own file has 10,000" in notes[1]


# --- names of classes ----------------------------------------------------------------------------------------------


def test_test_folders_are_matched_to_those_of_train(tmp_path: Path) -> None:
    names = {"cat": ["Cat", "CAT"], unicodedata.normalize("NFC", "Café"): [unicodedata.normalize("NFD", "café")]}
    files = {f"train/{name}/{i}.png": picture() for name in names for i in range(3)}
    files |= {f"test/{each}/1.png": picture() for given in names.values() for each in given}
    source = tree(tmp_path, files | {"test/bird/1.png": picture(), "valid/CAT/1.png": picture()})
    contract, said = proposed(source)
    assert contract.classes == tuple(sorted(names))
    assert source.counts("test") == {"bird": 1, "cat": 2, "Café": 1} and source.counts("val")["cat"] == 1
    assert said == ["bird: in test/ only, not to train on; a job made from these data does not know it"]
    with pytest.raises(DataError, match="the job does not know the class 'bird'"):
        load(source, contract, "test")
    assert len(load(source, contract, "test", select(source, contract, "test", classes=["CAFÉ"]))) == 1


def test_names_that_differ_in_case_are_said_and_a_test_folder_beside_classes_is_one(tmp_path: Path) -> None:
    source = tree(tmp_path, many(picture, "png", 2) | {"A/1.png": picture(), "test/1.png": picture()})
    assert source.classes == ("A", "a", "b", "test")
    assert "test: read as a class" in source.notes()[0] and source.notes()[1].startswith("A and a are different")


def test_labels_of_other_splits_are_matched_too(tmp_path: Path) -> None:
    x, names = RNG.integers(0, 256, (6, 8, 8), np.uint8), np.array(["cat", "dog"] * 3)
    np.savez(tmp_path / "x.npz", x_train=x, y_train=names, x_test=x, y_test=np.array(["Cat", "DOG"] * 3))
    assert open_source(f"npz:{tmp_path / 'x.npz'}").counts("test") == {"cat": 3, "dog": 3}


# --- arrays ----------------------------------------------------------------------------------------------------------


def npz(path: Path, **arrays: Any) -> Source:
    np.savez(path / "x.npz", **arrays)
    return open_source(f"npz:{path / 'x.npz'}")


@pytest.mark.parametrize(
    ("shape", "read"),
    [
        ((16, 16, 4), (4, 16, 16)),
        ((4, 16, 16), (4, 16, 16)),
        ((20, 30, 6), (6, 20, 30)),
        ((2, 20, 30), (2, 20, 30)),
        ((28, 28, 1), (1, 28, 28)),
        ((1, 1, 40), (1, 1, 40)),
        ((28, 30), (1, 28, 30)),
    ],
)
def test_the_smaller_outer_axis_is_channels(tmp_path: Path, shape: tuple[int, ...], read: tuple[int, ...]) -> None:
    x = RNG.integers(0, 256, (4, *shape), np.uint8)
    source = npz(tmp_path, x_train=x, y_train=np.arange(4) % 2)
    assert source.natural_shape == read
    first = load(source, DataConfig(("0", "1"), read, val=0.0), "train").x[0]
    moved = x[0].reshape(read) if shape == read or len(shape) == 2 else x[0].transpose(2, 0, 1)
    np.testing.assert_array_equal(first, moved)


@pytest.mark.parametrize("shape", [(3, 5, 3), (16, 16, 16), (64, 8, 8), (8, 8, 64), (32, 3, 32), (3, 32, 2)])
def test_unclear_axes_are_refused_unless_the_file_says_which(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    x, y = RNG.integers(0, 256, (4, *shape), np.uint8), np.arange(4) % 2
    with pytest.raises(DataError, match=r'numpy\.savez.*layout="NCHW"'):
        npz(tmp_path, x_train=x, y_train=y)
    assert npz(tmp_path, x_train=x, y_train=y, layout="NCHW").natural_shape == shape
    assert npz(tmp_path, x_train=x, y_train=y, layout="nhwc").natural_shape == (shape[2], shape[0], shape[1])
    with pytest.raises(DataError, match="layout: expected"):
        npz(tmp_path, x_train=x, y_train=y, layout="CHWN")


def test_arrays_that_are_not_read_are_an_error_or_said(tmp_path: Path) -> None:
    x, y = RNG.integers(0, 256, (4, 8, 8), np.uint8), np.arange(4) % 2
    for name, right in {"x_valid": "x_val", "Y_Test": "y_test", "X_TRAIN": "x_train"}.items():
        with pytest.raises(DataError, match=f"array {name}: call it {right}"):
            npz(tmp_path, x_train=x, y_train=y, **{name: x})
    assert npz(tmp_path, x_train=x, y_train=y, meta=y).notes() == ["not read: arrays meta"]


def test_a_name_for_two_classes_is_refused_and_one_that_means_none_is_said(tmp_path: Path) -> None:
    x, y = RNG.integers(0, 256, (6, 8, 8), np.uint8), np.arange(6) % 3
    with pytest.raises(DataError, match="classes: cat names more than one class"):
        npz(tmp_path, x_train=x, y_train=y, classes=np.array(["cat", "dog", "cat"]))
    notes = npz(tmp_path, x_train=x, y_train=np.array(["cat", "nan", "\ufeffcat"])[y]).notes()
    assert notes[0].startswith(r"cat and '\ufeffcat' are different classes")
    assert notes[1].startswith("nan: read as a class; if it means that a label is missing")


def test_names_match_whatever_can_not_be_seen_of_them(tmp_path: Path) -> None:
    x, y = RNG.integers(0, 256, (6, 8, 8), np.uint8), np.arange(6) % 3
    source = npz(tmp_path, x_train=x, y_train=np.array(["\ufeffcat", "dog\u200b", " Öl "])[y])
    data = load(source, DataConfig(("cat", "dog", "öl"), (1, 8, 8), val=0.0), "train")
    assert data.y.tolist() == y.tolist()
    source = npz(tmp_path, x_train=x, y_train=np.array(["00", "07", "010"])[y])
    assert load(source, DataConfig(("0", "7", "10"), (1, 8, 8), val=0.0), "train").y.tolist() == y.tolist()
    twice = npz(tmp_path, x_train=x, y_train=np.array(["1", "01", "2"])[y])
    assert twice.notes()[0].startswith("01 and 1 are different classes")


LABELS = np.array([2, 0, 1, 1, 0])


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (np.eye(3)[LABELS], "201"),
        (np.eye(3, dtype=np.uint8)[LABELS], "201"),
        (np.eye(3, dtype=bool)[LABELS], "201"),
        (np.eye(5, dtype=np.int64)[LABELS], "201"),
        (LABELS.astype(np.float32), "201"),
        (LABELS[:, None].astype(np.float64), "201"),
        (LABELS[None], "201"),
        (LABELS > 0, "101"),
        (LABELS.astype(">i2"), "201"),
        (np.array([b"2", b"0", b"1", b"1", b"0"]), "201"),
    ],
    ids=["floats", "bytes", "bools", "an absent class", "whole floats", "a column", "a row", "yes", ">i2", "b strings"],
)
def test_labels_of_any_kind_are_classes(tmp_path: Path, labels: np.ndarray, named: str) -> None:
    """The same classes as the plain numbers, sample by sample."""
    x = RNG.integers(0, 256, (5, 8, 8), np.uint8)
    source = npz(tmp_path, x_train=x, y_train=labels)
    wanted = npz(tmp_path, x_train=x, y_train=LABELS > 0 if named == "101" else LABELS)
    wanted_names = [str(int(name == "True" or name == "1") if named == "101" else name) for name in wanted.classes]
    assert list(source.classes) == wanted_names
    assert source.labels("train").tolist() == wanted.labels("train").tolist()
    assert [source.classes[c] for c in source.labels("train")[:3]] == list(named)


def test_one_hot_rows_may_have_names(tmp_path: Path) -> None:
    x = RNG.integers(0, 256, (5, 8, 8), np.uint8)
    for names in (np.array(["cat", "dog", "öl"]), np.array([b"cat", b"dog", "öl".encode()])):
        source = npz(tmp_path, x_train=x, y_train=np.eye(3)[LABELS], classes=names)
        assert [source.classes[c] for c in source.labels("train")] == ["öl", "cat", "dog", "dog", "cat"]
    with pytest.raises(DataError, match="labels from 0 to 2; expected 0 to 1"):
        npz(tmp_path, x_train=x, y_train=np.eye(3)[LABELS], classes=np.array(["a", "b"]))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.eye(3)[LABELS] * 0.9, "row 0 is not one 1 among zeros"),
        (np.vstack([np.eye(3)[LABELS[:4]], [[1, 1, 0]]]), "row 4 is not one 1"),
        (np.vstack([np.eye(3)[LABELS[:4]], [[0, 0, 0]]]), "row 4 is not one 1"),
        (LABELS + 0.5, "not whole"),
        (np.array([0, 1, np.nan, 0, 1]), "not whole"),
        (np.array([b"\xff\xfe"] * 5), "no UTF-8"),
        (np.array([["a", "b"]] * 5), "row 5 is not one 1|has shape"),
        (np.arange(4), r"has shape \[4\]"),
        (np.array([1j] * 5), "holds complex128"),
    ],
)
def test_labels_that_name_no_class_are_refused(tmp_path: Path, labels: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        npz(tmp_path, x_train=RNG.integers(0, 256, (5, 8, 8), np.uint8), y_train=labels)


# --- the same scale on every device ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "given"),
    [(1.0, 255.0), (255.0, 1.0), (1.0, 65535.0), (1.0, 1e-4)],
    ids=["0-255 for 0-1", "0-1 for 0-255", "16 bits for 0-1", "tiny for 0-1"],
)
def test_samples_on_another_scale_are_refused(tmp_path: Path, made: float, given: float) -> None:
    x, y = RNG.random((40, 8, 8)).astype(np.float32), np.arange(40) % 2
    contract = propose_contract(npz(tmp_path, x_train=made * x, y_train=y))
    assert not load(npz(tmp_path, x_train=made * x, y_train=y), contract, "train").notes
    with pytest.raises(DataError, match=r"the job was made from samples with .*: another scale"):
        load(npz(tmp_path, x_train=given * x, y_train=y), contract, "train")


def test_an_odd_scale_is_said_and_so_are_samples_without_anything_in_them(tmp_path: Path) -> None:
    x, y = RNG.random((40, 8, 8)).astype(np.float32), np.arange(40) % 2
    contract = propose_contract(npz(tmp_path, x_train=x, y_train=y))
    (note,) = load(npz(tmp_path, x_train=2 * x - 1, y_train=y), contract, "train").notes
    assert "look whether they are on the same scale" in note
    (note,) = load(npz(tmp_path, x_train=0 * x + 0.4, y_train=y), contract, "train").notes
    assert "alike (0.4): nothing can be learnt" in note
    assert not load(npz(tmp_path, x_train=(255 * x).astype(np.uint8), y_train=y), contract, "train").notes


def test_samples_of_two_scales_in_one_array_are_said(tmp_path: Path) -> None:
    x = RNG.random((40, 8, 8)).astype(np.float32)
    x[::4] *= 255
    said: list[str] = []
    propose_contract(npz(tmp_path, x_train=x, y_train=np.arange(40) % 2), say=said.append)
    assert said[0].startswith("30 of 40 samples have values up to 1, 10 up to 25")


def test_one_sample_teaches_nothing() -> None:
    with pytest.raises(DataError, match="1 sample to train on; nothing can be learnt from fewer than 2"):
        check_learnable(np.zeros(1, np.int64), DataConfig(("a", "b"), (1, 8, 8)), "digits")
    check_learnable(np.zeros(2, np.int64), DataConfig(("a", "b"), (1, 8, 8)), "digits")


# --- recordings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [(0, 0), (0, 36), (0, 2**32 - 1), (2**32 - 1, 2**32 - 1), (2**31 - 1, 2**31 + 35), (0x7FFFF000, 0x7FFFF024)],
)
def test_a_recording_from_a_stream_is_read_to_its_end(sizes: tuple[int, int]) -> None:
    streamed, _ = read_wav(wav(size=sizes[0], riff=sizes[1]), "x")
    np.testing.assert_array_equal(streamed, read_wav(wav(), "x")[0])
    with pytest.raises(DataError, match="holds no samples"):
        read_wav(wav(0.0), "x")
    with pytest.raises(DataError, match="cut off"):
        read_wav(wav(size=10_000), "x")


@pytest.mark.parametrize("bits", [32, 64])
def test_recordings_of_floats(bits: int) -> None:
    floats, rate = read_wav(wav(tag=3, bits=bits), "x")
    assert rate == 8000 and np.abs(floats - read_wav(wav(), "x")[0]).max() < 1e-4
    with pytest.raises(DataError, match="infinite or missing numbers"):
        read_wav(wav(tag=3, bits=bits, scale=float("nan")), "x")


def test_floats_as_large_as_whole_numbers_are_refused(tmp_path: Path) -> None:
    contract = propose_contract(tree(tmp_path / "x", many(wav, "wav"), "audio"), audio=AudioConfig(seconds=0.2))
    loud = tree(tmp_path / "y", many(lambda: wav(tag=3, bits=32, scale=1e30), "wav"), "audio")
    with pytest.raises(DataError, match="another scale"):
        load(loud, contract, "train")
