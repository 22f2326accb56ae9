"""What a stage's work is told as: how long a batch takes, and how much it sends, from one look to the next."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from p2ptrain.core.stages.commands import StageUsed
from p2ptrain.core.stages.reports import StageReports
from p2ptrain.protocol.machine import Note


def told(reports: StageReports, step: int, now: float) -> dict[str, Any]:
    (note, *_) = reports.used(StageUsed(step, 0.5, 1.0), now)
    assert isinstance(note, Note) and note.kind == "stage"
    return dict(note.fields)


def test_seconds_a_batch_and_bytes_a_second_since_the_last_look() -> None:
    traffic = SimpleNamespace(plan="one", pushed_bytes=1000)
    reports = StageReports(SimpleNamespace(say=lambda now, **values: []), traffic)  # type: ignore[arg-type]
    first = told(reports, 2, 10.0)
    assert first["busy"] == 0.5 and "batch_s" not in first, "there is nothing to compare with"
    traffic.pushed_bytes = 5000
    assert told(reports, 12, 15.0) | {"busy": 0, "slowdown": 0} == {
        "step": 12,
        "busy": 0,
        "slowdown": 0,
        "batch_s": 0.5,
        "sends_bytes_per_s": 800.0,
    }
    traffic.plan = "two"
    assert "batch_s" not in told(reports, 22, 30.0), "of another plan"
    assert told(reports, 32, 40.0)["batch_s"] == 1.0
    assert "batch_s" not in told(reports, 31, 41.0), "it went back"
