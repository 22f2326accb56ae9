"""Which job a peer trains that was given none: the group's, or else the one that is kept here of this group.

Invariant: a job that nobody at this device asked for by name gives way to the one that the others have; what was
trained of it stays on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from p2ptrain.errors import UserError
from p2ptrain.ids import GroupTag, JobId
from p2ptrain.model_config import flags_to_allow, refused_code
from p2ptrain.runtime.peer.peer import Peer
from p2ptrain.runtime.store.kept import KeptJob, kept_job

JOB_WAIT_S = 5.0
"""So long the group may tell its job before the one that is kept here is taken."""
JOB_WAIT_AGAIN_S = (5.0, 20.0)
"""After a job was left for another: by chance, so that of two peers that gave way to each other one is the first."""
LOOK_S = 1.0
NEWS_S, ALONE_S = 2.0, 20.0
"""So long nobody else may have this peer's job before it takes the one that the others have: the first where it has
nothing to do by its own."""


async def wait_for_kept(state: Path, group: GroupTag, wait_s: float, allow_user_code: str) -> KeptJob | None:
    """The job that this group had here last, after so long. Raises ``UserError`` if its model may not run here."""
    await asyncio.sleep(wait_s)
    kept = await asyncio.to_thread(kept_job, state, group)
    if kept is not None and (names := refused_code(kept.job.own_code, allow_user_code)):
        flags = " ".join(flags_to_allow(names, kept.job.model.name))
        raise UserError(
            f"the job that is kept here has code of your own ({', '.join(names)}): let it run with {flags}, or set the "
            "job aside with --fresh"
        )
    return kept


async def superseded(peer: Peer, now: Callable[[], float]) -> JobId:
    """Waits until others have another job, while nobody has this peer's or it has nothing left to do; their job."""
    since = now()
    while True:
        await asyncio.sleep(LOOK_S)
        records = [record for each in peer.group.alive() if (record := peer.records.get(each)) is not None]
        others = sorted({record.job for record in records if record.job} - {peer.job_id})
        is_done = peer.records.own.phase == "done"
        is_shared = any(record.job == peer.job_id for record in records)
        if not peer.job_id or not others or (is_shared and not is_done):
            since = now()
        is_idle = is_done or peer.role is None or peer.role.plan is None
        if now() - since > (NEWS_S if is_idle else ALONE_S):
            return JobId(others[0])
