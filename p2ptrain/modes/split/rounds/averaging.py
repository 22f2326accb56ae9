"""What the averager does at a round's end: gets the others' updates and has its trainer average them.

    Idle --a round of a plan--> Collecting --all peers' updates here--> Averaging --all pieces made--> Idle

Invariant: an average is of one update of each peer that works by the plan in force, all of the same round, made under
that plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from p2ptrain.core.downloads import Downloads
from p2ptrain.core.effects import Effects, ReleaseBlob, ToTrainer
from p2ptrain.core.group_view import GroupView
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.split.commands import BeginAverage, GiveUpdate
from p2ptrain.protocol.machine import NEVER, Note
from p2ptrain.wire.messages import SnapshotRef

RETRY_S = 2.0
"""Until an update is asked for again that could not be got."""
MAX_FAILURES = 3
"""So often it is asked for."""


class Averaging:
    """Of one round at a time."""

    def __init__(self, group: GroupView, downloads: Downloads) -> None:
        self._group = group
        self._downloads = downloads
        self._peers: tuple[PeerId, ...] = ()
        """Whose updates are wanted; none: nothing is averaged here."""
        self._epoch = self._round = 0
        self._wanted: dict[BlobId, SnapshotRef] = {}
        self._here: dict[PeerId, SnapshotRef] = {}
        self._is_given = False
        self._failures: Counter[BlobId] = Counter()
        self._retry_at = NEVER

    def begin(self, epoch: int, round: int, peers: Sequence[PeerId], now: float) -> Effects:
        """``round`` rounds will be over when these peers' updates are averaged."""
        effects = self.stop(now)
        self._peers, self._epoch, self._round = tuple(sorted(peers)), epoch, round
        return effects

    def stop(self, now: float) -> Effects:
        """Nothing is averaged here any more: let go of all that was for that."""
        effects: Effects = [e for blob in self._wanted for e in self._downloads.cancel(blob, now)]
        effects += [ReleaseBlob(ref.blob) for peer, ref in self._here.items() if peer != self._group.own_id]
        self._peers, self._is_given, self._retry_at = (), False, NEVER
        self._wanted.clear()
        self._here.clear()
        self._failures.clear()
        return effects

    @property
    def is_given(self) -> bool:
        """The trainer has all updates."""
        return self._is_given

    def missing(self) -> list[PeerId]:
        """Whose update is not here yet."""
        return [peer for peer in self._peers if peer not in self._here]

    @property
    def hopeless(self) -> str:
        """A peer whose update can't be got, though it says that it has it; "" = none."""
        refs = ((peer, self._announced(peer)) for peer in self.missing())
        return next((p for p, ref in refs if ref is not None and self._failures[ref.blob] >= MAX_FAILURES), "")

    def own_made(self, ref: SnapshotRef, now: float) -> Effects:
        """The own update is in the store."""
        self._here[self._group.own_id] = ref
        return self.look(now)

    def look(self, now: float) -> Effects:
        """Fetch what is announced; average when all is here."""
        if not self._peers or self._is_given:
            return []
        effects: Effects = []
        for peer in self.missing():
            ref = self._announced(peer)
            if ref is None or ref.blob in self._wanted or self._failures[ref.blob] >= MAX_FAILURES:
                continue
            if self._downloads.is_local(ref.blob):
                self._here[peer] = ref
            elif now >= self._retry_at or not self._failures[ref.blob]:
                self._wanted[ref.blob] = ref
                effects += self._downloads.fetch(ref.blob, ref.num_bytes, [peer], now)
        if now >= self._retry_at:
            self._retry_at = NEVER
        return effects + (self._give() if not self.missing() else [])

    def _announced(self, peer: PeerId) -> SnapshotRef | None:
        record = self._group.record(peer)
        for ref in record.holdings if record is not None and peer in self._group.members() else ():
            if (ref.kind, ref.trainer, ref.epoch, ref.round) == ("update", peer, self._epoch, self._round):
                return ref
        return None

    def _give(self) -> Effects:
        self._is_given, self._retry_at = True, NEVER
        begin = ToTrainer(BeginAverage(self._epoch, self._round, len(self._peers)))
        gives = [ToTrainer(GiveUpdate(peer, b""), self._here[peer].blob, "update") for peer in self._peers]
        num_bytes = sum(ref.num_bytes for ref in self._here.values())
        note = Note("averaging", (("round", self._round), ("updates", len(self._peers)), ("bytes", num_bytes)))
        return [note, begin, *gives]

    def blob_arrived(self, blob: BlobId, now: float) -> Effects:
        ref = self._wanted.pop(blob, None)
        if ref is None:
            return []
        self._here[ref.trainer] = ref
        return self.look(now)

    def blob_lost(self, blob: BlobId, now: float) -> Effects:
        if self._wanted.pop(blob, None) is not None:
            self._failures[blob] += 1
            self._retry_at = now + RETRY_S
        return []

    def next_deadline(self) -> float:
        return self._retry_at
