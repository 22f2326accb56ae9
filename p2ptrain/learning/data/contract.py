"""Where a peer's data meets the job's data contract: proposing one, matching class names, loading to fit.

Invariant: what ``load`` returns has the contract's shape and class order, or ``DataError`` was raised; names match
exactly first, then without regard to case or to how accents are stored, and never by guess.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2ptrain.config import AudioConfig, DataConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data.audio import feature_shape, natural_audio
from p2ptrain.learning.data.dataset import Dataset
from p2ptrain.learning.data.reading import Reading, Say, held_against, mixed_scales, silent
from p2ptrain.learning.data.source import (
    SPLITS,
    Indices,
    Shape,
    Source,
    Split,
    check_memory,
    closest,
)
from p2ptrain.words import listed, match_class

MIN_SAMPLES = 2
"""To learn from: one sample can't be told from any other."""
MAX_PROPOSED_PX = 64
"""Larger pictures are proposed at 64x64: the job is for small devices. ``input_shape`` overrules it."""


def class_map(source: Source, contract: DataConfig, present: Indices | None = None) -> Indices:
    """The job's index for each of the source's classes ``[len(source.classes)]``.

    ``present`` limits the check to these source classes; others that the job does not know become -1.
    """
    index = {name: i for i, name in enumerate(contract.classes)}
    needed = set(range(len(source.classes))) if present is None else set(present.tolist())
    out = np.full(len(source.classes), -1, np.int64)
    for i, name in enumerate(source.classes):
        match = match_class(name, contract.classes)
        if match is not None:
            out[i] = index[match]
        elif i in needed:
            raise DataError(
                f"{source.spec}: the job does not know the class {name!r}{closest(name, contract.classes)}; "
                f"its classes: {listed(contract.classes, 24)}; rename the class, pick some with --classes, or "
                "make a job that has it (p2ptrain job new --classes; `p2ptrain job continue --classes` goes on from a "
                "trained model)"
            )
    return out


def load(
    source: Source, contract: DataConfig, split: Split, indices: Indices | None = None, *, strict: bool = False
) -> Dataset:
    """Decode samples (all, or those at ``indices``, as ``select`` gives them) into memory, as the contract wants them.

    An empty split gives an empty data set. Files that can't be read are left out, and ``Dataset.notes`` counts them;
    with ``strict``, and where hardly any can be read, the first raises ``DataError``.
    """
    if source.kind != contract.kind:
        raise DataError(
            f"{source.spec}: holds {source.kind} data, the job trains on {contract.kind}; "
            f"give data of that kind with {'images' if contract.kind == 'image' else contract.kind}:PATH"
        )
    source = source.fitted(contract)
    shape = _checked_shape(source, contract)
    labels = source.labels(split)
    chosen = np.arange(len(labels), dtype=np.int64) if indices is None else np.asarray(indices, np.int64)
    own = labels[chosen]
    y = class_map(source, contract, np.unique(own))[own]
    item_bytes = {"audio": 2, "tokens": 4}.get(source.kind, 1)
    check_memory(len(chosen) * math.prod(shape) * item_bytes, f"{source.spec}: {len(chosen)} samples of {list(shape)}")
    reading = Reading(strict)
    x = source.decode(split, chosen, contract, reading)
    reading.check(len(chosen), contract, source.spec)
    if reading.broken:
        sound = np.setdiff1d(np.arange(len(chosen)), list(reading.broken))
        x, y = x[sound], y[sound]
    notes = (*reading.notes(len(chosen), contract), held_against(x, contract, source.spec))
    notes += (mixed_scales(x),) if source.kind == "image" else ()
    return Dataset(x, y, contract, tuple(filter(None, notes)))


def check_learnable(labels: Indices, contract: DataConfig, where: str) -> None:
    """Refuse samples that nothing can be learnt from, by their labels ``[N]``. Raises ``DataError``."""
    if contract.kind != "text" and len(labels) < MIN_SAMPLES:
        raise DataError(
            f"{where}: {len(labels)} sample{'' if len(labels) == 1 else 's'} to train on; nothing can be learnt from "
            f"fewer than {MIN_SAMPLES}: give more"
        )


def _checked_shape(source: Source, contract: DataConfig) -> Shape:
    if len(contract.input_shape) != 3 or min(contract.input_shape) < 1:
        raise DataError(f"data.input_shape: expected [channels, height, width], got {list(contract.input_shape)}")
    channels, height, width = contract.input_shape
    if contract.kind == "audio":
        expected = feature_shape(contract.audio)
        if (channels, height, width) != expected:
            raise DataError(
                f"data.input_shape: {list(contract.input_shape)}, but data.audio gives {list(expected)}; "
                "write that into the job file"
            )
    elif contract.kind == "text":
        if contract.classes != source.classes:
            raise DataError(
                f"data.classes: {listed(contract.classes, 4)}; for text they are the numbers of all bytes, "
                '["0", "1", ... "255"]; make the job again with p2ptrain job new --data text:FILE'
            )
    elif contract.kind == "tokens":
        if (channels, height) != (1, 1):
            raise DataError(f"data.input_shape: expected [1, 1, tokens in a sample], got {list(contract.input_shape)}")
        if contract.vocabulary < source.vocabulary:
            raise DataError(
                f"{source.spec}: has token numbers up to {source.vocabulary - 1}, and data.vocabulary of the job is "
                f"{contract.vocabulary}: take the tokenizer that the job was made with, or make the job from these data"
            )
    elif channels not in (1, 3) and source.natural_shape != contract.input_shape:
        raise DataError(f"data.input_shape: {channels} channels; pictures have 1 (grey) or 3 (colour)")
    return channels, height, width


def propose_contract(
    source: Source,
    input_shape: tuple[int, int, int] | None = None,
    *,
    audio: AudioConfig | None = None,
    augment: bool = False,
    num_samples: int = 1024,
    seed: int = 0,
    say: Say = silent,
) -> DataConfig:
    """A contract that fits ``source``: the classes that it has training samples of, the shape of most samples, mean and
    deviation of a seeded sample of training data. ``say`` is told where one sample can't stand for all.

    Mean and deviation are in the units of ``Dataset.tensors`` before normalisation: pixels from 0 to 1, log-mels as
    they are; text is not normalised. Audio settings suit speech at the files' rate and 95 % of their lengths. The
    sample is of all training data: what a job then holds out for validation does not change its proposal.
    """
    if source.kind == "text":
        draft = DataConfig(source.classes, input_shape or source.natural_shape, "text", (0.0,), (1.0,))
        if augment:
            raise DataError(f"{source.spec}: text is not augmented; leave --augment out")
        load(source, _undivided(draft), "train", np.zeros(1, np.int64))
        return draft
    # A source that a job has divided proposes what it did before.
    source = source.fitted(_undivided(DataConfig(source.classes, source.natural_shape, source.kind)))
    rng = np.random.RandomState(seed % 2**32)
    num_train = source.num_samples("train")
    sample = np.sort(rng.permutation(num_train)[:num_samples]).astype(np.int64)
    settings = audio or AudioConfig()
    if source.kind == "audio":
        settings = audio or _proposed_audio(source, sample)
        shape = feature_shape(settings)
        if input_shape is not None and tuple(input_shape) != shape:
            raise DataError(
                f"{source.spec}: an input shape of {list(input_shape)} does not follow from the audio settings, "
                f"which give {list(shape)}; change num_mels, seconds or hop_s instead"
            )
    elif input_shape is not None:
        shape = input_shape
    else:
        shape = source.natural_shape
        if max(shape[1:]) > MAX_PROPOSED_PX and source.resizable:
            shape = (shape[0], MAX_PROPOSED_PX, MAX_PROPOSED_PX)
    classes = _trained_classes(source)
    draft = DataConfig(classes, tuple(shape), source.kind, augment=augment, audio=settings, white=source.white(sample))
    if source.kind == "tokens":
        draft = dataclasses.replace(draft, vocabulary=source.vocabulary)
        if augment:
            raise DataError(f"{source.spec}: texts are not augmented; leave --augment out")
    data = load(source, _undivided(draft), "train", sample)
    for line in (*source.notes(), *source.survey_notes(), *_audio_notes(source, sample, settings), *data.notes):
        say(line)
    mean, std = _moments(data.x) if source.kind != "tokens" else ((0.0,), (1.0,))
    return dataclasses.replace(draft, mean=mean, std=std)


def _trained_classes(source: Source) -> tuple[str, ...]:
    """Without those that other splits alone have samples of: a job that had them would wait for a peer with some."""
    counts = {split: source.counts(split) for split in SPLITS}
    return tuple(c for c in source.classes if counts["train"][c] or not any(each[c] for each in counts.values()))


def _audio_notes(source: Source, sample: Indices, settings: AudioConfig) -> list[str]:
    lengths = source.durations_s(sample)
    cut = sum(length > settings.seconds for length in lengths)
    if not cut:
        return []
    return [
        f"of {len(lengths)} recordings looked at, {cut} are longer than {settings.seconds:g} s (up to "
        f"{max(lengths):.1f} s): of those the middle {settings.seconds:g} s are used; data.audio.seconds is how many"
    ]


def _undivided(contract: DataConfig) -> DataConfig:
    """The contract with nothing held out."""
    return dataclasses.replace(contract, val=0.0)


def _moments(x: NDArray[Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scale = 255.0 if x.dtype == np.uint8 else 1.0
    mean = x.mean(axis=(0, 2, 3), dtype=np.float64) / scale
    std = x.std(axis=(0, 2, 3), dtype=np.float64) / scale
    std = np.where(std < 1e-4, 1.0, std)  # a constant channel carries nothing; don't blow it up
    return tuple(round(float(m), 5) for m in mean), tuple(round(float(s), 5) for s in std)


def _proposed_audio(source: Source, sample: Indices) -> AudioConfig:
    # Half seconds, so that two people who measure similar recordings propose the same job.
    longest_s = float(np.quantile(source.durations_s(sample) or [1.0], 0.95))
    return natural_audio(source.sample_rate, seconds=min(10.0, max(1.0, math.ceil(2 * longest_s) / 2)))
