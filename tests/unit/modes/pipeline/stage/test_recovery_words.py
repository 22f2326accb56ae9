"""What a peer tells of a loss, once, with its numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.modes.pipeline.stage.recovery import Recovery
from p2ptrain.protocol.machine import Note
from p2ptrain.runtime.node.journal import Line
from p2ptrain.ui.messages_for_people import tell

GROUP: Any = SimpleNamespace(name_of=lambda peer: f"device {peer}")


def plan(from_step: int, *, goes_back: bool = True) -> Any:
    from p2ptrain.modes.pipeline.plan import PipelineBody

    body = PipelineBody("c" * 64, None, (), (), from_step, 10, 1, goes_back)  # type: ignore[arg-type]
    return SimpleNamespace(body=body, peers=[SimpleNamespace(peer="a")], trainers=lambda: {"a": 0}, epoch=2)


def kinds(notes: list[Note]) -> list[str]:
    return [note.kind for note in notes]


BEFORE: Any = SimpleNamespace(trainers=lambda: {"a": 0, "b": 1})


def sentence(note: Note) -> str | None:
    return tell(Line(0.0, note.kind, dict(note.fields)))


def test_a_loss_is_told_with_the_batches_and_the_seconds_that_it_cost() -> None:
    recovery = Recovery(GROUP)
    recovery.look(True, 100.0)
    (note,) = recovery.begin(plan(40), BEFORE, 47, 101.0)
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
    (note,) = Recovery(GROUP).begin(plan(40), BEFORE, done, 1.0)
    assert told in (sentence(note) or "")


def test_a_false_alarm_is_no_loss_and_the_beginning_is_called_so() -> None:
    recovery = Recovery(GROUP)
    recovery.look(True, 1.0)
    recovery.look(False, 2.0)
    assert recovery.begin(plan(50, goes_back=False), BEFORE, 47, 3.0) == []
    assert kinds(recovery.step_done(51, 4.0)) == ["first-batch"] and recovery.step_done(52, 4.5) == []
    (note,) = recovery.begin(plan(0), BEFORE, 47, 50.0)
    assert "goes back to the beginning" in (sentence(note) or "") and "47 batches are lost" in (sentence(note) or "")
    _, note = recovery.step_done(1, 51.0)
    assert dict(note.fields)["seconds"] == 1.0, "of this loss, not of the false alarm"


def test_waiting_is_told_when_it_begins() -> None:
    recovery = Recovery(GROUP)
    (note,) = recovery.waits("device b to come back with the blocks of step 40; in 300 s ...")
    assert recovery.waits("device b to come back; in 299 s ...") == [] == recovery.waits("")
    assert (sentence(note) or "").startswith("waits for device b to come back")
    assert len(recovery.waits("device c")) == 1


@pytest.mark.parametrize(
    ("done", "told"),
    [(40, "this device stops"), (41, "What it did apart, batch 41,"), (47, "What it did apart, batches 41-47,")],
)
def test_who_went_on_apart_for_nothing_is_told_which_batches_are_in_no_model(done: int, told: str) -> None:
    (note,) = Recovery(GROUP).overtaken(plan(40), done)
    assert told in (sentence(note) or "") and "have trained the model to its end" in (sentence(note) or "")
