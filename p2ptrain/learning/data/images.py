"""From the bytes of one image file to pixels in the job's shape.

Invariant: the size that a file claims is checked before a pixel is decoded, only the formats listed here are tried, and
everything a decoder can raise becomes a ``DataError`` that names the file.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from p2ptrain.errors import DataError
from p2ptrain.learning.data.source import Shape

# A closed list: some of Pillow's other formats start programs (EPS) or are barely tested.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})

MAX_PIXELS = 64_000_000
"""Larger pictures are refused: decoding takes up to 4 bytes a pixel on every thread."""

_EXIF_ORIENTATION = 0x0112

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


def image_shape(data: bytes, where: str) -> Shape:
    """``(channels, height, width)`` as the header tells it; 1 channel for grey, 3 for all else."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, where)
            width, height = image.size
            if _orientation(image) in (5, 6, 7, 8):  # turned by a quarter
                width, height = height, width
            return (1 if _is_grey(image) else 3), height, width
    except _DECODER_ERRORS as error:
        raise _broken(where, error) from None


def decode_image(data: bytes, shape: Shape, where: str) -> NDArray[np.uint8]:
    """Pixels ``[C, H, W]``, converted between grey and colour and stretched to ``shape`` where they differ."""
    channels, height, width = shape
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, where)
            if image.size != (width, height):
                image.draft(mode, (2 * width, 2 * height))  # large JPEGs: decode at half, quarter or eighth size
            upright: Image.Image = image
            if _orientation(image) != 1:
                upright = ImageOps.exif_transpose(image)
            return resized(_converted(upright, mode), shape)
    except _DECODER_ERRORS as error:
        raise _broken(where, error) from None


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
    if image.mode == mode:
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip at 255 instead of scaling
        wide: NDArray[Any] = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide.clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _orientation(image: Image.Image) -> int:
    if "exif" not in image.info and image.format != "TIFF":  # spares most files the search for it
        return 1
    return int(image.getexif().get(_EXIF_ORIENTATION, 1))


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def _check_size(image: Image.Image, where: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{where}: {width}x{height} pixels; at most {MAX_PIXELS:,} are read: make the picture smaller")


def _broken(where: str, error: BaseException) -> DataError:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return DataError(f"{where}: a picture of absurd size; at most {MAX_PIXELS:,} pixels are read")
    # Pillow's message for an unknown format only names the BytesIO.
    detail = "no known format" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
    return DataError(f"{where}: not a readable image ({detail}); expected {', '.join(FORMATS)}; remove or replace it")
