"""What a model takes single pictures and recordings for.

Invariant: a file is read exactly as training read such files, by the contract in the model's card.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError, UserError
from p2ptrain.learning.data import audio, images
from p2ptrain.learning.data.dataset import Dataset
from p2ptrain.learning.data.given.samples import NUM_BYTES, one_text
from p2ptrain.learning.data.reading import Reading
from p2ptrain.learning.data.source import Shape
from p2ptrain.learning.data.trees.tree import is_hidden
from p2ptrain.learning.own.blame import own_code

SUFFIXES = {"image": images.SUFFIXES, "audio": frozenset({".wav", ".wave"}), "tokens": frozenset({".txt"})}
MAX_BYTES = 256 << 20
"""Of one file; what is larger is no single picture or recording of a few seconds."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The likeliest classes of one file, the likeliest first, each with its probability (of all classes, 0 to 1)."""

    file: Path
    top: tuple[tuple[str, float], ...]


def files_in(paths: Iterable[Path], data: DataConfig) -> list[Path]:
    """Files as they are, and of a folder those that the model could read, by name. Raises ``DataError``."""
    if data.kind == "text":
        raise UserError("this model reads text: `p2ptrain generate` has it write on")
    if data.kind == "tokens" and data.vocabulary != NUM_BYTES:
        raise UserError("this model reads the numbers of a tokenizer, which no file has: call it from Python")
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        shown = [p for p in path.iterdir() if p.is_file() and not is_hidden(p.name)]
        inside = sorted(p for p in shown if p.suffix.lower() in SUFFIXES[data.kind])
        if not inside:
            wanted = ", ".join(sorted(SUFFIXES[data.kind]))
            raise DataError(f"{path}: no files in this folder that the model can read ({wanted}); name files")
        found += inside
    return found


def read_file(path: Path, data: DataConfig) -> NDArray[Any]:
    """One file as a sample ``[C, H, W]``, not normalised. Raises ``DataError``."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror or error}); name a file that is there") from None
    if len(content) > MAX_BYTES:
        raise DataError(f"{path}: larger than {MAX_BYTES >> 20} MiB; name one picture or recording")
    if data.kind == "audio":
        return audio.decode_wav(content, data.audio, str(path)).astype(np.float16)
    if data.kind == "tokens":
        return one_text(np.frombuffer(content, np.uint8), data.input_shape[2])
    channels, height, width = data.input_shape
    shape: Shape = (channels, height, width)
    if channels not in (1, 3):
        raise DataError(f"{path}: the model reads samples of {channels} channels, which no picture has")
    reading = Reading()
    pixels = images.decode_image(content, shape, str(path), data.white, reading)
    if not data.white:  # the job knew no pictures of more than 8 bits; else one may well be dark
        reading.check(1, data, str(path))
    return pixels


def predict(
    model: nn.Module, data: DataConfig, files: Iterable[Path], *, top: int = 3
) -> Iterator[Prediction | DataError]:
    """What the model takes each file for, one after the other; a ``DataError`` in place of one that can't be read.

    The model is in eval mode. ``top``: so many classes each.
    """
    for path in files:
        try:
            sample = read_file(path, data)
        except DataError as error:
            yield error
            continue
        x, _ = Dataset(sample[None], np.zeros(1, np.int64), data).tensors()
        with torch.no_grad(), own_code(f"the model fails on {path}", model):
            logits = model(x).flatten().float()
        if not bool(logits.isfinite().all()):
            yield DataError(f"{path}: the model answers with infinite or missing numbers")
            continue
        shares, classes = logits.softmax(0).topk(min(top, len(data.classes)))
        named = zip(classes.tolist(), shares.tolist(), strict=True)
        yield Prediction(path, tuple((data.classes[index], share) for index, share in named))
