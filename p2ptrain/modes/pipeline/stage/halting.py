"""How the stage that a trainer holds gives way to the next plan: after which batch it halts, and what it hands over.

Invariant: no batch is trained on the way to a plan that has no use for it. Where parts of a group meet that went on
apart, the plan goes on with one history, and whoever trained another one halts at once.
"""

from __future__ import annotations

from p2ptrain.core.plan import Plan
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.commands import StopAt
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.planning.pipeline.coverage import pieces_for_others


def halt(trained: Plan | None, plan: Plan, own: PeerId, *, has_halted: bool) -> StopAt:
    """For the trainer of ``own``. ``trained``: the plan whose stage it holds; ``has_halted``: for an earlier plan."""
    body = body_of(plan)
    leads_there = trained is not None and not body.goes_back and trained.epoch == body.from_epoch
    if trained is None or not leads_there:
        return StopAt(plan.epoch, body.from_step, (), now=True)
    pieces = pieces_for_others(body_of(trained).pipeline, body.pipeline, own)
    return StopAt(plan.epoch, body.from_step, tuple(pieces), now=has_halted)
