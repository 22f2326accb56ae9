"""The checkpoint that the job starts from comes from any member, if it is not here; then the trainer is started.

Invariant: the trainer is started once for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from p2ptrain.config import Job
from p2ptrain.core.downloads import Downloads
from p2ptrain.core.effects import Effects, StartTrainer
from p2ptrain.core.group_view import GroupView
from p2ptrain.ids import BlobId, PeerId


class InitSearch:
    """``linked``: who can be asked."""

    def __init__(self, group: GroupView, linked: Callable[[], Iterable[PeerId]]) -> None:
        self.is_here = False
        self._group = group
        self._linked = linked
        self._job: Job | None = None
        self._downloads: Downloads | None = None

    def begin(self, job: Job, downloads: Downloads) -> None:
        """The job is known, and its store is open."""
        self._job, self._downloads = job, downloads

    def look(self, now: float) -> Effects:
        """Whether it is here, or somebody has it."""
        if self._job is None or self._downloads is None or self.is_here:
            return []
        model = self._job.model
        init = BlobId(model.init) if model.init else None
        if init is None or self._downloads.is_local(init):
            self.is_here = True
            return [StartTrainer(init)]
        sources = [p for p in self._linked() if (r := self._group.record(p)) is not None and r.job == self._job.id]
        if not sources or self._downloads.progress_of(init) is not None:
            return []
        return self._downloads.fetch(init, model.init_bytes, sources, now)
