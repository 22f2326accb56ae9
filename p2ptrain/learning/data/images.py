"""From the bytes of one image file to pixels in the job's shape.

Invariant: the size that a file claims is checked before a pixel is decoded, only the formats listed here are tried, and
everything a decoder can raise becomes a ``DataError`` that names the file.

What is transparent is shown on white. Pictures of more than 8 bits a channel, and of floats, are scaled by the job's
``data.white``: such files seldom say how many of their bits are in use, so that is read off a sample of them.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from p2ptrain.errors import DataError
from p2ptrain.learning.data.beginnings import known_as
from p2ptrain.learning.data.reading import FULL_WHITE, OVERSHOOT, Brightest, Reading
from p2ptrain.learning.data.source import Shape

# A closed list: some of Pillow's other formats start programs (EPS) or are barely tested.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)

MAX_PIXELS = 64_000_000
"""Larger pictures are refused: decoding takes up to 4 bytes a pixel on every thread."""

_EXIF_ORIENTATION = 0x0112
_HOLDS_ORIENTATION = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})
"""Where Pillow looks for it."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By orientation: what makes a picture upright."""
_KEY_STEPS = {"L;2": 85, "L;4": 17}
"""Grey PNG files of few bits: Pillow spreads their pixels over 8 bits, but not the level that is transparent."""
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_CHANNELS, _TIFF_PLANES, _TIFF_SAMPLE_FORMAT = 258, 262, 277, 284, 339
_WHITE_IS_ZERO, _SEPARATE, _SIGNED = 0, 2, 2
# Pillow keeps the upper byte of 16 bits a channel. Read as if of the other byte order, it gives the lower one.
_LOWER_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}

# What Pillow's parsers raise on broken files, found by fuzzing and by reading them.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    MemoryError,
    RuntimeError,  # and NotImplementedError
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True, slots=True)
class ImageHead:
    """What a header says. ``channels``: 1 for grey, 3 for all else; ``is_wide``: more than 8 bits a channel."""

    channels: int
    height: int
    width: int
    is_wide: bool


def image_head(data: bytes, where: str) -> ImageHead:
    """What the header tells; ``data`` may end after it. Raises ``DataError``."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, where)
            width, height = image.size
            if image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8):  # a quarter, which Pillow does for TIFF
                width, height = height, width
            return ImageHead(1 if _is_grey(image) else 3, height, width, _is_wide(image))
    except _DECODER_ERRORS as error:
        raise _broken(where, error, data) from None


def find_brightest(data: bytes, where: str, found: Brightest) -> None:
    """Add a wide picture's largest value to what was found. Raises ``DataError``."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, where)
            values, _ = _wide_values(data, image)
            found.add(float(values.max()), is_float=values.dtype.kind == "f")
    except _DECODER_ERRORS as error:
        raise _broken(where, error, data) from None


def decode_image(
    data: bytes, shape: Shape, where: str, white: float = 0.0, reading: Reading | None = None
) -> NDArray[np.uint8]:
    """Pixels ``[C, H, W]``, converted between grey and colour and stretched to ``shape`` where they differ.

    ``white``: of wide pictures; 0 = ``FULL_WHITE``.
    """
    channels, height, width = shape
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, where)
            if (step := _KEY_STEPS.get(_raw_mode(image))) and isinstance(image.info.get("transparency"), int):
                image.info["transparency"] *= step
            if image.size != (width, height):
                image.draft(mode, (2 * width, 2 * height))  # large JPEGs: decode at half, quarter or eighth size
            if _is_wide(image):
                values, alpha = _wide_values(data, image)
                if reading is not None:
                    reading.wide.add(float(values.max()), is_float=values.dtype.kind == "f")
                upright = _narrow(values, alpha, white or FULL_WHITE)
            else:
                upright = _upright(image)
            pixels = resized(_converted(upright, mode), shape)
            if reading is not None and getattr(image, "is_animated", False):
                reading.count(moving=1)
            return pixels
    except _DECODER_ERRORS as error:
        raise _broken(where, error, data) from None


def given_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels ``[C, H, W]`` of a picture that somebody opened, as it is; C is 1 for grey, 3 for all else.

    Raises ``ValueError`` for more than 8 bits a channel, of which nothing says what is white.
    """
    if _is_wide(image):
        raise ValueError(f"a picture of more than 8 bits a channel (mode {image.mode}): scale it to floats from 0 to 1")
    pixels = np.asarray(_converted(image, "L" if image.mode in ("1", "L", "LA", "La") else "RGB"), dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def resize_pixels(pixels: NDArray[np.uint8], shape: Shape) -> NDArray[np.uint8]:
    """Images ``[n, c, h, w]`` in another shape ``[n, C, H, W]``; c and C are 1 or 3."""
    if pixels.shape[1:] == shape:
        return pixels
    mode = "L" if shape[0] == 1 else "RGB"
    out = np.empty((len(pixels), *shape), np.uint8)
    for i, one in enumerate(pixels):
        image = Image.fromarray(one[0] if len(one) == 1 else np.ascontiguousarray(one.transpose(1, 2, 0)))
        out[i] = resized(_converted(image, mode), shape)
    return out


def resized(image: Image.Image, shape: Shape) -> NDArray[np.uint8]:
    """Pixels ``[C, H, W]`` of an image that has the right mode."""
    if image.size != (shape[2], shape[1]):
        image = image.resize((shape[2], shape[1]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Grey or colour, what is transparent on white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _is_wide(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I") or _raw_mode(image).endswith((";16B", ";16L", ";16N"))


def _tiff_tag(image: Image.Image, tag: int) -> int | None:
    """The (first) number that a TIFF file gives for ``tag``; None if it gives none, or is none."""
    values = getattr(image, "tag_v2", {}).get(tag)
    return values[0] if isinstance(values, tuple) else values


def _raw_mode(image: Image.Image) -> str:
    """How the file holds its pixels, in Pillow's words; "" where they need no unpacking."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments or "")


def _wide_values(data: bytes, image: Image.Image) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """Upright pixels ``[H, W]`` or ``[H, W, 3]`` at full depth, and how opaque each is (None = all are)."""
    alpha: NDArray[np.uint8] | None = None
    if image.mode == "F" or image.mode.startswith("I"):
        transparent = image.info.get("transparency")
        values: NDArray[Any] = np.asarray(_upright(image))
        if isinstance(transparent, int):
            alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    else:
        raw = _raw_mode(image)
        if raw not in _LOWER_BYTES and raw != "LA;16B":
            raise ValueError(f"16 bits a channel coded as {raw}")
        with Image.open(io.BytesIO(data), formats=FORMATS) as again:
            tiles: Any = again.tile  # type: ignore[attr-defined]
            lower = "RGBA" if raw == "LA;16B" else _LOWER_BYTES[raw]  # RGBA: both bytes of grey, both of alpha
            for i, tile in enumerate(tiles):
                rest = (lower, *tile[3][1:]) if isinstance(tile[3], tuple) else lower
                tiles[i] = tile._replace(args=rest)
            low: NDArray[Any] = np.asarray(_upright(again)).astype(np.uint16)
        high: NDArray[Any] = np.asarray(_upright(image)).astype(np.uint16)
        if raw == "LA;16B":
            values, alpha = low[..., 0] << 8 | low[..., 1], low[..., 2].astype(np.uint8)
        else:
            values = high[..., :3] << 8 | low[..., :3]
            alpha = high[..., 3].astype(np.uint8) if high.shape[2] == 4 else None
            if alpha is None and isinstance(key := image.info.get("transparency"), tuple):
                alpha = np.where((values == key).all(axis=2), 0, 255).astype(np.uint8)
    if alpha is not None:  # what can't be seen is neither bright nor dark
        values = np.where(alpha > 0 if values.ndim == 2 else (alpha > 0)[..., None], values, 0)
    if not np.isfinite(values).all():
        raise ValueError("infinite or missing numbers for pixels")
    if _tiff_tag(image, _TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:  # which Pillow heeds for 8 bits a channel only
        if image.mode in ("F", "I"):  # of which nothing says what is black
            raise ValueError("floats of which zero is white" if image.mode == "F" else "32 bits of which zero is white")
        values = int(FULL_WHITE) - values.astype(np.int32)
    lowest, highest = float(values.min()), float(values.max())
    if lowest < (min(0.0, (1 - OVERSHOOT) * highest) if image.mode == "F" else 0):
        raise ValueError(f"pixels below zero ({lowest:g})")
    return values, alpha


def _narrow(values: NDArray[Any], alpha: NDArray[np.uint8] | None, white: float) -> Image.Image:
    """A picture of 8 bits a channel, where ``white`` is white."""
    largest = float(values.max())
    is_float = values.dtype.kind == "f"
    if largest > (OVERSHOOT * white if is_float else white):
        raise ValueError(f"pixels up to {largest:g}, where data.white of the job is {white:g}")
    if is_float and 0 < largest <= 1 < white:
        raise ValueError(f"pixels from 0 to {largest:g}, where data.white of the job is {white:g}")
    if is_float:
        narrow = np.rint(values * np.float32(255 / white)).clip(0, 255).astype(np.uint8)
    elif largest <= FULL_WHITE:  # by a table, which takes no memory for numbers in between
        narrow = (np.arange(int(largest) + 1) * 256 // int(white + 1)).clip(0, 255).astype(np.uint8)[values]
    else:
        narrow = (values.astype(np.int64) * 256 // int(white + 1)).astype(np.uint8)
    image = Image.fromarray(narrow)
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    return image


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # Pillow turns TIFF files here; PNG files may say how they lie behind their pixels
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1, upright, where it is broken or makes no sense, as viewers show such pictures."""
    if image.format != "TIFF" and not _HOLDS_ORIENTATION & image.info.keys():  # spares most files the search for it
        return 1
    try:
        found = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODER_ERRORS:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None:
        order, entries = image.palette.getdata()
        if order not in ("RGB", "RGBX", "RGBA", "BGRX", "BGR"):
            return False
        return all(entries[i] == entries[i + 1] == entries[i + 2] for i in range(0, len(entries) - 2, len(order)))
    grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
    return grey or _raw_mode(image).startswith("LA;")


def _check_size(image: Image.Image, where: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{where}: {width}x{height} pixels; at most {MAX_PIXELS:,} are read: make the picture smaller")
    if not _is_wide(image) and _tiff_tag(image, _TIFF_SAMPLE_FORMAT) == _SIGNED:  # Pillow takes them for unsigned
        raise ValueError("signed bytes for pixels")
    is_planar = _tiff_tag(image, _TIFF_PLANES) == _SEPARATE and (_tiff_tag(image, _TIFF_CHANNELS) or 1) > 1
    if is_planar and (_tiff_tag(image, _TIFF_BITS) or 1) > 8:  # of which Pillow takes each byte for a pixel
        raise ValueError("more than 8 bits a channel in separate planes: write the channels side by side")


def _broken(where: str, error: BaseException, data: bytes) -> DataError:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return DataError(f"{where}: a picture of absurd size; at most {MAX_PIXELS:,} pixels are read")
    detail = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):  # whose message only names the BytesIO
        detail = known_as(data[:512]) or "no known format"
    return DataError(f"{where}: not a readable image ({detail}); expected {', '.join(FORMATS)}; remove or replace it")
