"""What owners and holders of snapshots have in common: limits, effects, which one is newer, and who keeps whose.

Holders are chosen by rendezvous hashing of (part, trainer, peer): every peer comes to the same choice from the same
members, and a peer that joins or dies moves only the snapshots that it gains or leaves. Peers that train another part
come first: one that trains the same part has a copy of sorts already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from p2ptrain.ids import PeerId, lot
from p2ptrain.protocol.machine import Note, Send
from p2ptrain.wire.messages import SnapshotRef


@dataclass(frozen=True, slots=True)
class ReplicationConfig:
    """How many holders a snapshot gets, what a holder takes, and the owner's patience."""

    num_holders: int = 1
    max_holdings: int = 64
    max_holdings_per_trainer: int = 4
    max_snapshot_bytes: int = 4 << 30
    max_total_bytes: int = 16 << 30
    first_offer_s: float = 5.0
    """Until the second offer; doubled each time up to ``max_offer_s``."""
    max_offer_s: float = 60.0
    max_offers: int = 6
    unwilling_s: float = 600.0
    past_epochs: bool = False
    """Take snapshots of older epochs, too: those of a pipeline are the group's way back."""


@dataclass(frozen=True, slots=True)
class FetchSnapshot:
    """Get this snapshot, check it and save it, then call ``stored`` or ``fetch_failed``."""

    holding: SnapshotRef
    source: PeerId


@dataclass(frozen=True, slots=True)
class DiscardSnapshot:
    """Not kept for its owner any more: a newer one is safe, or it is of no use."""

    holding: SnapshotRef


@dataclass(frozen=True, slots=True)
class CancelSnapshot:
    """Its fetch has lost its point."""

    holding: SnapshotRef


Effect = Send | Note | FetchSnapshot | DiscardSnapshot | CancelSnapshot


def freshness(holding: SnapshotRef) -> tuple[int, int, int]:
    """What makes a snapshot newer than another of the same part and trainer."""
    return holding.epoch, holding.round, holding.step


def rank_holders(part: int, trainer: PeerId, members: Mapping[PeerId, int]) -> list[PeerId]:
    """All ``members`` (peer to the part it trains) but ``trainer``, the best holder first."""

    def score(peer: PeerId) -> int:
        return lot(f"{part}/{trainer}/{peer}")

    return sorted((peer for peer in members if peer != trainer), key=lambda p: (members[p] == part, score(p), p))
