"""What every peer keeps: its own snapshots and those of others in custody, and the blobs that it fetches for that.

Invariant: only what is safe on disk is offered, and a blob that somebody here still waits for is not given up because
somebody else here has stopped waiting. What a peer trains is for its subclasses: ``Duty`` and ``StageDuty``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from p2ptrain.config import Job
from p2ptrain.core.effects import (
    AbandonBlob,
    BeginBlob,
    Effects,
    KeepCustody,
    KeepSnapshot,
    RestartTrainer,
    TrainerLost,
)
from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.planning.plan import Plan
from p2ptrain.protocol.machine import Note
from p2ptrain.protocol.replication import CancelSnapshot, Custody, DiscardSnapshot, FetchSnapshot
from p2ptrain.runtime import commands as c
from p2ptrain.runtime.store.store import NUM_OWN_SNAPSHOTS
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from p2ptrain.runtime.peer import Peer
    from p2ptrain.runtime.peer_io import Resume

MAX_PASSING = 1024
RESTARTS = 2
"""So often a trainer that died is started again from the last snapshot."""


class Keeping:
    """One peer's custody and blobs, in one job."""

    def __init__(self, peer: Peer, job: Job, custody: Custody, resume: Resume) -> None:
        self.plan: Plan | None = None
        self.custody = custody
        self.part = m.NO_PART
        self.plan_hash = ""
        """Of ``plan``; to compute it anew takes milliseconds."""
        self._peer = peer
        self._job = job
        self._own = list(resume.own)
        self._has_blob = resume.has_blob
        self._custody_fetches: dict[BlobId, m.Holding] = {}
        self._passing: OrderedDict[BlobId, None] = OrderedDict()
        """Fetched into memory only: what is to be kept is fetched once more."""
        self._num_restarts = 0
        peer.on_effects(
            {
                FetchSnapshot: self._fetch_for_custody,
                DiscardSnapshot: lambda e, now: [KeepCustody(e.holding, keep=False), *peer.publish_holdings(now)],
                CancelSnapshot: self._cancel_custody,
            }
        )

    # --- for subclasses ---

    @property
    def data_epoch(self) -> int:
        """Data messages of an older epoch are dropped."""
        return self.plan.epoch if self.plan else 0

    @property
    def hands_over(self) -> bool:
        """Whether what the trainer holds at any moment is worth handing over when this peer leaves."""
        return True

    @property
    def seeking(self) -> bool:
        """A copy of what this peer is to train is being fetched or tried."""
        raise NotImplementedError

    def awaits(self, blob: BlobId) -> bool:
        """Whether what this peer is to train waits for a blob."""
        raise NotImplementedError

    def holdings(self) -> tuple[m.Holding, ...]:
        """For the own record."""
        return self.custody.holdings()

    def newest_own(self) -> m.Holding | None:
        """The own snapshot that was saved last."""
        return self._own[-1] if self._own else None

    def is_complete(self) -> bool:
        """Whether nothing more is to be trained, once all that are here have ended."""
        return True

    def gossip_push(self, sender: PeerId, push: m.GossipPush, now: float) -> Effects:
        """A neighbour pushes parameters to average."""
        raise RemoteError("gossip", "this job's parts are not averaged by gossip")

    def may_serve(self, to: PeerId, blob: BlobId) -> bool:
        """Whether ``to`` may have a blob that is here."""
        return True

    def served(self, to: PeerId, blob: BlobId, end: int) -> None:
        """``to`` was sent the bytes of a blob up to ``end``."""

    # --- own snapshots ---

    def keep_snapshot(self, holding: m.Holding) -> Effects:
        """Save an own snapshot, whose blob is in the store."""
        older = [h for h in self._own if h.blob != holding.blob]
        return [KeepSnapshot(holding, tuple(h.blob for h in self.surplus(older)))]

    def surplus(self, older: Sequence[m.Holding]) -> list[m.Holding]:
        """Own snapshots that are not needed beside a newer one: all but the one before."""
        return list(older[:-1])

    def snapshot_kept(self, effect: KeepSnapshot, saved: bool, now: float) -> Effects:
        """It is safe here; now others get it too. Or the disk refused it."""
        if not saved:
            return []
        self._own = [h for h in self._own if h.blob not in effect.drop]
        return self._offer(effect.holding, now)

    def _offer(self, holding: m.Holding, now: float) -> Effects:
        self._own = [*[h for h in self._own if h.blob != holding.blob], holding][-NUM_OWN_SNAPSHOTS:]
        return [*self.custody.snapshot(holding, now), *self._peer.publish_holdings(now)]

    # --- custody ---

    def _fetch_for_custody(self, effect: FetchSnapshot, now: float) -> Effects:
        holding = effect.holding
        if self._has_blob(holding.blob) and holding.blob not in self._passing:
            return [KeepCustody(holding)]
        self._custody_fetches[holding.blob] = holding
        return self.fetch(holding.blob, holding.num_bytes, [effect.source], now)

    def custody_kept(self, holding: m.Holding, saved: bool, now: float) -> Effects:
        """The node's answer to ``KeepCustody``."""
        completion = self._peer.completion
        if holding.part == m.HEAD_PART and completion is not None:
            return completion.others_head_kept(holding, saved, now)
        done = self.custody.stored(holding, now) if saved else self.custody.fetch_failed(holding, now)
        return [*done, *self._peer.publish_holdings(now)]

    def _cancel_custody(self, effect: CancelSnapshot, now: float) -> Effects:
        blob, completion = effect.holding.blob, self._peer.completion
        self._custody_fetches.pop(blob, None)
        if self.awaits(blob) or (completion and completion.wants(blob)):
            return []  # somebody else here waits for it
        return [*self._peer.transfers.cancel(effect.holding.blob, now), AbandonBlob(effect.holding.blob)]

    # --- blobs ---

    def fetch(
        self, blob: BlobId, num_bytes: int, sources: list[PeerId], now: float, *, ephemeral: bool = False
    ) -> Effects:
        """Get a blob from any of these; ``blob_arrived`` or ``blob_lost`` says how it ended."""
        transfers = self._peer.transfers
        if any(progress.blob == blob for progress in transfers.progress()):
            return list(transfers.fetch(blob, num_bytes, sources, now))  # to begin again would lose what is here
        self._passing.pop(blob, None)
        if ephemeral:
            self._passing[blob] = None
            if len(self._passing) > MAX_PASSING:
                self._passing.popitem(last=False)
        return [BeginBlob(blob, num_bytes, ephemeral), *transfers.fetch(blob, num_bytes, sources, now)]

    def is_local(self, blob: BlobId) -> bool:
        return self._has_blob(blob)

    # --- a trainer that died ---

    def _after_failure(self, event: c.TrainerFailed, now: float) -> Effects:
        """Start it again, a few times at most."""
        peer = self._peer
        note = Note("trainer-failed", (("detail", event.detail[:250]),))
        if not event.user_error and self._num_restarts < RESTARTS:
            self._num_restarts += 1
            return [note, *peer.records.update(now, phase="waiting"), RestartTrainer()]
        failed = peer.records.update(now, phase="failed", samples_per_s=0.0)
        return [note, *failed, TrainerLost(event.detail, event.user_error)]

    # --- blobs that came ---

    def _kept_if_whole(self, blob: BlobId, now: float) -> Effects:
        """A blob arrived: is it one for custody?"""
        holding = self._custody_fetches.get(blob)
        if holding is None:
            return []
        if blob in self._passing:
            return self.fetch(blob, holding.num_bytes, [holding.trainer], now)
        del self._custody_fetches[blob]
        return [KeepCustody(holding)]

    def _not_kept(self, blob: BlobId, now: float) -> Effects:
        """A blob was lost."""
        holding = self._custody_fetches.pop(blob, None)
        return list(self.custody.fetch_failed(holding, now)) if holding else []
