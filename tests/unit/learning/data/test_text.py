"""``text:FILE``: windows of bytes, what follows them, and files that are none."""

from __future__ import annotations

import dataclasses
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from p2ptrain.config import Job
from p2ptrain.errors import DataError
from p2ptrain.learning.data import Dataset, Source, load, open_source, propose_contract, select
from p2ptrain.modes.jobs import check_job


def written(tmp_path: Path, num_bytes: int) -> Path:
    path = tmp_path / "book.txt"
    path.write_bytes(bytes(np.random.default_rng(0).integers(0, 256, num_bytes, np.uint8)))
    return path


def opened(path: Path, context: int) -> tuple[Source, Dataset, Dataset]:
    """With its training and test samples; nothing is for validation."""
    source = open_source(f"text:{path}")
    contract = dataclasses.replace(propose_contract(source, (1, 1, context)), val=0.0)
    train, test = (load(source, contract, split, select(source, contract, split)) for split in ("train", "test"))
    return source, train, test


@pytest.mark.parametrize(("num_bytes", "context"), [(1000, 10), (999, 7), (1009, 9), (110, 10), (5000, 128)])
def test_every_byte_is_in_one_split_and_asked_for_once(tmp_path: Path, num_bytes: int, context: int) -> None:
    path = written(tmp_path, num_bytes)
    content = path.read_bytes()
    _, train, test = opened(path, context)
    first_of_test = num_bytes - num_bytes // 10
    for data, part in ((train, content[:first_of_test]), (test, content[first_of_test:])):
        assert len(data) == (len(part) - 1) // context >= 1
        x, y = data.tensors()
        assert x.dtype == y.dtype == torch.int64
        assert x.shape == (len(data), 1, 1, context) and y.shape == (len(data), context)
        used = len(data) * context
        assert bytes(x.flatten().tolist()) == part[:used]
        assert bytes(y.flatten().tolist()) == part[1 : used + 1]
        assert np.array_equal(data.y, y[:, -1])
        assert len(part) - used <= context  # nothing but a piece at the end is left out


def test_a_contract_for_text(tmp_path: Path) -> None:
    source = open_source(f"text:{written(tmp_path, 3000)}")
    contract = propose_contract(source)
    assert (contract.kind, contract.input_shape, contract.mean, contract.std) == ("text", (1, 1, 128), (0.0,), (1.0,))
    assert contract.classes == tuple(str(byte) for byte in range(256)) == source.classes
    job = dataclasses.replace(Job(mode="replicas"), data=contract)
    check_job(job)
    assert source.counts("train").keys() == set(contract.classes)
    assert sum(source.counts("train").values()) == source.num_samples("train") == (2700 - 1) // 128
    with pytest.raises(DataError, match="not augmented"):
        propose_contract(source, augment=True)


def test_shares_are_disjoint_and_batches_random(tmp_path: Path) -> None:
    path = written(tmp_path, 4000)
    source, train, _ = opened(path, 20)
    chosen = [select(source, train.contract, "train", shard=f"{i}/3") for i in (1, 2, 3)]
    assert sorted(np.concatenate(chosen).tolist()) == list(range(len(train)))
    share = load(source, train.contract, "train", chosen[1])
    assert np.array_equal(share.x, train.x[chosen[1]]) and np.array_equal(share.y, train.y[chosen[1]])
    one, two = (list(train.batches(np.random.default_rng(5), 16)) for _ in range(2))
    assert len(one) == train.num_batches(16)
    for (x, y), (again, _) in zip(one, two, strict=True):
        assert torch.equal(x, again)
        assert torch.equal(x[:, 0, 0, 1:], y[:, :-1])


def test_files_that_are_no_text(tmp_path: Path) -> None:
    empty, packed, short = tmp_path / "empty", tmp_path / "packed.gz", tmp_path / "short"
    empty.write_bytes(b"")
    packed.write_bytes(gzip.compress(b"text" * 1000))
    short.write_bytes(b"to be or not to be")
    for spec, words in [
        (f"text:{tmp_path}", "not a file; expected a file of plain text"),
        (f"text:{tmp_path}/none", "no such file or folder; expected text:FILE"),
        (f"text:{empty}", "empty: an empty file; expected"),
        (f"text:{packed}", r"packed.gz: packed with gzip; unpack it first"),
    ]:
        with pytest.raises(DataError, match=words):
            open_source(spec)
    with pytest.raises(DataError, match=r"short: 18 bytes, .* hold no train sample of 128 bytes .* at least 1290"):
        propose_contract(open_source(f"text:{short}"))
    with pytest.raises(DataError, match=r"short: 18 bytes, .* no test sample of 4 bytes .* at least 50: give a longer"):
        propose_contract(open_source(f"text:{short}"), (1, 1, 4))


RUSSIAN = "\u0412\u0441\u0435 \u0441\u0435\u043c\u044c\u0438. " * 300


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (("to be or not to be\n" * 200).encode(), ""),
        (RUSSIAN.encode(), ""),
        (RUSSIAN.encode("iso8859-5"), ""),
        (b"int main() {\f\n\treturn 0;\r\n}\n" * 100, ""),
        (("to be or not to be\n" * 200).encode("utf-16-le"), "looks like UTF-16"),
        (("to be or not to be\n" * 200).encode("utf-16-be"), "looks like UTF-16"),
        (RUSSIAN.encode("utf-16"), "looks like UTF-16"),
        (("to be or not to be\n" * 200).encode("utf-32"), "doesn't look like text: 7"),
        (b"%PDF-1.7\n" + np.random.default_rng(1).bytes(30_000), "doesn't look like text: 1"),
        (b"plain " * 10_000 + bytes(60_000), "doesn't look like text: 50 %"),
    ],
)
def test_what_is_no_plain_text_is_learnt_and_said(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x").write_bytes(data)
    notes = open_source(f"text:{tmp_path / 'x'}").notes()
    assert [note[: len(words)] for note in notes] == ([words] if words else [])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cant_be_read(tmp_path: Path) -> None:
    path = written(tmp_path, 2000)
    path.chmod(0)
    with pytest.raises(DataError, match="can't be read"):
        open_source(f"text:{path}")


def test_jobs_that_dont_fit_the_text(tmp_path: Path) -> None:
    source = open_source(f"text:{written(tmp_path, 3000)}")
    contract = propose_contract(source)
    for change, words in [
        ({"classes": ("a", "b")}, r"data.classes: a, b; for text they are the numbers of all bytes"),
        ({"input_shape": (3, 8, 8)}, r"data.input_shape: expected \[1, 1, bytes in a sample\] for text"),
        ({"kind": "image"}, "holds text data, the job trains on image; give data of that kind with images:PATH"),
    ]:
        wrong = dataclasses.replace(contract, **change)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=words):
            load(source, wrong, "train")
