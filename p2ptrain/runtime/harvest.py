"""Collecting one fresh copy of every part from a group, and having its mode assemble the global model from them."""

from __future__ import annotations

from collections.abc import Callable

from p2ptrain.core.harvest import Collected, Harvest
from p2ptrain.errors import NotCoveredError, UserError
from p2ptrain.ids import PeerId
from p2ptrain.modes.registry import mode_of
from p2ptrain.runtime.node.observer_node import ObserverNode
from p2ptrain.wire.messages import SnapshotRef

FETCH_TIMEOUT_S = 300.0
ATTEMPTS = 3
"""Snapshots are replaced while a group trains: look again for fresher ones so often."""


async def collect(
    node: ObserverNode, wait_s: float, *, partial: bool, say: Callable[[str], None] = lambda text: None
) -> Collected:
    """Fetch the freshest copies that anyone alive has. Raises ``NotCoveredError``, ``UserError``."""
    await node.look_around(wait_s, need_job=True)
    observer = node.observer
    job, plan = observer.job, observer.plan()
    if job is None or plan is None:
        raise UserError(
            "the group has no plan yet, so there is nothing to harvest; `p2ptrain status` says what it waits for"
        )
    harvester = mode_of(job).harvester

    async def fetch(holding: SnapshotRef, what: str) -> bytes | None:
        say(f"{what}: {holding.num_bytes / 1e6:.1f} MB, trained by {_name(node, holding.trainer)}")
        return await node.fetch(holding, FETCH_TIMEOUT_S)

    for attempt in range(ATTEMPTS):
        holdings = {h.blob: h for record in observer.alive() for h in record.holdings}.values()
        result, parts = await harvester.fetch(plan, list(holdings), fetch)
        missing = harvester.missing(plan, parts)
        has_result = any(h.kind == "head" for record in observer.alive() for h in record.holdings)
        if (not missing and (result is not None or not has_result)) or attempt == ATTEMPTS - 1:
            break
        await node.look_around(wait_s, need_job=True)
        plan = observer.plan() or plan
    if not parts or (missing and not partial):
        raise NotCoveredError(harvester.lament(job, plan, missing))
    trained = frozenset(record.part for record in observer.alive() if record.phase != "failed")
    return Collected(job, plan, parts, result, dict(observer.records), trained)


def _name(node: ObserverNode, peer: PeerId) -> str:
    record = node.observer.records.get(peer)
    return record.name if record else peer


def assemble(collected: Collected, *, allow_user_code: bool = False) -> Harvest:
    """Put the parts together. Raises ``UserError`` for parts that don't fit."""
    return mode_of(collected.job).harvester.assemble(collected, allow_user_code=allow_user_code)
