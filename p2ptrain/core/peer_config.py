"""What a peer is given when it is made and when a job is opened, and what only its node can do for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p2ptrain.core.plan import Plan
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.consensus.ballot import PlanRef
from p2ptrain.protocol.group.record import blank_record
from p2ptrain.protocol.session.door import OPEN_DOOR, Door
from p2ptrain.protocol.session.own_addresses import OwnAddresses
from p2ptrain.protocol.signing import Signing
from p2ptrain.wire import messages as m
from p2ptrain.words import match_class


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """What this peer brings along."""

    own_key: bytes
    proof_key: bytes
    addresses: tuple[str, ...]
    bulk_port: int
    name: str
    software: str
    signing: Signing
    flops_per_s: float = 0.0
    memory_bytes: int = 0
    link_bytes_per_s: float = 0.0
    wishes: tuple[str, ...] = ()
    """Names of classes that this peer would like to train."""
    door: Door = OPEN_DOOR
    allow_user_code: str = ""
    """The one ``package.module:function`` that a job from the group may name."""
    remote_stop: bool = True
    """Whether this peer ends when a member asks the group to stop."""

    def wished(self, classes: Sequence[str]) -> tuple[int, ...]:
        """The wishes as indices into a job's classes."""
        meant = {match_class(wish, classes) for wish in self.wishes}
        return tuple(c for c, name in enumerate(classes) if name in meant)


def first_record(config: PeerConfig, own_id: PeerId, wall_ms: int) -> m.Record:
    """What a peer says of itself before it has heard of anything. ``wall_ms``: newer than any it said before."""
    return blank_record(
        own_id,
        config.own_key,
        wall_ms,
        name=config.name,
        addresses=OwnAddresses(config.addresses).told,
        flops_per_s=config.flops_per_s,
        memory_bytes=config.memory_bytes,
        waiting_for="a group: nobody found yet",
        link_bytes_per_s=config.link_bytes_per_s,
    )


@dataclass(frozen=True, slots=True)
class Resume:
    """What the store kept from an earlier start."""

    plan: Plan | None = None
    own: tuple[m.SnapshotRef, ...] = ()
    kept: tuple[m.SnapshotRef, ...] = ()
    looked_at: tuple[m.SnapshotRef, ...] = ()
    """Copies that are kept for looks at the whole model."""
    result: m.SnapshotRef | None = None
    """What the group made when all were trained."""
    has_blob: Callable[[BlobId], bool] = lambda blob: False
    """Whether the store has a whole blob, now."""
    voted: PlanRef | None = None
    """What this peer voted for last."""

    def signed(self, sign: Callable[[m.SnapshotRef], m.SnapshotRef], own: PeerId) -> Resume:
        """The same, with all signed that ``own`` made: an older version signed none."""
        mine = tuple(sign(ref) if ref.trainer == own else ref for ref in self.own)
        result = self.result
        if result is not None and result.trainer == own:
            result = sign(result)
        return dataclasses.replace(self, own=mine, result=result)

    def snapshots(self) -> tuple[m.SnapshotRef, ...]:
        """All that was kept."""
        return (*self.own, *self.kept, *((self.result,) if self.result is not None else ()))
