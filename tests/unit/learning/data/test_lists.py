"""Speech commands' layout: its maker's lists of validation and test files, its folder of noises, on made files."""

from __future__ import annotations

import io
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest

from p2ptrain.errors import DataError
from p2ptrain.learning.data import load, open_source, propose_contract

WORDS = ("bed", "cat", "yes")
SPEAKERS = ("0a7c2a8d", "1b4c9b89", "3c257192", "9d171fee")


def recording(hz: float, seconds: float = 0.2) -> bytes:
    out, t = io.BytesIO(), np.arange(int(16000 * seconds)) / 16000
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((8000 * np.sin(2 * np.pi * hz * t)).astype("<i2").tobytes())
    return out.getvalue()


def speech_commands(**changed: bytes | None) -> dict[str, bytes]:
    """One recording of each word by each speaker; the third validates, the fourth tests."""
    files = {
        f"{word}/{speaker}_nohash_0.wav": recording(300 + 200 * w + 20 * s)
        for w, word in enumerate(WORDS)
        for s, speaker in enumerate(SPEAKERS)
    }
    files |= {
        "_background_noise_/white_noise.wav": recording(50, 1.0),
        "_background_noise_/README.md": b"noises",
        "README.md": b"speech commands",
        "LICENSE": b"CC BY",
        "validation_list.txt": "".join(f"{word}/{SPEAKERS[2]}_nohash_0.wav\n" for word in WORDS).encode(),
        "testing_list.txt": "".join(f"{word}/{SPEAKERS[3]}_nohash_0.wav\r\n" for word in WORDS).encode(),
    }
    named = {name: data for name, data in changed.items() if data is not None}
    lists = {f"{name}.txt": data for name, data in named.items()}
    return {
        name: data for name, data in files.items() if changed.get(name.removesuffix(".txt"), b"") is not None
    } | lists


def write(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("wrapper", ["", "speech_commands_v0.02/"])
def test_the_makers_lists_are_kept_to(tmp_path: Path, wrapper: str) -> None:
    files = {wrapper + name: data for name, data in speech_commands().items()}
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    for where in (write(tmp_path / "x", files), tmp_path / "x.zip"):
        source = open_source(f"audio:{where}")
        assert source.classes == WORDS
        contract = propose_contract(source)
        fitted = source.fitted(contract)  # nothing more is held out
        assert [fitted.num_samples(split) for split in ("train", "val", "test")] == [6, 3, 3]  # type: ignore[arg-type]
        (noise,) = source.notes()
        assert "not read: 4 side files" in noise
        train, val, test = (load(source, contract, split) for split in ("train", "val", "test"))  # type: ignore[arg-type]
        assert len(np.unique(np.concatenate([d.x.reshape(len(d), -1) for d in (train, val, test)]), axis=0)) == 12
        assert [d.counts().tolist() for d in (train, val, test)] == [[2] * 3, [1] * 3, [1] * 3]


def test_without_lists_a_part_is_held_out_and_noise_is_no_class(tmp_path: Path) -> None:
    path = write(tmp_path / "x", speech_commands(validation_list=None, testing_list=None))
    source = open_source(f"audio:{path}")
    assert source.classes == WORDS and source.num_samples("train") == 12


@pytest.mark.parametrize("windows", [False, True])
def test_what_a_list_names_and_is_not_there_is_counted(tmp_path: Path, windows: bool) -> None:
    some = f"bed/{SPEAKERS[2]}_nohash_0.wav\nbed/deadbeef_nohash_0.wav\nyes/deadbeef_nohash_0.wav\n"
    some = "\ufeff" + some.replace("/", "\\").replace("\n", "\r\n") if windows else some
    source = open_source(f"audio:{write(tmp_path / 'x', speech_commands(validation_list=some.encode()))}")
    assert source.num_samples("val") == 1
    assert "validation_list.txt: names 2 files that are not here, of 3" in source.notes()


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b"\xff\xfe\x00b", "validation_list.txt: no list of files"),
        (f"bed/{SPEAKERS[3]}_nohash_0.wav\n".encode(), "is in testing_list.txt and validation_list.txt"),
        (b"word,speaker\nbed,3\n", "none of its 2 lines is a file here"),
    ],
    ids=["no text", "in both", "something else"],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, data: bytes, wrong: str) -> None:
    path = write(tmp_path / "x", speech_commands(validation_list=data))
    with pytest.raises(DataError, match=wrong):
        open_source(f"audio:{path}")


def test_a_list_beside_train_is_a_side_file(tmp_path: Path) -> None:
    files = {f"train/{name}" if "/" in name else name: data for name, data in speech_commands().items()}
    source = open_source(f"audio:{write(tmp_path / 'x', files)}")
    assert source.num_samples("train") == 12 and source.num_samples("val") == 0
    assert any("not read: 6 side files" in note for note in source.notes())
