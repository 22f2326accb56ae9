"""Any well-formed message, made from the schema itself: a kind or a field is tried from the day it is there.

Numbers are at the limits that have been anybody's bound; names are those of the group's peers where they can be.
"""

from __future__ import annotations

import dataclasses
import types
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from hypothesis import strategies as st

from p2ptrain.ids import BlobId, JobId, PeerId, peer_id
from p2ptrain.simulation.names import address, key
from p2ptrain.wire import tensorfile
from p2ptrain.wire.messages import KINDS, Hello, Message, Welcome
from p2ptrain.wire.schema import Bound, RawBytes

IDS = [peer_id(key(number)) for number in range(4)]
THE_JOB = JobId("0" * 16)
"""Stands for the group's job."""
LIMITS = [2**31, 2**40, 2**53 - 1, 2**53, 2**62 - 1, 2**62, 2**63 - 1]
_NUMBERS = [0, 1, 2, 3, 7, *range(8, 50), *LIMITS, -1, 65_535, 4095, 4096]
_FLOATS = [0.0, 1.0, -1.0, 1e18, 1e15, 1e12, 1e6, 1e-300, 5e-324, 5.5]
_TEXTS = ["", "x", "all", "group-0", "trunk", "0" * 16, "a" * 64, "0" * 64, "\x00", "é" * 30, "p" * 256]
_ADDRESSES = [address(1), address(77), "tcp://x:1", "http://10.0.0.1:80"]
_GARBAGE = [b"", b"\x00" * 64, b"{}", b"[" * 200, tensorfile.pack({"x": np.zeros(3)})]
_KNOWN: dict[Any, list[Any]] = {
    PeerId: [*IDS, PeerId("aaaaaaaaaaaaaaaa"), PeerId("zzzzzzzzzzzzzzzz")],
    BlobId: [BlobId("0" * 64), BlobId("f" * 64), BlobId("../../../../etc/passwd".ljust(64, "/"))],
    JobId: [JobId(""), THE_JOB, JobId("1" * 16)],
    int: _NUMBERS,
    float: _FLOATS,
    str: [*_TEXTS, *_ADDRESSES],
    bytes: [*_GARBAGE, *map(key, range(4)), *(bytes(size) for size in (1, 16, 32, 64))],
}


def _fits(value: Any, low: float, high: float) -> bool:
    size = value if isinstance(value, int | float) else len(value.encode() if isinstance(value, str) else value)
    return low <= size <= high


@cache
def any_value(hint: Any) -> st.SearchStrategy[Any]:
    """Of the declared type and within its bounds."""
    bound: Bound | None = None
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        bound = next((extra for extra in extras if isinstance(extra, Bound)), None)
    if get_origin(hint) is Annotated:
        return any_value(hint)
    if dataclasses.is_dataclass(hint):
        return any_of(hint)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if hint == RawBytes:
        hint = bytes
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of([st.none() if each is type(None) else any_value(each) for each in get_args(hint)])
    low, high = (bound.low, bound.high) if bound else (0 if hint is int else -(2**63), 2**63 - 1)
    if get_origin(hint) is tuple:
        least = max(0, int(low))
        return st.lists(any_value(get_args(hint)[0]), min_size=least, max_size=int(min(high, least + 3))).map(tuple)
    if hint is bool:
        return st.booleans()
    return st.sampled_from(scalars(hint, low, high))


def scalars(hint: Any, low: float, high: float) -> list[Any]:
    """Values of a type that is no list and no message, within its bounds."""
    known = _KNOWN.get(hint, _KNOWN[getattr(hint, "__supertype__", hint)])
    fitting = [each for each in known if _fits(each, low, high)]
    if hint in (int, float):
        fitting += [hint(low), hint(high)]
    return fitting or ["x" * int(low) if hint is str else bytes(int(low))]


@cache
def any_of(cls: Any) -> st.SearchStrategy[Any]:
    """Instances of one of the schema's classes."""
    hints = get_type_hints(cls, include_extras=True)
    return st.builds(cls, **{field.name: any_value(hints[field.name]) for field in dataclasses.fields(cls)})


SAID_INSIDE = [cls for cls in KINDS.values() if cls not in (Hello, Welcome)]
"""What may come in a session; ``Hello`` and ``Welcome`` are of none."""
any_message: st.SearchStrategy[Message] = st.sampled_from(SAID_INSIDE).flatmap(any_of)
