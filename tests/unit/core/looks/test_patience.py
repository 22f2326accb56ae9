"""When a group's training has brought what it can, by what members tell of their looks; and who can't decide that."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from test_look_figures import JOB, figure, record

from p2ptrain.config import DataConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.core.looks.patience import LATE_S, REMEMBERED, Patience, Standstill, patience_note
from p2ptrain.wire.messages import Record

RISES, FALLS = (1, 2, 3, 4, 5, 6), (6, 5, 4, 3, 2, 1)


def work(patience: int = 2, rounds: int = 100, look_every: int = 1, val: float = 0.1) -> Job:
    data = DataConfig(("a", "b"), (1, 8, 8), mean=(0.0,), std=(1.0,), val=val)
    training = TrainingConfig(rounds=rounds, patience=patience, look_every=look_every)
    return Job(mode="replicas", model=ModelConfig("lenet"), data=data, training=training)


def member(number: int, correct: Sequence[int], samples: int = 10, state: str = "", phase: str = "training") -> Record:
    """One that has looked at so many rounds, and had so many right."""
    told = (figure(at, n, samples, state and f"{at:08d}{state:>8}") for at, n in enumerate(correct, 1))
    return dataclasses.replace(record(number, *told), phase=phase)


def standstill(*members: Record, own: int = 0, now: float = 0.0) -> Standstill | None:
    patience = Patience(work(), member(own, ()).peer)
    patience.heard(members, 0.0)
    return patience.standstill(now)


def looks(*members: Record, own: int = 0) -> int:
    found = standstill(*members, own=own)
    assert found is not None
    return found.looks


@pytest.mark.parametrize(
    ("correct", "since"),
    [
        ([[5]], 0),
        ([[5, 6, 7]], 0),
        ([[5, 7, 6, 7]], 2),
        ([[5, 5, 5], [5, 5, 5]], 2),
        ([[1, 9, 5, 5], [1, 5, 4, 3], [1, 6, 6, 6]], 2),
        ([[1, 9, 9, 9], [1, 5, 5, 5], [1, 6, 9, 6]], 1),
        ([[5, 4, 4, 9], [5, 4, 4, 9]], 2),
    ],
    ids=[
        "one look",
        "rises",
        "as many again is no more",
        "flat",
        "all fall",
        "one rose later",
        "others may have ended",
    ],
)
def test_looks_are_counted_since_the_best(correct: list[list[int]], since: int) -> None:
    assert looks(*(member(number, each) for number, each in enumerate(correct))) == since


@pytest.mark.parametrize("honest", [1, 2, 3])
def test_nobody_alone_brings_the_end_about(honest: int) -> None:
    """Whatever its figures, and however many samples it says that it has."""
    members = [member(number, RISES) for number in range(honest)]
    for samples in (10, 10**9):
        assert looks(*members, member(9, FALLS, samples)) == 0
        apart = standstill(*members, member(9, FALLS, samples, "mine"))
        assert apart is None or apart.looks == 0, "of a state that only it has seen"


def test_who_lies_can_put_the_end_off_and_does_when_it_says_that_all_got_better() -> None:
    members = [member(number, FALLS) for number in range(3)]
    assert looks(*members) == 5
    assert looks(*members, member(9, [1000 * correct for correct in RISES], 10**6)) == 0


def test_of_a_single_looker_the_others_know_that_it_is_one() -> None:
    found = standstill(member(1, FALLS), member(2, ()), own=2, now=LATE_S)
    assert found == Standstill(5, 0, frozenset({member(1, ()).peer}))
    own = standstill(member(1, FALLS), member(2, ()), own=1, now=LATE_S)
    assert own is not None and own.own == 5
    mixed = standstill(member(1, RISES), member(2, FALLS), own=2)
    assert mixed is not None and (mixed.looks, mixed.own) == (0, 5)


def test_who_trains_and_has_told_of_no_look_yet_is_waited_for() -> None:
    """One that tells first, of looks that it may have made up, ends nothing before the others have told of theirs."""
    first, quiet = member(0, [5, 4, 4]), [member(1, ()), member(2, ())]
    patience = Patience(work(), quiet[0].peer)
    patience.heard([first, *quiet], 100.0)
    assert patience.standstill(99.0 + LATE_S) is None
    patience.heard([first, member(1, [5, 6, 7]), member(2, [5, 6, 7])], 99.0 + LATE_S)
    found = patience.standstill(100.0 + LATE_S)
    assert found is not None and found.looks == 0
    assert looks(first, dataclasses.replace(quiet[0], phase="done")) == 2, "who has ended looks no more"


def test_a_standstill_is_worked_out_anew_only_where_something_may_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    patience, worked_out = Patience(work(), member(0, ()).peer), []
    newest = patience._newest
    monkeypatch.setattr(patience, "_newest", lambda now: worked_out.append(now) or newest(now))
    for second in range(200):
        patience.heard([member(0, [5, 4, 4]), member(1, [5, 4, 4] if second >= 20 else [5])], float(second))
        found = patience.standstill(float(second))
    assert worked_out == [0.0, 20.0, LATE_S, 20.0 + LATE_S] and found is not None and found.looks == 2


def test_who_lags_behind_is_waited_for_and_then_not_any_more() -> None:
    patience = Patience(work(), member(0, ()).peer)
    slow = member(2, [5])
    members = [member(0, [5, 4, 4]), member(1, [5, 4, 4]), slow]
    patience.heard(members, 100.0)
    assert patience.standstill(100.0) == Standstill(0, 0, frozenset(each.peer for each in members)), "the first look"
    patience.heard(members, 100.0 + LATE_S)
    found = patience.standstill(100.0 + LATE_S)
    assert found is not None and found.looks == 2 and slow.peer not in found.tellers
    patience.heard([*members[:2], member(2, [5, 4, 9])], 101.0 + LATE_S)
    late = patience.standstill(101.0 + LATE_S)
    assert late is not None and late.looks == 1, "what it tells then counts; at the look before it had not got better"


def test_who_passed_a_look_over_or_trains_no_more_is_not_waited_for() -> None:
    members = [member(0, [5, 4, 4]), member(1, [5, 4, 4])]
    passed = dataclasses.replace(record(2, figure(1, 5), figure(4, 5)), phase="training")
    assert looks(*members, passed) == 2
    assert looks(*members, member(2, [5], phase="failed")) == 2


def test_a_late_joiner_has_the_count_begin_anew() -> None:
    late = dataclasses.replace(record(2, figure(5, 3), figure(6, 2)), phase="training")
    assert looks(member(0, FALLS), member(1, FALLS), late) == 1


def test_other_samples_than_before_are_not_compared() -> None:
    more = record(0, figure(1, 9, 10), figure(2, 8, 20), figure(3, 8, 20))
    assert looks(more) == 1


def test_what_is_remembered_is_bounded_and_outlives_what_records_tell() -> None:
    patience = Patience(work(rounds=10**6), member(0, ()).peer)
    for at in range(1, 2 * REMEMBERED):
        told = [figure(round, 9 if round == 300 else 5) for round in (at - 1, at) if round]
        patience.heard([record(0, *told)], float(at))
        assert len(patience._told) <= REMEMBERED >= len(patience._most_since)
    found = patience.standstill(1e6)
    assert found is not None and found.looks == 2 * REMEMBERED - 1 - 300
    nonsense = record(0, figure(3, 11, 10), figure(4, 0, 0), figure(10**9))
    empty = Patience(work(look_every=1), member(0, ()).peer)
    empty.heard([nonsense], 0.0)
    assert empty.standstill(0.0) is None and not empty._told


@pytest.mark.parametrize(
    ("job", "says"),
    [
        (work(patience=0, rounds=1), ""),
        (work(patience=2, rounds=4), ""),
        (work(patience=2, rounds=3), "looks at its whole model 2 times at most"),
        (work(patience=1, rounds=3, look_every=2), "looks at its whole model 1 time at most"),
        (work(patience=1, rounds=3, look_every=3), "never looks at it"),
        (work(patience=300, rounds=10**6), "256 times at most"),
    ],
)
def test_patience_that_can_bring_nothing_is_told(job: Job, says: str) -> None:
    assert job.training.patience == 0 or job.id != JOB
    assert says in patience_note(job) and bool(says) == bool(patience_note(job))
