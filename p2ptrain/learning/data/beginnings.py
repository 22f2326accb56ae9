"""What a file is by its first bytes, where it is not what its name says.

Invariant: only what begins with bytes that nothing else begins with is named.
"""

from __future__ import annotations

import re

_PACKED: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
    (b"Rar!\x1a\x07", "RAR"),
)
_TAR_AT, _TAR = 257, b"ustar"
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"M4A ": "M4A", b"qt  ": "QuickTime"}
_BRANDS |= dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "HEIC")
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs.github.com/spec", "a Git LFS pointer: `git lfs pull` fetches the file itself"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture"),
    (b"II*\0", "a TIFF of a kind that can't be read: write it with 8 or 16 bits a channel"),
    (b"MM\0*", "a TIFF of a kind that can't be read: write it with 8 or 16 bits a channel"),
    (b"8BPS", "a Photoshop file"),
    (b"%PDF", "a PDF document"),
    (b"fLaC", "FLAC"),
    (b"OggS", "OGG"),
    (b"ID3", "MP3"),
    (b"\xff\xfb", "MP3"),
    (b"\xff\xf3", "MP3"),
    (b".snd", "an AU recording"),
    (b"caff", "a CAF recording"),
    (b"riff\x2e\x91\xcf\x11", "a W64 recording"),
    (b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
)
_PAGE = re.compile(rb"\s*<(!doctype html|html|\?xml|svg)", re.IGNORECASE)


def packed_with(start: bytes) -> str:
    """The archive's or packer's name, or ""."""
    if start[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        return "tar"
    return next((name for magic, name in _PACKED if start.startswith(magic)), "")


def known_as(start: bytes) -> str:
    """What a file that begins so is, in a few words; "" for what can't be told."""
    if not start:
        return "an empty file"
    if not start.strip(b"\0"):
        return "nothing but zeros"
    if name := packed_with(start):
        return f"packed with {name}: unpack it"
    if start[4:8] == b"ftyp":
        return _BRANDS.get(start[8:12], "MP4")
    if start[:4] == b"FORM" and start[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    if page := _PAGE.match(start):
        return "a web page: the download failed" if b"html" in page[1].lower() else "XML or SVG"
    return next((what for magic, what in _OTHERS if start.startswith(magic)), "")
