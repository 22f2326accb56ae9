"""What the group has saved of a pipeline's blocks, as far as it is known here, and what of it is worth keeping.

Invariant: a state that was saved whole, and for any one or two members one that is whole without them, are kept until
newer ones are: stages are up to a batch apart, disks are unlike, and the newest snapshot of one stage alone is of no
use. So is what is whole once those who are gone come back.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence

from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.planning.pipeline.coverage import (
    NO_STATE,
    Run,
    State,
    cover,
    missing,
    newest_whole,
    states_to_keep,
    told_by,
)
from p2ptrain.protocol.machine import Note
from p2ptrain.wire.messages import SnapshotRef

MAX_OLDER = 3
"""Snapshots kept beside the newest one of the same blocks and trainer."""


class Checkpoints:
    """``own``: what is saved here. ``is_vain``: whether a member hands out nothing of what it says to have."""

    def __init__(
        self, group: GroupView, own: Callable[[], Iterable[SnapshotRef]], is_vain: Callable[[PeerId], bool]
    ) -> None:
        self._refused: set[SnapshotRef] = set()
        """What nobody hands out as what it is told of, or what is something else: the same blob may be just right by
        what another says of it."""
        self.damaged: set[BlobId] = set()
        """Blobs whose copy here is not what it should be: others' are fetched in its place."""
        self._group = group
        self._own = own
        self._is_vain = is_vain
        self._broke_word: set[PeerId] = set()
        """Members that did not hand out what they said to have, and nothing else since."""
        self.reach: Callable[[PeerId, int], float] = lambda peer, epoch: math.inf
        """How far the group can be in the history of an epoch, in batches, by what all say but one peer."""
        self._to_keep: list[State] = []
        """What the group can go back to, the newest first."""

    def by_peer(self, *, absent: bool = False, ahead: bool = False) -> dict[str, list[SnapshotRef]]:
        """Saved runs of blocks, by the members that have them, this one included; ``absent``: and by those who are
        gone, as far as they said.

        What one member alone says to have is not believed where it hands out nothing, nor, unless ``ahead``, where it
        is further than anybody else is: it gives copies of that to others, who then say so, too. A copy that another
        member made, and signed, is that one's word as well, be it that its disk is empty by now.
        """
        group = self._group
        known = {record.peer for record in (*group.records(), *group.absent())}
        held: dict[str, Iterable[SnapshotRef]] = {record.peer: record.holdings for record in group.records()}
        held[group.own_id] = self._own()
        if absent:
            held |= {record.peer: record.holdings for record in group.absent()}
        said = {p: [h for h in hs if h.kind == "part" and not self.is_refused(h)] for p, hs in held.items()}
        num_said = Counter(h for holdings in said.values() for h in set(holdings))
        for peer, holdings in said.items():
            if peer == group.own_id:
                continue
            others = max((h.step for other, theirs in said.items() if other != peer for h in theirs), default=0)
            reach = {h.epoch: max(others, self.reach(PeerId(peer), h.epoch)) for h in holdings}
            is_vain = peer in self._broke_word or self._is_vain(PeerId(peer))
            elsewhere = known - {peer}
            near = {h for h in holdings if ahead or h.step <= reach[h.epoch] or h.trainer in elsewhere}
            said[peer] = [h for h in holdings if num_said[h] > 1 or (h in near and not is_vain)]
        return said

    def known(self, *, absent: bool = False) -> list[SnapshotRef]:
        """All of them, each once."""
        return told_by(self.by_peer(absent=absent))

    def newest(self, plan: Plan, *, absent: bool = False) -> State:
        """The newest state that is saved whole."""
        return newest_whole(body_of(plan).pipeline.num_blocks, self.known(absent=absent))

    def trainers(self, state: State) -> frozenset[PeerId]:
        """Who trained the blocks of it that are saved."""
        return frozenset(h.trainer for h in self.known() if (h.step, h.epoch) == state)

    def is_whole(self, plan: Plan, state: State) -> bool:
        """Whether all blocks of just this state are saved."""
        return cover([(0, body_of(plan).pipeline.num_blocks)], state, self.known(), lambda _: 0) is not None

    def look(self, plan: Plan) -> None:
        """Members came or went, or have saved something."""
        to_keep = {*states_to_keep(body_of(plan).pipeline.num_blocks, self.by_peer())}
        to_keep.add(self.newest(plan, absent=True))  # it is whole again when they come back
        self._to_keep = sorted(to_keep - {NO_STATE}, reverse=True)

    def surplus(self, older: Sequence[SnapshotRef]) -> list[SnapshotRef]:
        """Of these, all older than one more of the same blocks and trainer, what the group will not go back to.

        Beside what is saved whole the newest counts, which may get whole yet. As long as nothing is known to be whole,
        as after a restart, anything may be wanted.
        """
        if not self._to_keep:
            return list(older[:-MAX_OLDER])
        hoped = [h for h in older if h.step > self._to_keep[0][0]][-1:]
        return [h for h in older if h not in hoped and (h.step, h.epoch) not in self._to_keep]

    def is_stale(self, holding: SnapshotRef) -> bool:
        """Whether the group will not go back to it, though nobody has a newer one of the same blocks and trainer."""
        state = holding.step, holding.epoch
        return bool(self._to_keep) and state not in self._to_keep and state < self._to_keep[0]

    def refuse(self, given: Sequence[SnapshotRef], fetched: Container[BlobId]) -> None:
        """The own stage was to be made of what was ``given``, and it did not fit. What was ``fetched`` is sound.
        A copy that lay here may have got damaged since: another one is fetched, once, if there is any."""
        blobs = [holding.blob for holding in given if holding.blob not in fetched]
        suspects = [blob for blob in blobs if blob not in self.damaged and self._group.holders(blob)]
        self.damaged.update(suspects)
        if not suspects:  # what several say is refused last: a liar's may be beside it
            alone = [each for each in given if len(self._who_say(each)) < 2]
            self._refused.update(alone or given)

    def is_refused(self, holding: SnapshotRef) -> bool:
        """Whether it is of no use, as it is told of."""
        return holding in self._refused

    def arrived(self, holding: SnapshotRef) -> None:
        """Somebody has handed it out: who tells of just this has kept its word."""
        self.damaged.discard(holding.blob)
        self._broke_word.difference_update(self._who_say(holding))

    def not_had(self, holding: SnapshotRef) -> Note:
        """It was asked for often enough; who said to have it, for people."""
        self._refused.add(holding)
        who = self._who_say(holding)
        self._broke_word.update(who)
        return Note("blocks-not-had", (("from", self._group.names_of(who)),))

    def _who_say(self, holding: SnapshotRef) -> list[PeerId]:
        """Who have it by just this that is told of it, and not by something else of the same blob."""
        return [PeerId(record.peer) for record in self._group.records() if holding in record.holdings]

    def choose(
        self, stage: Run, state: State, held: Plan | None, is_local: Callable[[BlobId], bool]
    ) -> tuple[Run | None, list[SnapshotRef] | None]:
        """The trainer's own blocks that count, and saved ones for the rest of a stage; None where nobody has them.

        ``held``: the plan whose stage the trainer holds after just as many batches as ``state`` has. Its blocks count
        if they are of the history that the group goes on with.
        """
        have = None
        if held is not None and held.epoch == state[1]:
            pipeline = body_of(held).pipeline
            index = pipeline.stage_of(self._group.own_id)
            if index is not None:
                have = (pipeline.stages[index].start, pipeline.stages[index].stop)
        known = told_by(self.by_peer(ahead=True))
        return have, cover(missing(stage, have), state, known, lambda h: (is_local(h.blob), -h.span))
