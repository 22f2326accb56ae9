"""Messages that nobody means: well formed with any value that the wire allows, its limits first, or spoilt."""

from __future__ import annotations

import dataclasses
import random
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgpack

from p2ptrain.wire.messages import BULK, KINDS, Hello, Lane, Message, Proof, Refused, Welcome, lane_of
from p2ptrain.wire.schema import Bound, RawBytes

CALM = [cls for cls in KINDS.values() if cls not in (Hello, Welcome, Proof, Refused)]
"""What is said inside a session."""
EPOCHS = (0, 1, 2, 2**40, 2**53, 2**62, 2**63 - 1)
LIMITS = (2**31, 2**40, 2**53 - 1, 2**53, 2**61, 2**62 - 1, 2**62, 2**63 - 1)
"""Around those that have been anybody's bound."""


def random_value(hint: Any, rng: random.Random) -> Any:
    """Of the declared type and within its bounds."""
    bound: Bound | None = None
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        bound = next((extra for extra in extras if isinstance(extra, Bound)), None)
    if get_origin(hint) is Annotated or hasattr(hint, "__supertype__"):
        return random_value(Annotated[hint.__supertype__, bound] if bound else hint.__supertype__, rng)
    if dataclasses.is_dataclass(hint):
        return random_message(hint, rng)
    if get_origin(hint) is Literal:
        return rng.choice(get_args(hint))
    low, high = (bound.low, bound.high) if bound else (0, 8)
    if get_origin(hint) is tuple:
        count = rng.randint(int(low), int(min(high, low + 5)))
        return tuple(random_value(get_args(hint)[0], rng) for _ in range(count))
    if hint is bool:
        return rng.random() < 0.5
    if hint is int:
        top = int(high) if bound else 2**63 - 1
        limits = [limit for limit in LIMITS if low <= limit <= top] or [top]
        small, any_size = rng.randint(int(low), min(top, 4)), rng.randint(int(low), top)
        return rng.choice([int(low), top, small, any_size, rng.choice(limits)])
    if hint is float:
        return rng.choice([low, high, rng.uniform(low, high)])
    length = rng.randint(int(low), int(min(high, max(low, 40))))
    if hint in (bytes, RawBytes):
        return rng.randbytes(length)
    letters = "0123456789abcdef" if length == 64 else "abcdefghijklmnopqrstuvwxyz234567"
    return "".join(rng.choice(letters) for _ in range(length))


def random_message(cls: Any, rng: random.Random) -> Any:
    hints = get_type_hints(cls, include_extras=True)
    return cls(**{field.name: random_value(hints[field.name], rng) for field in dataclasses.fields(cls)})


def spoilt(rng: random.Random, message: Message, frames: list[bytes]) -> tuple[str, Lane, list[bytes]]:
    """What was done to a message's frames: a frame set that nobody should accept, or only once."""
    lane, frames = lane_of(message), list(frames)
    what = rng.choice(["random", "cut", "flipped", "lane", "frames", "shape", "value", "nested", "empty", "sized"])
    if what == "random":
        frames = [rng.randbytes(rng.randrange(300)) for _ in range(rng.randint(1, 2))]
    elif what == "cut":
        frames[0] = frames[0][: rng.randrange(len(frames[0]))]
    elif what == "flipped":
        spot = rng.randrange(len(frames[0]))
        frames[0] = frames[0][:spot] + bytes([frames[0][spot] ^ 1 << rng.randrange(8)]) + frames[0][spot + 1 :]
    elif what == "lane":
        lane = "control" if isinstance(message, BULK) else "bulk"
    elif what == "frames":
        frames = [*frames, *(b"x" * rng.randrange(9) for _ in range(rng.choice([1, 2, 50])))]
    elif what == "nested":
        frames[0] = b"\x91" * rng.choice([10, 600, 60_000])
    elif what == "empty":
        frames = rng.choice([[b""], [b"", b""], [b"\x80"]])
    elif what == "sized":
        frames[0] = frames[0] + bytes(rng.choice([1, 60 << 10, 64 << 10]))
    else:
        frames[0] = _misshapen(what, rng, frames[0])
    return what, lane, frames


def _misshapen(what: str, rng: random.Random, frame: bytes) -> bytes:
    """A header with a field missing, or of another shape or value."""
    header = msgpack.unpackb(frame)
    body = header["b"]
    if what == "shape" and body and rng.random() < 0.5:
        del body[rng.choice(sorted(body))]
    elif what == "shape":
        header[rng.choice(["b", "v", "k", "s", "q", "j", "e", "x"])] = rng.choice([None, -1, 2**63, "?", b"", []])
    elif body:
        odd = [None, -1, 2**63, 1e400, float("nan"), "x" * 5000, b"x", [[]] * 300, {"a": {}}]
        body[rng.choice(sorted(body))] = rng.choice(odd)
    packed: bytes = msgpack.packb(header)
    return packed
