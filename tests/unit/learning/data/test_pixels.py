"""Pixels of every depth, with and without opacity: what is white in a file is white in a sample."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from p2ptrain.config import DataConfig
from p2ptrain.errors import DataError
from p2ptrain.learning.data import load, open_source, propose_contract
from p2ptrain.learning.data.source import Source

RAMP = np.linspace(0, 1, 400).reshape(20, 20)
"""From black to white."""


def png(pixels: NDArray[np.integer], colour_type: int) -> bytes:
    """16 bits a channel; 0 = grey, 2 = RGB, 4 = grey with opacity, 6 = RGBA."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)  # type: ignore[arg-type]
    return out.getvalue()


def tree(path: Path, *files: bytes, suffix: str = "png") -> Source:
    for name in "ab":
        (path / name).mkdir(parents=True)
        for i, data in enumerate(files):
            (path / name / f"{i}.{suffix}").write_bytes(data)
    return open_source(f"images:{path}")


def read(source: Source, contract: DataConfig | None = None) -> NDArray[np.uint8]:
    return load(source, contract or propose_contract(source), "train").x


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("colour_type", [0, 2, 4, 6])
def test_bits_that_are_not_in_use_do_not_make_it_dark(tmp_path: Path, bits: int, colour_type: int) -> None:
    values = np.rint(RAMP * (2**bits - 1)).astype(np.int64)
    opaque = [np.full_like(values, 65535)] if colour_type > 2 else []
    channels = [values] * (3 if colour_type in (2, 6) else 1)
    source = tree(tmp_path / "x", png(np.stack([*channels, *opaque], 2), colour_type))
    contract = propose_contract(source)
    assert contract.white == 2**bits - 1 and contract.input_shape == (len(channels), 20, 20)
    for each in read(source, contract).reshape(-1, 20, 20):
        assert np.abs(each - 255 * RAMP).max() <= 1


@pytest.mark.parametrize("white", [1, 255, 4095, 65535])
@pytest.mark.parametrize("beyond", [0.0, 0.01])
def test_floats_are_scaled_by_their_range(tmp_path: Path, white: float, beyond: float) -> None:
    """``beyond``: what resizing leaves below black and above white."""
    values = RAMP * white
    values[0, 0], values[-1, -1] = -beyond * white, (1 + beyond) * white
    image = Image.fromarray(values.astype(np.float32))
    source = tree(tmp_path / "x", saved(image, "TIFF"), suffix="tif")
    assert propose_contract(source).white == white
    assert np.abs(read(source)[0, 0] - 255 * RAMP).max() <= 1


def test_signed_and_long_integers(tmp_path: Path) -> None:
    image = Image.fromarray(np.rint(RAMP * 100_000).astype(np.int32))
    source = tree(tmp_path / "x", saved(image, "TIFF"), suffix="tif")
    assert propose_contract(source).white == 2**17 - 1
    assert np.unique(read(source)).size > 150
    for name, broken in {"y": -RAMP, "z": RAMP * np.nan}.items():
        image = Image.fromarray(broken.astype(np.float32))
        with pytest.raises(DataError, match=r"below zero|infinite or missing numbers"):
            propose_contract(tree(tmp_path / name, saved(image, "TIFF"), suffix="tif"))


def tiff(values: np.ndarray, photometric: int, sample_format: int) -> bytes:
    """``[H, W]`` as an uncompressed grey TIFF."""
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    height, width = values.shape
    sizes = [(256, width), (257, height), (258, 8 * values.dtype.itemsize), (259, 1), (262, photometric), (273, 8)]
    entries = [*sizes, (277, 1), (278, height), (279, len(data)), (339, sample_format)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    return head + struct.pack("<H", len(entries)) + directory + struct.pack("<I", 0)


def test_where_zero_is_white_at_any_depth(tmp_path: Path) -> None:
    for depth in (8, 16):
        values = np.rint(RAMP * (2**depth - 1)).astype(f"<u{depth // 8}")
        for zero_is in (0, 1):
            source = tree(tmp_path / f"{depth}-{zero_is}", tiff(values, zero_is, 1), suffix="tif")
            wanted = 255 * (RAMP if zero_is else 1 - RAMP)
            assert np.abs(read(source)[0, 0].astype(int) - wanted).max() <= 1
    floats = tree(tmp_path / "floats", tiff(RAMP.astype("<f4"), 1, 3), suffix="tif")
    assert np.abs(read(floats)[0, 0] - 255 * RAMP).max() <= 1
    for name, data, words in [
        ("float", tiff(RAMP.astype("<f4"), 0, 3), "floats of which zero is white"),
        ("signed", tiff(np.rint(RAMP * 100).astype("i1"), 1, 2), "signed bytes"),
    ]:
        with pytest.raises(DataError, match=words):
            propose_contract(tree(tmp_path / name, data, suffix="tif"))


def test_dark_pictures_of_a_set_stay_dark_and_another_depth_is_refused(tmp_path: Path) -> None:
    full, dark = np.rint(RAMP * 4095)[..., None].astype(int), np.rint(RAMP * 500)[..., None].astype(int)
    contract = propose_contract(tree(tmp_path / "x", png(full, 0), png(dark, 0)))
    assert contract.white == 4095
    assert read(tree(tmp_path / "y", png(full, 0), png(dark, 0)), contract)[1].max() == 31
    brighter = tree(tmp_path / "z", png(full * 16, 0))
    with pytest.raises(DataError, match=r"0\.png: .*pixels up to 65520, where data.white of the job is 4095"):
        read(brighter, contract)
    with pytest.raises(DataError, match=r"brightest pixel .* is 4095, where white is 65535 in this job"):
        read(tree(tmp_path / "v", png(full, 0)), propose_contract(brighter))


def test_floats_that_fit_no_range_are_refused_and_small_whole_numbers_are_bytes(tmp_path: Path) -> None:
    odd = Image.fromarray((RAMP * 2).astype(np.float32))
    with pytest.raises(DataError, match="they would be almost black"):
        propose_contract(tree(tmp_path / "x", saved(odd, "TIFF"), suffix="tif"))
    masks = np.arange(400).reshape(20, 20, 1) % 4
    assert np.unique(read(tree(tmp_path / "y", png(masks, 0)))).tolist() == [0, 1, 2, 3]


def strokes(row: int) -> NDArray[np.uint8]:
    """Black on transparent black: what is drawn is in the opacity alone."""
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[row : row + 4, 3:9, 3] = 255
    return pixels


def palette(opacity: NDArray[np.uint8]) -> Image.Image:
    image = Image.new("P", (20, 20))
    image.putpalette([0, 0, 0] * 256)
    image.frombytes((opacity == 0).astype(np.uint8).tobytes())
    return image


TRANSPARENT: dict[str, Callable[[NDArray[np.uint8]], bytes]] = {
    "png": lambda p: saved(Image.fromarray(p), "PNG"),
    "la.png": lambda p: saved(Image.fromarray(p).convert("LA"), "PNG"),
    "p.png": lambda p: saved(palette(p[..., 3]), "PNG", transparency=1),
    "gif": lambda p: saved(palette(p[..., 3]), "GIF", transparency=1),
    "webp": lambda p: saved(Image.fromarray(p), "WEBP", lossless=True),
    "tif": lambda p: saved(Image.fromarray(p), "TIFF"),
    "key.png": lambda p: saved(Image.fromarray(7 - p[..., 3] // 255 * 7), "PNG", transparency=7),
    "deep.png": lambda p: png(p[..., [0, 0, 0, 3]].astype(int) * 257, 6),
    "deep.la.png": lambda p: png(p[..., [0, 3]].astype(int) * 257, 4),
}


@pytest.mark.parametrize("suffix", TRANSPARENT)
def test_what_is_transparent_is_white(tmp_path: Path, suffix: str) -> None:
    source = tree(tmp_path / "x", *[TRANSPARENT[suffix](strokes(row)) for row in (2, 9)], suffix=suffix)
    for channels in (1, 3):
        x = load(source, DataConfig(("a", "b"), (channels, 20, 20), val=0.0), "train").x
        for one, row in zip(x, (2, 9, 2, 9), strict=True):
            assert (one == 255 - strokes(row)[..., 3]).all()


def test_half_transparent_red_is_pink_and_opaque_pixels_keep_their_values(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (20, 20, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[0, 0] = (255, 0, 0, 128)
    x = read(tree(tmp_path / "x", saved(Image.fromarray(pixels), "PNG")))[0]
    assert x[:, 0, 0].tolist() == [255, 127, 127]
    assert (x[:, 1:] == pixels.transpose(2, 0, 1)[:3, 1:]).all()


def test_grey_palettes_are_grey_and_moving_pictures_are_counted(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((20, 20), value, np.uint8)) for value in (10, 200)]
    source = tree(tmp_path / "x", saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), suffix="gif")
    assert source.natural_shape == (1, 20, 20)
    data = load(source, DataConfig(("a", "b"), (1, 20, 20), val=0.0), "train")
    assert (data.x == 10).all() and data.notes == ("2 of 2 pictures have several frames: the first is read",)
    coloured = palette(strokes(1)[..., 3])
    coloured.putpalette([0, 0, 0, 255, 0, 0] * 128)
    assert tree(tmp_path / "y", saved(coloured, "PNG")).natural_shape == (3, 20, 20)
