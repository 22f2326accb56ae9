"""What a group found of its model: sums of the same copies only, and states compared on equally many samples."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.core.looks.figures import GroupLook, best_of, looks_of_group, told_on
from p2ptrain.ids import JobId, PeerId
from p2ptrain.protocol.group.record import blank_record
from p2ptrain.wire.messages import MAX_LOOKS, LookFigure, Record

JOB = JobId("0123456789abcdef")


def figure(round: int, correct: int = 5, samples: int = 10, state: str = "", loss: float = 3.0) -> LookFigure:
    return LookFigure(state or f"{round:016d}", round, samples, correct, loss)


def record(number: int, *looks: LookFigure, job: JobId = JOB) -> Record:
    blank = blank_record(PeerId(f"peer{number:012d}"), b"k" * 40, 1, name=f"device {number}")
    return dataclasses.replace(blank, job=job, looks=looks)


def test_sums_are_added_of_the_same_copies_and_of_the_same_job() -> None:
    records = [
        record(0, figure(2, 6), figure(4, 9)),
        record(1, figure(2, 8, 30), figure(4, 1, state="another state...")),
        record(2, figure(2, 9), job=JobId("another job.....")),
        record(3, figure(4, 5)),
    ]
    assert looks_of_group(records, JOB) == [
        GroupLook(figure(2).state, 2, 40, 14, 6 / 40, 2),
        GroupLook(figure(4).state, 4, 20, 14, 6 / 20, 2),
    ]


def test_who_tells_of_more_right_answers_than_samples_does_not_count() -> None:
    assert looks_of_group([record(0, figure(2, 11)), record(1, figure(2, 0, 0))], JOB) == []


def test_the_best_has_most_right_answers_of_those_that_most_samples_were_looked_at_with() -> None:
    assert best_of([]) is None
    looks = [
        GroupLook("a", 1, 40, 20, 1.0, 2),
        GroupLook("b", 2, 40, 30, 1.0, 2),
        GroupLook("c", 3, 40, 30, 0.5, 2),
        GroupLook("d", 4, 10, 10, 0.1, 1),
    ]
    best = best_of(looks)
    assert best is not None and best.state == "c" and best.accuracy == 0.75


def best_round(*records: Record) -> int:
    best = best_of(looks_of_group(records, JOB))
    assert best is not None
    return best.round


def test_the_best_goes_on_when_a_member_looks_no_more() -> None:
    gone_silent = record(0, figure(1, 9))
    assert best_round(gone_silent, record(1, figure(1, 4), figure(2, 6), figure(3, 8), figure(4, 7))) == 3
    assert best_round(gone_silent, record(1, figure(1, 9), figure(2, 6), figure(3, 8))) == 1, "over the same samples"
    large = record(0, figure(1, 90, 100))
    few = [figure(round, round + 3) for round in range(1, 5)]
    assert best_round(large, record(1, *few)) == 1, "it may be late"
    assert best_round(large, record(1, *few, figure(5, 8))) == 5, "it looks no more"


def test_a_few_who_are_first_to_tell_do_not_say_what_is_best() -> None:
    slow = [record(number, figure(1, 5)) for number in range(3)]
    assert best_round(*slow, record(3, figure(1, 5), figure(2, 9))) == 1
    assert best_round(*slow, record(3, figure(1, 5, 20), figure(2, 30, 30))) == 1, "of other samples nothing is known"


@given(st.lists(st.integers(1, 40), unique=True, min_size=1, max_size=30), st.data())
def test_a_record_tells_the_best_and_the_last(rounds: list[int], data: st.DataObject) -> None:
    told: tuple[LookFigure, ...] = ()
    best = data.draw(st.sampled_from(rounds))
    for number, round in enumerate(rounds):
        known = best in rounds[:number]
        told = told_on(told, figure(round), {figure(best).state} if known else ())
        assert len(told) <= MAX_LOOKS and figure(round) in told
        assert not known or figure(best) in told or best not in rounds[max(0, rounds.index(best)) : number]
    assert [look.round for look in told] == sorted(look.round for look in told)
