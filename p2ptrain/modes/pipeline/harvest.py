"""A harvest of depth slices: saved runs of blocks, all of one step, put side by side.

Invariant: every tensor of the global model comes from exactly one run, and all runs are of the same step; between two
steps there is no model.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from p2ptrain.config import Job
from p2ptrain.core.plan import Plan
from p2ptrain.errors import RemoteError, UserError
from p2ptrain.planning.pipeline.coverage import cover, newest_covered
from p2ptrain.wire.messages import HEAD_PART, Holding

if TYPE_CHECKING:
    from torch import Tensor

Fetch = Callable[[Holding, str], Awaitable[bytes | None]]


async def fetch_slices(plan: Plan, holdings: Sequence[Holding], fetch: Fetch) -> dict[int, tuple[Holding, bytes]]:
    """Saved runs by their first block, which cover all blocks at the newest step that can be had; {} if none can."""
    num_blocks = plan.slices.pipeline.num_blocks if plan.slices else 0
    left = [holding for holding in holdings if holding.part != HEAD_PART]
    got: dict[str, bytes] = {}
    while step := newest_covered(num_blocks, left):
        chosen = cover([(0, num_blocks)], step, left, lambda holding: holding.blob in got) or []
        for holding in chosen:
            if holding.blob not in got:
                what = f"blocks {holding.part}-{holding.part + holding.span - 1} after {step} batches"
                data = await fetch(holding, what)
                if data is None:
                    left.remove(holding)  # perhaps somebody has another copy, or an older step is whole
                    break
                got[holding.blob] = data
        else:
            return {holding.part: (holding, got[holding.blob]) for holding in chosen}
    return {}


def assemble_slices(job: Job, runs: Sequence[tuple[Holding, bytes]], *, allow_user_code: bool) -> dict[str, Tensor]:
    """The global state. Raises ``UserError`` for runs that are not this job's model."""
    from p2ptrain.learning.averaging import check_state
    from p2ptrain.learning.snapshots import model_state, read_snapshot
    from p2ptrain.modes.tasks.parts import global_model

    like: Mapping[str, Tensor] = global_model(job, allow_user_code=allow_user_code).state_dict()
    state: dict[str, Tensor] = {}
    for holding, data in runs:
        try:
            tensors = model_state(read_snapshot(data)[0])
            check_state(tensors, {name: like[name] for name in tensors if name in like})
        except RemoteError as error:
            raise UserError(
                f"the copy of {holding.trainer} does not fit the job's model ({error}); try again"
            ) from None
        state |= {name: tensor for name, tensor in tensors.items() if name not in state}
    if absent := sorted(like.keys() - state.keys()):
        raise UserError(f"the saved blocks lack {absent[0]} and {len(absent) - 1} more tensors; try again")
    return {name: state[name] for name in like}
