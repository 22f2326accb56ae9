"""From the bytes of one WAV file to a log-mel image ``[1, num_mels, num_frames]``.

Invariant: equal samples and equal ``AudioConfig`` give equal features on every peer, whatever the recording's length,
rate and channels; and no length that a file or a job claims is believed before it is checked.

The RIFF chunks are read here and not by the standard library's ``wave``, which before Python 3.12 refuses the
extensible header that most 24-bit and multi-channel files carry, and knows neither RF64 (EBU Tech 3306: the sizes of
long recordings stand in a chunk of their own) nor RIFX (everything has its most significant byte first).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from p2ptrain.config import AudioConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data.beginnings import known_as
from p2ptrain.learning.data.reading import Reading
from p2ptrain.learning.data.source import Shape

MAX_SECONDS = 600.0
MAX_CHANNELS = 32
MIN_RATE, MAX_RATE = 1_000, 384_000

MAX_WINDOWED = 2**22
"""Samples in all windows of a clip together; 60 s at 16 kHz with the usual windows take half of it."""

POWER_FLOOR = 1e-6
"""Added before the logarithm; above the rounding noise of 16-bit samples."""
SILENCE = math.log(POWER_FLOOR)

LOUDEST = 64.0
"""Of floats, of which 1 is full scale: what is louder was not written on that scale."""
_CANCELLED = 1e-3
"""Of two channels' power: what is left of it in their mean where one is the other upside down."""
_STRAY = 4096
"""Bytes behind the samples that may be anything."""
_MAX_CHUNKS = 1000
_PCM, _FLOAT, _ALAW, _MULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_BITS = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64), _ALAW: (8,), _MULAW: (8,)}
_ENDLESS = 0x7F000000
"""From here on sizes are what programs write that don't know how much will come: 0x7FFFFFFF, 0xFFFFFFFF and such."""
_TAG = b"ID3"
"""What notes on a recording begin with that programs append (ID3v2; those of other kinds begin with four letters)."""
_CHUNKS = (b"fmt ", b"data", b"fact", b"LIST")
_ORDERS = {b"RIFF": "<", b"RF64": "<", b"BW64": "<", b"RIFX": ">"}
"""Which byte comes first in files that begin so."""
_EXPECTED = "expected a WAV file of PCM (8, 16, 24 or 32 bits), floats, A-law or mu-law"


@dataclass(frozen=True, slots=True)
class WavInfo:
    """What the header says, checked against the file's length."""

    sample_rate: int
    num_channels: int
    sample_bytes: int
    data_start: int
    num_samples: int
    coding: int = _PCM
    """As the format chunk says it."""
    order: str = "<"
    """Of the bytes of a number: ``<`` or ``>``."""

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate


def wav_info(data: bytes, where: str) -> WavInfo:
    """Parse and check the header. Raises ``DataError``."""
    if len(data) < 12 or data[:4] not in _ORDERS or data[8:12] != b"WAVE":
        what = f" ({known})" if (known := known_as(data[:512])) else ""
        raise DataError(
            f"{where}: not a WAV file{what}; {_EXPECTED}; convert it, e.g. ffmpeg -i FILE -c:a pcm_s16le OUT.wav"
        )
    order = _ORDERS[data[:4]]
    fmt: tuple[int, int, int, int, int] | None = None
    long_size: int | None = None
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            break
        name, size = struct.unpack_from(f"{order}4sI", data, at)
        body = at + 8
        if name == b"fmt ":
            fmt = _format(data[body : body + size], order, where)
        elif name == b"ds64" and size >= 16 and body + 16 <= len(data):
            long_size = struct.unpack_from("<8xQ", data, body)[0]
        elif name == b"data":
            if fmt is None:
                raise DataError(f"{where}: samples before the format chunk; {_EXPECTED}")
            whole = struct.unpack_from(f"{order}I", data, 4)[0] + 8 == len(data)
            if size == 0xFFFFFFFF and long_size:
                size = long_size
            elif size >= _ENDLESS or (size == 0 and not whole) or _goes_on(data, body + size):
                size = len(data) - body  # written to a pipe, which can't be wound back, or when there was less
            return _checked(fmt, body, size, len(data), order, where)
        at = body + size
        at += (size & 1) and data[at : at + 4] not in _CHUNKS  # they start at even offsets; some writers forget it
    raise DataError(f"{where}: the file ends before its samples (cut off?); {_EXPECTED}")


def _goes_on(data: bytes, end: int) -> bool:
    """Whether what follows the samples is more of them: much of it, not all zeros, no chunk, which has a name, and no
    notes on the recording. Shorter signs of files are not looked for: samples may be such bytes by chance."""
    after = data[end : end + _STRAY]
    is_named = any(all(32 <= byte < 127 for byte in after[at : at + 4]) for at in (0, 1))
    is_tagged = after.startswith(_TAG) or after.startswith(_TAG, 1)
    return len(data) - end > _STRAY and not is_named and not is_tagged and any(after)


def _format(body: bytes, order: str, where: str) -> tuple[int, int, int, int, int]:
    if len(body) < 16:
        raise DataError(f"{where}: broken format chunk; {_EXPECTED}")
    tag, channels, rate, _, block_bytes, bits = struct.unpack_from(f"{order}HHIIHH", body)
    if tag == _EXTENSIBLE and len(body) >= 28:
        tag = struct.unpack_from(f"{order}I", body, 24)[0]
    if tag not in _BITS:
        raise DataError(f"{where}: WAV coding {tag:#06x}; {_EXPECTED}; convert it with ffmpeg -c:a pcm_s16le")
    if tag == _PCM and 8 < bits < 32:
        bits = -(-bits // 8) * 8  # 12 or 20 bits are the upper ones of whole bytes
    if bits not in _BITS[tag] or block_bytes != channels * bits // 8:
        raise DataError(f"{where}: {bits} bits a sample in blocks of {block_bytes} bytes; {_EXPECTED}")
    return channels, rate, bits // 8, block_bytes, tag


def _checked(
    fmt: tuple[int, int, int, int, int], start: int, size: int, file_bytes: int, order: str, where: str
) -> WavInfo:
    channels, rate, sample_bytes, block_bytes, coding = fmt
    if not 1 <= channels <= MAX_CHANNELS or not MIN_RATE <= rate <= MAX_RATE:
        raise DataError(
            f"{where}: {channels} channels at {rate} Hz; "
            f"expected 1 to {MAX_CHANNELS} channels at {MIN_RATE} to {MAX_RATE} Hz"
        )
    if size > file_bytes - start:
        raise DataError(
            f"{where}: cut off: {size} bytes of samples announced, {file_bytes - start} there; copy it again"
        )
    num_samples = size // block_bytes
    if num_samples == 0:
        raise DataError(f"{where}: holds no samples; remove the file or record it again")
    if num_samples > MAX_SECONDS * rate:
        raise DataError(
            f"{where}: {num_samples / rate:.0f} s long; at most {MAX_SECONDS:.0f} s are read: cut it into shorter files"
        )
    return WavInfo(rate, channels, sample_bytes, start, num_samples, coding, order)


def read_wav(data: bytes, where: str, max_seconds: float = MAX_SECONDS) -> tuple[NDArray[np.float32], int]:
    """Mono samples in [-1, 1] (the mean of all channels) and the rate; of a longer file, the middle ``max_seconds``.

    Of two channels that cancel each other, as one wired the wrong way round does, the first.
    """
    info = wav_info(data, where)
    keep = min(info.num_samples, max(1, math.ceil(max_seconds * info.sample_rate)))
    block_bytes = info.num_channels * info.sample_bytes
    start = info.data_start + (info.num_samples - keep) // 2 * block_bytes
    raw = np.frombuffer(data, np.uint8, keep * block_bytes, start)
    if info.coding == _FLOAT:
        with np.errstate(all="ignore"):  # what is no number is refused below
            flat: NDArray[Any] = raw.view(f"{info.order}f{info.sample_bytes}").astype(np.float32)
        if not np.isfinite(flat).all():
            raise DataError(f"{where}: infinite or missing numbers for samples; convert it with ffmpeg -c:a pcm_s16le")
        if (peak := float(np.abs(flat).max())) > LOUDEST:
            raise DataError(
                f"{where}: floats up to {peak:g}, where 1 is full scale: another scale? Write whole numbers, or floats "
                "from -1 to 1"
            )
    elif info.coding in (_ALAW, _MULAW):
        flat = _companded(info.coding)[raw].astype(np.float32) / 2**15
    elif info.sample_bytes == 1:  # unsigned, zero at 128
        flat = (raw.astype(np.float32) - 128) / 128
    elif info.sample_bytes == 3:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = raw.reshape(-1, 3)[:, :: 1 if info.order == "<" else -1]  # above, so that the sign is right
        flat = wide.view("<i4")[:, 0].astype(np.float32) / 2**31
    else:
        flat = raw.view(f"{info.order}i{info.sample_bytes}").astype(np.float32) / 2 ** (8 * info.sample_bytes - 1)
    channels = flat.reshape(keep, info.num_channels)
    mono = channels.mean(axis=1, dtype=np.float32)
    if info.num_channels == 2 and float(mono @ mono) < _CANCELLED * float(np.square(channels).sum()):
        mono = np.ascontiguousarray(channels[:, 0])
    return mono, info.sample_rate


@lru_cache(maxsize=2)
def _companded(coding: int) -> NDArray[np.int64]:
    """The 16-bit samples that the 256 bytes of a telephone's coding stand for (ITU-T G.711)."""
    byte = np.arange(256)
    if coding == _MULAW:
        byte = ~byte & 0xFF
        size = ((((byte & 0x0F) << 3) + 0x84) << ((byte >> 4) & 7)) - 0x84
        return np.where(byte & 0x80, -size, size)
    byte = byte ^ 0x55
    segment = (byte >> 4) & 7
    size = (((byte & 0x0F) << 4) + 8 + 0x100 * (segment > 0)) << np.maximum(segment - 1, 0)
    return np.where(byte & 0x80, size, -size)


def resample(samples: NDArray[np.float32], rate: int, new_rate: int) -> NDArray[np.float32]:
    """Band-limited change of rate, by cutting or extending the spectrum."""
    if rate == new_rate:
        return samples
    common = math.gcd(rate, new_rate)
    step, new_step = rate // common, new_rate // common
    num_new = max(1, round(len(samples) * new_rate / rate))
    # Whole steps make the padded lengths exact multiples of one another; the padding also keeps the end from wrapping.
    num_steps = -(-(len(samples) + 64) // step)
    spectrum = np.fft.rfft(samples, num_steps * step)
    return (np.fft.irfft(spectrum, num_steps * new_step)[:num_new] * (new_rate / rate)).astype(np.float32)


def check_audio(audio: AudioConfig) -> None:
    """Refuse settings that no recording could meet; they may come from the network."""
    limits: list[tuple[str, float, float, float]] = [
        ("sample_rate", audio.sample_rate, MIN_RATE, 96_000),
        ("seconds", audio.seconds, 0.05, 60),
        ("window_s", audio.window_s, 0.002, 0.2),
        ("hop_s", audio.hop_s, 0.001, 0.5),
        ("num_mels", audio.num_mels, 1, 256),
    ]
    for key, value, low, high in limits:
        if not low <= value <= high:
            raise DataError(f"data.audio.{key}: {value} is outside {low:g}..{high:g}; change it in the job file")
    if audio.window_s > audio.seconds:
        raise DataError(f"data.audio.window_s: {audio.window_s} is longer than data.audio.seconds = {audio.seconds}")
    _, window, _ = _lengths(audio)
    if num_frames(audio) * window > MAX_WINDOWED:
        raise DataError(f"data.audio.hop_s: {audio.hop_s} makes {num_frames(audio)} windows; choose a longer hop")


def natural_audio(sample_rate: int, seconds: float = 1.0) -> AudioConfig:
    """Settings for speech: nothing above 8 kHz helps, so rates above 16 kHz are reduced to it."""
    return AudioConfig(sample_rate=min(sample_rate, 16_000), seconds=seconds)


def num_frames(audio: AudioConfig) -> int:
    """Columns of the log-mel image: whole windows only."""
    num_samples, window, hop = _lengths(audio)
    return 1 + (num_samples - window) // hop


def feature_shape(audio: AudioConfig) -> Shape:
    """``(1, num_mels, num_frames)``. Raises ``DataError`` for impossible settings."""
    check_audio(audio)
    return 1, audio.num_mels, num_frames(audio)


def log_mel(samples: NDArray[np.float32], audio: AudioConfig) -> NDArray[np.float32]:
    """``ln(power + 1e-6)`` in triangular bands equally spaced on the mel scale, ``[num_mels, num_frames]``.

    ``samples`` are at ``audio.sample_rate``; the middle is taken of longer ones, shorter ones sit amid silence.
    Periodic Hann window, HTK mel scale (2595 log10(1 + f/700)) from 0 Hz to half the rate, bands with peak 1.
    """
    num_samples, window, hop = _lengths(audio)
    samples = _centred(samples, num_samples)
    bands, hann = _bands(audio.sample_rate, window, audio.num_mels), _hann(window)
    frames = sliding_window_view(samples, window)[::hop] * hann  # [num_frames, window]
    spectrum = np.fft.rfft(frames, 2 * (bands.shape[1] - 1), axis=1)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    mel: NDArray[Any] = np.log(bands @ power.T + POWER_FLOOR)
    return mel.astype(np.float32)


def decode_wav(data: bytes, audio: AudioConfig, where: str, reading: Reading | None = None) -> NDArray[np.float32]:
    """The log-mel image of one file, ``[1, num_mels, num_frames]``."""
    samples, rate = read_wav(data, where, max_seconds=audio.seconds + 0.1)
    if reading is not None and not samples.any():
        reading.count(silent=1)
    return log_mel(resample(samples, rate, audio.sample_rate), audio)[None]


def _lengths(audio: AudioConfig) -> tuple[int, int, int]:
    """Samples in a clip, in a window and in a hop."""
    rate = audio.sample_rate
    window = max(2, round(audio.window_s * rate))
    return max(window, round(audio.seconds * rate)), window, max(1, round(audio.hop_s * rate))


def _centred(samples: NDArray[np.float32], num_samples: int) -> NDArray[np.float32]:
    extra = len(samples) - num_samples
    if extra >= 0:
        return samples[extra // 2 : extra // 2 + num_samples]
    before = -extra // 2
    return np.pad(samples, (before, -extra - before))


@lru_cache(maxsize=8)
def _hann(window: int) -> NDArray[np.float64]:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)


@lru_cache(maxsize=8)
def _bands(sample_rate: int, window: int, num_mels: int) -> NDArray[np.float64]:
    """Weights ``[num_mels, bins]``; the transform is lengthened until every band holds a bin."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, num_mels + 2) / 2595) - 1)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    fft_length = 1 << (window - 1).bit_length()
    longest = 4 * fft_length
    while True:
        hz = np.arange(fft_length // 2 + 1) * sample_rate / fft_length
        weights = np.minimum((hz - left) / (centre - left), (right - hz) / (right - centre)).clip(0)
        if weights.any(axis=1).all() or fft_length >= longest:
            return weights
        fft_length *= 2
