"""Which state a harvest of the best one takes, and what it says where that can't be had."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.config import DataConfig, Job
from p2ptrain.core.harvest import Collected, Look
from p2ptrain.core.looks.looks import few_copies, name_of
from p2ptrain.errors import NotCoveredError, UserError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.tasks import harvest as harvester
from p2ptrain.protocol.group.record import blank_record
from p2ptrain.runtime.best_state import collect_best, kept_best
from p2ptrain.wire.messages import LookFigure, Record, SnapshotRef

JOB = Job(data=DataConfig(("a", "b"), (1, 8, 8), mean=(0.0,), std=(1.0,)))
NAMES = [PeerId(f"peer{number:012d}") for number in range(2)]
PLAN: Any = SimpleNamespace(parts=(SimpleNamespace(index=0), SimpleNamespace(index=1)))


def copy(part: int, round: int, kind: Any = "kept") -> SnapshotRef:
    blob = BlobId(f"{part}{round}" * 32)
    return SnapshotRef(part, NAMES[part], 1, round, round, 10, blob, 4, kind=kind)


def state(round: int) -> str:
    return name_of(few_copies([copy(0, round), copy(1, round)]))


def records(*looks: tuple[int, int], kept: tuple[int, ...] = (2, 4)) -> list[Record]:
    """``looks``: round and right answers of ten, at each device."""
    figures = tuple(LookFigure(state(round), round, 10, correct, 5.0) for round, correct in looks)
    found = []
    for part, name in enumerate(NAMES):
        blank = blank_record(name, b"k" * 40, 1, name=f"device {part}")
        holdings = (copy(part, 6, "part"), *(copy(part, round) for round in kept))
        found.append(dataclasses.replace(blank, job=JOB.id, looks=figures, holdings=holdings))
    return found


def collect(there: list[Record], gone: tuple[BlobId, ...] = ()) -> tuple[Collected, list[str]]:
    said: list[str] = []

    async def fetch(ref: SnapshotRef, what: str) -> bytes | None:
        return None if ref.blob in gone else ref.blob.encode()

    observer: Any = SimpleNamespace(records={r.peer: r for r in there}, members=lambda: there)
    return asyncio.run(collect_best(observer, JOB, PLAN, harvester, fetch, said.append)), said


def rounds(collected: Collected) -> set[tuple[int, int]]:
    return {(part, each.holding.round) for part, copies in collected.parts.items() for each in copies}


def test_it_is_the_one_with_most_right_answers_and_is_told_beside_the_last() -> None:
    collected, said = collect(records((2, 9), (4, 7)))
    assert rounds(collected) == {(0, 2), (1, 2)} and not said
    assert all(each.holding.kind == "part" for copies in collected.parts.values() for each in copies)
    best = collected.best
    assert best is not None and (best.look.round, best.look.accuracy, best.last.round) == (2, 0.9, 4)
    assert best.finished is None


def test_where_the_best_is_not_whole_any_more_the_next_best_is_taken_and_that_is_said() -> None:
    for there, gone in ((records((2, 9), (4, 7), kept=(4,)), ()), (records((2, 9), (4, 7)), (copy(1, 2).blob,))):
        collected, said = collect(there, gone)
        assert rounds(collected) == {(0, 4), (1, 4)}
        assert said == ["the state after round 2 is not whole any more; looking for the next best"]


def test_copies_of_another_state_than_was_looked_at_are_not_passed_off_as_it() -> None:
    there = records((2, 9))
    other = dataclasses.replace(copy(1, 2), blob=BlobId("ff" * 32))
    there[1] = dataclasses.replace(there[1], holdings=(other,))
    with pytest.raises(NotCoveredError, match="no state that the group has looked at is whole any more"):
        collect(there)


def test_where_nobody_has_looked_it_is_said_when_that_would_be() -> None:
    with pytest.raises(NotCoveredError, match=r"has not looked at its whole model yet.*training.look_every"):
        collect(records())


def test_how_good_the_finished_model_is_comes_from_those_who_are_done() -> None:
    there = [
        dataclasses.replace(each, phase="done", model_samples=10, accuracy=share)
        for each, share in zip(records((2, 9)), (0.8, 0.6), strict=True)
    ]
    best = collect(there)[0].best
    assert best is not None and best.finished == Look("", 20, 0.7)


def test_a_folder_without_one_says_so(tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"keeps no best state.*harvest without --best"):
        kept_best(tmp_path)
    (tmp_path / "best.safetensors").write_bytes(b"")
    assert kept_best(tmp_path).name == "best.safetensors"
