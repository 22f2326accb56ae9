"""The fitted head as a blob: the fit's last state, and the snapshots that it belongs to in its metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable

from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.wire import tensorfile
from p2ptrain.wire.messages import SnapshotRef
from p2ptrain.wire.schema import from_plain, to_plain

MAX_HOLDINGS = 256
"""Snapshots that a head may be fitted over, as in the call for it."""


def pack_head(state: bytes, holdings: tuple[SnapshotRef, ...]) -> bytes:
    """Safetensors bytes of the state, with the holdings as metadata. The same on every peer."""
    ordered = sorted(holdings, key=lambda h: (h.part, h.trainer))
    text = json.dumps([to_plain(h) for h in ordered], separators=(",", ":"))
    return tensorfile.pack(tensorfile.read(state).arrays(), {"holdings": text})


def head_holding(
    own: PeerId, blob: BlobId, num_bytes: int, holdings: tuple[SnapshotRef, ...], step: int, samples: int
) -> SnapshotRef:
    """How a head is entered among a peer's holdings: ``span`` parts, and as ``round`` their rounds all together, which
    grows when any of them goes on."""
    return SnapshotRef(
        part=0,
        trainer=own,
        epoch=max(h.epoch for h in holdings),
        round=rounds_of(holdings),
        step=step,
        samples=samples,
        blob=blob,
        num_bytes=num_bytes,
        span=len({h.part for h in holdings}),
        kind="head",
    )


def rounds_of(holdings: Iterable[SnapshotRef]) -> int:
    """The rounds of all parts together; the copies of a part are of one round."""
    return sum({h.part: h.round for h in holdings}.values())


def head_holdings(data: bytes) -> tuple[SnapshotRef, ...]:
    """The snapshots that a head belongs to. Raises ``RemoteError``."""
    text = tensorfile.read_untrusted(data).metadata.get("holdings", "")
    try:
        plain = json.loads(text)
    except ValueError:
        raise RemoteError("head", "names no snapshots") from None
    if not isinstance(plain, list) or not 1 <= len(plain) <= MAX_HOLDINGS:
        raise RemoteError("head", "names no snapshots")
    found = tuple(from_plain(SnapshotRef, _with_kind(item)) for item in plain)
    if any(holding.kind != "part" for holding in found):
        raise RemoteError("head", "is of another head")
    return found


def _with_kind(plain: object) -> object:
    """Heads of older software name the snapshots of parts without saying that they are, and without signatures."""
    return {"kind": "part", "key": "", "signature": ""} | plain if isinstance(plain, dict) else plain
