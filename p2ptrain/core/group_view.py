"""What a peer's helpers see of its group: who is there, and what each says of itself.

Invariant: nothing is decided here, and nothing kept but what a person was told already. Who is alive is membership's,
what each says is the records'; the one thing that a helper may change is what the own record says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from p2ptrain.core.effects import Effects
from p2ptrain.core.peer_config import Resume
from p2ptrain.core.plan import Plan
from p2ptrain.ids import BlobId, JobId, PeerId
from p2ptrain.protocol.group.membership import Membership
from p2ptrain.protocol.group.record_size import num_holdings_that_fit
from p2ptrain.protocol.group.records import RecordBook
from p2ptrain.protocol.machine import Note
from p2ptrain.wire.messages import Record, SnapshotRef
from p2ptrain.words import listed, told_apart

MAX_HOLDINGS = 128
"""So many snapshots a record tells of, at most."""


class GroupView:
    """``job``: the job that this peer trains ("" = none yet); who has another one is no member."""

    def __init__(self, own_id: PeerId, membership: Membership, records: RecordBook) -> None:
        self.own_id = own_id
        self.job = JobId("")
        self.holdings: Callable[[], Sequence[SnapshotRef]] = tuple
        """What this peer has, by its role."""
        self.path: Callable[[Plan], Sequence[Plan]] = lambda plan: (plan,)
        """Plans that lead to one from the last that was in force here, as far as they are known."""
        self.ended: set[PeerId] = set()
        """Of those that are dead, whose process is known to have ended: they are on no other side of a cut network."""
        self._num_untold = 0
        """The most that a person was told of."""
        self._membership = membership
        self._records = records

    @property
    def own(self) -> Record:
        """What this peer says of itself."""
        return self._records.own

    def signed(self) -> Record:
        """The same, as others take it."""
        return self._records.signed()

    def take_up(self, job: JobId, resume: Resume, now: float) -> tuple[Resume, Effects]:
        """This peer trains that job from now on; what its store kept of it, with the own snapshots signed."""
        self.job = job
        effects = self.say(now, job=job)
        resume = resume.signed(self.made, self.own_id)
        if unsigned := sum(not self.is_trainers(ref) for ref in resume.snapshots()):
            effects.append(Note("unsigned-copies", (("copies", unsigned),)))
        return resume, effects

    def say(self, now: float, **changes: Any) -> Effects:
        """From now on the own record says this; fields as in ``Record``."""
        return list(self._records.update(now, **changes))

    def say_holdings(self, now: float) -> Effects:
        """From now on the own record says what this peer has.

        Copies that nobody signed are of use on this device only: an older version kept them.
        """
        held = [ref for ref in self.holdings() if self._records.is_trainers(ref)]
        told = held[: min(MAX_HOLDINGS, num_holdings_that_fit(self.own))]
        untold = len(held) - len(told)
        notes = [Note("untold-copies", (("copies", untold),))] if untold > self._num_untold else []
        self._num_untold = max(self._num_untold, untold)
        return [*notes, *self.say(now, holdings=tuple(told))]

    def made(self, ref: SnapshotRef) -> SnapshotRef:
        """A snapshot that this peer made, as everybody may tell of it: signed."""
        return self._records.made(ref)

    def is_trainers(self, ref: SnapshotRef) -> bool:
        """Whether the trainer that it names made it, of the job that this peer trains."""
        return self._records.is_trainers(ref)

    def record(self, peer: PeerId) -> Record | None:
        """What a peer said last, whether it is here or not."""
        return self._records.get(peer)

    def alive(self) -> list[PeerId]:
        """Everyone else who is here, members or not."""
        return list(self._membership.alive())

    def members(self) -> list[PeerId]:
        """Alive peers that have a record of this job, this one included."""
        return sorted(
            peer
            for peer in {*self._membership.alive(), self.own_id}
            if (record := self._records.get(peer)) is not None and record.job == self.job
        )

    def num_coming(self) -> int:
        """How many alive peers have not said yet which job they train."""
        return sum(not record.job for record in map(self._records.get, self._membership.alive()) if record is not None)

    def absent(self) -> list[Record]:
        """Of peers that said once that they train this job, and are not here."""
        here = set(self.members())
        everyone = sorted(self._records.all().items())
        return [record for peer, record in everyone if record.job == self.job and peer not in here]

    def records(self) -> list[Record]:
        """Of all members, by peer."""
        return [record for member in self.members() if (record := self._records.get(member)) is not None]

    def parts(self) -> dict[PeerId, int]:
        """What the other members say that they train."""
        return {record.peer: record.part for record in self.records() if record.peer != self.own_id}

    def name_of(self, peer: PeerId) -> str:
        """What people call it."""
        return self._names().get(peer, peer)

    def names_of(self, peers: Iterable[PeerId]) -> str:
        """The same of several, for one line; of many, how many more there are."""
        names = self._names()
        return listed(names.get(peer, peer) for peer in peers)

    def with_names(self, words: str) -> str:
        """With what people call the members in place of their ids."""
        for peer, name in (self._names() if words else {}).items():
            words = words.replace(peer, name)
        return words

    def _names(self) -> dict[str, str]:
        return told_apart({peer: record.name for peer, record in self._records.all().items()})

    def process_ended(self, peer: PeerId) -> None:
        """Of a member, or of somebody who only looked on, which is nothing to remember."""
        known = self._records.all().keys()
        self.ended.intersection_update(known)
        if peer in known:
            self.ended.add(peer)

    def num_missing(self, min_peers: int = 1) -> int:
        """How many of those that were here are lost, or how many more there have to be; 1 for a peer that is alone."""
        here = len(self._membership.alive()) + 1
        lost = sum(
            self._membership.state(record.peer) in ("suspect", "dead") for record in self._records.all().values()
        )
        return max(lost, min_peers - here, int(here == 1))

    def holders(self, blob: BlobId) -> list[PeerId]:
        """Alive peers that say they have a blob."""
        return [
            peer
            for peer in sorted(self._membership.alive())
            if (record := self._records.get(peer)) and any(h.blob == blob for h in record.holdings)
        ]
