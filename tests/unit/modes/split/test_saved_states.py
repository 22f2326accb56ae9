"""Which saved states of a split group get further copies, and what gives way where there is no room."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.core.effects import KeepReplica
from p2ptrain.ids import BlobId
from p2ptrain.modes.split.rounds import saved
from p2ptrain.modes.split.rounds.pieces import State
from p2ptrain.modes.split.rounds.saved import FULL_S, HELD, MAX_KEPT, SavedStates
from p2ptrain.protocol.machine import Note
from p2ptrain.wire.messages import SnapshotRef

OWN = "own"
AVERAGER: Any = "averager"


def states(monkeypatch: pytest.MonkeyPatch, round_s: float, rounds: int = 1000) -> SavedStates:
    group: Any = SimpleNamespace(own_id=OWN, is_trainers=lambda ref: True)
    monkeypatch.setattr(saved, "body_of", lambda plan: plan)
    found = SavedStates(group, SimpleNamespace(), (), 2, rounds)  # type: ignore[arg-type]
    plan: Any = SimpleNamespace(split=SimpleNamespace(round_s=round_s))
    found.begin(plan)
    return found


def chosen(found: SavedStates, finished: list[int], full: int | None = None) -> list[int]:
    """Rounds of the states that get all of their copies."""
    found._finished = {state(round) for round in finished}
    return [each[0] for each in found._copied([state(full)] if full is not None else [])]


def state(round: int) -> State:
    return round, 1, AVERAGER


def test_a_state_that_gets_all_of_its_copies_is_not_given_up_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A further copy takes longer than a round."""
    found = states(monkeypatch, FULL_S)
    assert chosen(found, [1]) == [1]
    assert chosen(found, [1, 2]) == chosen(found, [1, 2, 3]) == [1]
    assert chosen(found, [1, 3], full=1) == [3]
    assert chosen(found, [1, 3, 4], full=1) == [3]


def test_a_state_that_never_gets_them_makes_room_for_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = states(monkeypatch, FULL_S)
    assert chosen(found, [1, HELD]) == [1]
    assert chosen(found, [1, HELD + 1]) == [HELD + 1]


def test_of_short_rounds_a_state_is_chosen_now_and_then_and_the_last_one_always(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = states(monkeypatch, FULL_S / 10, rounds=14)
    assert [chosen(found, [round], full=1) for round in range(2, 15)] == [[]] * 9 + [[11], [], [], [14]]
    assert chosen(found, [11, 14], full=1) == [14], "nothing is trained after it"
    assert chosen(found, [7]) == [7], "none has all of them"


def piece(round: int, number: int) -> SnapshotRef:
    return SnapshotRef(number, AVERAGER, 1, round, round, 0, BlobId(f"{round}-{number}"), 100)


def test_where_there_is_no_room_the_state_kept_for_several_deaths_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    found = states(monkeypatch, 1.0)
    spare, needed = ([piece(round, number) for number in range(MAX_KEPT // 2)] for round in (1, 2))
    found._kept = {ref.blob: ref for ref in (*spare, *needed)}
    found._spare = {state(1)}
    new = piece(3, 0)
    assert found.keep(new) == [*(KeepReplica(ref, keep=False) for ref in spare), KeepReplica(new)]
    assert list(found._kept.values()) == needed and found.is_kept(new.blob)


def test_where_nothing_can_go_it_is_said_once_and_the_piece_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    found = states(monkeypatch, 1.0)
    found._kept = {ref.blob: ref for ref in (piece(2, number) for number in range(MAX_KEPT))}
    new = piece(3, 0)
    assert [effect.kind for effect in found.keep(new) if isinstance(effect, Note)] == ["no-room-for-piece"]
    assert found.keep(new) == [] and not found.is_kept(new.blob) and len(found._kept) == MAX_KEPT


def test_a_piece_kept_for_several_deaths_pushes_out_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would be fetched by turns, for ever."""
    found = states(monkeypatch, 1.0)
    spare = [piece(1, number) for number in range(MAX_KEPT)]
    found._kept = {ref.blob: ref for ref in spare}
    found._spare = {state(1)}
    new = piece(1, MAX_KEPT)
    assert found.keep(new) == [] == found.keep(new)
    assert list(found._kept.values()) == spare and not found.is_kept(new.blob)


def test_what_made_room_for_a_piece_that_the_disk_refuses_is_told_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    found = states(monkeypatch, 1.0)
    said: list[list[SnapshotRef]] = []
    found._group.say_holdings = lambda now: said.append(list(found._kept.values())) or []  # type: ignore[func-returns-value,method-assign]
    found._kept = {ref.blob: ref for ref in (piece(1, number) for number in range(MAX_KEPT))}
    found._spare = {state(1)}
    new = piece(2, 0)
    found.keep(new)
    found.replica_kept(new, False, 0.0)
    assert said == [[]]


def test_a_liar_that_tells_of_honest_pieces_as_of_another_state_hides_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = states(monkeypatch, 1.0)
    found._plan.split.num_blocks = 2  # type: ignore[union-attr,attr-defined]
    honest = [piece(3, 0), piece(3, 1)]
    lies = [dataclasses.replace(ref, trainer="z", round=2, step=2, part=1 - ref.part) for ref in honest]
    for order in (["a", "b", "z"], ["z", "b", "a"]):
        records = {"a": honest, "b": honest, "z": lies, OWN: []}
        found._group.members = lambda order=order: [*order, OWN]  # type: ignore[method-assign,assign]
        found._group.record = lambda member, records=records: SimpleNamespace(holdings=records[member])  # type: ignore
        assert found.newest()[0] == 3 and found.holders()[honest[0]] == {"a", "b"}
        found._look_for_finished(0.0)
        assert found._finished == {state(3)}, "the liar's is with it alone"
        assert found.is_safe(honest[0]) and not found.is_safe(lies[0])


def test_a_piece_that_the_plan_names_is_what_most_tell_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found, honest = states(monkeypatch, 1.0), piece(3, 0)
    lies = [dataclasses.replace(honest, trainer="z"), dataclasses.replace(honest, num_bytes=1)]
    start = [SimpleNamespace(first=0, stop=1, blob=honest.blob, num_bytes=honest.num_bytes)]
    plan: Any = SimpleNamespace(from_round=3, epoch=1, averager=AVERAGER, start=start)
    for order in (["a", "b", "z"], ["z", "b", "a"]):
        records = {"a": [honest], "b": [honest], "z": lies, OWN: []}
        found._group.members = lambda order=order: [*order, OWN]  # type: ignore[method-assign,assign]
        found._group.record = lambda member, records=records: SimpleNamespace(holdings=records[member])  # type: ignore
        (named,) = found._start_of(plan)
        assert (named.trainer, named.num_bytes) == (AVERAGER, honest.num_bytes)
