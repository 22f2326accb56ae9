"""What a pipeline's schedule and the compression between its stages do to accuracy, on CIFAR-10.

Every case trains the same model from the same weights on the same samples in the same order, for as many steps at the
same learning rates. *Single* is a plain loop on one device. The others are pipelines of three stages with the deepest
warm-ups that planning gives, each stage a ``StageTraining``, all in this process: no network, so nothing but the
arithmetic differs. What comes out does not hang on when stage messages arrive, so neither do the figures on how fast
this machine is. "int8, no feedback" leaves out the error feedback of gradients, which "int8" has.

The model is VGG-11 without batch normalisation, whose statistics of micro-batches would be a difference of their own;
it and the pictures are small, so that all cases take minutes. The synchronous pipeline without compression computes
what the single device does but for the order of additions: how far it comes out from it, or one seed's result from
another's, is what differences of the other cases are to be judged by.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import plots
from benchmarks.common import SEED, Column, Sample, Settings
from benchmarks.rows import Remark, Row, Section
from benchmarks.tasks import data_file
from p2ptrain.config import Coding, Schedule, TrainingConfig
from p2ptrain.experiment import measure
from p2ptrain.learning.data import Dataset, load, open_source, propose_contract, select
from p2ptrain.planning.pipeline.schedule import deepest_warm_up, most_ahead
from p2ptrain.planning.pipeline.stages import PipelinePlan, Stage, check_pipeline_plan

if TYPE_CHECKING:
    from torch import nn

LISTED = {
    "pipeline_accuracy": "pipelines: accuracy by schedule and compression between stages, beside a single device",
}
BASELINE = "the same training on a single device, in a plain loop"
COLUMNS = (
    Column("accuracy", "accuracy, %", 1),
    Column("difference", "to single, points", 2),
    Column("train_loss", "loss in the last epoch", 3),
    Column("bytes_per_sample", "bytes across cuts a sample", 0),
)
SINGLE = "single"
MICRO_BATCHES = 4
"""Few, so that all but the first of a batch meet weights that are a step old ("async")."""
BATCH_SIZE = 64
OWNER = "peer0"
"""Who has the samples."""


@dataclass(frozen=True, slots=True)
class Workload:
    """``shard``: which of the training samples. ``stops``: the blocks that stages end at, the last one's left out."""

    data: str
    model: str
    width: float
    input_shape: tuple[int, int, int]
    shard: str
    epochs: int
    stops: tuple[int, ...]
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Case:
    """A pipeline. ``coding``: of activations and of gradients. ``micro_batches``: with one only "async" is as stale as
    can be, all gradients but the last stage's are of weights a step old."""

    name: str
    schedule: Schedule
    coding: Coding = "none"
    feedback: bool = True
    micro_batches: int = MICRO_BATCHES


CASES = (
    Case("sync", "sync"),
    Case("async", "async"),
    Case("async, whole batches", "async", micro_batches=1),
    Case("sync, fp16", "sync", "fp16"),
    Case("sync, int8", "sync", "int8"),
    Case("sync, int8, no feedback", "sync", "int8", feedback=False),
    Case("async, int8", "async", "int8"),
)


def run(settings: Settings) -> Iterator[Sample]:
    if settings.tiny:
        workload = Workload("digits", "lenet", 0.5, (1, 8, 8), "1/4", 2, (1, 2), 0.05)
    else:
        pictures = f"images:{data_file('cifar10-images.zip')}"
        workload = Workload(pictures, "vgg11", 0.25, (3, 16, 16), "1/4", 8, (1, 3), 0.02)
    source = open_source(workload.data)
    contract = dataclasses.replace(propose_contract(source, workload.input_shape), val=0.0)
    train = load(source, contract, "train", select(source, contract, "train", shard=workload.shard, seed=SEED))
    test = load(source, contract, "test")
    for repetition in settings.repetitions:
        trial = Trial(workload, train, test, SEED + repetition)
        single = trial.single()
        yield Sample(SINGLE, repetition, single, is_baseline=True)
        for case in CASES:
            figures = trial.pipeline(case)
            yield Sample(case.name, repetition, figures | {"difference": figures["accuracy"] - single["accuracy"]})


class Trial:
    """One seed: of the weights and of the samples' order."""

    def __init__(self, workload: Workload, train: Dataset, test: Dataset, seed: int) -> None:
        import torch

        from p2ptrain.learning.models import build_model

        torch.set_num_threads(1)
        self._workload, self._train, self._test, self._seed = workload, train, test, seed
        self._classes = len(train.contract.classes)
        self._steps = len(train) // BATCH_SIZE
        """Of an epoch."""
        self._config = TrainingConfig(rounds=workload.epochs, learning_rate=workload.learning_rate)
        self._build: Callable[[], nn.Module] = partial(
            build_model,
            workload.model,
            input_shape=workload.input_shape,
            num_classes=self._classes,
            width=workload.width,
            seed=seed,
        )

    def single(self) -> dict[str, float]:
        from p2ptrain.learning.pipeline.samples import SampleStream
        from p2ptrain.learning.training import LocalTrainer

        steps = self._workload.epochs * self._steps
        trainer = LocalTrainer(
            self._build(), self._config, num_classes=self._classes, total_steps=steps, seed=self._seed
        )
        stream = SampleStream(self._train, seed=self._seed, peer_name=OWNER, augment=False)
        figures: dict[str, float] = {}
        for epoch in range(1, self._workload.epochs + 1):
            losses = [trainer.step(*stream.draw(BATCH_SIZE)) for _ in range(self._steps)]
            figures |= self._after(epoch, trainer.model, [loss for loss in losses if loss is not None])
        return figures

    def pipeline(self, case: Case) -> dict[str, float]:
        import torch

        from p2ptrain.learning.blocks.chain import Chain
        from p2ptrain.learning.pipeline.training import StageTraining

        model = self._build()
        with torch.device("meta"):
            chain = Chain(self._build(), self._workload.input_shape)
        plan = plan_of((*self._workload.stops, len(chain.blocks)), case)
        stages = {
            stage.peers[0]: StageTraining(
                self._config,
                chain,
                plan,
                stage.peers[0],
                build=self._build,
                data=self._train if stage.start == 0 else None,
                peer_name=stage.peers[0],
                seed=self._seed,
                steps_per_round=self._steps,
                num_classes=self._classes,
                schedule=case.schedule,
                activations=case.coding,
                gradients=case.coding,
                gradient_feedback=case.feedback,
            )
            for stage in plan.stages
        }
        figures: dict[str, float] = {}
        num_bytes = 0
        for epoch in range(1, self._workload.epochs + 1):
            for stage in stages.values():
                stage.stop_at = epoch * self._steps
            losses: list[float] = []
            while ready := [name for name, stage in stages.items() if stage.ready()]:
                num_bytes += sum(_advance(stages, name, losses) for name in ready)
            state = [stage.snapshot()[0] for stage in stages.values()]
            model.load_state_dict(
                {n.removeprefix("model."): t for s in state for n, t in s.items() if n[:6] == "model."}
            )
            figures |= self._after(epoch, model, losses)
        return figures | {"bytes_per_sample": num_bytes / (self._workload.epochs * self._steps * BATCH_SIZE)}

    def _after(self, epoch: int, model: nn.Module, losses: list[float]) -> dict[str, float]:
        accuracy = 100 * measure.accuracy(model, self._test, self._classes).accuracy
        return {f"accuracy_{epoch:02}": accuracy, "accuracy": accuracy, "train_loss": statistics.fmean(losses)}


def _advance(stages: dict[str, Any], name: str, losses: list[float]) -> int:
    """One piece of a stage's work, and what it sends delivered; the bytes of it that cross a cut."""
    from p2ptrain.learning.pipeline.rows import StageMessage

    stage, num_bytes = stages[name], 0
    step = stage.step
    for message in stage.advance():
        if message.work in ("forward", "backward"):
            num_bytes += sum(tensor.nbytes for tensor in message.tensors.values())
        arrived = StageMessage(name, message.work, message.step, message.unit, message.row, message.tensors)
        stages[message.peer].receive(arrived)
    if stage.step > step and np.isfinite(stage.last_loss):
        losses.append(stage.last_loss)
    return num_bytes


def plan_of(stops: tuple[int, ...], case: Case) -> PipelinePlan:
    """A peer for each stage, with warm-ups as deep as planning gives."""
    num, rows = case.micro_batches, BATCH_SIZE // case.micro_batches
    most = most_ahead(num, flush=case.schedule == "sync")
    stages = tuple(
        Stage(start, stop, (f"peer{index}",), (rows,), depth)
        for index, (start, stop, depth) in enumerate(
            zip((0, *stops), stops, deepest_warm_up(len(stops), most), strict=False)
        )
    )
    plan = PipelinePlan("model", stops[-1], rows, num, stages, ())
    check_pipeline_plan(plan)
    return plan


def notes(cases: list[dict[str, Any]]) -> list[str]:
    """What differences are worth."""
    found = [case["figures"]["difference"] for case in cases if case["case"] == CASES[0].name]
    if not found:
        return []
    apart = max(abs(found[0]["low"]), abs(found[0]["high"]))
    return [
        f"The synchronous pipeline differs from the single device in the order of additions alone, and came out up to "
        f"{apart:.2f} points apart: differences of that size are chance."
    ]


# --- the picture ----------------------------------------------------------------------------------------------------


def plot(figure: Any, result: dict[str, Any]) -> None:
    """Left: accuracy by epoch. Right: how far each case comes out from the single device, over what it sends."""
    left, right = figure.subplots(1, 2)
    for number, case in enumerate(result["cases"]):
        found = case["figures"]
        shown = plots.mark(number, is_baseline=case["is_baseline"])
        marker = shown.pop("fmt")
        epochs = [int(name[-2:]) for name in found if name.startswith("accuracy_")]
        curve = [found[f"accuracy_{epoch:02}"]["median"] for epoch in epochs]
        left.plot(epochs, curve, marker=marker, markersize=4, lw=1, label=case["case"], **shown)
        if "difference" in found:
            x, y = found["bytes_per_sample"]["median"] / 1e3, found["difference"]
            spread = [[y["median"] - y["low"]], [y["high"] - y["median"]]]
            right.errorbar(x, y["median"], spread, marker=marker, capsize=3, label=case["case"], **shown)
    left.set(title="Accuracy on the test samples", xlabel="epoch", ylabel="accuracy, %")
    right.axhspan(-0.5, 0.5, color="black", alpha=0.07)
    right.axhline(0.0, color="black", ls="--", lw=1)
    right.set(title="Against the single device (grey: half a point)", xlabel="across cuts, kB a sample")
    right.set(ylabel="difference of accuracies, points")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.grid(alpha=0.3)
    right.grid(alpha=0.3)
    plots.legend(left)


FIGURES = Section(
    "Pipelines",
    "What schedule and compression do to accuracy",
    (
        Row(
            "pipeline_accuracy",
            "a quarter of CIFAR-10 at 16 x 16, a small VGG-11 in three stages: accuracy, and its difference to the"
            " single device with the same seed",
            "; ".join(
                f"{case}: {{{case}/accuracy:.1f}} %, {{{case}/difference:+.1f}}"
                for case in ("sync", "async", "async, whole batches", "sync, fp16", "sync, int8", "async, int8")
            ),
            "single device: {single/accuracy:.1f} %",
        ),
    ),
    (
        Remark(
            "pipeline_accuracy",
            "By the medians of five seeds, compression between stages costs no accuracy here, and batches without a"
            " flush cost 0.1 points.",
        ),
        Remark(
            "pipeline_accuracy",
            "With one micro-batch a batch (`whole batches`) all gradients but the last stage's are a step old, and it"
            " is 0.6 points. So plans without a flush now have two at least (two of nine groups of `replan` had one).",
        ),
        Remark(
            "pipeline_accuracy",
            "Single seeds of the synchronous pipeline, which computes what the single device does, differ by up to 1.3"
            " points.",
        ),
    ),
)
