"""Votes outlive their peer: whatever dies, returns, is cut off or gets lost, no two plans of one epoch take effect."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seeds import seeds
from test_agreement import Group, Quick, agreement, plan_of, record, reply
from test_ballot import FIRST, VOTES, adopted, after, name, rivals, votes, voting

from p2ptrain.core.plan import Plan
from p2ptrain.protocol.consensus.agreement import Agreement
from p2ptrain.protocol.consensus.ballot import KeepVote, PlanRef
from p2ptrain.protocol.consensus.epochs import GENERATION
from p2ptrain.protocol.machine import Note, Send
from p2ptrain.wire.messages import PlanVote


class Uncertain(Agreement[Plan]):
    """Of whose disk nothing is heard yet."""


def test_nobody_hears_of_a_vote_before_it_is_kept() -> None:
    second = after(FIRST, 0, 1)
    wide = agreement(2, FIRST, config=VOTES, kind=Uncertain)
    wide.view_changed([voting(0, FIRST, second), record(1, FIRST), record(2, FIRST)], 0.0)
    effects = wide.received(name(0), reply(second), 0.1)
    assert effects == [KeepVote(PlanRef(2, second.hash))] and wide.hash == FIRST.hash
    (note,) = wide.vote_kept(PlanRef(2, second.hash), False, 0.2)
    assert isinstance(note, Note) and note.kind == "vote-not-kept", "a full disk"
    effects = wide.vote_kept(PlanRef(2, second.hash), True, 0.3)
    assert votes(effects) == [second.hash] and adopted(effects) == [second.hash]
    assert wide.vote_kept(PlanRef(2, second.hash), True, 0.4) == [], "once"


def test_who_voted_and_died_does_not_vote_again_in_that_epoch_and_says_for_what_it_did() -> None:
    wide = plan_of(0, 1, 2, 3, 4)
    one, other = (after(wide, 0, 1, 2, 3, proposer=proposer) for proposer in (0, 1))
    for voted, expected in ((None, [other.hash]), (PlanRef(2, one.hash), []), (PlanRef(3, "0" * 64), [])):
        returned = agreement(2, wide, config=VOTES, voted=voted)
        returned.view_changed([record(0, wide), voting(1, wide, other), record(2, wide)], 0.0)
        effects = returned.received(name(1), reply(other), 0.1)
        assert votes(effects) == expected
        if voted is not None:
            assert Send(name(1), PlanVote(voted.hash, voted.epoch, False)) in effects


def test_a_proposer_that_died_takes_another_epoch() -> None:
    again = agreement(0, FIRST, config=VOTES, voted=PlanRef(2, rivals()[0].hash))
    again.view_changed([record(0, FIRST), record(1, FIRST)], 0.0)
    again.tick(VOTES.settle_s)
    assert isinstance(again, Quick) and again.kept is not None and again.kept.epoch > GENERATION


def happenings(group: Watched, before: Plan, num: int) -> None:
    """Kills, returns from disk (now and then without the last plan, which was not written in time), cuts."""
    disks: dict[int, tuple[list[Plan], PlanRef | None]] = {}
    for _ in range(num):
        group.run(group.rng.choice((0.1, 1.0, 5.0, 20.0)) * group.rng.uniform(0.5, 1.5))
        on = sorted(group.machines)
        match kind := group.rng.choice(("kill", "kill", "leave", "return", "return", "cut", "heal")):
            case "kill" | "leave" if len(on) > 1:
                index = group.rng.choice(on)
                for other in on if kind == "leave" else ():
                    if group.reaches(index, other):
                        group.left[other].add(index)
                machine = group.machines.pop(index)
                assert isinstance(machine, Quick) and machine.current is not None
                disks[index] = [*disks.get(index, ([before], None))[0], machine.current], machine.kept
            case "return" if off := sorted(set(disks) - set(on)):
                index = group.rng.choice(off)
                plans, voted = disks[index]
                group.start(index, plans[group.rng.choice((-1, -1, -2))], voted)
                machine = group.machines[index]
                assert isinstance(machine, Quick)
                machine.kept = voted
            case "cut":
                group.side = {index: group.rng.randrange(2) for index in group.side}
            case "heal":
                group.side = dict.fromkeys(group.side, 0)


def check_epochs(seen: dict[int, set[str]], before: Plan) -> None:
    assert all(len(hashes) == 1 for epoch, hashes in seen.items() if epoch > before.epoch), seen


class Watched(Group):
    """Remembers what ever took effect, also with those who died."""

    def start(self, index: int, restored: Plan | None = None, voted: PlanRef | None = None) -> None:
        self.seen = getattr(self, "seen", {})
        self.left = getattr(self, "left", {})
        self.left[index] = set()
        super().start(index, restored, voted)

    def look(self, index: int) -> None:
        """Who said goodbye is taken to be gone by all who heard it, until they meet again."""
        self.left[index] = {other for other in self.left[index] if not self.reaches(index, other)}
        seen = [r for r in self.records[index].values() if self.reaches(index, int(r.peer[4:]))]
        left = [name(other) for other in self.left[index]]
        self.carry_out(index, self.machines[index].view_changed(seen, self.now, left))

    def carry_out(self, index: int, effects: list[object]) -> None:
        super().carry_out(index, effects)
        for ref in self.epochs.get(index, []):
            self.seen.setdefault(ref.epoch, set()).add(ref.hash)


def watched(size: int, seed: int, loss: float, *, alone: bool) -> tuple[Watched, Plan]:
    group = Watched(size, seed, config=VOTES, alone=alone)
    group.run(60)
    group.loss = loss
    return group, group.assert_agreed()


@pytest.mark.parametrize("seed", seeds(40))
def test_of_one_epoch_one_plan_takes_effect(seed: int) -> None:
    group, before = watched(3 + seed % 4, seed, (0.0, 0.2, 0.5)[seed % 3], alone=bool(seed % 2))
    happenings(group, before, 15)
    check_epochs(group.seen, before)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 6), st.integers(0, 2**32), st.sampled_from((0.0, 0.3)), st.booleans(), st.integers(1, 25))
def test_whatever_happens_of_one_epoch_one_plan_takes_effect(
    size: int, seed: int, loss: float, alone: bool, num: int
) -> None:
    group, before = watched(size, seed, loss, alone=alone)
    happenings(group, before, num)
    check_epochs(group.seen, before)
