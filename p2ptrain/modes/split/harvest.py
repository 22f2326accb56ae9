"""A harvest of split training: the pieces of one state, put side by side.

Invariant: every tensor of the global model comes from exactly one piece, and all are of the same average.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2ptrain.config import Job
from p2ptrain.core.harvest import Collected, Fetch, Harvest, Snapshot
from p2ptrain.core.plan import Plan
from p2ptrain.errors import UserError
from p2ptrain.ids import PeerId
from p2ptrain.modes.split.plan import body_of
from p2ptrain.modes.split.rounds.pieces import whole_states
from p2ptrain.modes.stages import assembly
from p2ptrain.wire.messages import SnapshotRef

missing, judged = assembly.missing, assembly.judged


async def fetch(
    plan: Plan, holdings: Sequence[SnapshotRef], fetch: Fetch
) -> tuple[Snapshot | None, dict[int, list[Snapshot]]]:
    """The pieces of the newest state that can be had, by their first block; {} if none can."""
    pieces = [ref for ref in holdings if ref.kind == "part" and ref.round > 0]
    got: dict[str, bytes] = {}
    for refs in whole_states(body_of(plan).split.num_blocks, pieces).values():
        for ref in refs:
            data = await fetch(ref, f"blocks {ref.part}-{ref.part + ref.span - 1} after {ref.round} rounds")
            if data is None:
                break  # perhaps an older state is whole
            got[ref.blob] = data
        else:
            return None, {ref.part: [Snapshot(ref, got[ref.blob])] for ref in refs}
    return None, {}


def lament(job: Job, plan: Plan, missing: Sequence[int]) -> str:
    """When there will be something."""
    return (
        "there is no average of all copies yet: that is after the first round (job file: training.epochs_per_round); "
        "`p2ptrain status` says how far it is"
    )


def contributors(collected: Collected) -> frozenset[PeerId]:
    """None: the updates are averaged round by round."""
    raise UserError(
        "split training averages all copies after every round, so nobody's contribution can be taken out of the model "
        "afterwards; train again without that device"
    )


def assemble(collected: Collected, *, allow_user_code: bool) -> Harvest:
    """Put the pieces together. Raises ``UserError`` for pieces that are not this job's model."""
    split = body_of(collected.plan).split

    def trainers(ref: SnapshotRef) -> list[str]:
        """Who had it in its units."""
        return sorted({unit.owner if ref.part < unit.cut else unit.helper or unit.owner for unit in split.units})

    return assembly.harvest_of(collected, split.num_blocks, trainers, allow_user_code=allow_user_code)
