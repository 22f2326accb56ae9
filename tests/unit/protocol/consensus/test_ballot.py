"""Plans that need votes: one peer's steps, and groups that split, die and come back in virtual time."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_agreement import CONFIG, JOB, Group, agreement, name, plan_of, record, reply

from p2ptrain.core.plan import Plan, snapshot
from p2ptrain.ids import PeerId
from p2ptrain.modes.tasks.planning.assignment import next_plan
from p2ptrain.protocol.consensus.ballot import MAX_CANDIDATES, Ballot, KeepVote, PlanRef, carries
from p2ptrain.protocol.consensus.epochs import CLASSES, GENERATION, epoch_apart
from p2ptrain.protocol.consensus.rules import PlanAdopted, VoteFor
from p2ptrain.protocol.machine import Note, Send
from p2ptrain.wire.messages import PlanRequest, PlanVote, Record

VOTES = dataclasses.replace(CONFIG, majority=True)
FIRST = plan_of(0, 1, 2)


def after(plan: Plan, *indices: int, proposer: int | None = None) -> Plan:
    made = next_plan(
        JOB, plan, [snapshot(record(i)) for i in indices], name(min(indices) if proposer is None else proposer)
    )
    assert made is not None
    return made


def voting(index: int, plan: Plan, candidate: Plan | None) -> Record:
    return record(index, plan, vote=candidate.hash if candidate else "")


def adopted(effects: list[object]) -> list[str]:
    return [effect.hash for effect in effects if isinstance(effect, PlanAdopted)]


def votes(effects: list[object]) -> list[str]:
    return [effect.hash for effect in effects if isinstance(effect, VoteFor)]


# --- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("voters", "participants", "enough"),
    [("abc", "abcde", True), ("ab", "abcde", False), ("ab", "abcd", True), ("cd", "abcd", False), ("a", "ab", True),
     ("b", "ab", False), ("xyz", "abc", False), ("abxy", "abc", True), ("", "a", False), ("", "", True)],
)  # fmt: skip
def test_a_majority_or_the_half_with_the_lowest_id(voters: str, participants: str, enough: bool) -> None:
    assert carries([PeerId(v) for v in voters], [PeerId(p) for p in participants]) == enough


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 9), st.integers(0, 9))
def test_epochs_apart_are_later_and_nobody_else_s(one: int, other: int, a: int, b: int) -> None:
    ours, theirs = epoch_apart(one, name(a)), epoch_apart(other, name(b))
    assert one < ours and other < theirs and ours // GENERATION - one // GENERATION <= CLASSES
    assert a == b or ours // GENERATION != theirs // GENERATION


@given(st.sets(st.integers(0, 9), min_size=1), st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)), st.data())
def test_two_sides_never_both_carry(everyone: set[int], gone: set[int], left: set[int], data: st.DataObject) -> None:
    """Also where each side has heard of the goodbye of others of those that left."""
    voters = sorted(everyone - gone - left)
    one = set(data.draw(st.lists(st.sampled_from(voters), unique=True))) if voters else set()
    other = set(voters) - one
    heard = [set(data.draw(st.lists(st.sampled_from(sorted(left)), unique=True))) if left else set() for _ in range(2)]
    both = [
        carries({name(v) for v in side}, {name(p) for p in everyone - known})
        for side, known in zip((one, other), heard, strict=True)
        if side
    ]
    assert both.count(True) <= 1


def test_nobody_waits_for_those_whose_processes_have_ended() -> None:
    everyone = [name(i) for i in range(4)]
    ballot: Ballot[str] = Ballot(name(2), 8.0, 20.0)
    ref = PlanRef(2, "a" * 64)
    ballot.choose(ref, 100.0)
    ballot.cast(ref, 100.0)
    ballot.count_heads([name(2), name(3)], everyone, 100.0)
    assert ballot.is_short and ballot.deadline() == 120.0
    ballot.ended = frozenset({name(0)})
    ballot.count_heads([name(2), name(3)], everyone, 100.5)
    assert ballot.deadline() == 120.0, "one of the two may be elsewhere"
    ballot.ended = frozenset({name(0), name(1)})
    ballot.count_heads([name(2), name(3)], everyone, 101.0)
    assert ballot.is_short and ballot.deadline() <= 101.0


def test_a_group_whose_last_peer_is_left_does_not_take_itself_for_the_part_that_is_cut_off() -> None:
    four = plan_of(0, 1, 2, 3)
    last = agreement(3, four, config=VOTES)
    last.view_changed([record(3, four)], 0.0)
    assert last.next_deadline() >= VOTES.minority_s
    last.view_changed([record(3, four)], 1.0, ended=[name(0), name(1), name(2)])
    assert last.next_deadline() <= VOTES.settle_s + 1.0


def test_candidates_are_bounded_and_the_own_one_stays() -> None:
    ballot: Ballot[str] = Ballot(name(0), 8.0, 20.0)
    worst = PlanRef(2, "f" * 64)
    ballot.stand(worst, "mine", b"mine")
    assert ballot.choose(worst, 0.0) == [KeepVote(worst)]
    for number in range(100):
        ballot.stand(PlanRef(2, f"{number:064x}"), "flood", b"flood")
    assert len(ballot.candidates()) == MAX_CANDIDATES + 1
    assert ballot.get(worst.hash) == ("mine", b"mine")
    assert ballot.get(f"{0:064x}") is not None and ballot.get(f"{99:064x}") is None


# --- one peer --------------------------------------------------------------------------------------------------------


def test_of_three_two_go_on_without_the_third() -> None:
    proposer, other = agreement(0, FIRST, config=VOTES), agreement(1, FIRST, config=VOTES)
    second = after(FIRST, 0, 1)
    proposer.view_changed([record(0, FIRST), record(1, FIRST)], 0.0)
    effects = proposer.tick(3.0)
    assert effects[0] == VoteFor(second.hash, second) and isinstance(effects[-1], Note)
    assert effects[1:-1] == [Send(name(1), PlanVote(second.hash, 2, False))]
    assert adopted(effects) == [] and proposer.hash == FIRST.hash
    words = proposer.waiting_for(3.0)
    assert f"votes for plan {second.hash[:8]} of epoch 2: 1 of 3" in words
    assert name(1) in words and name(2) in words
    assert proposer.next_deadline() == 3.0 + VOTES.vote_s

    effects = other.view_changed([voting(0, FIRST, second), record(1, FIRST)], 4.0)
    assert effects == [Send(name(0), PlanRequest(second.hash))]
    assert proposer.received(name(1), PlanRequest(second.hash), 4.1) == [Send(name(1), reply(second))]
    effects = other.received(name(0), reply(second), 4.2)
    assert votes(effects) == [second.hash] and adopted(effects) == [second.hash]

    effects = proposer.view_changed([record(0, FIRST), voting(1, second, second)], 5.0)
    assert effects[0] == PlanAdopted(second, second.hash, True)
    assert proposer.epoch == 2 and "votes" not in proposer.waiting_for(5.0)


def test_of_two_the_lower_id_goes_on_at_once_and_the_other_after_a_while_and_says_so() -> None:
    pair = plan_of(0, 1)
    lower, higher = agreement(0, pair, config=VOTES), agreement(1, pair, config=VOTES)
    lower.view_changed([record(0, pair)], 0.0)
    effects = lower.tick(VOTES.settle_s)
    assert adopted(effects) == [after(pair, 0).hash]
    higher.view_changed([record(1, pair)], 0.0)
    now = 0.0
    while not higher.waiting_for(now).startswith("votes"):
        now = higher.next_deadline()
        assert adopted(higher.tick(now)) == []
    assert "1 of 2" in higher.waiting_for(now) and name(0) in higher.waiting_for(now)
    assert adopted(higher.tick(VOTES.alone_s - 0.1)) == []
    note, follows, *_ = higher.tick(VOTES.alone_s)
    assert isinstance(note, Note) and note.kind == "goes-on-alone" and dict(note.fields)["here"] == 1
    assert isinstance(follows, PlanAdopted) and follows.plan.trainers().keys() == {name(1)}
    assert higher.epoch == epoch_apart(1, name(1)), "which the other, or who goes on with it, never comes to"


def test_who_may_not_go_on_alone_waits() -> None:
    pair = plan_of(0, 1)
    higher = agreement(1, pair, config=VOTES, alone=False)
    higher.view_changed([record(1, pair)], 0.0)
    now = 0.0
    while now < 100 * VOTES.alone_s:
        now = higher.next_deadline()
        assert adopted(higher.tick(now)) == []
    assert "votes for plan" in higher.waiting_for(now) and "of epoch 2" in higher.waiting_for(now)


def test_a_proposer_learns_which_epoch_is_over() -> None:
    wide = plan_of(0, 1, 2, 3)
    voter, cast = agreement(2, wide, config=VOTES), dataclasses.replace(after(wide, 1, 2), epoch=5)
    voter.view_changed([voting(1, wide, cast), record(2, wide)], 0.0)
    assert votes(voter.received(name(1), reply(cast), 0.1)) == [cast.hash]
    proposer = agreement(0, wide, config=VOTES)
    everyone = [record(i, wide) for i in range(3)]
    proposer.view_changed(everyone, 1.0)
    (vote,) = [e for e in proposer.tick(1.0 + VOTES.settle_s) if isinstance(e, VoteFor)]
    assert vote.plan is not None and vote.plan.epoch == 2
    voter.view_changed(everyone, 5.0)
    voter.received(name(0), PlanVote(vote.hash, 2, False), 5.1)
    answer = PlanVote(cast.hash, 5, False)
    assert voter.received(name(0), reply(vote.plan), 5.2) == [Send(name(0), answer)]
    assert proposer.received(name(2), answer, 5.3) == [Send(name(2), PlanRequest(cast.hash))]
    assert votes(proposer.received(name(2), reply(cast), 5.3)) == [], "of four, two votes with the lowest id would do"
    proposer.received(name(1), answer, 5.3)
    assert proposer.next_deadline() == 5.3 + VOTES.settle_s, "nobody may vote for it any more"
    (vote,) = [e for e in proposer.tick(5.3 + VOTES.settle_s) if isinstance(e, VoteFor)]
    assert vote.plan is not None and vote.plan.epoch == epoch_apart(5, name(0))
    voter.received(name(0), PlanVote(vote.hash, vote.plan.epoch, False), 9.0)
    assert votes(voter.received(name(0), reply(vote.plan), 9.1)) == [vote.hash]


def test_nobody_waits_for_the_vote_of_who_said_goodbye() -> None:
    pair = plan_of(0, 1)
    higher = agreement(1, pair, config=VOTES)
    higher.view_changed([record(1, pair)], 0.0, left=[name(0)])
    apart = dataclasses.replace(after(pair, 1), epoch=epoch_apart(2, name(1)))
    assert adopted(higher.tick(3.0)) == [apart.hash], "where it comes back and votes, it is in another epoch"


def test_without_a_vote_on_it_a_plan_is_not_followed_just_because_somebody_says_so() -> None:
    machine = agreement(1, FIRST, config=VOTES)
    false = after(FIRST, 0, 1, 2, 5)
    machine.view_changed([record(0, FIRST), record(1, FIRST), record(2, FIRST), record(5, false)], 0.0)
    effects = machine.received(name(5), reply(false), 0.1)
    assert adopted(effects) == [] and votes(effects) == [false.hash]  # it is better, so it has this peer's vote
    effects = machine.view_changed([record(0, FIRST), record(2, false), record(5, false)], 0.2)
    assert adopted(effects) == [false.hash]  # a follower among the participants counts


def test_a_plan_from_an_unknown_one_is_followed_once_somebody_does() -> None:
    wide = plan_of(0, 1, 2, 4)
    second = after(wide, 0, 1, 2)
    third = after(second, 0, 1, 2, 3)
    joiner = agreement(3, config=VOTES)
    joiner.view_changed([voting(0, second, third), record(1, wide), record(3)], 0.0)
    assert joiner.received(name(0), reply(third), 0.1) == [Send(name(0), PlanRequest(second.hash))]
    assert Send(name(0), PlanRequest(wide.hash)) in joiner.received(name(0), reply(second), 0.2)
    assert adopted(joiner.received(name(0), reply(wide), 0.3)) == [second.hash]  # followed
    effects = joiner.view_changed([voting(0, second, third), voting(1, second, third), record(3)], 0.3)
    assert adopted(effects) == [third.hash]  # voted for
    assert votes(effects) == []  # it had no vote

    late = agreement(2, wide, config=VOTES)
    late.view_changed([record(0, third), record(1, third), record(2, wide)], 0.0)
    assert adopted(late.received(name(0), reply(third), 0.1)) == [third.hash]


def rivals() -> tuple[Plan, Plan]:
    """Two that follow from ``FIRST``, the better one first."""
    one, other = after(FIRST, 0, 1, proposer=0), after(FIRST, 0, 1, proposer=1)
    return (one, other) if one.hash < other.hash else (other, one)


def test_of_rivals_of_one_epoch_a_peer_votes_for_one_only() -> None:
    _, worse = rivals()
    machine = agreement(2, FIRST, config=VOTES)
    machine.view_changed([voting(0, FIRST, worse), record(1, FIRST), record(2, FIRST)], 0.0)
    effects = machine.received(name(0), reply(worse), 0.1)
    assert votes(effects) == [worse.hash]
    assert adopted(effects) == [worse.hash]  # two of three
    waiting = agreement(2, plan_of(0, 1, 2, 3, 4), config=VOTES)
    one, other = sorted((after(plan_of(0, 1, 2, 3, 4), *range(4), proposer=i) for i in (0, 1)), key=lambda p: p.hash)
    waiting.view_changed([voting(0, plan_of(0, 1, 2, 3, 4), other), record(1), record(2)], 0.0)
    assert votes(waiting.received(name(0), reply(other), 0.1)) == [other.hash]
    lone = [voting(0, plan_of(0, 1, 2, 3, 4), other), voting(1, plan_of(0, 1, 2, 3, 4), one), record(2)]
    assert waiting.view_changed(lone, 0.2) == [Send(name(1), PlanRequest(one.hash))]
    assert votes(waiting.received(name(1), reply(one), 0.3)) == [], "better, but of the same epoch"


def test_a_plan_that_most_follow_does_not_give_way_to_a_rival_of_who_was_cut_off() -> None:
    better, worse = rivals()
    machine = agreement(2, FIRST, config=VOTES)
    machine.view_changed([voting(0, FIRST, worse), record(1, FIRST), record(2, FIRST)], 0.0)
    assert adopted(machine.received(name(0), reply(worse), 0.1)) == [worse.hash]
    both = [record(0, worse), voting(1, FIRST, better), record(2, worse)]
    assert machine.view_changed(both, 60.0) == [Send(name(1), PlanRequest(better.hash))]
    effects = machine.received(name(1), reply(better), 60.1)
    assert votes(effects) == [] and adopted(effects) == []
    assert machine.hash == worse.hash


def test_a_vote_that_brings_nothing_is_not_waited_for_and_stays_cast() -> None:
    wide = plan_of(0, 1, 2, 3, 4)
    second = after(wide, 0, 1)
    machine = agreement(1, wide, config=VOTES)
    view = [voting(0, wide, second), record(1, wide), record(2, wide)]
    machine.view_changed(view, 0.0)
    assert votes(machine.received(name(0), reply(second), 1.0)) == [second.hash]
    assert machine.next_deadline() == 1.0 + VOTES.vote_s
    (note,) = machine.tick(1.0 + VOTES.vote_s)
    assert isinstance(note, Note) and note.kind == "vote-withdrawn"
    assert votes(machine.view_changed(view, 10.0)) == []
    later = dataclasses.replace(second, epoch=3)
    machine.view_changed([voting(0, wide, later), *view[1:]], 11.0)
    refused = machine.received(name(0), reply(later), 11.1)
    assert votes(refused) == [], "the first may be in force elsewhere, and one of epoch 3 after it"
    assert refused == [Send(name(0), PlanVote(second.hash, 2, False))]
    apart = dataclasses.replace(second, epoch=epoch_apart(3, name(0)))
    machine.view_changed([voting(0, wide, apart), *view[1:]], 12.0)
    assert votes(machine.received(name(0), reply(apart), 12.1)) == [apart.hash]


def test_a_vote_comes_by_a_message_before_the_record_says_so() -> None:
    second = after(FIRST, 0, 1)
    machine = agreement(2, FIRST, config=VOTES)
    machine.view_changed([record(0, FIRST), record(1, FIRST), record(2, FIRST)], 0.0)
    assert machine.received(name(0), PlanVote(second.hash, 2, False), 0.1) == [Send(name(0), PlanRequest(second.hash))]
    effects = machine.received(name(0), reply(second), 0.2)
    assert votes(effects) == [second.hash] and adopted(effects) == [second.hash]
    told = [effect.message for effect in effects if isinstance(effect, Send)]
    assert told.count(PlanVote(second.hash, 2, False)) == 2 and told.count(PlanVote(second.hash, 2, True)) == 2
    assert machine.received(name(5), PlanVote("a" * 64, 9, True), 0.3) == [], "who is not here"


def test_a_plan_whose_followers_have_gone_on_to_the_next_is_not_followed_on_the_way() -> None:
    """Parts of a group meet: of the others' two plans the first has come, and the second is named only."""
    theirs = dataclasses.replace(after(FIRST, 2), epoch=epoch_apart(2, name(2)))
    next_one = after(theirs, 0, 1, 2)
    for by_record, told in ((next_one, theirs), (theirs, next_one)):
        machine = agreement(0, FIRST, config=VOTES)
        machine.view_changed([record(0, FIRST), record(1, FIRST), record(2, by_record)], 0.0)
        machine.received(name(2), PlanVote(told.hash, told.epoch, True), 0.1)
        assert adopted(machine.received(name(2), reply(theirs), 0.2)) == []
        assert adopted(machine.received(name(2), reply(next_one), 0.3)) == [next_one.hash]


def test_a_proposer_asks_its_rules_again_when_others_come_or_go() -> None:
    wide = plan_of(0, 1, 2, 3)
    proposer = agreement(0, wide, config=VOTES)
    proposer.view_changed([record(i, wide) for i in (0, 2, 3)], 0.0)
    assert votes(proposer.tick(VOTES.settle_s)) == [after(wide, 0, 2, 3).hash]
    proposer.view_changed([record(0, wide), record(2, wide)], 4.0)
    effects = proposer.tick(4.0 + VOTES.settle_s)
    (vote,) = [effect for effect in effects if isinstance(effect, VoteFor) and effect.plan is not None]
    assert vote.plan is not None and vote.plan.trainers().keys() == {name(0), name(2)}
    assert vote.plan.epoch == epoch_apart(2, name(0)), "somebody may have voted for the first already"


def test_a_void_vote_is_taken_back_with_the_plan_that_beat_it() -> None:
    better, worse = rivals()
    machine = agreement(2, FIRST, config=VOTES)
    machine.view_changed([record(0, FIRST), voting(1, FIRST, worse), record(2, FIRST)], 0.0)
    assert votes(machine.received(name(1), reply(worse), 0.1)) == [worse.hash]
    assert machine.hash == worse.hash
    machine.view_changed([record(0, better), record(1, better), record(2, worse)], 1.0)
    effects = machine.received(name(0), reply(better), 1.1)
    assert adopted(effects) == [better.hash]
    assert votes(effects) == [""]


def test_a_first_plan_needs_no_votes() -> None:
    machine = agreement(0, config=VOTES)
    machine.view_changed([record(0), record(1)], 0.0)
    effects = machine.tick(3.0)
    assert adopted(effects) == [plan_of(0, 1).hash] and votes(effects) == []


def test_who_lost_its_part_is_seen() -> None:
    machine = agreement(0, FIRST, config=VOTES)
    members = [record(i, FIRST, part=i) for i in range(3)]
    machine.view_changed(members, 0.0)
    machine.tick(3.0)
    settled = machine.next_deadline()
    machine.view_changed([*members[:2], record(2, FIRST, part=-1)], 10.0)
    assert settled > 1e9 and machine.next_deadline() == 13.0


# --- groups over a lossy network -------------------------------------------------------------------------------------


def voters(size: int, seed: int, loss: float = 0.2, *, alone: bool = False) -> tuple[Group, Plan]:
    group = Group(size, seed, config=VOTES, alone=alone)
    group.run(60)
    group.loss = loss
    return group, group.assert_agreed()


@pytest.mark.parametrize("seed", range(6))
def test_two_halves_never_both_go_on(seed: int) -> None:
    group, before = voters(7, seed)
    group.side = {index: int(index >= 3) for index in range(7)}
    group.run(200)
    assert {group.machines[i].hash for i in range(3)} == {before.hash}  # the minority waits
    (ahead,) = {group.machines[i].hash for i in range(3, 7)}
    assert ahead != before.hash
    group.side = dict.fromkeys(range(7), 0)
    group.run(120)
    assert group.assert_agreed().epoch >= before.epoch + 2


@pytest.mark.parametrize("seed", range(4))
def test_of_two_equal_halves_the_one_with_the_lowest_id_goes_on(seed: int) -> None:
    group, before = voters(6, seed)
    group.side = {index: index % 2 for index in range(6)}
    group.run(120)
    assert {group.machines[i].hash for i in (1, 3, 5)} == {before.hash}
    assert before.hash not in {group.machines[i].hash for i in (0, 2, 4)}
    group.side = dict.fromkeys(range(6), 0)
    group.run(120)
    group.assert_agreed()


@pytest.mark.parametrize("seed", range(4))
def test_three_ways_nobody_goes_on_and_all_meet_again(seed: int) -> None:
    group, before = voters(6, seed)
    group.side = {index: index % 3 for index in range(6)}
    group.run(150)
    assert group.plans() == {before.hash}
    group.side = dict.fromkeys(range(6), 0)
    group.run(150)
    assert set(group.assert_agreed().trainers()) == set(before.trainers())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("loss", [0.2, 0.6])
def test_the_rest_goes_on_when_one_dies_however_late_the_votes_come(seed: int, loss: float) -> None:
    group, before = voters(3, seed, loss)
    dead = seed % 3
    del group.machines[dead]
    group.run(150)
    assert group.assert_agreed().epoch > before.epoch


@pytest.mark.parametrize("seed", range(4))
def test_the_proposer_dies_with_its_plan_half_voted(seed: int) -> None:
    group, before = voters(5, seed)
    del group.machines[4]
    while not group.records[0][name(0)].vote:
        group.run(0.05)
    del group.machines[0]
    group.run(200)
    assert group.assert_agreed().epoch > before.epoch


@pytest.mark.parametrize("seed", range(4))
def test_the_higher_of_two_waits_for_the_other_then_goes_on_alone(seed: int) -> None:
    group, before = voters(2, seed, alone=True)
    del group.machines[0]
    said = set()
    while group.machines[1].hash == before.hash:
        group.run(1)
        said.add(group.machines[1].waiting_for(group.now).partition(":")[0][:15])
        assert group.now < 200
    assert "votes for plan " in said
    assert group.machines[1].epoch % GENERATION == 0 < group.machines[1].epoch
    group.start(0)
    group.records[0][name(0)] = record(0, version=1000)
    group.run(120)
    group.assert_agreed()


@pytest.mark.parametrize("seed", range(6))
def test_rivals_settle(seed: int) -> None:
    """Several peers propose at once: they were settled at the same moment, and each thought it was its turn."""
    group, before = voters(5, seed)
    members = [snapshot(record(i)) for i in range(4)]
    del group.machines[4]
    for index in range(4):
        plan = next_plan(JOB, before, members, name(index))
        assert plan is not None
        group.carry_out(index, list(group.machines[index]._propose(plan, group.now)))
    group.run(60)
    assert group.assert_agreed().epoch > before.epoch


@pytest.mark.parametrize("seed", range(8))
def test_parts_that_go_on_alone_never_do_so_in_one_epoch_and_meet_again(seed: int) -> None:
    group, before = voters(6, seed, alone=True)
    group.side = {index: index % (2 + seed % 2) for index in range(6)}
    group.run(150)
    assert before.hash not in group.plans(), "everyone goes on"
    group.side = dict.fromkeys(range(6), 0)
    group.run(150)
    group.assert_agreed()
    by_epoch: dict[int, set[str]] = {}
    for refs in group.epochs.values():
        for ref in refs:
            by_epoch.setdefault(ref.epoch, set()).add(ref.hash)
    assert all(len(hashes) == 1 for epoch, hashes in by_epoch.items() if epoch > before.epoch), by_epoch


def test_joiners_come_in_one_after_another() -> None:
    group, before = voters(3, 1)
    for index in (3, 4, 5):
        group.start(index)
        group.run(40)
    assert group.assert_agreed().epoch >= before.epoch + 1
