"""What planning a pipeline costs and what the plan promises, beside three ways to do without a plan.

Fleets are made of the profiles in ``peers/`` (the desktop with a GPU left out: nothing is faster than that alone) and
the speeds 1 : 0.1 : 1 of the literature (FTPipeHD), with a model's real blocks. The largest have 60 made-up blocks and
16 peers of whom no two are alike. All seconds of a batch are predictions of the same cost model; those of planning are
CPU seconds on this machine, for all that a group plans: each number of micro-batches, and with fewer devices.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import plots
from benchmarks.common import REPOSITORY, Column, Sample, Settings
from benchmarks.made_up import mixed_task
from benchmarks.rows import Row, Section
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.blocks.costs import profile_blocks
from p2ptrain.learning.models import TEXT_MODELS, build_model
from p2ptrain.planning.devices.blocks import ModelProfile
from p2ptrain.planning.devices.profiles import read_profile
from p2ptrain.planning.pipeline.comparison import compare
from p2ptrain.planning.pipeline.fleet import Fleet
from p2ptrain.planning.pipeline.task import PipelinePeer, PipelineTask, peer_from_profile

LISTED = {
    "planner": "what planning a pipeline costs, and what the plan promises beside three ways to do without",
}
BASELINE = "the best single peer, an equal split over all peers, data parallel; each priced by the same cost model"
COLUMNS = (
    Column("batch_s", "a batch, predicted, s", 3),
    Column("times_as_long", "times as long as planned", 2),
    Column("planning_ms", "planning, CPU ms", 0),
    Column("stages", "stages", 0),
    Column("peers", "peers at work", 0),
)
BATCH, MICRO_BATCHES = 64, 8
RATE = 100e6 / 8
BOARDS = ("raspberry-pi-4", "raspberry-pi-5", "old-laptop", "jetson-nano", "phone-board", "recent-laptop")
FASTEST = 40e9
"""FLOP/s of the fast ones of 1 : 0.1 : 1."""
MADE_UP_SEEDS = (1, 2, 3)
MODELS = {"vgg11": (3, 32, 32), "mobilenetv2": (3, 32, 32), "bert_small": (1, 1, 128)}


def run(settings: Settings) -> Iterator[Sample]:
    fleets = _fleets()
    for repetition in settings.repetitions:
        for seed in MADE_UP_SEEDS[:1] if settings.tiny else MADE_UP_SEEDS:
            size = (8, 4) if settings.tiny else (60, 16)
            yield from _compared(
                f"{size[0]} blocks, {size[1]} unlike peers, {seed}", repetition, mixed_task(random.Random(seed), *size)
            )
        for name in list(MODELS)[:1] if settings.tiny else MODELS:
            model = _profile(name)
            for fleet, peers in list(fleets.items())[:1] if settings.tiny else fleets.items():
                yield from _compared(
                    f"{name}, {fleet}",
                    repetition,
                    PipelineTask(model, peers, BATCH // MICRO_BATCHES, MICRO_BATCHES, 0.001),
                )


def _fleets() -> dict[str, tuple[PipelinePeer, ...]]:
    boards = [peer_from_profile(read_profile(REPOSITORY / "peers" / f"{name}.toml"), name) for name in BOARDS]

    def many(count: int) -> tuple[PipelinePeer, ...]:
        chosen = (boards[i % len(boards)] for i in range(count))
        return tuple(_linked(peer, f"{peer.name}-{i}") for i, peer in enumerate(chosen))

    unlike = tuple(
        PipelinePeer(name, FASTEST * share, 4e9, RATE)
        for name, share in (("fast-1", 1.0), ("slow", 0.1), ("fast-2", 1.0))
    )
    return {"1 : 0.1 : 1": unlike, "5 boards": many(5), "8 boards": many(8), "16 boards": many(16)}


def _linked(peer: PipelinePeer, name: str) -> PipelinePeer:
    return PipelinePeer(name, peer.flops_per_s, peer.memory_bytes, min(peer.link_bytes_per_s, RATE))


def _profile(name: str) -> ModelProfile:
    with torch.device("meta"):
        network = build_model(name, input_shape=MODELS[name], num_classes=256 if name in TEXT_MODELS else 10, width=1.0)
    return profile_blocks(Chain(network, MODELS[name]), name)


def _compared(case: str, repetition: int, task: PipelineTask) -> Iterator[Sample]:
    start = time.process_time()
    comparison = compare(Fleet(task))
    planning_ms = 1e3 * (time.process_time() - start)
    planned = comparison.planned
    best = planned.cost.batch_s
    at_work = {peer for stage in planned.plan.stages for peer in stage.peers}
    figures = {"batch_s": best, "times_as_long": 1.0, "planning_ms": planning_ms}
    yield Sample(case, repetition, figures | {"stages": len(planned.plan.stages), "peers": len(at_work)})
    for name, baseline in comparison.baselines.items():
        if baseline is not None:
            its = {peer for stage in baseline.plan.stages for peer in stage.peers}
            took = baseline.cost.batch_s
            figures = {"batch_s": took, "times_as_long": took / best, "stages": len(baseline.plan.stages)}
            yield Sample(f"{case}: {name}", repetition, figures | {"peers": len(its)}, is_baseline=True)


def plot(figure: Any, result: dict[str, Any]) -> None:
    """How much longer a batch takes without the plan, by fleet and model."""
    axes = figure.subplots()
    planned = [case["case"] for case in result["cases"] if not case["is_baseline"]]
    names = sorted({case["case"].rpartition(": ")[2] for case in result["cases"] if case["is_baseline"]})
    for number, name in enumerate(names):
        found = {c["case"]: c["figures"]["times_as_long"]["median"] for c in result["cases"] if c["is_baseline"]}
        points = [(i, found[f"{case}: {name}"]) for i, case in enumerate(planned) if f"{case}: {name}" in found]
        shown = plots.mark(number, is_baseline=True)
        style = shown.pop("fmt")
        axes.plot(*zip(*points, strict=True), marker=style, linestyle="", label=name, **shown)
    axes.axhline(1.0, color=plots.COLOURS[-1], linewidth=1)
    axes.set_yscale("log")
    plots.plain_numbers(axes.yaxis)
    axes.set_xticks(range(len(planned)), planned, rotation=30, ha="right", fontsize="small")
    axes.set_ylabel("times as long as the plan's batch")
    plots.legend(axes)


FLEETS, OTHERS = ("1 : 0.1 : 1", "5 boards", "8 boards"), ("best single peer", "equal split", "data parallel")
FIGURES = Section(
    "Pipelines",
    "What planning costs, and what a plan promises",
    (
        *(
            Row(
                "planner",
                f"planning a pipeline of {words} for speeds 1 : 0.1 : 1, five and eight boards: seconds a batch as"
                " the cost model predicts; CPU ms of planning",
                "; ".join(
                    f"{{{model}, {fleet}/batch_s:.2f}} s, {{{model}, {fleet}/planning_ms:.0f}} ms" for fleet in FLEETS
                ),
                "times as long, best single peer / equal split / data parallel: "
                + "; ".join(
                    " / ".join(f"{{{model}, {fleet}: {case}/times_as_long:.1f}}" for case in OTHERS) for fleet in FLEETS
                ),
            )
            for model, words in (
                ("vgg11", "VGG-11"),
                ("mobilenetv2", "MobileNetV2"),
                ("bert_small", "BERT-small-like, 128 bytes"),
            )
        ),
        Row(
            "planner",
            "planning 60 made-up blocks on 16 peers of whom no two are alike, three such fleets: CPU ms; times as long"
            " as the plan, best single peer / equal split / data parallel, all as the cost model predicts",
            "; ".join(f"{{60 blocks, 16 unlike peers, {seed}/planning_ms:.0f}} ms" for seed in MADE_UP_SEEDS),
            "; ".join(
                " / ".join(f"{{60 blocks, 16 unlike peers, {seed}: {case}/times_as_long:.1f}}" for case in OTHERS)
                for seed in MADE_UP_SEEDS
            ),
        ),
    ),
)
