"""``package.module:function``: a ``torch.utils.data.Dataset`` of one's own, or several, by split.

The person at this device names the function, so it may run here; no name of one ever comes over the network. It returns
a data set of pairs (sample, class), or a table of such: ``{"train": ..., "val": ..., "test": ...}``.

Invariant: each sample is asked for once, when the data set is opened, and is the same from then on: what is drawn at
random belongs into the job's transform. Whatever the function raises is told with its line.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError, JobError
from p2ptrain.learning.data.binary import named_source
from p2ptrain.learning.data.given.samples import SampleSource, usual_length
from p2ptrain.learning.data.images import given_pixels
from p2ptrain.learning.data.reading import Reading
from p2ptrain.learning.data.source import SPLITS, Source, Split, check_distinct, check_memory
from p2ptrain.learning.own.importing import working_directory_on_path

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
MOST_COLOURS = 4
"""Of a picture, with opacity or infrared."""
_RETURNS = 'a torch.utils.data.Dataset of (sample, class), or a table of them: {"train": ..., "val": ..., "test": ...}'


def is_function(spec: str) -> bool:
    """Whether it names a function in a module that is there: nothing of it is run, but for packages around it."""
    if not _NAME.fullmatch(spec):
        return False
    with working_directory_on_path():
        try:
            return importlib.util.find_spec(spec.partition(":")[0]) is not None
        except (ImportError, ValueError, AttributeError):
            return False


def open_own(spec: str) -> Source:
    """Call it, and take every sample. Raises ``DataError`` that names what is wrong with which sample."""
    from p2ptrain.learning.own.blame import own_code
    from p2ptrain.learning.own.building import function_of

    try:
        with working_directory_on_path():
            function = function_of(spec, f"--data {spec}", f"def load(): ... return {_RETURNS}")
            with own_code(f"--data {spec} fails", advice="correct it"):
                found = function()
        splits = _splits(spec, found)
        with own_code(f"--data {spec}: its data set fails", advice="correct it"):
            read = {split: _taken(spec, split, data) for split, data in splits.items()}
    except JobError as error:
        raise DataError(str(error)) from None
    names = {split: labels for split, (_, labels) in read.items()}
    samples = {split: given for split, (given, _) in read.items()}
    given = getattr(splits["train"], "classes", None)
    known = [] if given is None else [str(name) for name in given]
    check_distinct(known, f"--data {spec}: its .classes")
    names = {split: [_name(spec, label, known) for label in labels] for split, labels in names.items()}
    first = samples["train"][0]
    return _sequences(spec, samples, names) if first.ndim == 1 else _pictures(spec, samples, names)


def _splits(spec: str, found: Any) -> dict[Split, Any]:
    if isinstance(found, Mapping):
        unknown = sorted(str(name) for name in found.keys() - set(SPLITS))
        if unknown or "train" not in found:
            raise DataError(
                f"--data {spec}: splits are train, val and test, and it returns {', '.join(map(str, found))}"
            )
        splits = {split: found[split] for split in SPLITS if split in found}
    else:
        splits = {"train": found}
    for split, data in splits.items():
        if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
            raise DataError(
                f"--data {spec}: {split} is {type(data).__name__}, without a length or without samples by number; it "
                f"must return {_RETURNS}"
            )
    return splits


def _taken(spec: str, split: Split, data: Any) -> tuple[list[NDArray[Any]], list[Any]]:
    samples: list[NDArray[Any]] = []
    labels: list[Any] = []
    for index in range(len(data)):
        where = f"--data {spec}: {split} sample {index}"
        pair = data[index]
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise DataError(f"{where} is {type(pair).__name__}; expected a pair (sample, class)")
        samples.append(_array(pair[0], where))
        labels.append(_label(pair[1], where))
        if index == 0:
            check_memory(samples[0].nbytes * len(data), f"--data {spec}: {len(data)} {split} samples")
        if samples[-1].ndim != samples[0].ndim:
            raise DataError(f"{where} has {samples[-1].ndim} axes, and sample 0 has {samples[0].ndim}")
    if split == "train" and not samples:
        raise DataError(f"--data {spec}: holds no training samples")
    return samples, labels


def _array(sample: Any, where: str) -> NDArray[Any]:
    """Pixels ``[C, H, W]`` uint8 or float32, or token numbers ``[T]``. Raises ``DataError``."""
    is_picture = hasattr(sample, "convert") and hasattr(sample, "getbands")  # of Pillow: height, width, channels
    try:
        sample = given_pixels(sample) if is_picture else sample
        array = np.asarray(sample.numpy() if hasattr(sample, "numpy") else sample)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where} is {type(sample).__name__}, which can't be read as numbers ({error})") from None
    if array.ndim == 1 and array.dtype.kind in "iu":
        if array.size and array.min() < 0:
            raise DataError(f"{where} has token numbers below zero")
        return array.astype(np.int32)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise DataError(
            f"{where} is {array.dtype} of shape {list(array.shape)}; expected a picture [channels, height, width] of "
            "uint8 or floats, or token numbers [length] of whole numbers"
        )
    if array.dtype == np.uint8 and array.shape[2] in (3, MOST_COLOURS) and _may_be_channels_last(array.shape):
        raise DataError(
            f"{where} has shape {list(array.shape)}, which looks like [height, width, channels]; give channels first, "
            "as torch does: x.transpose(2, 0, 1), or x.permute(2, 0, 1)"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{where} holds infinite or missing numbers")
    return np.ascontiguousarray(array, np.uint8 if array.dtype == np.uint8 else np.float32)


def _may_be_channels_last(shape: Sequence[int]) -> bool:
    """Of three axes, whether the last may be colours, and the first two height and width."""
    return shape[2] <= MOST_COLOURS < min(shape[:2])


def _label(label: Any, where: str) -> int | str:
    label = label.item() if hasattr(label, "item") and getattr(label, "ndim", 0) == 0 else label
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, (int, str)) or (isinstance(label, int) and label < 0):
        raise DataError(f"{where}: its class is {str(label)[:40]!r}; expected a whole number, or a name")
    return label


def _name(spec: str, label: int | str, known: Sequence[str]) -> str:
    if isinstance(label, str) or not known:
        return str(label)
    if label >= len(known):
        raise DataError(f"--data {spec}: class {label}, and its .classes name {len(known)}")
    return known[label]


def _pictures(spec: str, samples: dict[Split, list[NDArray[Any]]], names: dict[Split, list[str]]) -> Source:
    first = samples["train"][0]
    for split, given in samples.items():
        for index, each in enumerate(given):
            if each.shape != first.shape or each.dtype != first.dtype:
                raise DataError(
                    f"--data {spec}: {split} sample {index} is {each.dtype} of shape {list(each.shape)}, and the first "
                    f"is {first.dtype} of shape {list(first.shape)}; give all the same"
                )
    none = np.empty((0, *first.shape), first.dtype)
    arrays = {split: np.stack(given) if given else none for split, given in samples.items()}

    def pixels(split: Split, indices: Any) -> NDArray[Any]:
        return arrays[split][indices]

    said: tuple[str, ...] = ()
    if _may_be_channels_last(first.shape):  # or sensors, moments and one value of each
        channels, height, width = first.shape
        said = (
            f"samples of shape {list(first.shape)} are taken for {channels} channels of {height} x {width}; if they "
            "are [height, width, channels], give channels first, as torch does: x.transpose(2, 0, 1)",
        )
    is_pixels = first.dtype == np.uint8 and first.shape[0] in (1, 3)
    return named_source(spec, names, first.shape, pixels, resizable=is_pixels, unread=said)


def _sequences(spec: str, samples: dict[Split, list[NDArray[Any]]], names: dict[Split, list[str]]) -> Source:
    labelled = named_source(spec, names, (1, 1, 1), lambda split, indices: np.empty(0))

    def read(split: Split, index: int, contract: DataConfig, reading: Reading | None) -> NDArray[Any]:
        return samples[split][index]

    largest = max(int(each.max(initial=0)) for given in samples.values() for each in given)
    length = usual_length([len(each) for each in samples["train"]])
    return SampleSource(
        spec, "tokens", labelled.classes, (1, 1, length), labelled.classes_of, read, vocabulary=largest + 1
    )
