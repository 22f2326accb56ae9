"""What planning split training costs, and what the plan promises beside simpler ways.

Rooms are made of the profiles in ``peers/``, with the desktop as the helper and a model's real blocks, and of made-up
ones: 16 owners, 4 helpers and 60 blocks, of whom no two are alike. All seconds of a round are predictions, played
through; those of planning are CPU seconds on this machine, for the plan alone.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import plots
from benchmarks.common import REPOSITORY, Column, Sample, Settings
from benchmarks.made_up import mixed_room
from benchmarks.rows import Row, Section
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.blocks.costs import profile_blocks
from p2ptrain.learning.models import build_model
from p2ptrain.planning.devices.profiles import read_profile
from p2ptrain.planning.pipeline.task import peer_from_profile
from p2ptrain.planning.split.comparison import lower_bound_s
from p2ptrain.planning.split.planned import planned
from p2ptrain.planning.split.room import Room
from p2ptrain.planning.split.search import Search
from p2ptrain.planning.split.strategies import strategies
from p2ptrain.planning.split.task import SplitPeer, SplitTask

LISTED = {
    "planner_split": "what planning split training costs, and what the plan promises beside simpler ways",
}
BASELINE = "all alone, common cuts, cuts or shares only, the papers' alternating method; each played through"
COLUMNS = (
    Column("round_s", "a round, predicted, s", 1),
    Column("times_as_long", "times as long as planned", 2),
    Column("planning_ms", "planning, CPU ms", 0),
    Column("times_the_bound", "times a lower bound", 2),
    Column("helped", "units with a helper", 0),
)
OWNERS = ("raspberry-pi-4", "raspberry-pi-5", "old-laptop", "jetson-nano")
HELPER, SAMPLES, BATCH = "desktop-gpu", 1000, 64
RATE = 100e6 / 8
MODELS = {"vgg11": (3, 32, 32), "mobilenetv2": (3, 32, 32)}
MADE_UP_SEEDS = (1, 2, 3)


def run(settings: Settings) -> Iterator[Sample]:
    for repetition in settings.repetitions:
        for seed in MADE_UP_SEEDS[:1] if settings.tiny else MADE_UP_SEEDS:
            size = (4, 1, 8) if settings.tiny else (16, 4, 60)
            case = f"{size[0]} owners, {size[1]} helpers, {size[2]} blocks, {seed}"
            yield from _compared(case, repetition, mixed_room(random.Random(seed), *size))
        for name in list(MODELS)[:1] if settings.tiny else MODELS:
            yield from _compared(f"{name}, four boards and a desktop", repetition, _boards(name))


def _boards(model: str) -> SplitTask:
    with torch.device("meta"):
        network = build_model(model, input_shape=MODELS[model], num_classes=10, width=1.0)
    peers = [SplitPeer(_device(name), SAMPLES) for name in OWNERS]
    return SplitTask(
        profile_blocks(Chain(network, MODELS[model]), model),
        (*peers, SplitPeer(_device(HELPER))),
        BATCH,
        latency_s=1e-3,
    )


def _device(name: str) -> Any:
    device = peer_from_profile(read_profile(REPOSITORY / "peers" / f"{name}.toml"), name)
    return type(device)(name, device.flops_per_s, device.memory_bytes, RATE)


def _compared(case: str, repetition: int, task: SplitTask) -> Iterator[Sample]:
    start = time.process_time()
    search = Search(Room(task))
    plan = planned(search)
    planning_ms = 1e3 * (time.process_time() - start)
    helped = sum(not unit.is_alone for unit in plan.units)
    over = plan.round_s / lower_bound_s(search)
    figures = {"round_s": plan.round_s, "times_as_long": 1.0, "planning_ms": planning_ms, "times_the_bound": over}
    yield Sample(case, repetition, figures | {"helped": helped})
    for name, strategy in strategies().items():
        other = strategy(search, plan)
        if other is not None:
            figures = {"round_s": other.round_s, "times_as_long": other.round_s / plan.round_s}
            figures |= {"helped": sum(not unit.is_alone for unit in other.units)}
            yield Sample(f"{case}: {name}", repetition, figures, is_baseline=True)


def plot(figure: Any, result: dict[str, Any]) -> None:
    """How much longer a round takes in simpler ways, by room."""
    axes = figure.subplots()
    planned_cases = [case["case"] for case in result["cases"] if not case["is_baseline"]]
    names = sorted({case["case"].rpartition(": ")[2] for case in result["cases"] if case["is_baseline"]})
    found = {c["case"]: c["figures"]["times_as_long"]["median"] for c in result["cases"] if c["is_baseline"]}
    for number, name in enumerate(names):
        points = [(i, found[f"{case}: {name}"]) for i, case in enumerate(planned_cases) if f"{case}: {name}" in found]
        shown = plots.mark(number, is_baseline=True)
        style = shown.pop("fmt")
        axes.plot(*zip(*points, strict=True), marker=style, linestyle="", label=name, **shown)
    axes.axhline(1.0, color=plots.COLOURS[-1], linewidth=1)
    axes.set_yscale("log")
    plots.plain_numbers(axes.yaxis)
    axes.set_xticks(range(len(planned_cases)), planned_cases, rotation=30, ha="right", fontsize="small")
    axes.set_ylabel("times as long as the plan's round")
    plots.legend(axes)


SHOWN = ("all alone", "one mid cut", "best common cut, equal shares", "alternating", "no micro-batches in flight")
MADE_UP = tuple(f"16 owners, 4 helpers, 60 blocks, {seed}" for seed in MADE_UP_SEEDS)
WORDS = " / ".join(SHOWN)
FIGURES = Section(
    "Pipelines",
    "What planning split training costs, and what a plan promises",
    (
        *(
            Row(
                "planner_split",
                f"split training of {words} on four boards and a desktop: a round, predicted; CPU of planning",
                f"{{{model}, four boards and a desktop/round_s:.1f}} s,"
                f" {{{model}, four boards and a desktop/planning_ms:.0f}} ms",
                f"times as long, {WORDS}: "
                + " / ".join(f"{{{model}, four boards and a desktop: {name}/times_as_long:.2f}}" for name in SHOWN),
            )
            for model, words in (("vgg11", "VGG-11"), ("mobilenetv2", "MobileNetV2"))
        ),
        Row(
            "planner_split",
            "split training of 60 made-up blocks, 16 owners and 4 helpers of whom no two are alike, three such rooms:"
            " CPU ms of planning; times a bound that no plan betters",
            "; ".join(f"{{{case}/planning_ms:.0f}} ms, {{{case}/times_the_bound:.2f}}" for case in MADE_UP),
            f"times as long, {WORDS}: "
            + "; ".join(" / ".join(f"{{{case}: {name}/times_as_long:.2f}}" for name in SHOWN) for case in MADE_UP),
        ),
    ),
)
