"""The rooms of split training's benchmarks: who is short of memory there has a place in the plan."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from p2ptrain.cli.shared.chain import chain_of
from p2ptrain.learning.blocks.costs import profile_blocks
from p2ptrain.planning.devices.footprint import pipeline_bytes
from p2ptrain.planning.pipeline.task import PipelinePeer, held_copies
from p2ptrain.planning.split.cost import cost_of
from p2ptrain.planning.split.planned import planned
from p2ptrain.planning.split.room import Room
from p2ptrain.planning.split.search import Search
from p2ptrain.planning.split.task import SplitPeer, SplitTask

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))

from benchmarks import split, split_unlike

CORE_FLOPS_PER_S = 2e10


def test_devices_short_of_memory_can_not_train_alone_and_are_helped() -> None:
    model = profile_blocks(chain_of("vgg11", "3,32,32", 10, 1.0), "vgg11")
    peers = []
    for device in split.devices_of(split.HELPERS, split.SAMPLES, split.NUM_SAMPLES, limited=True):
        memory = pipeline_bytes(device.memory_mb * 1e6) if device.memory_mb else 8e9
        if device.name in split.LIMITED:
            assert memory == pytest.approx(split.LIMITED_BYTES, rel=0.01)
        rate, speed = device.rate_mbit * 1e6 / 8, device.share * CORE_FLOPS_PER_S
        made = PipelinePeer(device.name, speed, memory, rate, has_data=device.has_data)
        peers.append(SplitPeer(made, split.SAMPLES if device.has_data else 0))
    task = SplitTask(model, tuple(peers), split.BATCH_SIZE, split.MICRO_BATCHES)
    room = Room(dataclasses.replace(task, optimizer_copies=held_copies("sgd", "sync")))
    assert all(room.alone(name) is None for name in split.LIMITED)
    plan = planned(Search(room))
    for name in split.LIMITED:
        unit = plan.unit_of(name)
        assert unit is not None and unit.helper is not None
    assert cost_of(room, plan).fits


def test_samples_are_unlike_where_the_benchmark_says_so() -> None:
    helper, *weak = split_unlike.devices_of(False)
    assert not helper.has_data and {device.dirichlet for device in weak} == {split_unlike.ALPHA}
    _, *weak = split_unlike.devices_of(True)
    named = [name for device in weak for name in device.classes]
    assert all(len(device.classes) == 2 for device in weak) and len(set(named)) == 8


def test_a_row_tells_of_the_cases_that_were_measured() -> None:
    def case(name: str, **figures: float) -> dict[str, object]:
        return {"case": name, "figures": {k: dict.fromkeys(("median", "low", "high"), v) for k, v in figures.items()}}

    planned = case(split.PLANNED, round_s=2.0, times_alone=7.0, measured_of_predicted=1.0)
    cells = split.FIGURES.rows[0].cells(
        {"cases": [planned, case("all alone", round_s=14.0, measured_of_predicted=0.9)]}
    )
    assert cells[1] == "2.0 s; 7.0 times all alone; 1.00"
    assert cells[2].strip() == "all alone: 14.0 s, 0.90 of predicted."
