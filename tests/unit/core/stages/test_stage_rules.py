"""Who is there for a plan, and what comes of a search for one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import records

from p2ptrain.config import Job
from p2ptrain.core.plan import Plan
from p2ptrain.core.stages.rules import NOT_MEASURED, StageRules, has_lost_part, search
from p2ptrain.errors import UserError
from p2ptrain.ids import PeerId
from p2ptrain.wire.messages import NO_PART

A, B, C = (PeerId(letter * 16) for letter in "abc")
PLAN: Any = SimpleNamespace(
    trainers=lambda: {A: 0, B: 1},
    part_of=lambda peer: {A: 0, B: 1}.get(peer),
    peers=[SimpleNamespace(peer=peer) for peer in (A, B, C)],
)


def test_who_says_that_it_has_no_part_has_lost_it() -> None:
    lost = records.record(A, plan="p", part=NO_PART)
    assert has_lost_part(PLAN, "p", lost)
    assert not has_lost_part(PLAN, "p", records.record(A, plan="p", part=0))
    assert not has_lost_part(PLAN, "p", records.record(A, plan="q", part=NO_PART)), "it follows another plan"
    assert not has_lost_part(PLAN, "p", records.record(C, plan="p", part=NO_PART)), "it was given none"


@pytest.mark.parametrize(
    ("lost", "here", "forms"), [("", "abc", False), ("a", "abc", False), ("ab", "abc", True), ("a", "ac", True)]
)
def test_a_group_forms_where_most_trainers_that_are_here_have_just_been_started(
    lost: str, here: str, forms: bool
) -> None:
    rules = StageRules(C, Job(), is_lost=lambda record: record.peer[0] in lost)
    members = [records.record(PeerId(letter * 16)) for letter in here]
    assert rules.present(members) == {PeerId(letter * 16) for letter in here if letter not in lost}
    assert rules.forms(PLAN, members) is forms
    assert list(rules.participants(PLAN)) == [A, B, C]


def test_a_search_says_why_there_is_no_plan() -> None:
    def nothing() -> Plan | None:
        raise UserError("nobody has samples")

    assert search(nothing).work().problem == "nobody has samples"
    assert search(lambda: None).work().problem == "" and search(lambda: None).work().plan is None
    assert "not measured" in NOT_MEASURED.work().problem
