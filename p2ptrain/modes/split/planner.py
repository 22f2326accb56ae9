"""Plans of split training: the first one of a group, the next one when peers come, go or change their speed, and what a
peer checks before it follows one.

Invariant: pure and deterministic: the inputs in any order give the same plan. A plan carries the figures that it was
computed from. Finding a plan is a search; ``follows`` does not repeat it. It sees that the plan fits the job, the model
and the peers, that everybody's samples are in it, and that nothing is slower than all alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from p2ptrain.config import Job
from p2ptrain.core.plan import PeerSnapshot, Plan, check_plan, clean, is_successor, successor
from p2ptrain.core.stages.considered import fitting
from p2ptrain.core.stages.figures import DeviceFigures, MeasuredPeer, are_usable, usable, words_of_unknown
from p2ptrain.errors import RemoteError, UserError
from p2ptrain.ids import PeerId
from p2ptrain.modes.split.choice import Choice, choice_of
from p2ptrain.modes.split.config import split_of
from p2ptrain.modes.split.plan import (
    MAX_STRETCH,
    SeenPace,
    ShutOut,
    SplitBody,
    StartPiece,
    body_of,
    shares_of,
    until_round,
    workers,
)
from p2ptrain.modes.split.rounds.claims import are_bounded, bounded, seen_from_now_on
from p2ptrain.modes.split.words import words_of_pairs
from p2ptrain.planning.devices.blocks import ModelProfile
from p2ptrain.planning.devices.profile_codec import chain_hash, rounded
from p2ptrain.planning.split.units import SplitPlan
from p2ptrain.wire.messages import Blame

SLOWER = 1 + 1e-3
"""A plan may be this much slower than all alone: figures are rounded."""

CHANGE_S = 2.0
"""Of a change of plan, beside the blocks that travel: the vote, and what is dropped of the round that has begun."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a group has seen under its plan."""

    from_round: int = 0
    start: tuple[StartPiece, ...] = ()
    """The newest state that is saved whole, after so many rounds; none: the initial weights."""
    lost: Collection[PeerId] = ()
    """Trainers of the plan that are there without their work: they were started again."""
    round_s: float = 0.0
    """Seconds of a round under the plan; 0 = not known."""
    blames: Mapping[PeerId, tuple[PeerId, Blame]] = field(default_factory=dict)
    """Trainers of the plan whose work was of no use: who said so, and why."""
    paces: Mapping[PeerId, float] = field(default_factory=dict)
    """Helpers that are slower than planned: seconds of a sample, as those see it that they help."""
    elapsed_s: float = 0.0
    """Of the round under way; 0 = it has only just begun, and little is lost with it."""


def first_plan(job: Job, model: ModelProfile, peers: Sequence[MeasuredPeer], proposer: PeerId) -> Plan:
    """The plan a group starts with. Raises ``UserError`` where there is none, saying what is missing."""
    snapshots = clean(job, [peer.snapshot for peer in peers])
    figures = fitting(usable(model, snapshots, peers))
    choice = choice_of(job, model, snapshots, figures)
    return _plan(job, model, snapshots, figures, choice, choice.best(), proposer, None, Known())


def next_plan(
    job: Job, model: ModelProfile, current: Plan, peers: Sequence[MeasuredPeer], proposer: PeerId, known: Known
) -> Plan | None:
    """The plan after ``current`` with the peers now here; None when the current one will do, or the job is done.

    Another plan is due when one who works is gone or has lost its work, when there are samples that no unit trains on,
    or when today's figures promise a gain of more than ``split.replan_gain``, and in the rounds that are left more
    seconds than the change takes. Raises ``UserError`` where the peers that are left can't train the model.
    """
    before = body_of(current)
    snapshots = clean(job, [peer.snapshot for peer in peers])
    present = {peer.peer for peer in snapshots}.difference(known.lost)
    is_torn = not present.issuperset(current.trainers())
    if not snapshots or known.from_round >= job.training.rounds:
        return None
    figures = fitting(usable(model, snapshots, peers, before.figures))
    seen = seen_from_now_on(model, snapshots, figures, before, known.from_round, known.paces)
    figures = bounded(model, snapshots, figures, seen, known.from_round)
    shut_out, figures, choice = _without_blamed(job, model, snapshots, figures, before, known)
    now = None if is_torn else choice.today(before.split)
    stretch = before.stretch if now is None else _stretch(now, known.round_s, before.stretch)
    split = _best(job, choice, stretch)
    if now is not None:
        has_all = {unit.owner for unit in split.units} <= {unit.owner for unit in before.split.units}
        is_better = split_of(job).strategy == "planned" and _is_worth_it(job, choice, now, split, stretch, known)
        if (has_all or known.elapsed_s) and not is_better:
            return None
    said = (stretch, shut_out, seen)
    return _plan(job, model, snapshots, figures, choice, split, proposer, current, known, *said)


def follows(job: Job, model: ModelProfile | None, plan: Plan, parent: Plan | None) -> bool:
    """Whether this job's peers can follow the plan. Without a model of its own yet a peer checks what it can."""
    body = plan.body
    if not isinstance(body, SplitBody) or plan.job != job.id or plan.mode != job.mode:
        return False
    settings = split_of(job)
    agreed = (body.split.batch_size, body.split.tails, body.split.medium, bool(body.split.kept_from))
    if agreed != (job.training.batch_size, settings.tails, settings.medium, settings.labels == "stay"):
        return False
    if body.from_round >= job.training.rounds or not _continues(plan, parent):
        return False
    try:
        check_plan(plan)
        if clean(job, plan.peers) != plan.peers:
            return False
        return model is None or _is_sound(job, model, plan, body)
    except (RemoteError, UserError):
        return False


def notes(job: Job, plan: Plan) -> list[str]:
    """What a person should know about the plan, a line each."""
    body = body_of(plan)
    unknown = words_of_unknown(plan, body.figures)
    shut_out = {e.peer: f"{e.peer}: {e.words}" for e in body.shut_out if body.is_shut_out(e.peer)}
    return [*words_of_pairs(plan), *(unknown | shut_out).values()]


def _without_blamed(
    job: Job,
    model: ModelProfile,
    snapshots: tuple[PeerSnapshot, ...],
    figures: tuple[DeviceFigures, ...],
    before: SplitBody,
    known: Known,
) -> tuple[tuple[ShutOut, ...], tuple[DeviceFigures, ...], Choice]:
    """Who is shut out from now on, and the others; nobody, where the others can't train."""
    listed = {each.peer: each for each in before.shut_out}
    for peer, (by, blame) in known.blames.items():
        times = listed[peer].times + 1 if peer in listed else 1
        listed[peer] = ShutOut(peer, times, until_round(known.from_round, times), by, blame.why)
    shut_out = tuple(listed[peer] for peer in sorted(listed))
    away = {each.peer for each in shut_out if each.until_round > known.from_round}
    left = tuple(each for each in figures if each.peer not in away)
    failed = {before.averager}.intersection(known.lost)  # the work of who averages is lost: its disk may be full
    try:
        choice = choice_of(job, model, snapshots, left, failed)
        if away:
            choice.best()
    except UserError:
        if not away:
            raise
        back = tuple(replace(each, until_round=min(each.until_round, known.from_round)) for each in shut_out)
        return back, figures, choice_of(job, model, snapshots, figures, failed)
    return shut_out, left, choice


def _best(job: Job, choice: Choice, stretch: float) -> SplitPlan:
    """All alone where help was seen to bring less than it promised."""
    split = choice.best()
    if stretch == 1 or not split.helpers or split_of(job).strategy != "planned":
        return split
    alone = choice.alone({unit.owner for unit in split.units})
    return alone if alone is not None and _judged_s(alone, stretch) < _judged_s(split, stretch) else split


def _stretch(plan: SplitPlan, round_s: float, before: float) -> float:
    """As ``SplitBody.stretch``, with what was seen under the plan, whose seconds are by today's figures."""
    if round_s <= 0 or not plan.helpers:
        return before
    return rounded(min(max(round_s / max(plan.round_s, 1e-9), 1.0), MAX_STRETCH))


def _judged_s(plan: SplitPlan, stretch: float) -> float:
    """What took longer than predicted is taken to take longer in any plan in which somebody helps; where nobody does,
    the end of a round is, in which all hand on what they trained."""
    return plan.round_s + (stretch - 1) * (plan.round_s if plan.helpers else plan.exchange_s)


def _is_worth_it(job: Job, choice: Choice, now: SplitPlan, other: SplitPlan, stretch: float, known: Known) -> bool:
    """Whether the other plan brings more than the change to it costs. The rounds that are left pay for that; if a round
    is well under way, what is left of it does: with the next one a change costs less."""
    now_s, other_s = _judged_s(now, stretch), _judged_s(other, stretch)
    if known.elapsed_s:
        change_s = CHANGE_S + choice.moving_s(now, other)
        return now_s - known.elapsed_s > other_s * (1 + split_of(job).replan_gain) + change_s
    gained_s = (now_s - other_s) * (job.training.rounds - known.from_round)
    return now_s > other_s * (1 + split_of(job).replan_gain) and gained_s > CHANGE_S + choice.moving_s(now, other)


def _plan(
    job: Job,
    model: ModelProfile,
    snapshots: tuple[PeerSnapshot, ...],
    figures: tuple[DeviceFigures, ...],
    choice: Choice,
    split: SplitPlan,
    proposer: PeerId,
    parent: Plan | None,
    known: Known,
    stretch: float = 1.0,
    shut_out: tuple[ShutOut, ...] = (),
    seen: tuple[SeenPace, ...] = (),
) -> Plan:
    working = set(workers(split))
    split = replace(split, standby=tuple(peer.peer for peer in snapshots if peer.peer not in working))
    body = SplitBody(
        chain_hash(model),
        split,
        choice.averager(split),
        shares_of(model, split),
        figures,
        known.from_round,
        known.start,
        stretch,
        shut_out,
        seen,
    )
    return successor(job, snapshots, body, proposer, parent)


# --- checks -----------------------------------------------------------------------------------------------------------


def _continues(plan: Plan, parent: Plan | None) -> bool:
    """Whether the plan may follow its parent. It may begin before it: what was lost with a peer is done again."""
    if parent is None:
        return True
    before, after = body_of(parent), body_of(plan)
    listed = {each.peer: each.times for each in after.shut_out}
    goes_on = all(listed.get(each.peer, 0) >= each.times for each in before.shut_out)
    listed = {each.peer: each.times for each in after.seen}
    goes_on = goes_on and all(listed.get(each.peer, 0) >= each.times for each in before.seen)
    return goes_on and body_of(parent).chain == body_of(plan).chain and is_successor(plan, parent)


def _is_sound(job: Job, model: ModelProfile, plan: Plan, body: SplitBody) -> bool:
    """Whether the plan is one of this model, and worth having. Raises ``UserError`` if nothing can be."""
    split = body.split
    if (body.chain, split.model, split.num_blocks) != (chain_hash(model), model.name, len(model.blocks)):
        return False
    if body.shares != shares_of(model, split):
        return False
    if not are_usable(model, plan, body.figures) or not are_bounded(model, plan, body):
        return False
    cuts = {index + 1 for index, block in enumerate(model.blocks[:-1]) if block.cut_after}
    if any(unit.cut not in cuts | {len(model.blocks)} for unit in split.units):
        return False
    if split.kept_from not in (0, max(cuts)):
        return False
    choice, owners = choice_of(job, model, plan.peers, body.figures), {unit.owner for unit in split.units}
    left_out = set(choice.owners) - owners
    if not owners <= set(choice.owners) or not all(choice.is_unable(owner) for owner in left_out):
        return False
    choice = choice.averaged_by(split, body.averager)
    if split_of(job).strategy != "planned":
        return replace(choice.best(), standby=split.standby) == split
    now, alone = choice.today(split), choice.alone(owners)
    if now is None or not choice.fits(split):
        return False
    return alone is None or now.round_s <= SLOWER * alone.round_s
