"""Models and peers' times for their blocks as JSON: what a trainer measured, on its way to its node and to the others.

Invariant: a ``PeerProfile`` that ``profile_from_json`` returns has a time for each block and batch size, some of them
above zero, and its canonical JSON is the very text it came from, so that the text's hash names it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any

from p2ptrain.errors import RemoteError
from p2ptrain.planning.devices.blocks import BatchSizes, BlockRows, BlockTimes, ModelProfile
from p2ptrain.wire.schema import Bound, from_plain, to_plain

MAX_PROFILE_BYTES = 256 * 1024
MAX_MODEL_BYTES = 2 << 20
DIGITS = 4
"""Significant digits of a time: as many as a clock is good for."""


@dataclass(frozen=True, slots=True)
class PeerProfile:
    """Seconds of each block at some batch sizes (see ``BlockTimes``). ``chain`` names the blocks (``chain_hash``)."""

    chain: Annotated[str, Bound(64, 64)]
    batch_sizes: BatchSizes
    forward_s: BlockRows
    backward_s: BlockRows
    update_s_per_byte: Annotated[float, Bound(0, 1.0)] = 0.0
    activation_s_per_byte: Annotated[float, Bound(0, 1.0)] = 0.0
    gradient_s_per_byte: Annotated[float, Bound(0, 1.0)] = 0.0

    @property
    def times(self) -> BlockTimes:
        return BlockTimes.of(self)


def profile_to_json(model: ModelProfile, times: BlockTimes) -> str:
    """A peer's times for a model's blocks, in ``DIGITS`` digits; canonical (see ``Plan.to_json``)."""
    return _canonical(PeerProfile(chain_hash(model), **rounded_times(times).by_name()))


def profile_from_json(data: bytes | str) -> PeerProfile:
    """Parse and check what came from the network. Raises ``RemoteError``."""
    text, plain = _parsed(data, MAX_PROFILE_BYTES)
    profile = from_plain(PeerProfile, plain)
    sizes = profile.batch_sizes
    if not sizes or list(sizes) != sorted(set(sizes)):
        raise RemoteError("profile", "batch sizes that don't rise, or none")
    num_blocks = len(profile.forward_s[0]) if profile.forward_s else 0
    for rows in (profile.forward_s, profile.backward_s):
        if len(rows) != len(sizes) or any(len(row) != num_blocks for row in rows):
            raise RemoteError("profile", "not a time for each block and batch size")
        if not all(any(row) for row in rows):
            raise RemoteError("profile", "a model that takes no time")
    if _canonical(profile) != text:
        raise RemoteError("profile", "not in canonical form")
    return profile


def model_to_json(model: ModelProfile) -> str:
    """Canonical: equal models have equal text."""
    return _canonical(model)


def model_from_json(data: bytes | str) -> ModelProfile:
    """Raises ``RemoteError``."""
    return from_plain(ModelProfile, _parsed(data, MAX_MODEL_BYTES)[1])


def chain_hash(model: ModelProfile) -> str:
    """sha256 of ``model_to_json``, in hexadecimal: peers with the same one mean the same blocks."""
    return hashlib.sha256(model_to_json(model).encode()).hexdigest()


def rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def rounded_times(times: BlockTimes) -> BlockTimes:
    return BlockTimes(
        times.batch_sizes,
        rounded_rows(times.forward_s),
        rounded_rows(times.backward_s),
        rounded(times.update_s_per_byte),
        rounded(times.activation_s_per_byte),
        rounded(times.gradient_s_per_byte),
    )


def rounded_rows(rows: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(rounded, row)) for row in rows)


def _canonical(value: object) -> str:
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _parsed(data: bytes | str, limit: int) -> tuple[str, Any]:
    if len(data) > limit:
        raise RemoteError("profile", f"larger than {limit} bytes")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        return text, json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RemoteError("profile", f"not JSON ({type(error).__name__})") from None
