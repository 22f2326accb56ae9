"""The validation split: held out by what names a sample, alike on every device, unless the data bring one along."""

from __future__ import annotations

import dataclasses
import io
import unicodedata
import zipfile
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError, LocalError
from p2ptrain.learning.data import Source, Split, holdout, load, open_source, propose_contract, select
from p2ptrain.learning.data.binary import ArraySource
from p2ptrain.learning.data.folders import FolderSource
from p2ptrain.learning.data.source import row_hashes
from p2ptrain.learning.data.text import TextSource

SPLITS: tuple[Split, ...] = get_args(Split)
many = settings(max_examples=80, deadline=None)


def png(color: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 4), color).save(out, "PNG")
    return out.getvalue()


def written(path: Path, names: list[str]) -> Path:
    """A folder with these files. Only the first needs to be a picture while nothing is decoded."""
    for i, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(png(i % 256))
    return path


def zipped(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, png(i % 256))
    return path


def rows_of(*counts: int, num_test: int = 0) -> ArraySource:
    """A source of pixels that hold the sample's row, modulo 256; the classes come in turn."""
    labels = np.random.RandomState(7).permutation(np.repeat(np.arange(len(counts)), counts))
    classes_of: dict[Split, Any] = {"train": labels, "test": np.arange(num_test) % len(counts)}

    def pixels(split: Split, indices: np.ndarray) -> np.ndarray:
        return (indices % 256).astype(np.uint8).reshape(-1, 1, 1, 1)

    return ArraySource("rows", tuple(f"c{i}" for i in range(len(counts))), (1, 1, 1), classes_of, pixels)


def files_of(*counts: int, salt: str = "") -> FolderSource:
    """A source of files that nobody reads."""
    files = tuple(f"class {c}/{salt}{i}.png" for c, n in enumerate(counts) for i in range(n))
    labels = np.repeat(np.arange(len(counts)), counts)
    classes = tuple(f"class {c}" for c in range(len(counts)))
    all_files: dict[Split, tuple[str, ...]] = {"train": files, "val": (), "test": ()}
    all_labels: dict[Split, Any] = {"train": labels, "val": labels[:0], "test": labels[:0]}
    return FolderSource("files", "image", classes, (1, 4, 4), 0, cast(Any, None), all_files, all_labels)


def contract_of(source: Source, val: float = 0.1) -> DataConfig:
    return DataConfig(source.classes, source.natural_shape, source.kind, val=val)


def numbers(source: Source, contract: DataConfig, split: Split) -> list[int]:
    """Which rows of ``rows_of`` a split has (at most 256 of them)."""
    return load(source, contract, split).x.ravel().tolist()


def names(source: Source, split: Split) -> set[str]:
    """CLASS/FILE of the samples of a fitted source over folders."""
    base: Any = getattr(source, "base", source)
    if base is source or split not in source.rows:  # type: ignore[attr-defined]
        return {"/".join(file.split("/")[-2:]) for file in base.files[split]}
    return {"/".join(base.files["train"][i].split("/")[-2:]) for i in source.rows[split]}  # type: ignore[attr-defined]


# --- what is held out -------------------------------------------------------------------------------------------------


@many
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    val=st.floats(0, 0.5),
    more=st.floats(0, 0.5),
    salt=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
)
def test_splits_are_disjoint_cover_everything_and_respect_small_classes(
    counts: list[int], val: float, more: float, salt: str | None
) -> None:
    source = rows_of(*counts) if salt is None else files_of(*counts, salt=salt)
    fitted = source.fitted(contract_of(source, val))
    rows: dict[str, Any] = getattr(fitted, "rows", {"train": np.arange(sum(counts)), "val": np.empty(0, np.int64)})
    assert sorted([*rows["train"], *rows["val"]]) == list(range(sum(counts)))
    for number, train, held in zip(counts, fitted.counts("train").values(), fitted.counts("val").values(), strict=True):
        assert train + held == number and held <= number // 2 and (held > 0 or number < 5 or not val)
    assert fitted.num_samples("test") == 0
    assert fitted.fitted(contract_of(source, val)) is fitted
    wider = source.fitted(contract_of(source, max(val, more)))
    assert set(rows["val"]) <= set(getattr(wider, "rows", {"val": ()})["val"])


def test_about_the_share_that_is_asked_for_is_held_out_of_every_class() -> None:
    for source in (rows_of(5000, 3000), files_of(5000, 3000)):
        for val in (0.05, 0.1, 0.4):
            held = source.fitted(contract_of(source, val)).counts("val").values()
            np.testing.assert_allclose([n / of for n, of in zip(held, (5000, 3000), strict=True)], val, atol=0.02)


def test_hashes_stay_what_they_are() -> None:
    """Peers with different versions must divide alike: a change here breaks running groups."""
    assert [hex(h) for h in row_hashes(3).tolist()] == [  # splitmix64 from a seed of 0
        *("0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"),
    ]
    assert hex(int(files_of(1).hashes()[0])) == FROZEN_HASH
    source = rows_of(30, 9)
    assert rows_held(source, 0.1).tolist() == FROZEN_ROWS


FROZEN_HASH = "0x25970543cdb27886"
"""The first 8 bytes, little-endian, of what BLAKE2b makes of "class 0/0.png"."""
FROZEN_ROWS = [2, 31, 32, 33]


def rows_held(source: Source, val: float) -> Any:
    return source.fitted(contract_of(source, val)).rows["val"]  # type: ignore[attr-defined]


def test_a_share_of_zero_holds_nothing_out() -> None:
    source = rows_of(50, 50)
    assert source.fitted(contract_of(source, 0.0)) is source
    assert len(select(source, contract_of(source, 0.0), "val")) == 0
    assert len(load(source, contract_of(source, 0.0), "val")) == 0


def test_fitting_again_for_another_share_starts_from_the_whole() -> None:
    source = rows_of(60, 60)
    narrow, wide = (contract_of(source, val) for val in (0.1, 0.3))
    fitted = source.fitted(narrow)
    assert numbers(fitted, wide, "val") == numbers(source, wide, "val") != numbers(source, narrow, "val")
    assert fitted.fitted(contract_of(source, 0.0)) is source
    held = holdout(fitted, 0.2)
    with pytest.raises(LocalError, match=r"fitted to val = 0\.1, then cut, then fitted to 0\.3"):
        held.fitted(wide)


@pytest.mark.parametrize("fit_first", [False, True])
def test_a_test_split_is_held_out_of_what_is_not_for_validation(fit_first: bool) -> None:
    source = rows_of(80, 80)
    contract = contract_of(source)
    held = holdout(source.fitted(contract) if fit_first else source, 0.2, seed=1)
    parts = {split: numbers(held, contract, split) for split in SPLITS}
    assert sorted(number for part in parts.values() for number in part) == list(range(160))
    assert all(parts.values())
    assert set(parts["val"]) <= set(rows_held(source, 0.1))
    chosen = select(held, contract, "val")
    assert load(held, contract, "val", chosen).x.ravel().tolist() == parts["val"]


@many
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    num_shares=st.integers(1, 6),
    dirichlet=st.none() | st.sampled_from([0.05, 1.0]),
    seed=st.integers(0, 99),
)
def test_shares_of_the_validation_split_are_disjoint_and_cover_it(
    counts: list[int], num_shares: int, dirichlet: float | None, seed: int
) -> None:
    source = rows_of(*counts)
    contract = contract_of(source, 0.2)
    num_shares = min(num_shares, source.fitted(contract).num_samples("train"))
    shares = [
        select(source, contract, "val", shard=f"{i + 1}/{num_shares}", dirichlet=dirichlet, seed=seed)
        for i in range(num_shares)
    ]
    together = sorted(np.concatenate(shares).tolist())
    assert together == list(range(source.fitted(contract).num_samples("val")))


def test_shares_are_of_what_is_left_to_train_on() -> None:
    source = rows_of(40)
    contract = contract_of(source, 0.5)
    num_train = source.fitted(contract).num_samples("train")
    assert num_train < 40
    with pytest.raises(DataError, match=rf"{num_train + 1} shares of {num_train} samples"):
        select(source, contract, "train", shard=f"1/{num_train + 1}")
    assert len(select(source, contract, "val", shard=f"1/{num_train}")) <= 1
    only = select(source, contract, "val", classes=["c0"])
    assert len(only) == 40 - num_train


def test_a_contract_is_proposed_from_all_training_samples() -> None:
    source = rows_of(100, 100)
    contract = propose_contract(source)
    assert contract.val == 0.1
    x = load(source, dataclasses.replace(contract, val=0.0), "train").x
    assert contract.mean == (round(float(x.mean()) / 255, 5),)
    assert propose_contract(source.fitted(contract), num_samples=50) == propose_contract(source, num_samples=50)


# --- folders ----------------------------------------------------------------------------------------------------------

CLASSES = ("cat", "dog", "Käfer")
FILES = [f"{name}/{i}.png" for name in CLASSES for i in range(120)]


@pytest.mark.parametrize("form", ["dir", "wrapped", "split", "zip", "decomposed"])
def test_a_sample_is_on_the_same_side_in_every_copy_of_a_part(tmp_path: Path, form: str) -> None:
    whole = open_source(f"images:{written(tmp_path / 'whole', FILES)}")
    part = sorted(np.random.default_rng(3).permutation(FILES)[:200].tolist())
    spec = {
        "dir": lambda: written(tmp_path / "part", part),
        "wrapped": lambda: written(tmp_path / "part", [f"photos/2024/{name}" for name in part]),
        "split": lambda: written(tmp_path / "part", [*(f"train/{n}" for n in part), "test/dog/x.png"]),
        "zip": lambda: zipped(tmp_path / "part.zip", [f"./photos/{name}" for name in part]),
        "decomposed": lambda: zipped(tmp_path / "part.zip", [unicodedata.normalize("NFD", name) for name in part]),
    }[form]
    some = open_source(f"images:{spec()}")
    contract = DataConfig(whole.classes, (1, 4, 4))
    assert some.classes == whole.classes
    ours, theirs = whole.fitted(contract), some.fitted(contract)
    held = {unicodedata.normalize("NFC", name) for name in names(theirs, "val")}
    assert held == names(ours, "val") & set(part) and 5 < len(held) < 60
    assert {unicodedata.normalize("NFC", name) for name in names(theirs, "train")} == set(part) - held


@pytest.mark.parametrize("folder", ["val", "valid", "validation", "Val", "VALIDATION"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_validation_folder_is_used_and_nothing_is_held_out(tmp_path: Path, folder: str, packed: bool) -> None:
    files = [f"set/train/{c}/{i}.png" for c in "ab" for i in range(20)]
    files += [f"set/{folder}/a/9.png", f"set/{folder}/c/8.png", "set/test/b/7.png"]
    source = open_source(f"images:{zipped(tmp_path / 'x.zip', files) if packed else written(tmp_path / 'd', files)}")
    assert source.classes == ("a", "b", "c")
    contract = contract_of(source)
    for each in (source, source.fitted(contract), source.fitted(contract_of(source, 0.0))):
        assert [each.num_samples(split) for split in SPLITS] == [40, 2, 1]
        assert each.counts("val") == {"a": 1, "b": 0, "c": 1}
    assert load(source, contract, "val").x[:, 0, 0, 0].tolist() == [40, 41]
    assert load(source, contract, "val").y.tolist() == [0, 2]
    known = dataclasses.replace(contract, classes=("a", "b"))
    assert len(load(source, known, "train")) == 40
    with pytest.raises(DataError, match="the job does not know the class 'c'"):
        load(source, known, "val")


def test_a_test_folder_is_left_alone_and_an_empty_validation_folder_is_none(tmp_path: Path) -> None:
    path = written(tmp_path, [*(f"train/a/{i}.png" for i in range(20)), "test/a/1.png"])
    (path / "val").mkdir()
    source = open_source(f"images:{path}").fitted(DataConfig(("a",), (1, 4, 4)))
    assert source.num_samples("test") == 1 and source.num_samples("train") + source.num_samples("val") == 20
    assert source.num_samples("val") > 0


@pytest.mark.parametrize("packed", [False, True])
def test_two_validation_folders_are_an_error_that_names_both(tmp_path: Path, packed: bool) -> None:
    files = ["train/a/1.png", "Val/a/1.png", "validation/a/2.png"]
    path = zipped(tmp_path / "x.zip", files) if packed else written(tmp_path / "d", files)
    with pytest.raises(
        DataError, match=r"Val/ and validation/ are both validation data; put them into one folder val/"
    ):
        open_source(f"images:{path}")


def test_without_train_beside_them_such_folders_are_classes(tmp_path: Path) -> None:
    source = open_source(f"images:{written(tmp_path, ['val/1.png', 'valid/1.png'])}")
    assert source.classes == ("val", "valid") and source.num_samples("val") == 0


# --- arrays and text --------------------------------------------------------------------------------------------------


def npz(path: Path, **arrays: Any) -> Source:
    np.savez(path / "x.npz", **arrays)
    return open_source(f"npz:{path / 'x.npz'}")


def test_npz_with_a_validation_split(tmp_path: Path) -> None:
    x, y = np.arange(60, dtype=np.uint8).reshape(60, 1, 1), np.arange(60) % 2
    source = npz(tmp_path, x_train=x[:50], y_train=y[:50], x_val=x[50:], y_val=y[50:])
    contract = contract_of(source)
    assert source.fitted(contract) is source
    assert numbers(source, contract, "train") == list(range(50))
    assert numbers(source, contract, "val") == list(range(50, 60))
    assert numbers(source, contract, "test") == []
    without = npz(tmp_path, x_train=x, y_train=y)
    assert without.num_samples("val") == 0 < without.fitted(contract).num_samples("val")
    assert without.decode("val", np.empty(0, np.int64), contract).shape == (0, 1, 1, 1)
    for changes, words in [
        ({"x_val": x[50:]}, "no array y_val; expected x_train, y_train, and x_val, y_val, x_test, y_test"),
        ({"y_val": y[50:]}, "no array x_val"),
        ({"x_val": x[50:], "y_val": y[51:]}, r"y_val has shape \[9\]; expected \[10\]"),
        ({"x_val": x[50:].reshape(5, 2, 1), "y_val": y[:5]}, r"x_train \[60, 1, 1\], x_val \[5, 2, 1\]; write all"),
    ]:
        with pytest.raises(DataError, match=words):
            npz(tmp_path, x_train=x, y_train=y, **changes)


def text_of(num_bytes: int) -> TextSource:
    """Its bytes are their places, which no byte could hold."""
    return TextSource("places", cast(Any, np.arange(num_bytes)))


@many
@given(num_bytes=st.integers(10, 3000), context=st.integers(1, 40), val=st.floats(0, 0.5))
def test_no_byte_of_a_text_is_in_two_splits(num_bytes: int, context: int, val: float) -> None:
    source = text_of(num_bytes)
    contract = DataConfig(source.classes, (1, 1, context), "text", val=val)
    try:
        fitted = source.fitted(contract)
    except DataError:
        with pytest.raises(DataError):  # never for the sake of validation
            source.fitted(dataclasses.replace(contract, val=0.0))
        return
    places = {}
    for split in SPLITS:
        windows = fitted.decode(split, np.arange(fitted.num_samples(split)), contract).reshape(-1, context)
        following = fitted.labels(split)
        assert len(following) == len(windows) and (windows[:, -1] + 1 == following).all()
        places[split] = set(np.union1d(windows, following).tolist())
    assert not places["train"] & places["val"] and not places["val"] & places["test"]
    assert places["train"] and places["test"] and max(places["train"]) < min(places["val"] | places["test"])
    assert len(set().union(*places.values())) > num_bytes - 2 * (context + 1)
    before = source.fitted(dataclasses.replace(contract, val=0.0)).num_samples("train")
    assert fitted.num_samples("val") in (0, max(1, round(val * before)))
    assert val == 0 or fitted.num_samples("val") > 0 or before <= 2
    again = fitted.fitted(contract)
    assert [again.num_samples(split) for split in SPLITS] == [fitted.num_samples(split) for split in SPLITS]


def test_shares_of_a_texts_validation_part(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes(bytes(range(256)) * 16)
    source = open_source(f"text:{tmp_path / 'book.txt'}")
    contract = propose_contract(source, (1, 1, 16))
    assert contract.val == 0.1 and source.num_samples("val") == 0
    shares = [select(source, contract, "val", shard=f"{i}/3") for i in (1, 2, 3)]
    data = load(source, contract, "val")
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(data))) and len(data) == round(0.1 * 230)
    some = load(source, contract, "val", shares[1])
    np.testing.assert_array_equal(some.x, data.x[shares[1]])
    np.testing.assert_array_equal(some.y, data.y[shares[1]])
