"""A vote on disk that its peer never cast: of another group, made up, or damaged. It costs time, and never a plan.

The group goes on however it is bound, no two plans of one epoch take effect, and nobody is blamed for it.
"""

from __future__ import annotations

import dataclasses

import pytest
from test_agreement import agreement, name, record, reply
from test_ballot import FIRST, VOTES, after, votes
from test_votes_kept import check_epochs, watched

from p2ptrain.core.plan import MAX_EPOCH, Plan, is_successor
from p2ptrain.protocol.consensus.ballot import UNREADABLE, PlanRef
from p2ptrain.protocol.consensus.epochs import GENERATION, MAX_JUMP, MAX_STEP, MAX_VOTE_STEP, epoch_apart
from p2ptrain.protocol.machine import Send
from p2ptrain.wire import codec
from p2ptrain.wire.messages import PlanRequest, PlanVote

PLANTED = {
    "of another group, the next one": PlanRef(2, "a" * 64),
    "of another group, ahead": PlanRef(40, "a" * 64),
    "of who went alone elsewhere": PlanRef(epoch_apart(40, name(3)), "a" * 64),
    "damaged": PlanRef(GENERATION - 1, UNREADABLE),
    "further than others count": PlanRef(MAX_JUMP + GENERATION, "a" * 64),
    "as far as can be": PlanRef(MAX_VOTE_STEP, "a" * 64),
}


@pytest.mark.parametrize(("who", "size"), [(0, 2), (1, 3)])
@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_a_group_gets_its_next_plan_all_the_same(planted: PlanRef, who: int, size: int) -> None:
    group, before = watched(size, 7, 0.0, alone=True)
    plan = group.machines[who].current
    del group.machines[who]
    group.start(who, plan, planted)
    group.start(size)
    for _ in range(18):
        group.run(10)
        if len(group.plans()) == 1 and all(machine.epoch > before.epoch for machine in group.machines.values()):
            break
    last = group.assert_agreed()
    assert last.epoch > before.epoch and name(size) in last.trainers()
    check_epochs(group.seen, before)


def test_what_a_peer_with_a_damaged_vote_tells_can_be_sent_and_is_asked_of_nobody() -> None:
    second = after(FIRST, 0, 1, 2, 3)
    bound = agreement(1, FIRST, config=VOTES, voted=PlanRef(GENERATION - 1, UNREADABLE))
    bound.view_changed([record(0, FIRST, vote=second.hash), record(1, FIRST), record(2, FIRST)], 0.0)
    effects = bound.received(name(0), reply(second), 0.1)
    assert votes(effects) == []
    (told,) = (effect.message for effect in effects if isinstance(effect, Send))
    assert isinstance(told, PlanVote) and codec.decode(codec.encode(told), "control")[1] == told
    proposer = agreement(0, FIRST, config=VOTES)
    proposer.view_changed([record(0, FIRST), record(1, FIRST), record(2, FIRST)], 0.0)
    asked = [e.message for e in proposer.received(name(1), told, 0.2) if isinstance(e, Send)]
    assert not any(isinstance(message, PlanRequest) for message in asked)


@pytest.mark.parametrize(
    ("epoch", "follows"),
    [(1, False), (2, True), (MAX_STEP + 1, True), (MAX_STEP + 2, False), (2**50, False), (MAX_EPOCH, False)],
)
def test_a_plan_of_an_absurd_epoch_does_not_follow(epoch: int, follows: bool) -> None:
    """Else one member uses all epochs up: after the last one there are no plans."""
    plan: Plan = dataclasses.replace(FIRST, epoch=epoch, parent=FIRST.hash)
    assert is_successor(plan, FIRST) == follows
