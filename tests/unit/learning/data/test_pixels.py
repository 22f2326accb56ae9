"""Pixels of every depth, with and without opacity: what is white in a file is white in a sample."""

from __future__ import annotations

import io
import struct
import tracemalloc
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
from p2ptrain.learning.data.reading import mixed_scales
from p2ptrain.learning.data.source import Source

RAMP = np.linspace(0, 1, 400).reshape(20, 20)
"""From black to white."""


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    pixels: NDArray[np.integer], colour_type: int, bits: int = 16, before: bytes = b"", after: bytes = b""
) -> bytes:
    """0 = grey, 2 = RGB, 4 = grey with opacity, 6 = RGBA; ``before`` and ``after``: chunks around the pixels."""
    height, width = pixels.shape[:2]
    if bits == 4:
        rows = [(row[::2] << 4 | row[1::2]).astype(np.uint8) for row in pixels.reshape(height, width)]
    else:
        rows = [row.astype(f">u{bits // 8}") for row in pixels]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + before + body + after + chunk(b"IEND", b"")


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


def test_deep_channels_in_planes_of_their_own_are_refused(tmp_path: Path) -> None:
    """Pillow takes each of their bytes for a pixel."""
    plane = np.full((20, 20), 4095, "<u2").tobytes()
    ends = struct.pack("<3H3I3I", 16, 16, 16, 8, 808, 1608, 800, 800, 800)
    at = 8 + 3 * 800
    entries = [(256, 4, 1, 20), (257, 4, 1, 20), (258, 3, 3, at), (259, 4, 1, 1), (262, 4, 1, 2), (273, 4, 3, at + 6)]
    entries += [(277, 4, 1, 3), (278, 4, 1, 20), (279, 4, 3, at + 18), (284, 4, 1, 2)]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<I", at + len(ends)) + 3 * plane + ends
    data = head + struct.pack("<H", len(entries)) + directory + bytes(4)
    with pytest.raises(DataError, match="more than 8 bits a channel in separate planes"):
        tree(tmp_path / "x", data, suffix="tif")


def test_pictures_of_16_bits_in_all_are_no_deep_ones(tmp_path: Path) -> None:
    pixels = np.array([[0xF800, 0x07E0, 0x001F, 0xFFFF]] * 4, "<u2")
    head = struct.pack("<IiiHHIIiiIIIII", 40, 4, 4, 1, 16, 3, 32, 0, 0, 0, 0, 0xF800, 0x07E0, 0x001F)
    data = b"BM" + struct.pack("<IHHI", 66 + 32, 0, 0, 66) + head + pixels.tobytes()
    x = read(tree(tmp_path / "x", data, suffix="bmp"))
    assert x[0, :, 0].T.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]


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
    "deep.key.png": lambda p: png((p[..., [3] * 3] == 0) * 777, 2, before=chunk(b"tRNS", b"\x03\x09" * 3)),
    "4bit.key.png": lambda p: png((p[..., 3] == 0) * 7, 0, 4, before=chunk(b"tRNS", b"\0\x07")),
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


COLOURS = np.random.default_rng(4).integers(0, 256, (12, 20, 3), np.uint8)


def orientation(value: int, kind: int = 3) -> bytes:
    """EXIF that says it, as a number of 16 bits (3), of 32 (4), or as letters (2)."""
    number = struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value)
    return b"II*\0\x08\0\0\0" + struct.pack("<HHHI", 1, 274, kind, 1) + number + bytes(4)


def turned(value: int) -> NDArray[np.uint8]:
    """What TIFF 6.0 says of an orientation: which sides the first row and the first column are."""
    stored = COLOURS.transpose(1, 0, 2) if value > 4 else COLOURS
    return stored[:: -1 if value in (3, 4, 7, 8) else 1, :: -1 if value in (2, 3, 6, 7) else 1]


TEXT = orientation(6).hex()
PROFILE = b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(TEXT) // 2:8}\n{TEXT}\n".encode())
XMP = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
LYING: dict[str, tuple[Callable[[], bytes], int]] = {
    **{f"{n}.png": (lambda n=n: png(COLOURS, 2, 8, before=chunk(b"eXIf", orientation(n))), n) for n in range(1, 9)},
    **{f"{n}.tif": (lambda n=n: saved(Image.fromarray(COLOURS), "TIFF", tiffinfo={274: n}), n) for n in range(1, 9)},
    "long.png": (lambda: png(COLOURS, 2, 8, before=chunk(b"eXIf", orientation(3, 4))), 3),
    "late.png": (lambda: png(COLOURS, 2, 8, after=chunk(b"eXIf", orientation(6))), 6),
    "profile.png": (lambda: png(COLOURS, 2, 8, before=chunk(b"zTXt", PROFILE)), 6),
    "xmp.png": (lambda: png(COLOURS, 2, 8, before=chunk(b"iTXt", XMP)), 6),
    "deep.png": (lambda: png(COLOURS.astype(int) * 257, 2, before=chunk(b"eXIf", orientation(8))), 8),
    "letters.png": (lambda: png(COLOURS, 2, 8, before=chunk(b"eXIf", orientation(0x41, 2))), 1),
    "none.png": (lambda: png(COLOURS, 2, 8, before=chunk(b"eXIf", orientation(9))), 1),
    "rubbish.png": (lambda: png(COLOURS, 2, 8, before=chunk(b"eXIf", b"no exif at all")), 1),
    "rubbish.webp": (lambda: saved(Image.fromarray(COLOURS), "WEBP", lossless=True, exif=b"no exif at all"), 1),
}


@pytest.mark.parametrize("name", LYING)
def test_pictures_are_upright_and_a_broken_note_on_it_spoils_none(tmp_path: Path, name: str) -> None:
    make, value = LYING[name]
    source = tree(tmp_path / "x", make(), suffix=name.partition(".")[2])
    if name != "late.png":  # the header does not say it
        assert source.natural_shape == (3, *turned(value).shape[:2])
    contract = DataConfig(("a", "b"), (3, *turned(value).shape[:2]), val=0.0)
    assert (read(source, contract)[0] == turned(value).transpose(2, 0, 1)).all()


def test_pictures_that_a_stray_pixel_makes_black_are_said(tmp_path: Path) -> None:
    values = np.rint(RAMP * 4095)[..., None].astype(int)
    stray = values.copy()
    stray[0, 0] = 65535
    source = tree(tmp_path / "x", *[png(each, 0) for each in (stray, values, values, values)])
    said: list[str] = []
    assert propose_contract(source, say=said.append).white == 65535
    assert said[0].startswith("6 of 8 pictures of more than 8 bits are almost black: white is 65535 in this job")
    assert "no pixel above 4095" in said[0]


def test_samples_on_two_scales_are_said_without_a_copy_of_them() -> None:
    x = np.full((40, 3, 64, 64), 0.5, np.float32)
    assert not mixed_scales(x)
    x[:10], x[10:30, :, 5, 5], x[30:, 0, 0, 0] = 200, -0.9, -250
    tracemalloc.start()
    said = mixed_scales(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said.startswith("20 of 40 samples have values up to 1, 20 up to 250:")
    assert peak < x.nbytes / 4


def test_with_strict_pictures_that_are_almost_black_are_refused_too(tmp_path: Path) -> None:
    contract = propose_contract(tree(tmp_path / "x", png(np.rint(RAMP * 65535)[..., None].astype(int), 0)))
    dark = tree(tmp_path / "y", png(np.rint(RAMP * 4095)[..., None].astype(int), 0))
    with pytest.raises(DataError, match="brightest pixel"):
        load(dark, contract, "train", strict=True)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\0\0\0\x18ftypheic", r"\(HEIC\)"),
        (b"\0\0\0\x1cftypavif", r"\(AVIF\)"),
        (b"\n<!DOCTYPE html><html>", r"\(a web page: the download failed\)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (bytes(64), r"\(nothing but zeros\)"),
        (b"", r"\(an empty file\)"),
        (b"what is this?", r"\(no known format\)"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(tmp_path: Path, start: bytes, words: str) -> None:
    with pytest.raises(DataError, match=rf"0\.jpg: not a readable image .*{words}|not a readable image {words}"):
        tree(tmp_path / "x", start, suffix="jpg")


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "apng", "pnm", "JPG"])
def test_less_usual_suffixes(tmp_path: Path, suffix: str) -> None:
    x = read(tree(tmp_path / "x", saved(Image.fromarray(COLOURS), "PNG"), suffix=suffix))
    assert (x[0, 0] == COLOURS[..., 0]).all()
