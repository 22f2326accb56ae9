"""WAV reading and log-mels, against a writer and a Fourier transform of their own."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import struct
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from p2ptrain.config import AudioConfig, DataConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data import feature_shape, load, log_mel, num_frames, open_source, propose_contract, read_wav
from p2ptrain.learning.data.audio import SILENCE, resample, wav_info

AUDIO = AudioConfig()


def wav_bytes(
    samples: np.ndarray, rate: int = 8000, bits: int = 16, extensible: bool = False, magic: str = "RIFF"
) -> bytes:
    """Samples in [-1, 1), ``[frames]`` or ``[frames, channels]``, as a WAV file."""
    order = ">" if magic == "RIFX" else "<"
    byteorder: Literal["big", "little"] = "big" if magic == "RIFX" else "little"
    samples = samples.reshape(len(samples), -1)
    channels = samples.shape[1]
    scaled = np.floor(samples.reshape(-1) * 2.0 ** (bits - 1)).astype(np.int64) + (128 if bits == 8 else 0)
    body = b"".join(int(v).to_bytes(bits // 8, byteorder, signed=bits > 8) for v in scaled)
    block = channels * bits // 8
    tag = 0xFFFE if extensible else 1
    fmt = struct.pack(f"{order}HHIIHH", tag, channels, rate, rate * block, block, bits)
    if extensible:
        guid = struct.pack(f"{order}IHH", 1, 0, 16) + bytes.fromhex("800000aa00389b71")
        fmt += struct.pack(f"{order}HHI", 22, bits, 0) + guid
    is_long = magic in ("RF64", "BW64")
    chunks = b"ds64" + struct.pack("<IQQQI", 28, 0, len(body), 0, 0) if is_long else b""
    chunks += b"fmt " + struct.pack(f"{order}I", len(fmt)) + fmt + b"LIST" + struct.pack(f"{order}I", 3) + b"abc\0"
    chunks += b"data" + struct.pack(f"{order}I", 0xFFFFFFFF if is_long else len(body)) + body
    after = b"LIST" + struct.pack(f"{order}I", 2) + b"xy"
    size = 0xFFFFFFFF if is_long else 4 + len(chunks + after)
    return magic.encode() + struct.pack(f"{order}I", size) + b"WAVE" + chunks + after


def tone(hz: float, seconds: float, rate: int = 8000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("magic", ["RIFF", "RIFX", "RF64", "BW64"])
@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_every_width_and_channel_count_reads_back(bits: int, channels: int, extensible: bool, magic: str) -> None:
    wanted = np.random.default_rng(bits).uniform(-1, 0.99, (50, channels))
    got, rate = read_wav(wav_bytes(wanted, 11025, bits, extensible, magic), "x.wav")
    assert rate == 11025
    np.testing.assert_allclose(got, wanted.mean(axis=1), atol=1.01 / 2 ** (bits - 1) + 1e-6)


def test_the_middle_of_a_long_file_is_kept() -> None:
    got, _ = read_wav(wav_bytes(np.arange(1000) / 1000, 1000), "x.wav", max_seconds=0.1)
    assert len(got) == 100 and abs(got[0] - 0.45) < 1e-3


def test_log_mel_matches_a_plain_fourier_transform() -> None:
    audio = AudioConfig(sample_rate=4000, seconds=0.2, window_s=0.03, hop_s=0.011, num_mels=12)
    samples = np.random.default_rng(1).normal(0, 0.1, 700).astype(np.float32)
    window, hop, clip, bins = 120, 44, 800, 128  # 120 samples are transformed as 128, zeros after them
    centred = np.concatenate([np.zeros(50), samples, np.zeros(50)])

    def mel_to_hz(mel: float) -> float:
        return 700 * (10 ** (mel / 2595) - 1)

    edges = [mel_to_hz(i / 13 * 2595 * math.log10(1 + 2000 / 700)) for i in range(14)]
    rows = []
    for start in range(0, clip - window + 1, hop):
        frame = [centred[start + n] * math.sin(math.pi * n / window) ** 2 for n in range(window)]
        power = []
        for k in range(bins // 2 + 1):
            angles = 2 * math.pi * k * np.arange(window) / bins
            power.append(np.dot(frame, np.cos(angles)) ** 2 + np.dot(frame, np.sin(angles)) ** 2)
        bands = []
        for low, mid, high in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for k, p in enumerate(power):
                hz = k * 4000 / bins
                if low < hz <= mid:
                    total += p * (hz - low) / (mid - low)
                elif mid < hz < high:
                    total += p * (high - hz) / (high - mid)
            bands.append(math.log(total + 1e-6))
        rows.append(bands)
    got = log_mel(samples, audio)
    assert got.shape == (12, num_frames(audio)) == feature_shape(audio)[1:]
    np.testing.assert_allclose(got, np.array(rows).T, rtol=1e-4, atol=1e-4)


def test_a_tone_sits_in_its_band_at_any_rate() -> None:
    peaks = {
        rate: int(log_mel(resample(tone(1000, 1, rate).astype(np.float32), rate, 8000), AUDIO).mean(axis=1).argmax())
        for rate in (8000, 11025, 16000, 44100, 48000)
    }
    assert set(peaks.values()) == {18}


def test_resampling_keeps_length_and_level() -> None:
    for rate in (8000, 22050, 44100):
        out = resample(tone(440, 0.5, rate).astype(np.float32), rate, 16000)
        assert len(out) == 8000
        np.testing.assert_allclose(out[500:-500], tone(440, 0.5, 16000)[500:-500], atol=0.01)


def test_short_recordings_sit_amid_silence() -> None:
    mel = log_mel(tone(1000, 0.2).astype(np.float32), AUDIO)
    assert np.allclose(mel[:, :20], SILENCE) and np.allclose(mel[:, -20:], SILENCE)
    assert mel[:, 30].max() > 0


@pytest.mark.parametrize(
    "audio",
    [
        AudioConfig(sample_rate=10**9),
        AudioConfig(sample_rate=-8000),
        AudioConfig(seconds=1e9),
        AudioConfig(hop_s=0.0),
        AudioConfig(num_mels=100_000),
        AudioConfig(window_s=0.2, seconds=0.1),
        AudioConfig(sample_rate=96_000, seconds=60, window_s=0.2, hop_s=0.001),
    ],
)
def test_impossible_settings_are_refused(audio: AudioConfig) -> None:
    with pytest.raises(DataError, match=r"data\.audio\."):
        feature_shape(audio)


def test_broken_files_name_what_was_expected() -> None:
    good = wav_bytes(tone(440, 0.1))
    start = good.index(b"data")
    empty = good[: start + 4] + bytes(4)
    absurd_rate = good.replace(struct.pack("<I", 8000), struct.pack("<I", 2**31), 1)
    packed = good.replace(b"fmt \x10\0\0\0\x01\0", b"fmt \x10\0\0\0\x11\0", 1)
    for data, words in [
        (b"", "not a WAV"),
        (b"ID3" + good, "not a WAV"),
        (good[:-20], "cut off"),
        (good[:20], "format chunk"),
        (good[: start + 2], "cut off"),
        (empty, "no samples"),
        (absurd_rate, "Hz"),
        (packed, "coding 0x0011"),
        (wav_bytes(np.zeros(700_000), 1000, 8), "700 s long"),
    ]:
        with pytest.raises(DataError, match=words) as caught:
            wav_info(data, "zip: a/b.wav")
        assert "zip: a/b.wav" in str(caught.value)


def test_garbage_is_a_data_error_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    good = wav_bytes(tone(440, 0.02), extensible=True)
    for _ in range(1500):
        data = bytearray(good[: rng.integers(0, len(good) + 1)])
        for at in rng.integers(0, 90, rng.integers(0, 6)):
            if at < len(data):
                data[at] = rng.integers(0, 256)
        try:
            samples, rate = read_wav(bytes(data), "x.wav", 1.0)
            log_mel(resample(samples, rate, 8000), AUDIO)
        except DataError:
            pass


def test_a_folder_of_recordings_from_spec_to_features(tmp_path: Path) -> None:
    for name, hz in (("low", 300), ("high", 2500)):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.wav").write_bytes(wav_bytes(tone(hz, 0.3 + 0.5 * i, 16000), 16000))
    source = open_source(f"audio:{tmp_path}")
    assert (source.kind, source.sample_rate, source.classes) == ("audio", 16000, ("high", "low"))
    contract = propose_contract(source)
    assert contract.audio.sample_rate == 16000 and contract.audio.seconds == 1.5
    assert contract.input_shape == feature_shape(contract.audio)
    data = load(source, dataclasses.replace(contract, val=0.0), "train")
    assert data.x.dtype == np.float16 and data.x.shape == (6, *contract.input_shape)
    loudest = data.x.astype(np.float32).mean(axis=(1, 3)).argmax(axis=1)
    assert loudest[data.y == 0].min() > loudest[data.y == 1].max()
    with pytest.raises(DataError, match="holds audio data, the job trains on image"):
        load(source, DataConfig(("high", "low"), (1, 8, 8)), "train")
    with pytest.raises(DataError, match=r"data\.audio gives \[1, 40, 61\]"):
        load(source, DataConfig(("high", "low"), (1, 40, 63), "audio"), "train")
    with pytest.raises(DataError, match="num_mels"):
        propose_contract(source, (1, 8, 8))
    divided = source.fitted(contract)
    assert divided.num_samples("val") + divided.num_samples("train") == 6
    (tmp_path / "low" / "x.mp3").write_bytes(b"ID3")
    with pytest.raises(DataError, match=r"x\.mp3.*ffmpeg"):
        open_source(f"audio:{tmp_path}")


def test_recordings_with_a_validation_folder(tmp_path: Path) -> None:
    for folder, num in (("train", 6), ("Validation", 2), ("test", 1)):
        for name, hz in (("low", 300), ("high", 2500)):
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(num):
                (tmp_path / folder / name / f"{i}.wav").write_bytes(wav_bytes(tone(hz, 0.3)))
    source = open_source(f"audio:{tmp_path}")
    contract = propose_contract(source)
    assert [len(load(source, contract, split)) for split in ("train", "val", "test")] == [12, 4, 2]
    assert load(source, contract, "val").y.tolist() == [0, 0, 1, 1]


G711 = {
    7: "3dab54339e520bb2c924826e3b72a917a2b612e9fd12fc867500f1d983a75827",
    6: "e04788d110e58ff8c70c93b8480190d973e3b67876b6119abbaec766cc75c174",
}
"""sha256 of the 16-bit samples that Python's ``audioop`` (3.11) makes of bytes 0 to 255, mu-law and A-law."""


@pytest.mark.parametrize("coding", [6, 7])
@pytest.mark.parametrize("extensible", [False, True])
def test_what_telephones_record_is_what_the_standard_says(coding: int, extensible: bool) -> None:
    """To the bit, of each of the 256 bytes."""
    fmt = struct.pack("<HHIIHH", 0xFFFE if extensible else coding, 1, 8000, 8000, 1, 8)
    if extensible:
        fmt += struct.pack("<HHIH", 22, 8, 4, coding) + bytes.fromhex("000000001000800000aa00389b71")
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", 256) + bytes(range(256))
    samples, rate = read_wav(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks, "a.wav")
    whole = np.rint(samples.astype(np.float64) * 2**15)
    assert rate == 8000 and (whole / 2**15 == samples).all()
    assert hashlib.sha256(whole.astype("<i2").tobytes()).hexdigest() == G711[coding]


@pytest.mark.parametrize("chunk", [b"abc", b"abc\0", b"abc ", b"abcd"], ids=["no pad", "pad", "a space", "even"])
def test_chunks_of_odd_length_with_and_without_the_byte_that_fills_them(chunk: bytes) -> None:
    data = wav_bytes(tone(440, 0.1))
    at = data.index(b"LIST")
    size = 3 if chunk[:3] == b"abc" and chunk != b"abcd" else 4
    other = data[:at] + b"LIST" + struct.pack("<I", size) + chunk + data[at + 12 :]
    np.testing.assert_array_equal(read_wav(other, "x")[0], read_wav(data, "x")[0])


def test_a_header_that_was_written_when_there_was_less(tmp_path: Path) -> None:
    sound = np.random.default_rng(2).uniform(-1, 1, 6000)
    data = wav_bytes(sound)
    at = data.index(b"data") + 4
    for behind, num in (
        (data[at + 4 + 2000 :], 6000),
        (bytes(9000), 1000),
        (b"ID3\4\0\0" + bytes(range(256)) * 40, 1000),
    ):
        stale = data[:at] + struct.pack("<I", 2000) + data[at + 4 : at + 4 + 2000] + behind
        got, _ = read_wav(stale, "x")
        assert len(got) // num == 1, "to the end, but for a few bytes of the last chunk"
        np.testing.assert_allclose(got[:num], sound[:num], atol=1e-4)


@pytest.mark.parametrize(("bits", "whole"), [(12, 16), (20, 24)])
def test_bits_that_fill_no_whole_bytes_are_the_upper_ones(bits: int, whole: int) -> None:
    data = bytearray(wav_bytes(tone(440, 0.1), bits=whole))
    data[34:36] = struct.pack("<H", bits)
    np.testing.assert_allclose(read_wav(bytes(data), "x")[0], tone(440, 0.1), atol=1e-4)


def test_two_channels_that_cancel_are_no_silence() -> None:
    sound = tone(440, 0.1)
    got, _ = read_wav(wav_bytes(np.stack([sound, -sound], 1)), "x")
    np.testing.assert_allclose(got, sound, atol=1e-3)


def test_one_recording_on_another_scale_is_left_out_and_silent_ones_are_said(tmp_path: Path) -> None:
    sound = tone(440, 0.1).astype("<f4")
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 3, 1, 8000, 32000, 4, 32) + b"data" + struct.pack("<I", 4 * 800)
    for i in range(8):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        body = head + (sound * {1: 32767, 2: 0, 3: 0}.get(i, 1)).tobytes()
        (tmp_path / "ab"[i % 2] / f"{i}.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    said: list[str] = []
    propose_contract(open_source(f"audio:{tmp_path}"), say=said.append)
    assert said[0].startswith("1 of 8 samples can't be read") and "floats up to 16383.5, where 1 is full" in said[0]
    assert said[1] == "2 of 8 recordings are silent"


@pytest.mark.parametrize(
    ("start", "what"), [(b"fLaC", "FLAC"), (b"OggS", "OGG"), (b"ID3\4", "MP3"), (b"FORM\0\0\0\0AIFF", "AIFF")]
)
def test_what_is_no_wav_is_called_what_it_is(start: bytes, what: str) -> None:
    with pytest.raises(DataError, match=rf"not a WAV file \({what}\); .*convert it"):
        read_wav(start + bytes(100), "x")
