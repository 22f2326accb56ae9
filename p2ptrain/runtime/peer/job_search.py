"""Which job a peer takes that was started without one: what most of those tell who answer.

Invariant: a job whose model is a function of somebody's own is taken only where this device was started for that very
function, and nobody is ever told to allow one: who answers first may be anybody. All is bounded, whoever answers.

    nobody has told --a job--> settling --``SETTLE_S`` later--> the one that most tell
    told only of such that may not run here, or can't be read: goes on asking, and says so
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from p2ptrain.config import Job
from p2ptrain.errors import RemoteError
from p2ptrain.ids import JobId, PeerId
from p2ptrain.model_config import refused_code
from p2ptrain.modes.jobs import job_told
from p2ptrain.protocol.machine import NEVER
from p2ptrain.protocol.session.abuse import JOB_UNREAD

SETTLE_S = 1.0
"""Everybody who was asked answers within that, or most do."""
MAX_JOBS = 8
MAX_TELLERS = 512


class JobSearch:
    """``allowed``: the ``package.module:function`` that may run here, or several with commas between them."""

    def __init__(self, allowed: str, refused: Counter[str]) -> None:
        self._allowed = allowed
        self._refused = refused
        self._jobs: dict[JobId, Job] = {}
        self._told: OrderedDict[PeerId, JobId] = OrderedDict()
        self._code_from: set[PeerId] = set()
        self._unread: dict[PeerId, str] = {}
        """Who tells a job that this version can't read, and why not."""
        self._due = NEVER

    def next_deadline(self) -> float:
        return self._due

    def told(self, sender: PeerId, data: bytes, now: float) -> None:
        """``sender`` says that this is the job: what it says first counts, so that nobody alone takes the room of all
        others. Raises ``RemoteError`` for what is none."""
        if sender in self._told:
            return
        try:
            job = job_told(data)
        except RemoteError as error:
            if error.reason == JOB_UNREAD and len(self._unread) < MAX_TELLERS:
                self._unread[sender] = error.detail
            raise
        if refused_code(job.own_code, self._allowed):
            if len(self._code_from) < MAX_TELLERS:
                self._code_from.add(sender)
            self._refused["job-code"] += 1
            return
        if job.id not in self._jobs and len(self._jobs) == MAX_JOBS:
            return
        self._jobs[job.id] = job
        self._told[sender] = job.id
        if len(self._told) > MAX_TELLERS:
            self._told.popitem(last=False)
        self._due = min(self._due, now + SETTLE_S)

    def choose(self, now: float) -> tuple[PeerId, Job] | None:
        """The job, and who was the first to tell it; of equally many, the one that was told first."""
        if now < self._due:
            return None
        (name, _), *_ = Counter(self._told.values()).most_common(1)
        return next(peer for peer, job in self._told.items() if job == name), self._jobs[name]

    def words(self, is_alone: bool) -> str:
        """What is waited for."""
        if self._code_from:
            return (
                f"a job that may run on this device: what {len(self._code_from)} of the others tell has code of "
                "somebody's own as its model or as a part, and --allow-model does not name that, nor does --allow-code"
            )
        if self._unread:
            why = next(reversed(self._unread.values()))
            return (
                f"a job that this version of p2ptrain can read: what {len(self._unread)} of the others tell is none "
                f"({why}); install the same version on all devices"
            )
        return "a group: nobody found yet" if is_alone else "the job: nobody has told it yet"
