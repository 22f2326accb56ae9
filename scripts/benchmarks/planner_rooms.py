"""What planning for 10 to 200 peers costs, whole: from what peers say of themselves to a plan that all can check.

Groups are made up: speeds a hundred times apart, memory eight, times of 20 blocks at seven batch sizes (of some devices
at three), 31 links of each measured, four devices in five with samples. What is measured are CPU seconds on this
machine, for the plan and for the check that every other peer makes, and the plan's length. The baseline looks at
everything: in a pipeline at all devices, in split training at every owner with every helper; it is left out where it
would take minutes. "Times as long" is what the plan promises beside the baseline's, by the same figures.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

from benchmarks import plots
from benchmarks.common import SEED, Column, Sample, Settings
from benchmarks.made_up import mixed_task
from benchmarks.rows import Row, Section
from p2ptrain.config import DataConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.core.plan import PeerSnapshot, Plan
from p2ptrain.core.stages import considered
from p2ptrain.core.stages.figures import DeviceFigures, MeasuredPeer
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline import planner as pipeline
from p2ptrain.modes.pipeline.config import PipelineConfig
from p2ptrain.modes.pipeline.figures import fleet_of
from p2ptrain.modes.split import planner as split
from p2ptrain.modes.split.plan import SplitBody
from p2ptrain.modes.tasks.planning import assignment as tasks
from p2ptrain.planning.devices.blocks import ModelProfile
from p2ptrain.planning.split import pairing
from p2ptrain.wire.messages import MAX_LINKS, LinkFigure

LISTED = {
    "planner_rooms": "what planning for 10 to 200 peers costs in every mode, beside a search that looks at everything",
}
BASELINE = "the same search with nothing left out, up to 100 peers"
COLUMNS = (
    Column("planning_ms", "planning, CPU ms", 0),
    Column("checking_ms", "checking, CPU ms", 0),
    Column("plan_kB", "plan, kB", 0),
    Column("promised_s", "batch or round, s", 3),
    Column("times_as_long", "times the whole search's", 3),
)
SIZES, TINY_SIZES = (10, 50, 100, 200), (6, 12)
WHOLE_UP_TO = 100
NUM_BLOCKS, TINY_BLOCKS = 20, 6
CLASSES, SPARSE = tuple(f"c{i}" for i in range(20)), 0.4
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
EVERYTHING = 1 << 30


def run(settings: Settings) -> Iterator[Sample]:
    sizes, num_blocks = (TINY_SIZES, TINY_BLOCKS) if settings.tiny else (SIZES, NUM_BLOCKS)
    for num_peers in sizes:
        for repetition in settings.repetitions:
            generator = random.Random(SEED + repetition)
            model = mixed_task(generator, num_blocks, 1).model
            peers = [measured_peer(generator, model, i, num_peers) for i in range(num_peers)]
            for mode, plan_for in {"tasks": _tasks, "pipeline": _pipeline, "split": _split}.items():
                yield from _cases(mode, plan_for, model, peers, repetition)


def _cases(
    mode: str,
    plan_for: Callable[..., dict[str, float]],
    model: ModelProfile,
    peers: list[MeasuredPeer],
    repetition: int,
) -> Iterator[Sample]:
    figures = plan_for(model, peers)
    end = f", {len(peers)} peers"
    if mode != "tasks" and len(peers) <= WHOLE_UP_TO:
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(considered, "MOST_DEVICES", EVERYTHING))
            stack.enter_context(mock.patch.object(pipeline, "MOST_DEVICES", EVERYTHING))
            stack.enter_context(mock.patch.object(pairing, "MOST_PAIRS", EVERYTHING))
            whole = plan_for(model, peers)
        figures["times_as_long"] = figures["promised_s"] / whole["promised_s"]
        yield Sample(f"{mode}, all looked at{end}", repetition, whole, is_baseline=True)
    yield Sample(f"{mode}{end}", repetition, figures)


def measured_peer(generator: random.Random, model: ModelProfile, index: int, num_peers: int) -> MeasuredPeer:
    speed = 10 ** generator.uniform(9.5, 11.5)
    sizes = BATCH_SIZES if index % 5 else BATCH_SIZES[:3]

    def row(passes: int, size: int) -> tuple[float, ...]:
        each = (passes * block.forward_flops * size / speed for block in model.blocks)
        return tuple(seconds * generator.uniform(0.9, 1.1) + 1e-5 for seconds in each)

    others = sorted(generator.sample([i for i in range(num_peers) if i != index], min(MAX_LINKS - 1, num_peers - 1)))
    links = tuple(LinkFigure(_name(i), generator.uniform(5e6, 2e7), generator.uniform(1e-4, 2e-3)) for i in others)
    figures = DeviceFigures(
        _name(index),
        1e7,
        1.0,
        sizes,
        tuple(row(1, size) for size in sizes),
        tuple(row(2, size) for size in sizes),
        links=links,
    )
    has = index % 5 != 0
    counts = tuple(generator.randint(20, 90) * (generator.random() < SPARSE) for _ in CLASSES) if has else ()
    counts = counts if not has or any(counts) else (50, *counts[1:])
    memory = int(generator.uniform(5e8, 4e9))
    return MeasuredPeer(PeerSnapshot(_name(index), speed, memory, counts, ()), figures)


def _name(index: int) -> PeerId:
    return PeerId(f"peer{index:012d}")


def _job(mode: Any, *tables: Any) -> Job:
    data = DataConfig(CLASSES, (3, 32, 32), mean=(0.0,) * 3, std=(1.0,) * 3, val=0.0)
    return Job(
        mode=mode,
        model=ModelConfig("vgg11"),
        data=data,
        training=TrainingConfig(rounds=10, batch_size=64),
        tables=tables,
    )


def _measured(plan: Callable[[], Plan], check: Callable[[Plan], bool]) -> tuple[Plan, dict[str, float]]:
    start = time.process_time()
    made = plan()
    planned = time.process_time()
    if not check(made):
        raise AssertionError("a plan that nobody would follow")
    checked = time.process_time()
    figures = {
        "planning_ms": 1e3 * (planned - start),
        "checking_ms": 1e3 * (checked - planned),
        "plan_kB": len(made.to_json()) / 1e3,
    }
    return made, figures


def _tasks(model: ModelProfile, peers: list[MeasuredPeer]) -> dict[str, float]:
    job, snapshots = _job("tasks"), [peer.snapshot for peer in peers]
    return _measured(
        lambda: tasks.first_plan(job, snapshots, snapshots[0].peer), lambda plan: tasks.recomputes(job, plan, None)
    )[1]


def _pipeline(model: ModelProfile, peers: list[MeasuredPeer]) -> dict[str, float]:
    job, proposer = _job("pipeline", PipelineConfig(micro_batches=8)), peers[0].snapshot.peer
    plan, figures = _measured(
        lambda: pipeline.first_plan(job, model, peers, proposer), lambda plan: pipeline.follows(job, model, plan, None)
    )
    fleet = fleet_of(job, model, plan.peers, plan.body.figures)
    return figures | {"promised_s": fleet.batch_s(plan.body.pipeline)}


def _split(model: ModelProfile, peers: list[MeasuredPeer]) -> dict[str, float]:
    job, proposer = _job("split"), peers[0].snapshot.peer
    plan, figures = _measured(
        lambda: split.first_plan(job, model, peers, proposer), lambda plan: split.follows(job, model, plan, None)
    )
    assert isinstance(plan.body, SplitBody)
    return figures | {"promised_s": plan.body.split.round_s}


def plot(figure: Any, result: dict[str, Any]) -> None:
    """CPU seconds by peers, for each mode, beside the search that looks at everything."""
    axes = figure.subplots()
    names = sorted({case["case"].rpartition(", ")[0] for case in result["cases"]})
    for number, name in enumerate(names):
        cases = [case for case in result["cases"] if case["case"].rpartition(", ")[0] == name]
        points = [
            (int(case["case"].rpartition(", ")[2].split()[0]), case["figures"]["planning_ms"]["median"] / 1e3)
            for case in cases
        ]
        shown = plots.mark(number, is_baseline="all looked at" in name)
        style = shown.pop("fmt")
        axes.plot(*zip(*sorted(points), strict=True), marker=style, linestyle="-", label=name, **shown)
    axes.set_xscale("log")
    axes.set_yscale("log")
    plots.plain_numbers(axes.xaxis)
    plots.plain_numbers(axes.yaxis)
    axes.set_xlabel("peers")
    axes.set_ylabel("planning, CPU s")
    plots.legend(axes)


FIGURES = Section(
    "Many peers",
    "Planning for hundreds",
    (
        *(
            Row(
                "planner_rooms",
                f"{words}, 20 blocks, 10, 50, 100, 200 peers: CPU ms of planning; at 200 of checking; the plan, kB",
                "; ".join(f"{{{mode}, {n} peers/planning_ms:.0f}}" for n in SIZES)
                + f"; {{{mode}, 200 peers/checking_ms:.0f}}; {{{mode}, 200 peers/plan_kB:.0f}}",
                f"all looked at, 50 and 100 peers: {{{mode}, all looked at, 50 peers/planning_ms:.0f}};"
                f" {{{mode}, all looked at, 100 peers/planning_ms:.0f}}; the plan takes"
                f" {{{mode}, 50 peers/times_as_long:.3f}} and {{{mode}, 100 peers/times_as_long:.3f}} times as long",
            )
            for mode, words in (("pipeline", "planning a pipeline"), ("split", "planning split training"))
        ),
        Row(
            "planner_rooms",
            "dividing 20 classes, of which each has some, among 10, 50, 100, 200 peers: CPU ms; at 200 of checking",
            "; ".join(f"{{tasks, {n} peers/planning_ms:.0f}}" for n in SIZES) + "; {tasks, 200 peers/checking_ms:.0f}",
        ),
    ),
)
