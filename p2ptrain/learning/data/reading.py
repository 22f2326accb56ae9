"""What comes to light while samples are decoded: which can't be read, how bright they are, whether they fit the job.

Invariant: a sample that is left out is counted and named; what would reach the model on another scale than the job
expects is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError

FULL_WHITE = 65535.0
"""Of 16 bits a channel: what white is where a job says nothing."""
GROSS_MEAN, GROSS_SPREAD, GROSS_NARROWNESS = 10.0, 20.0, 1 / 50
"""Of normalised samples, whose mean is near 0 and whose spread near 1 in the data that the job was made from."""
ODD_MEAN, ODD_SPREAD = 1.0, 2.5
"""Said, but not refused: pictures of other things may be that different."""
FEW = 8
"""With fewer samples a difference says little."""

OVERSHOOT = 1.05
"""Floats may be so much beyond white, or as little below black, as resizing makes of them; they are cut off there."""

_BYTES_FROM = 64.0
"""A sample of floats that goes beyond is not one of 0 to 1."""
_NEARLY_ALL = 0.95

_DEPTHS = (8, 10, 12, 14, *range(16, 33))
_TOO_DARK = 16.0
"""Pictures none of which comes nearer to white than this part of it have another white: 4 of 16 bits."""
_LOOKED_AT = 1024

Say = Callable[[str], None]


def silent(_: str) -> None:
    """For who need not be told."""


@dataclass(slots=True)
class Brightest:
    """The largest value of wide pictures; what ``white`` is made of. ``is_float``: there are pictures of floats."""

    values: list[float] = field(default_factory=list)
    """The largest of each picture."""
    is_float: bool = False

    def add(self, value: float, *, is_float: bool) -> None:
        self.values.append(value)
        if is_float:  # never taken back, whatever another thread reads meanwhile
            self.is_float = True

    @property
    def num_pictures(self) -> int:
        return len(self.values)

    @property
    def value(self) -> float:
        return max(self.values, default=0.0)

    @property
    def white(self) -> float:
        """The most that the bit depth in use can say: 255, 1023, 4095, ...; 1 for floats up to 1; 0 = no picture."""
        if self.value <= 0:
            return 0.0
        whites = [2.0**bits - 1 for bits in _DEPTHS]
        if self.is_float:
            return next((white for white in (1.0, *whites) if self.value <= OVERSHOOT * white), 0.0)
        return next((white for white in whites if self.value <= white), 0.0)


@dataclass(slots=True)
class Reading:
    """Filled by ``Source.decode``, from several threads. ``broken``: what is wrong with the sample in each row that
    can't be read."""

    strict: bool = False
    """Whether the first sample that can't be read ends the reading."""
    broken: dict[int, str] = field(default_factory=dict)
    wide: Brightest = field(default_factory=Brightest)
    num_moving: int = 0
    """Pictures with several frames, or pages, of which the first is read."""
    num_silent: int = 0
    """Recordings of nothing but zeros, in the part that is read."""
    num_cut: int = 0
    """Texts that are longer than the job's samples."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def count(self, *, moving: int = 0, silent: int = 0, cut: int = 0) -> None:
        """So many more of each: the sum is right whoever counts at the same time."""
        with self._lock:
            self.num_moving += moving
            self.num_silent += silent
            self.num_cut += cut

    def check(self, num_samples: int, contract: DataConfig, where: str) -> None:
        """Refuse a data set of which hardly anything can be read, or is almost black. Raises ``DataError``."""
        if 2 * len(self.broken) > num_samples:
            others = f" ({len(self.broken)} of {num_samples} files like this)" if len(self.broken) > 1 else ""
            raise DataError(self.broken[min(self.broken)] + others)
        white = contract.white or FULL_WHITE
        # Whole numbers up to 255 are taken for bytes: they are as dark as a picture of 8 bits may be, too.
        if 0 < self.wide.value * _TOO_DARK <= white and (white > 255 or self.wide.is_float):
            raise DataError(
                f"{where}: the brightest pixel of its {self.wide.num_pictures} pictures of more than 8 bits is "
                f"{self.wide.value:g}, where white is {white:g} in this job: they would be almost black; write them "
                f"with 8 bits, or make the job again with p2ptrain job new (data.white = {self.wide.white:g})"
            )

    def notes(self, num_samples: int, contract: DataConfig) -> list[str]:
        """What a person should know: how many samples are left out, or not read whole."""
        lines = []
        if self.broken:
            are = "is" if len(self.broken) == 1 else "are"
            lines.append(
                f"{len(self.broken)} of {num_samples:,} samples can't be read and {are} left out: "
                f"{self.broken[min(self.broken)]}"
            )
        if self.num_moving:
            lines.append(f"{self.num_moving} of {num_samples:,} pictures have several frames: the first is read")
        if self.num_silent:
            lines.append(f"{self.num_silent} of {num_samples:,} recordings are silent")
        white = contract.white or FULL_WHITE
        dark = sum(0 < value * _TOO_DARK <= white for value in self.wide.values)
        if 2 * dark > self.wide.num_pictures and (white > 255 or self.wide.is_float):
            lines.append(
                f"{dark} of {self.wide.num_pictures} pictures of more than 8 bits are almost black: white is {white:g} "
                f"in this job, and half of them have no pixel above {np.median(self.wide.values):g}; if a stray bright "
                "pixel made that white, set data.white in the job file"
            )
        if self.num_cut:
            lines.append(f"{self.num_cut} of {num_samples:,} texts are longer than the job's samples, and are cut off")
        return lines


def held_against(x: NDArray[Any], contract: DataConfig, where: str) -> str:
    """Mean and spread of samples ``[N, C, H, W]`` beside the contract's: a sentence where they are odd, or "".

    Raises ``DataError`` for gross differences: such samples are on another scale.
    """
    if contract.reads_tokens or not len(x) or not contract.mean:
        return ""
    some = x[:: max(1, len(x) // _LOOKED_AT)]
    scale = 255.0 if x.dtype == np.uint8 else 1.0
    mean = some.mean(axis=(0, 2, 3), dtype=np.float64) / scale
    spread = some.std(axis=(0, 2, 3), dtype=np.float64) / scale
    expected, unit = np.array(contract.mean), np.array(contract.std)
    off = float(np.abs((mean - expected) / unit).max())
    wide = float((spread / unit).max())
    found = f"mean {_numbers(mean)} and spread {_numbers(spread)}"
    wanted = f"{_numbers(expected)} and {_numbers(unit)}"
    narrow = len(some) > 1 and 0 < wide < GROSS_NARROWNESS and not np.any(unit == 1)  # 1: the job's own are constant
    if off > GROSS_MEAN or wide > GROSS_SPREAD or narrow:
        raise DataError(
            f"{where}: its samples have {found}, the job was made from samples with {wanted}: another scale? Give "
            f"samples from the same range of values (bytes are taken from 0 to 1), or make the job from these with "
            "p2ptrain job new"
        )
    if wide == 0 and len(x) > 1:
        return f"all values of all samples are alike ({_numbers(mean)}): nothing can be learnt from them"
    if len(x) >= FEW and (off > ODD_MEAN or not 1 / ODD_SPREAD < wide < ODD_SPREAD):
        return (
            f"the samples here have {found}, the job was made from samples with {wanted}: look whether they are on the "
            "same scale"
        )
    return ""


def mixed_scales(x: NDArray[Any]) -> str:
    """A sentence where floats ``[N, C, H, W]`` of some samples end at 1 and others go far beyond, or ""."""
    if x.dtype.kind != "f" or x.ndim != 4 or not len(x):
        return ""
    axes = (1, 2, 3)
    peaks = np.maximum(x.max(axis=axes), -x.min(axis=axes)) if x.size else np.zeros(0)  # without a copy of x
    small, large = int(((peaks > 0) & (peaks <= OVERSHOOT)).sum()), int((peaks > _BYTES_FROM).sum())
    if not small or not large or small + large < _NEARLY_ALL * len(x):
        return ""
    return (
        f"{small} of {len(x)} samples have values up to 1, {large} up to {peaks.max():g}: are some not divided by 255? "
        "Bring all to one scale"
    )


def _numbers(values: NDArray[Any]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
