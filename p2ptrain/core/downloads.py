"""Blobs on their way to this peer: begun once, whoever wants them, and kept in memory or on disk.

Invariant: a blob that is being fetched is not begun again, which would lose what is here of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from p2ptrain.core.effects import AbandonBlob, BeginBlob, Effects, ReleaseBlob
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.blobs.fetching import FetchProgress
from p2ptrain.protocol.blobs.transfer import Transfers

MAX_PASSING = 1024


class Downloads:
    """``has_blob``: whether the store has a whole blob, now."""

    def __init__(self, transfers: Transfers, has_blob: Callable[[BlobId], bool]) -> None:
        self._transfers = transfers
        self._has_blob = has_blob
        self._passing: OrderedDict[BlobId, None] = OrderedDict()

    def is_local(self, blob: BlobId) -> bool:
        """Whether it is here, on disk or in memory."""
        return self._has_blob(blob)

    def is_passing(self, blob: BlobId) -> bool:
        """Whether it was fetched into memory only: what is to be kept is fetched once more."""
        return blob in self._passing

    def progress_of(self, blob: BlobId) -> FetchProgress | None:
        """How far its fetch is; None where there is none."""
        return next((progress for progress in self._transfers.progress() if progress.blob == blob), None)

    def fetch(
        self,
        blob: BlobId,
        num_bytes: int,
        sources: Sequence[PeerId],
        now: float,
        *,
        ephemeral: bool = False,
        bytes_per_s: float = 0.0,
    ) -> Effects:
        """Get a blob from any of these; ``BlobArrived`` or ``BlobLost`` says how it ended. ``bytes_per_s``: it has
        time, and may go no faster; 0 = as fast as it goes."""
        if self.progress_of(blob) is not None:
            return list(self._transfers.fetch(blob, num_bytes, list(sources), now, bytes_per_s))
        self._passing.pop(blob, None)
        if ephemeral:
            self._passing[blob] = None
            if len(self._passing) > MAX_PASSING:
                self._passing.popitem(last=False)
        fetch = self._transfers.fetch(blob, num_bytes, list(sources), now, bytes_per_s)
        return [BeginBlob(blob, num_bytes, ephemeral), *fetch]

    def hands_out_nothing(self, peer: PeerId) -> bool:
        """Whether it did not hand out lately what it said to have: it is asked where nobody else can be."""
        return self._transfers.hands_out_nothing(peer)

    def cancel(self, blob: BlobId, now: float) -> Effects:
        """Nobody here waits for it any more."""
        return [*self._transfers.cancel(blob, now), AbandonBlob(blob)]


class Borrowed:
    """Blobs that are fetched to the disk for a while. What is not let go of takes its room until the next start, also
    what arrives when nobody waits for it any more."""

    def __init__(self, downloads: Downloads) -> None:
        self._downloads = downloads
        self._blobs: dict[BlobId, None] = {}

    def fetch(
        self, blob: BlobId, num_bytes: int, sources: Sequence[PeerId], now: float, *, bytes_per_s: float = 0.0
    ) -> Effects:
        """As ``Downloads.fetch``."""
        self._blobs[blob] = None
        return self._downloads.fetch(blob, num_bytes, sources, now, bytes_per_s=bytes_per_s)

    def let_go(self, is_awaited: Callable[[BlobId], bool]) -> Effects:
        """Of what is here, but for what is still ``is_awaited``."""
        effects: Effects = []
        for blob in [blob for blob in self._blobs if not is_awaited(blob)]:
            if is_here := self._downloads.is_local(blob):
                effects.append(ReleaseBlob(blob))
            if is_here or self._downloads.progress_of(blob) is None:
                del self._blobs[blob]
        return effects
