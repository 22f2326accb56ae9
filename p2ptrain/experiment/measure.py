"""What came out of a group, in figures, and the same model trained centrally beside it.

Invariant: the baseline sees exactly the samples that the peers trained on together, each once an epoch, with the job's
own hyper-parameters and as many epochs, if the experiment does not say another number; the test samples are used for
nothing but the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from p2ptrain.core.harvest import PartReport
from p2ptrain.experiment.group import Experiment, Outcome
from p2ptrain.learning import evaluation
from p2ptrain.learning.blocks.flops import training_flops
from p2ptrain.learning.data import Dataset, load, open_source, select
from p2ptrain.learning.models import global_model
from p2ptrain.learning.own.layout import arrange
from p2ptrain.learning.training import LocalTrainer
from p2ptrain.learning.work import central_flops
from p2ptrain.modes.registry import mode_of

BATCH_SIZE = 256


@dataclass(frozen=True, slots=True)
class PeerWork:
    """``share``: of the training FLOPs of all copies of the model."""

    name: str
    trains: str
    share: float
    samples: int
    bytes_sent: int


@dataclass(frozen=True, slots=True)
class PeerResult:
    name: str
    classes: tuple[str, ...]
    width: float
    """Share of the channels of every decoupled layer."""
    flops_per_sample: int
    """A forward and a backward pass."""
    flops_share: float
    """What that is of the full model's."""
    samples: int
    """Own training samples."""
    samples_seen: int
    bytes_sent: int
    own_class_accuracy: float
    """Of its sub-model among its own classes, on their test samples."""
    work_flops: float
    """All that it computed: training, looks at validation samples, its share of the last layer's fit; 0 = not known."""
    work_share: float
    """What that is of central training's."""


@dataclass(frozen=True, slots=True)
class Result:
    assembled_accuracy: float
    central_accuracy: float | None
    per_class: tuple[float, ...]
    head_fitted: bool
    peers: tuple[PeerResult, ...]
    full_flops_per_sample: int
    train_samples: int
    test_samples: int
    mode: str
    model: str
    model_width: float
    rounds: int
    epochs: float
    seed: int
    compression: str
    found_by: str
    formed_s: float
    trained_s: float
    harvested_s: float
    central_s: float | None
    central_epochs: float
    central_flops: float
    """Of training the whole model on all samples, so many epochs."""
    work_flops: float
    """Of all peers together."""
    works: tuple[PeerWork, ...] = ()
    """Where what a peer trains is no model of its own."""

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)


def central_training(
    experiment: Experiment, threads: int, progress: Callable[[int, float], None] = lambda epoch, loss: None
) -> tuple[nn.Module, float]:
    """The job's model trained on all the peers' samples together; the model and the seconds it took."""
    job, config = experiment.job, experiment.job.training
    torch.set_num_threads(threads)
    data = union(experiment)
    model = global_model(job, allow_user_code=bool(experiment.allow_model))
    num_steps = max(1, round(central_epochs(experiment) * data.num_batches(config.batch_size)))
    trainer = LocalTrainer(model, config, num_classes=len(job.data.classes), total_steps=num_steps, seed=job.seed)
    rng = np.random.default_rng([job.seed, 0])
    start, epoch, loss = time.monotonic(), 0, 0.0
    while trainer.num_steps < num_steps:
        for x, y in data.batches(rng, config.batch_size, augment=job.data.changes_samples):
            loss = trainer.step(x, y) or loss
            if trainer.num_steps >= num_steps:
                break
        epoch += 1
        progress(epoch, loss)
    return trainer.model, time.monotonic() - start


def central_epochs(experiment: Experiment) -> float:
    """Passes that central training makes over the samples."""
    config = experiment.job.training
    return experiment.central_epochs or config.rounds * config.epochs_per_round


def central_work(experiment: Experiment) -> float:
    """FLOPs of central training."""
    job = experiment.job
    model = global_model(job, allow_user_code=bool(experiment.allow_model))
    samples = len(_rows(experiment))
    return float(central_flops(training_flops(model, job.data.input_shape).total, samples, central_epochs(experiment)))


def union(experiment: Experiment) -> Dataset:
    """Every sample that any peer trains on, once: without what is for validation."""
    return load(open_source(experiment.data), experiment.job.data, "train", _rows(experiment))


def _rows(experiment: Experiment) -> NDArray[np.int64]:
    source = open_source(experiment.data)
    seed = experiment.job.seed
    chosen = [
        select(source, experiment.job.data, "train", shard=s.shard or None, classes=s.classes or None, seed=seed)
        for s in experiment.shares
        if s.has_data
    ]
    return np.unique(np.concatenate(chosen))


def accuracy(model: nn.Module, data: Dataset, num_classes: int) -> evaluation.Evaluation:
    batches = (data.tensors(slice(i, i + BATCH_SIZE)) for i in range(0, len(data), BATCH_SIZE))
    arrange(model, None)
    return evaluation.evaluate(model, batches, num_classes)


def measure(experiment: Experiment, outcome: Outcome, central: tuple[nn.Module, float] | None, threads: int) -> Result:
    """Evaluate everything on the data set's test samples."""
    torch.set_num_threads(threads)
    job, harvest = experiment.job, outcome.harvest
    source = open_source(experiment.data)
    test = load(source, job.data, "test", select(source, job.data, "test", seed=job.seed))
    num_classes = len(job.data.classes)
    model = global_model(job, allow_user_code=bool(experiment.allow_model))
    full_flops = training_flops(model, job.data.input_shape).total
    model.load_state_dict(harvest.state)
    assembled = accuracy(model, test, num_classes)
    num_train, epochs = len(union(experiment)), central_epochs(experiment)
    central_work = float(central_flops(full_flops, num_train, epochs))
    peers = tuple(_peer_results(experiment, outcome, test, full_flops, central_work))
    central_accuracy = accuracy(central[0], test, num_classes).accuracy if central else None
    return Result(
        assembled_accuracy=assembled.accuracy,
        central_accuracy=central_accuracy,
        per_class=assembled.per_class,
        head_fitted=harvest.head_fitted,
        peers=peers,
        full_flops_per_sample=full_flops,
        train_samples=num_train,
        test_samples=len(test),
        mode=harvest.plan.mode,
        model=job.model.name,
        model_width=job.model.width,
        rounds=job.training.rounds,
        epochs=job.training.rounds * job.training.epochs_per_round,
        seed=job.seed,
        compression=job.group.compression,
        found_by=outcome.found_by,
        formed_s=round(outcome.formed_s, 2),
        trained_s=round(outcome.trained_s, 2),
        harvested_s=round(outcome.harvested_s, 2),
        central_s=round(central[1], 2) if central else None,
        central_epochs=epochs,
        central_flops=central_work,
        work_flops=sum(record.work_flops for record in outcome.records.values()),
        works=() if peers else _works(outcome),
    )


def _works(outcome: Outcome) -> tuple[PeerWork, ...]:
    harvest, names = outcome.harvest, {record.peer: name for name, record in outcome.records.items()}
    words, works = mode_of(harvest.job).words, []
    for name, record in sorted(outcome.records.items()):
        part = harvest.plan.part_of(record.peer)
        text = words.part_text(harvest.plan, harvest.job, part.index) if part is not None else "nothing"
        for peer, its_name in names.items():
            text = text.replace(peer, its_name)
        works.append(PeerWork(name, text, part.share if part else 0.0, sum(record.counts), record.bytes_sent))
    return tuple(works)


def _peer_results(
    experiment: Experiment, outcome: Outcome, test: Dataset, full_flops: int, central_work: float
) -> list[PeerResult]:
    """Of those whose part is a model of its own."""
    job, results = experiment.job, []
    trainers = outcome.harvest.plan.trainers()
    models = outcome.harvest.part_models(allow_user_code=bool(experiment.allow_model))
    reports: dict[int, PartReport] = {report.part: report for report in outcome.harvest.report}
    for name, record in sorted(outcome.records.items()):
        part = trainers.get(record.peer)
        if part is None or part not in reports or part not in models:
            continue
        report, (submodel, outputs) = reports[part], models[part]
        classes = [job.data.classes.index(each) for each in report.classes]
        own = test.subset(np.flatnonzero(np.isin(test.y, classes)))
        batches = (own.tensors(slice(i, i + BATCH_SIZE)) for i in range(0, len(own), BATCH_SIZE))
        flops = training_flops(submodel, job.data.input_shape).total
        results.append(
            PeerResult(
                name=name,
                classes=report.classes,
                width=report.share,
                flops_per_sample=flops,
                flops_share=flops / full_flops,
                samples=sum(record.counts),
                samples_seen=record.samples,
                bytes_sent=record.bytes_sent,
                own_class_accuracy=evaluation.own_class_accuracy(submodel, batches, classes, outputs=outputs),
                work_flops=record.work_flops,
                work_share=record.work_flops / central_work,
            )
        )
    return results
