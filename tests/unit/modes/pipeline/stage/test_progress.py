"""How far a group is, by what its peers' records say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.modes.pipeline.plan import PipelineBody
from p2ptrain.modes.pipeline.stage.progress import NOTICE_S, PATIENCE_S, Progress
from p2ptrain.wire.messages import NO_PART

TRAINERS = ("a", "b")
PLAN: Any = SimpleNamespace(
    hash="new",
    parent="",
    trainers=lambda: dict.fromkeys(TRAINERS),
    part_of=lambda peer: 0 if peer in TRAINERS else None,
    body=PipelineBody("c" * 64, SimpleNamespace(num_blocks=3), (), (), 20, 10),  # type: ignore[arg-type]
)


def record(peer: str, **values: Any) -> SimpleNamespace:
    return SimpleNamespace(**({"peer": peer, "plan": "new", "phase": "training", "step": 20, "part": 0} | values))


class Group:
    """``c`` stands by and looks on. ``saved_step``: the newest one saved whole."""

    def __init__(self, *records: SimpleNamespace, saved_step: int = 18) -> None:
        self.records = {each.peer: each for each in records}
        self.gone: set[str] = set()
        self.now = 0.0
        view: Any = SimpleNamespace(own_id="c", members=self.members, record=self.records.get)
        saved: Any = SimpleNamespace(newest=lambda plan: (saved_step, 1))
        self.steps = Progress(view, saved, rounds=3)
        self.steps.begin(PLAN, "new", 0.0)

    def members(self) -> list[str]:
        return [peer for peer in ("a", "b", "c") if peer not in self.gone]

    def train(self, *steps: int, batch_s: float = 2.0) -> None:
        for step in steps:
            self.now += batch_s
            self.records["a"].step = step
            self.steps.look(self.now)


def test_a_plan_is_under_way_once_all_train_by_it_and_two_of_its_batches_say_how_fast() -> None:
    group = Group(record("a"), record("b"))
    group.train(20, 21)
    assert not group.steps.is_under_way()
    group.train(22)
    assert group.steps.is_under_way()
    for behind in ({"phase": "waiting"}, {"plan": "old"}):
        vars(group.records["b"]).update(behind)
        assert not group.steps.is_under_way()
        vars(group.records["b"]).update(phase="training", plan="new")
    assert group.steps.is_under_way()
    group.steps.begin(PLAN, "newer", 1.0)
    assert not group.steps.is_under_way()


def test_who_is_not_of_the_plan_or_follows_another_does_not_say_how_far_the_group_is() -> None:
    group = Group(record("a", step=21), record("b", step=90, plan="old"), record("c", step=80))
    assert group.steps.newest() == 21
    group.steps.own = 24
    assert group.steps.newest() == 24


def test_a_plan_gets_notice_by_how_fast_batches_go() -> None:
    group = Group(record("a"), record("b"))
    group.train(21, 22, 23, batch_s=NOTICE_S / 4)
    assert group.steps.next_step() == 23 + 5 + 1


def test_patience_is_for_the_slowest_device() -> None:
    group = Group(record("a"), record("b"))
    assert group.steps.patience_s() == PATIENCE_S
    group.train(21, 22, batch_s=50.0)
    assert group.steps.patience_s() == 200.0


@pytest.mark.parametrize(("saved_step", "is_complete"), [(29, False), (30, True)])
def test_the_last_blocks_of_who_is_gone_have_to_be_saved(saved_step: int, is_complete: bool) -> None:
    group = Group(record("a"), record("b"), saved_step=saved_step)
    assert group.steps.is_complete()
    group.gone = {"b"}
    assert group.steps.is_complete() == is_complete


def test_lost_is_who_says_by_the_plan_in_force_that_it_has_no_stage_of_it() -> None:
    steps = Group(record("a"), record("b")).steps
    assert steps.is_lost(record("b", part=NO_PART))  # type: ignore[arg-type]
    for other in (record("b"), record("b", part=NO_PART, plan="old"), record("c", part=NO_PART)):
        assert not steps.is_lost(other)  # type: ignore[arg-type]


def history(epoch: int, from_step: int, from_epoch: int, *, goes_back: bool = False) -> Any:
    blocks: Any = SimpleNamespace(num_blocks=3)
    body = PipelineBody("c" * 64, blocks, (), (), from_step, 10, from_epoch, goes_back)
    return SimpleNamespace(**(vars(PLAN) | {"body": body, "epoch": epoch}))


@pytest.mark.parametrize(
    ("plan", "own"),
    [(history(6, 26, 5), 24), (history(6, 22, 5, goes_back=True), 22), (history(9, 12, 8), 12)],
    ids=["goes on", "goes back", "others'"],
)
def test_batches_of_another_history_are_none_of_the_plans(plan: Any, own: int) -> None:
    """Who has done 24 by its own plan is no further than the others' plan says, once it follows that."""
    steps = Group(record("a"), record("b")).steps
    steps.begin(history(5, 20, 1), "mine", 0.0)
    steps.train(history(5, 20, 1))
    steps.own = 24
    steps.begin(plan, "next", 1.0)
    assert steps.own == steps.newest() == own and steps.leads_on == (own == 24)
    steps.train(plan)
    steps.own = 29
    steps.begin(plan, "next", 2.0)
    assert steps.own == 29, "its trainer was started again: what the group has done by the plan is done"


def test_a_plan_is_begun_when_another_than_this_peer_has_done_a_batch_by_it() -> None:
    group = Group(record("a"), record("b"), record("c", step=25))
    group.steps.own = 25
    assert group.steps.begun() is None, "c has no stage of it, and its own batches are its trainer's to tell"
    group.records["a"].step, group.records["b"].plan = 21, "old"
    assert group.steps.begun() is PLAN
    group.records["a"].plan = "old"
    assert group.steps.begun() is None
