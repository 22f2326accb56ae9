"""What devices computed, beside central training: in ``status``, ``harvest`` and the demo's table, and for programs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import records

from p2ptrain.config import DataConfig, Job
from p2ptrain.core.harvest import DeviceWork, works_of
from p2ptrain.experiment.measure import PeerResult
from p2ptrain.ids import JobId, PeerId
from p2ptrain.runtime import report
from p2ptrain.ui import status_table
from p2ptrain.ui.demo_table import demo_table
from p2ptrain.wire.messages import Record

A, B, C = (PeerId(letter * 16) for letter in "abc")
JOB = Job(data=DataConfig(("cat", "dog"), (1, 8, 8), mean=(0.0,), std=(1.0,)))


def record(peer: PeerId, name: str, work: float, central: float, job: JobId = JOB.id) -> Record:
    return records.record(peer, name=name, job=job, work_flops=work, central_flops=central)


RECORDS = (
    record(A, "board", 7.5e12, 9e13),
    record(B, "laptop", 1.5e13, 1.2e14),  # it has heard of a plan with more samples
    record(C, "new one", 0.0, 0.0),
    record(PeerId("d" * 16), "of another job", 1e15, 1e15, JobId("0" * 16)),
)


def test_central_training_is_that_of_whoever_knows_of_most_samples() -> None:
    assert works_of(RECORDS, JOB.id) == (DeviceWork("board", 7.5e12, 1.2e14), DeviceWork("laptop", 1.5e13, 1.2e14))
    assert works_of(RECORDS[2:], JOB.id) == ()


def test_status_says_what_each_device_computed_and_all_together() -> None:
    nothing: dict[str, Any] = {name: {} for name in ("states", "refused", "troubles", "figures", "sent")}
    found: Any = SimpleNamespace(job=JOB, plan=None, records=RECORDS[:3], **nothing)
    text = status_table.render(found)
    assert (
        "training work of 2 devices, all included: 22.5 TFLOP, at most 1/5.3 of central training (120 TFLOP or more)"
        in status_table.headline(found)
    )
    assert "computed 7.5 TFLOP, at most 1/12.0 of central training" in text
    plain = status_table.to_plain(found)
    assert plain["work"]["peers"][0] == {"name": "board", "flops": 7.5e12, "share": 0.0625}
    assert plain["work"]["central_flops"] == 1.2e14 and plain["work"]["group_share"] == pytest.approx(0.1875)
    assert [peer["work_flops"] for peer in plain["peers"]] == [7.5e12, 1.5e13, 0.0]


@pytest.mark.parametrize(
    ("flops", "told"),
    [
        (7.5e12, "7.5 TFLOP, at most 1/16.0 of central training"),
        (1.2e14, "120 TFLOP, at most 1/1.0 of central training"),
        (3e14, "300 TFLOP, at most 2.5 times central training"),
        (2.4e15, "2.4 PFLOP, at most 20.0 times central training"),
    ],
)
def test_more_than_central_training_is_said_too(flops: float, told: str) -> None:
    assert report.work_text(DeviceWork("x", flops, 1.2e14)) == told


def test_harvest_tells_all_of_it_or_nothing() -> None:
    works = works_of(RECORDS, JOB.id)
    assert report.work_line(works) == [
        "training work of 2 devices, all included: 22.5 TFLOP, at most 1/5.3 of central training (120 TFLOP or more)"
    ]
    assert report.work_line(()) == [] and report.works_plain(()) is None


def test_the_demo_says_whose_work_is_most() -> None:
    peers = tuple(
        PeerResult(name, ("cat",), 0.2, 10, 0.05, 500, 900, 1_000_000, 0.9, flops, flops / 1.2e14)
        for name, flops in (("peer-1", 7.5e12), ("peer-2", 1e13))
    )
    result = SimpleNamespace(
        works=(), peers=peers, found_by="mdns", head_fitted=False, assembled_accuracy=0.9, central_accuracy=0.91,
        central_epochs=30.0, test_samples=100, full_flops_per_sample=200, train_samples=500, work_flops=1.75e13,
        central_flops=1.2e14, formed_s=1.0, trained_s=2.0, harvested_s=3.0,
    )  # fmt: skip
    text = demo_table(result, Path("out"))
    assert "work, all included: together 17.5 TFLOP, 1/6.9 of central training's 120 TFLOP" in text
    assert "the most of a peer: 10.0 TFLOP, 1/12.0 of that" in text
    assert "central training, 30 epochs:" in text and "8.3 %" in text
