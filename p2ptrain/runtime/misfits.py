"""Which copies who harvests asks for: of what members say to have, what can be, and has not proved to be of no use.

Invariant: a member that lies costs a bounded time, and it is not held against others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from statistics import median_low

from p2ptrain.config import Job
from p2ptrain.core.coverage import is_beyond
from p2ptrain.core.harvest import MisfitError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.blobs.fetching import TransferConfig
from p2ptrain.runtime.node.observer import Observer
from p2ptrain.wire.messages import Record, SnapshotRef

FETCH_TIMEOUT_S, SLOWEST_BYTES_PER_S = 300.0, TransferConfig().min_bytes_per_s
"""A copy may take so long, and what its size needs at that rate."""
MAX_MISFITS, MAX_MISFITS_OF_ONE = 16, 2
NOBODY = PeerId("")
"""Says to have a copy that only a last layer names."""


class Misfits:
    """Copies that are not asked for (again): those that are not of the job's model, and those of who made several such,
    and those that only devices say to have whose copies have cost much time and never came."""

    def __init__(self) -> None:
        self._copies: set[SnapshotRef] = set()
        """Not what they are told of as: the same bytes, told of otherwise, may be just right."""
        self._num_made: Counter[PeerId] = Counter()
        self._lost_s: defaultdict[PeerId, float] = defaultdict(float)
        self._said: set[SnapshotRef] = set()

    def add(self, error: MisfitError) -> bool:
        """Whether there are few enough of them to look for others."""
        self._copies.update(error.holdings)
        self._num_made.update({holding.trainer for holding in error.holdings})
        return sum(self._num_made.values()) <= MAX_MISFITS

    def never_came(self, seconds: float, holders: Collection[PeerId]) -> None:
        """``holders``: who says to have it. It is none of its maker's doing."""
        for peer in holders or (NOBODY,):
            self._lost_s[peer] += seconds

    def is_news(self, holding: SnapshotRef) -> bool:
        """Whether nobody was told yet that this one is left out. Once."""
        is_news = holding not in self._said
        self._said.add(holding)
        return is_news

    def has(self, holding: SnapshotRef, holders: Collection[PeerId] = ()) -> bool:
        is_mistrusted = all(self._lost_s[peer] >= FETCH_TIMEOUT_S for peer in holders or (NOBODY,))
        made_several = self._num_made[holding.trainer] >= MAX_MISFITS_OF_ONE
        return is_mistrusted or made_several or holding in self._copies


def answered(observer: Observer) -> list[Record]:
    """Of members that have answered themselves."""
    return [record for record in observer.members() if record.peer in observer.answered]


def holders_of(records: Sequence[Record]) -> Mapping[BlobId, set[PeerId]]:
    """Who says to have which copy."""
    found: defaultdict[BlobId, set[PeerId]] = defaultdict(set)
    for record in records:
        for holding in record.holdings:
            found[holding.blob].add(record.peer)
    return found


def what_of(holding: SnapshotRef) -> str:
    """For people."""
    if holding.kind == "head":
        return "the fitted head"
    return f"part {holding.part}" if holding.span == 1 else f"blocks {holding.part}-{holding.part + holding.span - 1}"


def implausible(members: Sequence[Record], job: Job) -> dict[SnapshotRef, str]:
    """Of what they say to have, copies of rounds that the job has not, and a last layer of which only one says that the
    group fitted it, where more say so of another; and what is odd about each, in words."""
    told, rounds = [h for record in members for h in record.holdings if h.kind != "kept"], job.training.rounds
    odd = {h: f"of rounds after {rounds}, the job's last" for h in told if is_beyond(h, rounds)}
    makers = {h.blob: {o.trainer for o in told if o.blob == h.blob} for h in told if h.kind == "head"}
    most = max(map(len, makers.values()), default=0)
    lone = {blob for blob, by in makers.items() if len(by) == 1 < most}
    return odd | {h: "a last layer that nobody else says the group fitted" for h in told if h.blob in lone}


def credible_bytes(holding: SnapshotRef, members: Sequence[Record]) -> int:
    """No more than the middle one of those who made copies of the same part says that they have: who makes up a large
    one must not hold up who harvests."""
    of = holding.kind, holding.part, holding.span
    alike = [h for record in members for h in record.holdings if (h.kind, h.part, h.span) == of]
    most = {h.trainer: max(o.num_bytes for o in alike if o.trainer == h.trainer) for h in alike}
    return min(holding.num_bytes, median_low(most.values())) if most else 0
