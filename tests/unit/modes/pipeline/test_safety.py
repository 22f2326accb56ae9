"""What is said of a pipeline's copies: who has which, how old they are, and what would be lost with whom."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.pipeline import safety
from p2ptrain.modes.pipeline.plan import PipelineBody
from p2ptrain.planning.pipeline.stages import PipelinePlan, Stage
from p2ptrain.wire.messages import SnapshotRef

JOB: Any = SimpleNamespace(id="job", training=SimpleNamespace(rounds=100))
PIPELINE = PipelinePlan("m", 4, 2, 1, (Stage(0, 2, ("a",), (2,), 1), Stage(2, 4, ("b",), (2,), 1)), ("c",))
PLAN: Any = SimpleNamespace(
    hash="new", trainers=lambda: {"a": 0, "b": 1}, body=PipelineBody("c" * 64, PIPELINE, (0.5, 0.5), (), 10, 10)
)


def saved(trainer: str, part: int, step: int) -> SnapshotRef:
    return SnapshotRef(part, PeerId(trainer), 1, 1, step, 10, BlobId(f"{trainer}{part}{step}".ljust(64, "x")), 100, 2)


def record(peer: str, step: int, *holdings: SnapshotRef) -> Any:
    return SimpleNamespace(
        peer=peer, name=f"device {peer}", job="another", plan="new", step=step, holdings=holdings, saves_every=0
    )


A20, B20, A25, B25 = saved("a", 0, 20), saved("b", 2, 20), saved("a", 0, 25), saved("b", 2, 25)


def test_with_whom_which_batches_would_be_lost() -> None:
    here = [record("a", 27, A25, A20, B20), record("b", 26, B25, B20, A20), record("c", 0, A25, A20, B20)]
    found = safety.safety(PLAN, here)
    assert (found.done, found.saved) == (27, 25)
    assert found.copies == {(0, 2): {"b": 20, "c": 25}, (2, 4): {"a": 20, "c": 20}}
    assert found.lost_with(PeerId("a")) == (26, 27), "c has its blocks of 25"
    assert found.lost_with(PeerId("b")) == (21, 27), "nobody else has its blocks of 25"
    assert found.lost_with(PeerId("c")) is None, "it trains nothing"
    lines = safety.lines(PLAN, JOB, here)
    assert lines[0] == "batches done: 27; all blocks saved after 25"
    assert lines[2] == (
        "blocks 2-3: device b; copies: device a (batch 20), device c (batch 20); "
        "without device b: batches 21-27 done again"
    )
    plain = safety.plain(PLAN, here)
    assert plain["lost_without"] == {"a": [26, 27], "b": [21, 27], "c": []}
    assert plain["blocks"][0] == {"first": 0, "last": 1, "trainers": ["a"], "copies": {"b": 20, "c": 25}}


def test_of_who_is_gone_nothing_counts() -> None:
    here = [record("b", 26, B25, B20)]
    found = safety.safety(PLAN, here)
    assert found.trainers == {(0, 2): (), (2, 4): ("b",)} and found.saved == 0
    assert safety.lines(PLAN, JOB, here)[1] == "blocks 0-1: nobody; copies: none yet"


def test_how_often_all_is_saved_is_said_once_all_who_train_have_said_what_they_ask_for() -> None:
    here = [record("a", 27), record("b", 26), record("c", 0)]
    here[0].saves_every, here[1].saves_every = 4, 0
    assert "every" not in safety.lines(PLAN, JOB, here)[0] and safety.plain(PLAN, here)["saves_every"] == 0
    here[1].saves_every = 8
    assert safety.lines(PLAN, JOB, here)[0].endswith("saved after 0, every 8 batches")
    here[1].saves_every = 64
    assert safety.plain(PLAN, here)["saves_every"] == 10, "after every round"
