"""Decoded samples in memory, and the batches that training takes from them.

Invariant: all chance comes from the generator that the caller passes, so an equal generator gives equal batches;
samples are stored as they were decoded and normalised only as they leave.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from p2ptrain.config import DataConfig
from p2ptrain.learning.data.audio import SILENCE
from p2ptrain.learning.data.source import Indices

if TYPE_CHECKING:
    from torch import Tensor

CROP_PADDING = 4
MIN_AUGMENT_PX = 28
"""Smaller images are left alone: four pixels are too much of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Samples of one split, labelled in the job's class order."""

    x: NDArray[Any]
    """``[N, C, H, W]``: uint8 pixels, float16 log-mels, float32 as they came, or ``[N, 1, 1, T]``: uint8 text, int32
    tokens."""
    y: Indices
    """``[N]``; of text, the byte that follows."""
    contract: DataConfig
    notes: tuple[str, ...] = ()
    """What a person should know: how many samples were left out, whether these look odd."""

    def __post_init__(self) -> None:
        if self.x.shape != (len(self.y), *self.contract.input_shape):
            raise ValueError(f"samples {self.x.shape} for {len(self.y)} labels of shape {self.contract.input_shape}")

    def __len__(self) -> int:
        return len(self.y)

    @property
    def num_bytes(self) -> int:
        return self.x.nbytes + self.y.nbytes

    def counts(self) -> Indices:
        """Samples of each of the job's classes ``[num_classes]``."""
        return np.bincount(self.y, minlength=len(self.contract.classes))

    def subset(self, indices: Indices) -> Dataset:
        """Some of the samples, copied."""
        return Dataset(self.x[indices], self.y[indices], self.contract)

    def tensors(self, indices: Indices | slice | None = None) -> tuple[Tensor, Tensor]:
        """Normalised float32 samples ``[n, C, H, W]`` and int64 labels ``[n]``; all of them if not told which.

        Of text: int64 bytes ``[n, 1, 1, T]``, and the byte that follows each of them ``[n, T]``. Of tokens: int64
        numbers ``[n, 1, 1, T]``, and a label for each sample ``[n]``.
        """
        chosen = slice(None) if indices is None else indices
        return self._normalised(self.x[chosen], self.y[chosen])

    def num_batches(self, batch_size: int) -> int:
        """How many batches one pass yields."""
        return len(_batch_sizes(len(self), batch_size))

    def batches(
        self,
        rng: np.random.Generator,
        batch_size: int,
        *,
        own_classes: Collection[int] | None = None,
        own_fraction: float = 0.0,
        augment: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass in random order: normalised ``(x, y)`` batches, as of ``tensors``.

        With ``own_fraction`` above zero, that share of every batch comes from ``own_classes`` (the job's indices) and
        the rest from the others, each pool starting anew when it runs out; the pass keeps its length. A last batch of a
        single sample is dropped, because batch normalisation can't train on it. ``augment``: samples are changed as the
        contract says.
        """
        if batch_size < 1 or not 0 <= own_fraction <= 1:
            raise ValueError(f"batch_size {batch_size}, own_fraction {own_fraction}")
        sizes = _batch_sizes(len(self), batch_size)
        for chosen in self._order(rng, sizes, own_classes or (), own_fraction):
            x = self.x[chosen]
            if augment and self.contract.augment:
                x = self._augmented(x, rng)
            if augment and self.contract.transform:
                x = self._transformed(x, int(rng.integers(2**31)))
            yield self._normalised(x, self.y[chosen])

    def tried(self, num: int) -> tuple[Tensor, Tensor]:
        """Some samples as training takes them: through somebody's own transform, where there is one."""
        if not self.contract.transform or len(self) < 2:
            return self.tensors(slice(0, num))
        return next(self.batches(np.random.default_rng(0), min(max(2, num), len(self)), augment=True))

    def _order(
        self, rng: np.random.Generator, sizes: list[int], own_classes: Collection[int], own_fraction: float
    ) -> Iterator[Indices]:
        is_own = np.isin(self.y, np.array(sorted(own_classes), np.int64))
        if own_fraction == 0 or not is_own.any() or (is_own.all() and own_fraction > 0):
            pool = _Pool(np.arange(len(self)), rng)
            for size in sizes:
                yield pool.take(size)
            return
        own, rest = _Pool(np.flatnonzero(is_own), rng), _Pool(np.flatnonzero(~is_own), rng)
        for size in sizes:
            num_own = round(own_fraction * size)
            yield np.concatenate([own.take(num_own), rest.take(size - num_own)])

    def _augmented(self, x: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        if self.contract.kind == "audio":
            mask_value = self.contract.mean[0] if self.contract.mean else 0.0
            return augment_audio(x, rng, mask_value=mask_value, light=self.contract.light)
        return augment_images(x, rng, light=self.contract.light) if min(x.shape[2:]) >= MIN_AUGMENT_PX else x

    def _transformed(self, x: NDArray[Any], seed: int) -> NDArray[Any]:
        """By somebody's own function."""
        import torch

        from p2ptrain.learning.own.parts import own_transform

        scale = np.float32(1 / 255 if x.dtype == np.uint8 else 1.0)
        changed: NDArray[Any] = own_transform(self.contract.transform, torch.from_numpy(x * scale), seed).numpy()
        return changed

    def _normalised(self, x: NDArray[Any], y: Indices) -> tuple[Tensor, Tensor]:
        import torch

        if self.contract.kind == "tokens":
            return torch.from_numpy(x.astype(np.int64)), torch.from_numpy(y.astype(np.int64))
        if self.contract.kind == "text":
            tokens = x.astype(np.int64)
            following = np.concatenate([tokens[:, 0, 0, 1:], y[:, None]], axis=1, dtype=np.int64)
            return torch.from_numpy(tokens), torch.from_numpy(following)
        channels = self.contract.input_shape[0]
        mean = np.array(self.contract.mean or (0.0,) * channels, np.float32).reshape(-1, 1, 1)
        std = np.array(self.contract.std or (1.0,) * channels, np.float32).reshape(-1, 1, 1)
        scale = np.float32(1 / 255 if x.dtype == np.uint8 else 1.0)
        out = x.astype(np.float32)  # (x * scale - mean) / std, in place
        out *= scale / std
        out -= mean / std
        return torch.from_numpy(out), torch.from_numpy(y.astype(np.int64))


def augment_images(x: NDArray[Any], rng: np.random.Generator, *, light: bool = False) -> NDArray[Any]:
    """Random crops of ``x`` ``[B, C, H, W]`` with four black pixels around it, half of them mirrored. A new array.
    ``light``: they are only mirrored."""
    num, _, height, width = x.shape
    if light:
        mirrored = rng.random(num) < 0.5
        out = x.copy()
        out[mirrored] = out[mirrored][..., ::-1]
        return out
    pad = CROP_PADDING
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))  # [B, C, 9, 9, H, W], a view
    top, left = rng.integers(0, 2 * pad + 1, (2, num))
    out = windows[np.arange(num), :, top, left]
    mirrored = rng.random(num) < 0.5
    out[mirrored] = out[mirrored][..., ::-1]
    return out


def augment_audio(x: NDArray[Any], rng: np.random.Generator, mask_value: float, *, light: bool = False) -> NDArray[Any]:
    """Log-mels ``[B, 1, M, T]`` shifted by up to a tenth of their length, and up to an eighth of the bands masked.
    ``light``: they are only shifted."""
    num, _, num_mels, frames = x.shape
    most = max(1, frames // 10)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 0), (most, most)), constant_values=SILENCE)
    windows = sliding_window_view(padded, frames, axis=3)  # [B, 1, M, 2 most + 1, T], a view
    out = windows[np.arange(num), :, :, rng.integers(0, 2 * most + 1, num)]
    if light:
        return out
    width = rng.integers(0, num_mels // 8 + 1, num)
    low = rng.integers(0, num_mels - width + 1)
    band = np.arange(num_mels)
    masked = (band >= low[:, None]) & (band < (low + width)[:, None])  # [B, M]
    out[np.broadcast_to(masked[:, None], out.shape[:3])] = mask_value
    return out


class _Pool:
    """Draws without replacement from some indices, and shuffles anew when they run out."""

    def __init__(self, indices: Indices, rng: np.random.Generator) -> None:
        self._left = indices[:0]
        self._all = indices
        self._rng = rng

    def take(self, num: int) -> Indices:
        parts = [self._left[:num]]
        self._left = self._left[num:]
        missing = num - len(parts[0])
        while missing:
            self._left = self._rng.permutation(self._all)
            parts.append(self._left[:missing])
            self._left = self._left[missing:]
            missing -= len(parts[-1])
        return np.concatenate(parts)


def _batch_sizes(num: int, batch_size: int) -> list[int]:
    sizes = [batch_size] * (num // batch_size)
    rest = num % batch_size
    if rest > 1 or (rest == 1 and not sizes):
        sizes.append(rest)
    return sizes
