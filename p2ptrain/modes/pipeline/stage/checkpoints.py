"""What the group has saved of a pipeline's blocks, as far as it is known here, and what of it is worth keeping.

Invariant: a state that was saved whole, and for each member one that is whole without it, are kept until newer ones
are: stages are up to a batch apart, disks are unlike, and the newest snapshot of one stage alone is of no use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.ids import BlobId
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.planning.pipeline.coverage import (
    Run,
    State,
    cover,
    missing,
    newest_covered,
    states_to_keep,
    whole_epoch,
)
from p2ptrain.wire.messages import SnapshotRef

MAX_OLDER = 3
"""Snapshots kept beside the newest one of the same blocks and trainer."""


class Checkpoints:
    """``own``: what is saved here. ``refused``: blobs that are not what they should be, or that nobody hands out."""

    def __init__(self, group: GroupView, own: Callable[[], Iterable[SnapshotRef]]) -> None:
        self.refused: set[BlobId] = set()
        self._group = group
        self._own = own
        self._to_keep: list[State] = []
        """What the group can go back to, the newest first."""

    def by_peer(self) -> dict[str, list[SnapshotRef]]:
        """Saved runs of blocks, by the members that have them, this one included."""
        group = self._group
        found: dict[str, list[SnapshotRef]] = {}
        for member in group.members():
            record = group.record(member)
            held = self._own() if member == group.own_id else record.holdings if record is not None else ()
            found[member] = [h for h in held if h.kind == "part" and h.blob not in self.refused]
        return found

    def known(self) -> list[SnapshotRef]:
        """All of them, each once."""
        return list({h.blob: h for held in self.by_peer().values() for h in held}.values())

    def newest_step(self, plan: Plan) -> int:
        """The newest step that is saved whole; 0: the initial weights."""
        return newest_covered(body_of(plan).pipeline.num_blocks, self.known())

    def look(self, plan: Plan) -> None:
        """Members came or went, or have saved something."""
        self._to_keep = states_to_keep(body_of(plan).pipeline.num_blocks, self.by_peer())

    def surplus(self, older: Sequence[SnapshotRef]) -> list[SnapshotRef]:
        """Of these, all older than one more of the same blocks and trainer, what the group will not go back to.

        Beside what is saved whole the newest counts, which may get whole yet. As long as nothing is known to be whole,
        as after a restart, anything may be wanted.
        """
        if not self._to_keep:
            return list(older[:-MAX_OLDER])
        hoped = [h for h in older if h.step > self._to_keep[0][0]][-1:]
        return [h for h in older if h not in hoped and (h.step, h.epoch) not in self._to_keep]

    def refuse(self, plan: Plan) -> None:
        """What others saved, and this peer's stage may have been made of, did not fit: it is not tried again."""
        own = self._group.own_id
        part = plan.part_of(own)
        if part is None:
            return
        stage, step = body_of(plan).pipeline.stages[part.index], body_of(plan).from_step
        for h in self.known():
            overlaps = h.part < stage.stop and stage.start < h.part + h.span
            if overlaps and h.step == step and h.trainer != own:
                self.refused.add(h.blob)

    def choose(
        self, stage: Run, step: int, held: Plan | None, is_local: Callable[[BlobId], bool]
    ) -> tuple[Run | None, list[SnapshotRef] | None]:
        """The trainer's own blocks that count, and saved ones for the rest of a stage; None where nobody has them.

        ``held``: the plan whose stage the trainer holds after just ``step`` batches. Its blocks count if they are of
        the history that the others go on from.
        """
        have, known = None, self.known()
        if held is not None:
            pipeline = body_of(held).pipeline
            index = pipeline.stage_of(self._group.own_id)
            if index is not None and whole_epoch(pipeline.num_blocks, step, known) in (None, held.epoch):
                have = (pipeline.stages[index].start, pipeline.stages[index].stop)
                known = [holding for holding in known if holding.epoch == held.epoch]
        return have, cover(missing(stage, have), step, known, lambda h: (is_local(h.blob), -h.span))
