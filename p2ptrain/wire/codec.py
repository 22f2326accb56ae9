"""Messages to frames and back: one msgpack header, then one raw frame if the message has a field called ``data``.

Invariant: ``decode`` returns a message in which everything was checked (frame count, lengths, lane, every field), or
raises ``RemoteError`` with a word of ``REASONS``; nothing else, whatever the bytes. ``encode`` makes only what
``decode`` accepts.

The header is a map with one-letter keys: ``v`` wire version, ``k`` kind, ``s`` session, ``q`` sequence, ``j`` job,
``e`` epoch, ``b`` the message without its ``data``. ``Hello`` and ``Refused`` are read from every wire version.

What is inside ``data`` is not looked at here: the reader of safetensors checks shapes, and that numbers are finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.wire.messages import BULK, KINDS, WIRE_VERSION, Chunk, Hello, Lane, Message, Refused, lane_of
from p2ptrain.wire.schema import RawBytes as RawBytes
from p2ptrain.wire.schema import from_plain, to_plain

MAX_HEADER_BYTES = 64 * 1024
MAX_DATA_BYTES = 16 << 20
MAX_FRAMES = 2

SESSION_BYTES = 8
NO_SESSION = bytes(SESSION_BYTES)

REASONS = frozenset({"frames", "size", "header", "kind", "lane", "schema", "version"})
"""Every ``RemoteError.reason`` of this module, to count by."""

_READ_FROM_EVERY_VERSION = (Hello, Refused)
_HEADER_KEYS = frozenset("vksqjeb")
_MAX_SEQUENCE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every frame says besides its message. ``session`` and ``sequence`` are zero in the handshake."""

    version: int = WIRE_VERSION
    kind: str = ""
    session: bytes = NO_SESSION
    sequence: int = 0
    job: str = ""
    epoch: int = 0


class WireVersionError(RemoteError):
    """The frame is of another wire version, which ``version`` names."""

    def __init__(self, version: int) -> None:
        super().__init__("version", f"wire version {version}, this is {WIRE_VERSION}")
        self.version = version


def encode(
    message: Message, *, session: bytes = NO_SESSION, sequence: int = 0, job: str = "", epoch: int = 0
) -> list[RawBytes]:
    """The frames of ``message``. Raises ``LocalError`` for what ``decode`` would refuse (its own opinion is asked)."""
    body = to_plain(message)
    data = [body.pop("data")] if "data" in body else []
    header = {"v": WIRE_VERSION, "k": message.KIND, "s": session, "q": sequence, "j": job, "e": epoch, "b": body}
    try:
        frames = [msgpack.packb(header, use_bin_type=True), *data]
        decode(frames, lane_of(message))
    except (RemoteError, TypeError, ValueError, OverflowError) as error:
        raise LocalError(f"{message.KIND} can't go on the wire: {error}") from error
    return frames


def header_bytes(message: Message) -> int:
    """How many bytes the header of ``message`` takes at most: what a sender splits a long list by."""
    body = to_plain(message)
    body.pop("data", None)
    return 96 + len(msgpack.packb(body, use_bin_type=True))


def decode(frames: Sequence[RawBytes], lane: Lane) -> tuple[Envelope, Message]:
    """The checked message of ``frames`` that came over ``lane``. Raises ``RemoteError``, nothing else."""
    _check_sizes(frames)
    header = unpack(frames[0])
    if not isinstance(header, dict):
        raise RemoteError("header", "not a map")
    envelope, cls = _read_envelope(header)
    if lane != ("bulk" if cls in BULK else "control"):
        raise RemoteError("lane", f"{cls.KIND} does not belong on the {lane} lane")
    return envelope, _read_message(cls, header["b"], frames[1:])


def _check_sizes(frames: Sequence[RawBytes]) -> None:
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise RemoteError("frames", f"{len(frames)} frames, allowed 1..{MAX_FRAMES}")
    if len(frames[0]) > MAX_HEADER_BYTES:
        raise RemoteError("size", f"a header of {len(frames[0])} bytes, allowed {MAX_HEADER_BYTES}")
    if len(frames[-1]) > MAX_DATA_BYTES:
        raise RemoteError("size", f"{len(frames[-1])} bytes of data, allowed {MAX_DATA_BYTES}")


def unpack(raw: RawBytes) -> Any:
    """Plain values, bounded. ``unpackb`` fails in many ways (ExtraData, StackError, UnicodeDecodeError): one here."""
    try:
        return msgpack.unpackb(
            raw,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_map_without_duplicates,
            max_array_len=4096,
            max_map_len=64,
            max_str_len=4096,
            max_bin_len=4096,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteError("header", f"{type(error).__name__}: {error!s:.100}") from None


def _map_without_duplicates(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key twice in one map")
    return made


def _read_envelope(header: dict[str, Any]) -> tuple[Envelope, type[Message]]:
    version, kind = header.get("v"), header.get("k")
    if type(version) is not int or not 0 <= version <= 65535 or type(kind) is not str:
        raise RemoteError("header", "no version or kind")
    cls = KINDS.get(kind)
    if version != WIRE_VERSION and cls not in _READ_FROM_EVERY_VERSION:
        raise WireVersionError(version)
    if cls is None:
        raise RemoteError("kind", f"{kind!r:.64}")
    if header.keys() != _HEADER_KEYS:
        raise RemoteError("header", "unknown or missing keys")
    session, sequence, job, epoch = header["s"], header["q"], header["j"], header["e"]
    if type(session) is not bytes or len(session) != SESSION_BYTES:
        raise RemoteError("header", "session")
    if type(job) is not str or len(job) > 16:
        raise RemoteError("header", "job")
    for name, value in (("sequence", sequence), ("epoch", epoch)):
        if type(value) is not int or not 0 <= value <= _MAX_SEQUENCE:
            raise RemoteError("header", name)
    return Envelope(version, kind, session, sequence, job, epoch), cls


def _read_message(cls: type[Message], body: object, raw: Sequence[RawBytes]) -> Message:
    """The frame behind the header becomes ``data``; a chunk's, which is put away at once, without a copy."""
    if not isinstance(body, dict) or "data" in body:
        raise RemoteError("schema", f"{cls.__name__}: the body is no map, or has data in it")
    if len(raw) != ("data" in cls.__dataclass_fields__):
        raise RemoteError("frames", f"{cls.KIND}: {len(raw)} frames behind the header")
    if not raw:
        return from_plain(cls, body)
    return from_plain(cls, {**body, "data": raw[0] if cls is Chunk else bytes(raw[0])})
