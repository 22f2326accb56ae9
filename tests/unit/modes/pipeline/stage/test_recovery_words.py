"""What a peer tells of a loss, once, with its numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.modes.pipeline.plan import PipelineBody, body_of
from p2ptrain.modes.pipeline.stage.recovery import Recovery
from p2ptrain.protocol.machine import Note
from p2ptrain.runtime.node.journal import Line
from p2ptrain.ui.messages_for_people import tell


def group(*path: Any) -> Any:
    """``path``: plans that lead to the next one."""
    return SimpleNamespace(
        name_of=lambda peer: f"device {peer}",
        names_of=lambda peers: ", ".join(f"device {peer}" for peer in peers),
        path=lambda plan: [*path, plan],
    )


def saved(*trainers: str) -> Any:
    """Who trained what the next plan begins with, or what is finished."""
    return SimpleNamespace(trainers=lambda state: frozenset(trainers), newest=lambda plan: (60, 9))


def plan(from_step: int, from_epoch: int = 1, epoch: int = 2, *, goes_back: bool = True, peers: str = "a") -> Any:
    body = PipelineBody("c" * 64, None, (), (), from_step, 10, from_epoch, goes_back)  # type: ignore[arg-type]
    each = [SimpleNamespace(peer=peer) for peer in peers]
    trainers = dict.fromkeys(peers, 0)
    return SimpleNamespace(body=body, peers=each, trainers=lambda: trainers, epoch=epoch, proposer=peers[-1])


FIRST = plan(0, 0, 1, peers="ab")


def after(*plans: Any, by: str = "") -> Recovery:
    """These were in force, one after the other."""
    recovery, before = Recovery(group(), saved(*by)), None
    for each in plans:
        change(recovery, each, before, body_of(each).from_step, 0.0)
        before = each
    return recovery


def change(recovery: Recovery, next_plan: Any, before: Any, done: int, now: float) -> list[Note]:
    """The next plan is in force, and trained by."""
    recovery.begin(next_plan, before, done, now)
    return recovery.take(next_plan)


def kinds(notes: list[Note]) -> list[str]:
    return [note.kind for note in notes]


def sentence(note: Note) -> str | None:
    return tell(Line(0.0, note.kind, dict(note.fields)))


def test_a_loss_is_told_with_the_batches_and_the_seconds_that_it_cost() -> None:
    recovery = after(FIRST)
    recovery.look(True, 100.0)
    (note,) = change(recovery, plan(40), FIRST, 47, 101.0)
    assert sentence(note) == (
        "the group goes back to what is saved after batch 40 without device b: 7 batches are lost and done again"
    )
    recovery.look(False, 101.5)
    assert recovery.step_done(40, 102.0) == []
    first, note = recovery.step_done(41, 102.5)
    assert (first.kind, dict(first.fields)) == ("first-batch", {"step": 41, "epoch": 2})
    assert sentence(note) == "goes on: batch 41 is done, 2.5 s after the loss was seen"
    assert recovery.step_done(42, 103.0) == []


@pytest.mark.parametrize(("done", "told"), [(40, "no batch that was done is lost"), (41, "1 batch is lost")])
def test_nothing_and_one_batch_are_called_so(done: int, told: str) -> None:
    (note,) = change(after(FIRST), plan(40), FIRST, done, 1.0)
    assert told in (sentence(note) or "")


def test_a_false_alarm_is_no_loss_and_the_beginning_is_called_so() -> None:
    recovery = after(FIRST)
    recovery.look(True, 1.0)
    recovery.look(False, 2.0)
    assert change(recovery, plan(50, goes_back=False), FIRST, 47, 3.0) == []
    assert kinds(recovery.step_done(51, 4.0)) == ["first-batch"] and recovery.step_done(52, 4.5) == []
    (note,) = change(recovery, plan(0), FIRST, 47, 50.0)
    assert "goes back to the beginning" in (sentence(note) or "") and "47 batches are lost" in (sentence(note) or "")
    _, note = recovery.step_done(1, 51.0)
    assert dict(note.fields)["seconds"] == 1.0, "of this loss, not of the false alarm"


def test_waiting_is_told_when_it_begins() -> None:
    recovery = after(FIRST)
    (note,) = recovery.waits("device b to come back with the blocks of step 40; in 300 s ...")
    assert recovery.waits("device b to come back; in 299 s ...") == [] == recovery.waits("")
    assert (sentence(note) or "").startswith("waits for device b to come back")
    assert len(recovery.waits("device c")) == 1


@pytest.mark.parametrize(
    ("done", "told"),
    [(40, "this device stops"), (41, "What it did apart, batch 41,"), (47, "What it did apart, batches 41-47,")],
)
def test_who_went_on_apart_for_nothing_is_told_which_batches_are_in_no_model(done: int, told: str) -> None:
    (note,) = after(FIRST, by="b").over(plan(40), done, 60, is_own=False)
    assert told in (sentence(note) or "") and "have trained the model to its end" in (sentence(note) or "")


# Four devices were one group, then a and b were apart from c and d.
ALL = plan(0, 0, 1, peers="abcd")
OURS = plan(12, 1, 20, peers="ab")
LATER = plan(10, 1, 21, peers="a")
"""A second loss: it went back further."""
THEIRS = plan(15, 1, 30, peers="cd")


def told_by(recovery: Recovery, next_plan: Any, before: Any, done: int, *path: Any) -> list[Note]:
    recovery._group = group(*path)
    return change(recovery, next_plan, before, done, 9.0)


@pytest.mark.parametrize("path", [[ALL, THEIRS], [THEIRS], []], ids=["all known", "theirs known", "nothing known"])
@pytest.mark.parametrize("goes_back", [False, True])
def test_who_goes_on_with_the_model_of_others_is_told_which_batches_were_for_nothing(
    goes_back: bool, path: list[Any]
) -> None:
    recovery = after(ALL, OURS, LATER)
    (note,) = told_by(recovery, plan(52, 30, 31, goes_back=goes_back, peers="abcd"), LATER, 28, *path)
    assert sentence(note) == ("goes on with the model of peers that were apart: batches 11-28, as done here, are lost")
    (note,) = told_by(recovery, plan(50, 31, 32), FIRST, 55)
    assert note.kind == "goes-back" and dict(note.fields)["batches"] == 5, "that is another story"


def test_whose_model_it_is_that_both_go_on_with_is_told_by_the_state_and_not_by_who_proposed() -> None:
    """a and b are further; d proposes, and its plan begins with what they saved after 25 batches."""
    both = plan(25, 20, 31, peers="abcd")
    (note,) = told_by(after(ALL, OURS), both, OURS, 28, ALL, THEIRS)
    assert dict(note.fields) == {"step": 25, "batches": 3, "without": ""}
    (note,) = told_by(after(ALL, THEIRS, by="ab"), both, THEIRS, 21, THEIRS)
    assert (note.kind, dict(note.fields)) == ("gives-way", {"first": 16, "batches": 6})


def test_who_stayed_with_the_plan_that_another_left_goes_on_and_takes_it_in() -> None:
    """b took the others for dead and went on alone; they had not even noticed."""
    (note,) = told_by(
        after(ALL, plan(12, 1, 20, peers="b")), plan(40, 1, 21, goes_back=False, peers="abcd"), OURS, 17, ALL
    )
    assert (note.kind, dict(note.fields)) == ("gives-way", {"first": 13, "batches": 5})


def test_a_second_death_before_anything_is_saved_goes_back_to_the_same_batch() -> None:
    second = plan(12, 1, 21, peers="a")
    (note,) = told_by(after(ALL, OURS), second, OURS, 14, OURS)
    assert (note.kind, dict(note.fields)["batches"], dict(note.fields)["without"]) == ("goes-back", 2, "device b")


def test_who_did_nothing_apart_has_lost_nothing() -> None:
    assert told_by(after(ALL), plan(30, 30, 31, goes_back=False, peers="abcd"), ALL, 12, ALL, THEIRS) == []
    (note,) = told_by(after(ALL), plan(30, 30, 31, peers="abcd"), ALL, 17, ALL, THEIRS)
    assert dict(note.fields) == {"first": 16, "batches": 2}, "it stalled: they went back without it"


def test_a_plan_that_gives_way_before_anybody_trains_by_it_has_cost_nothing() -> None:
    """a and b hear of the plan of d, who was alone, and then of the one that goes on with what a and b did."""
    recovery, alone = after(ALL, OURS), plan(20, 1, 40, peers="d")
    recovery.begin(alone, OURS, 28, 9.0)
    both = plan(25, 20, 41, peers="abcd")
    (note,) = told_by(recovery, both, alone, 20, alone)
    assert (note.kind, dict(note.fields)) == ("goes-back", {"step": 25, "batches": 3, "without": ""})
    assert recovery.take(both) == [], "once"
    (note,) = told_by(recovery, plan(27, 41, 42, peers="abd"), both, 31)
    assert (note.kind, dict(note.fields)["batches"], dict(note.fields)["without"]) == ("goes-back", 4, "device c")


def test_where_it_is_trained_by_all_that_was_done_apart_is_told_at_once() -> None:
    """By a plan that follows on the one before, too: d goes on, then takes a and b in."""
    recovery, alone = after(ALL, OURS), plan(8, 1, 40, peers="d")
    recovery.begin(alone, OURS, 28, 9.0)
    (note,) = told_by(recovery, plan(30, 40, 41, goes_back=False, peers="abcd"), alone, 20, alone)
    assert (note.kind, dict(note.fields)) == ("gives-way", {"first": 9, "batches": 20})


def test_who_was_started_again_has_lost_nothing_by_that() -> None:
    assert change(after(), plan(40), None, 0, 1.0) == []
    (note,) = told_by(after(plan(40, 7, 9, peers="ab"), by="ab"), plan(30, 8, 10, peers="ab"), OURS, 42, LATER)
    assert note.kind == "goes-back" and dict(note.fields)["batches"] == 12, "of the plans before that it knows nothing"


def test_what_was_done_before_a_plan_that_nobody_began_is_told_when_others_have_ended() -> None:
    recovery = after(ALL, OURS, by="cd")
    recovery.begin(LATER, OURS, 25, 9.0)
    (note,) = recovery.over(LATER, body_of(LATER).from_step, 60, is_own=False)
    assert dict(note.fields) == {"first": 13, "batches": 13}


def test_who_was_apart_by_several_plans_is_told_of_all_its_batches_when_others_have_ended() -> None:
    (note,) = after(ALL, OURS, LATER, by="cd").over(LATER, 25, 60, is_own=False)
    assert dict(note.fields) == {"first": 11, "batches": 15}


@pytest.mark.parametrize(("done", "dropped"), [(60, []), (62, [2])])
def test_where_the_group_was_asked_to_stop_what_was_begun_after_the_end_is_told(done: int, dropped: list[int]) -> None:
    notes = after(FIRST).over(FIRST, done, 60, is_own=True)
    assert [dict(note.fields)["batches"] for note in notes] == dropped


def test_what_was_given_up_at_the_end_is_not_told_again_with_the_next_plan() -> None:
    recovery, back = after(FIRST), plan(40)
    recovery.begin(back, FIRST, 47, 1.0)
    (note,) = recovery.over(back, 40, 60, is_own=False)
    assert dict(note.fields)["batches"] == 47, "others trained it without this peer"
    (note,) = change(recovery, plan(60, 2, 3), back, 60, 2.0)
    assert dict(note.fields)["batches"] == 0
