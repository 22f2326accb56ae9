"""``hf:DIR``: what ``save_to_disk`` of Hugging Face's datasets wrote: pictures, recordings, or texts with a label.

Pictures and recordings are those of an ``Image`` or ``Audio`` column. Texts are token numbers where there is a column
``input_ids``, and else their UTF-8 bytes. A text without a label is read on and on, as ``text:FILE`` is.

Invariant: nothing is downloaded, and no code of a data set's runs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data import audio, images
from p2ptrain.learning.data.given.samples import NUM_BYTES, SampleSource, surveyed, usual_length, usual_shape
from p2ptrain.learning.data.reading import Reading
from p2ptrain.learning.data.source import SPLITS, Kind, Shape, Source, Split, matched_names, sorted_classes
from p2ptrain.learning.data.text import TextSource

_OTHER_NAMES = {"validation": "val", "valid": "val", "dev": "val"}
_LABELS = ("label", "labels")
_TEXTS = ("text", "sentence", "content")
_IDS = "input_ids"


def open_saved(spec: str, path: Path) -> Source:
    """Raises ``DataError`` for a folder of another kind, and where the columns do not say what is what."""
    splits, unread = _splits(_loaded(path), path)
    features = splits["train"].features
    what = _inputs(features, path)
    kinds: Mapping[str, Kind] = {"Image": "image", "Audio": "audio"}
    kind = kinds.get(type(features[what]).__name__, "tokens")
    label = _label(features, path)
    if label is None:
        if kind != "tokens" or what == _IDS:
            raise DataError(f"{path}: no column of labels; expected one named label, has {', '.join(features)}")
        return _running_text(spec, splits["train"], what)
    names = {split: _label_names(rows, label, path) for split, rows in splits.items()}
    for split in names.keys() - {"train"}:
        meant = matched_names(names["train"], names[split])
        names[split] = [meant[name] for name in names[split]]
    classes = sorted_classes([name for given in names.values() for name in set(given)], path)
    index = {name: i for i, name in enumerate(classes)}
    labels = {split: np.array([index[name] for name in given], np.int64) for split, given in names.items()}
    samples = _Samples(path, {split: _plain(rows, what) for split, rows in splits.items()}, what, kind)
    if not len(labels["train"]):
        raise DataError(f"{path}: holds no training samples")
    num_train = len(labels["train"])
    vocabulary, rate = 0, 0
    if kind == "image":
        shape = usual_shape(surveyed(num_train, samples.head))
    elif kind == "audio":
        rates = surveyed(num_train, samples.rate)
        rate = max(sorted(set(rates)), key=rates.count)
        shape = audio.feature_shape(audio.natural_audio(rate))
    else:
        shape = (1, 1, usual_length(surveyed(num_train, samples.length)))
        vocabulary = samples.vocabulary()
    return SampleSource(
        spec, kind, classes, shape, labels, samples.read, vocabulary=vocabulary, sample_rate=rate, said=tuple(unread)
    )


class _Samples:
    """What is in one column, split by split: pictures and recordings as files, texts as they are."""

    def __init__(self, path: Path, rows: Mapping[Split, Any], column: str, kind: Kind) -> None:
        self._path, self._rows, self._column, self._kind = path, rows, column, kind

    def where(self, split: Split, index: int) -> str:
        return f"{self._path}: {split} sample {index}"

    def read(self, split: Split, index: int, contract: DataConfig, reading: Reading | None) -> NDArray[Any]:
        if self._kind == "tokens":
            return self.tokens(split, index)
        content, where = self.content(split, index), self.where(split, index)
        if self._kind == "audio":
            return audio.decode_wav(content, contract.audio, where, reading).astype(np.float16)
        return images.decode_image(content, cast(Shape, contract.input_shape), where, contract.white, reading)

    def head(self, index: int) -> Shape:
        head = images.image_head(self.content("train", index), self.where("train", index))
        return head.channels, head.height, head.width

    def rate(self, index: int) -> int:
        return audio.wav_info(self.content("train", index), self.where("train", index)).sample_rate

    def length(self, index: int) -> int:
        return len(self.tokens("train", index))

    def content(self, split: Split, index: int) -> bytes:
        """Of the file that a sample is: within the data set, or beside it. Raises ``DataError``."""
        file = self._value(split, index)
        if file.get("bytes") is not None:
            return bytes(file["bytes"])
        try:
            return Path(file.get("path") or "").read_bytes()
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.where(split, index)}: its file can't be read ({error}); save the data anew"
            ) from None

    def tokens(self, split: Split, index: int) -> NDArray[np.int64]:
        value = self._value(split, index)
        if isinstance(value, str):
            return np.frombuffer(value.encode("utf-8"), np.uint8).astype(np.int64)
        numbers = np.asarray(value)
        if numbers.ndim != 1 or (numbers.size and (numbers.dtype.kind not in "iu" or numbers.min() < 0)):
            raise DataError(f"{self.where(split, index)}: {self._column} is no list of token numbers")
        return numbers.astype(np.int64)

    def vocabulary(self) -> int:
        """The numbers that tokens may be: one more than the largest of all splits."""
        if self._column != _IDS:
            return NUM_BYTES
        largest = 0
        for split, rows in self._rows.items():
            for index in range(len(rows)):
                with contextlib.suppress(DataError):  # it is left out, and said, when it is read
                    largest = max(largest, int(self.tokens(split, index).max(initial=0)))
        return largest + 1

    def _value(self, split: Split, index: int) -> Any:
        value = self._rows[split][index][self._column]
        if value is None:
            raise DataError(f"{self.where(split, index)}: {self._column} is missing")
        return value


def _loaded(path: Path) -> Any:
    """A ``DatasetDict`` or a ``Dataset``. Raises ``DataError``."""
    os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is imported
    try:
        import datasets
    except ImportError:
        raise DataError(f"hf:{path}: needs datasets, which is not installed here: pip install datasets") from None
    try:
        return datasets.load_from_disk(str(path))
    except (OSError, ValueError, LookupError, TypeError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise DataError(
            f"{path}: not a data set that save_to_disk of datasets wrote ({said}); write one: "
            'datasets.load_dataset(...).save_to_disk("FOLDER")'
        ) from None


def _splits(found: Any, path: Path) -> tuple[dict[Split, Any], list[str]]:
    """By our names, and what is said of the others. Raises ``DataError`` where there is nothing to train on."""
    if not hasattr(found, "keys"):
        return {"train": found}, []
    named = {_OTHER_NAMES.get(name, name): name for name in found}
    if double := [name for name in found if named[_OTHER_NAMES.get(name, name)] != name]:
        raise DataError(f"{path}: more than one split for {_OTHER_NAMES.get(double[0], double[0])}: {', '.join(found)}")
    if "train" not in named:
        raise DataError(f"{path}: no split named train; has {', '.join(found)}")
    others = sorted(name for name in found if _OTHER_NAMES.get(name, name) not in SPLITS)
    return {split: found[named[split]] for split in SPLITS if split in named}, (
        [f"not read: splits {', '.join(others)}"] if others else []
    )


def _inputs(features: Mapping[str, Any], path: Path) -> str:
    """The column that is learnt from. Raises ``DataError`` where several may be meant."""
    by_kind = {kind: [n for n, f in features.items() if type(f).__name__ == kind] for kind in ("Image", "Audio")}
    for names in by_kind.values():
        if len(names) == 1:
            return names[0]
    if any(by_kind.values()):
        raise DataError(f"{path}: several columns of pictures or recordings; keep one: remove_columns([...])")
    strings = [n for n, f in features.items() if getattr(f, "dtype", "") in ("string", "large_string")]
    strings = [n for n in strings if n not in _LABELS]
    for name in (_IDS, *_TEXTS):
        if name in features:
            return name
    if len(strings) == 1:
        return strings[0]
    raise DataError(
        f"{path}: which column is learnt from? Expected one of pictures, of recordings, or one named {_IDS} or text; "
        f'has {", ".join(features)}: rename one, rename_column("...", "text")'
    )


def _label(features: Mapping[str, Any], path: Path) -> str | None:
    named = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    named = [name for name in _LABELS if name in features] or named
    if len(named) > 1 and not set(named) & set(_LABELS):
        raise DataError(f"{path}: several columns of classes ({', '.join(named)}); rename the one that is meant: label")
    return named[0] if named else None


def _label_names(rows: Any, column: str, path: Path) -> list[str]:
    """The class of every sample. Raises ``DataError`` for what is none."""
    feature, values = rows.features[column], rows.select_columns([column]).with_format(None)[:][column]
    if (bad := next((i for i, v in enumerate(values) if not _is_class(v)), None)) is not None:
        raise DataError(
            f"{path}: {column} of sample {bad} is {str(values[bad])[:40]}, which is no class: expected a number or a "
            "name; filter such samples out"
        )
    if type(feature).__name__ == "ClassLabel":
        return [feature.names[value] if isinstance(value, int) else value for value in values]
    return [str(value) for value in values]


def _is_class(label: Any) -> bool:
    return isinstance(label, str) or (isinstance(label, int) and label >= 0)


def _plain(rows: Any, column: str) -> Any:
    """Its one column, as files and not as decoded pictures or sound."""
    rows = rows.select_columns([column]).with_format(None)
    feature = rows.features[column]
    if type(feature).__name__ in ("Image", "Audio"):
        return rows.cast_column(column, type(feature)(decode=False))
    return rows


def _running_text(spec: str, rows: Any, column: str) -> Source:
    texts = (text or "" for text in rows.select_columns([column]).with_format(None)[:][column])
    text = np.frombuffer("\n".join(texts).encode("utf-8"), np.uint8)
    if not len(text):
        raise DataError(f"{spec}: column {column} is empty")
    return TextSource(spec, text)
