"""Peers whose classes overlap: what the group's model knows, beside the best peer alone and central training.

Two, three and five peers have classes of their own (``none``), some of the others' too (``half``), all classes
(``all``), or one has all and the others two of them each (``within``). No sample is on two peers. The plan, the
training of the parts, the fit of the last layer, the look at the validation samples and the choice of a head are the
project's own code; only the network is left out: parts with several trainers are averaged exactly after every round,
which is what gossip comes to. Real processes are the tests' (tests/processes/test_overlap.py).

What is equal is work, at most about that of a pass of the whole model over the own samples a round, on each device: so
``tasks`` makes as many passes as that allows, ``auto`` what ``job new`` gives it: as many, but rounds end early where
the own validation samples say so. "Best alone" is the best of the peers, chosen on the test samples, each with the
whole model on its own samples.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import REPOSITORY, SEED, Column, Sample, Settings
from benchmarks.rows import Remark, Row, Section
from p2ptrain.cli.job import AUTO_PASSES
from p2ptrain.config import Job, ModelConfig, TrainingConfig
from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.errors import UserError
from p2ptrain.experiment.measure import accuracy
from p2ptrain.ids import PeerId
from p2ptrain.learning.averaging import weighted_mean
from p2ptrain.learning.blocks.flops import training_flops
from p2ptrain.learning.data import Dataset, Source, load, open_source, propose_contract
from p2ptrain.learning.models import global_model
from p2ptrain.learning.submodels.decoupling import most_groups
from p2ptrain.learning.training import LocalTrainer
from p2ptrain.modes.tasks.config import TasksConfig, tasks_of
from p2ptrain.modes.tasks.head.fitting import HeadFitting
from p2ptrain.modes.tasks.head.verdict import read_verdict
from p2ptrain.modes.tasks.parts import Parts
from p2ptrain.modes.tasks.planning.assignment import SENSIBLE_GROUPS, first_plan
from p2ptrain.modes.tasks.training import PartTraining
from p2ptrain.wire import tensorfile

LISTED = {
    "overlap-own": "peers whose classes overlap: tasks, replicas, auto beside the best alone and central; an own CNN",
    "overlap-resnet20": "the same with ResNet-20 (an hour)",
    "overlap-vgg11": "the same with VGG-11 (hours)",
    "overlap-digits": "the same with spoken digits and DS-CNN",
}
BASELINE = "the best peer alone, and central training, each with the whole model and as many passes"
COLUMNS = (
    Column("alone", "best alone, %"),
    Column("central", "central, %"),
    Column("replicas", "replicas, %"),
    Column("tasks", "tasks, %"),
    Column("auto", "auto, %"),
    Column("gain", "auto - alone"),
    Column("behind", "better of both - auto"),
    Column("work", "auto's work, % of central's"),
)
CLASSES = {2: 6, 3: 6, 5: 10}
"""By number of peers."""
NO_LIMIT = 1000.0
NAMES = [PeerId(f"peer{number:012d}") for number in range(8)]
OWN_MODEL = "benchmarks.own_cnn:small_cnn"


@dataclass(frozen=True, slots=True)
class Workload:
    """``per_class``: training samples of a class in all."""

    archive: str
    kind: str
    model: str
    rounds: int = 6
    per_class: int = 300
    test_per_class: int = 150
    peers: tuple[int, ...] = (2, 3, 5)
    overlaps: tuple[str, ...] = ("none", "half", "all", "within")


class Overlap:
    """One of the named cases, as a benchmark."""

    BASELINE = BASELINE
    COLUMNS = COLUMNS

    def __init__(self, workload: Workload) -> None:
        self._workload = workload

    def run(self, settings: Settings) -> Iterator[Sample]:
        torch.set_num_threads(1)
        workload = self._workload
        if settings.tiny:
            workload = dataclasses.replace(workload, rounds=1, per_class=12, test_per_class=4, peers=(2,))
        for repetition in settings.repetitions:
            for num_peers, overlap in product(workload.peers, workload.overlaps):
                figures = compare(workload, num_peers, overlap, SEED + repetition)
                yield Sample(f"{num_peers} peers, {overlap}", repetition, figures)


NAMED = {
    "own": Overlap(Workload("cifar10-images.zip", "images", OWN_MODEL)),
    "resnet20": Overlap(Workload("cifar10-images.zip", "images", "resnet20")),
    "vgg11": Overlap(Workload("cifar10-images.zip", "images", "vgg11_bn")),
    "digits": Overlap(Workload("spoken-digits.zip", "audio", "dscnn", per_class=200, test_per_class=30)),
}


def held(num_peers: int, num_classes: int, overlap: str) -> list[list[int]]:
    """The classes of each peer."""
    own = [[c for c in range(num_classes) if c % num_peers == peer] for peer in range(num_peers)]
    everything = list(range(num_classes))
    if overlap == "none":
        return own
    if overlap == "all":
        return [everything] * num_peers
    if overlap == "within":
        return [everything, *([(2 * peer) % num_classes, (2 * peer + 1) % num_classes] for peer in range(1, num_peers))]
    others = [[c for c in everything[peer:] + everything[:peer] if c not in own[peer]] for peer in range(num_peers)]
    return [sorted(mine + rest[: len(rest) // 2]) for mine, rest in zip(own, others, strict=True)]


def compare(workload: Workload, num_peers: int, overlap: str, seed: int) -> dict[str, float]:
    """Test accuracies, in %, of all ways to train on what these peers have."""
    source = opened(workload.kind, workload.archive)
    names = source.classes[: CLASSES[num_peers]]
    contract = dataclasses.replace(propose_contract(source), classes=names)
    training = TrainingConfig(rounds=workload.rounds, batch_size=32)
    job = Job(mode="replicas", seed=seed, model=ModelConfig(workload.model), data=contract, training=training)
    mine = held(num_peers, len(names), overlap)
    train, val = (deal(source, job, split, mine, workload) for split in ("train", "val"))
    test = chosen(source, job, "test", {c: workload.test_per_class for c in range(len(names))}, seed)
    alone = [judged(whole(job, data), test) for data in train]
    everything = Dataset(np.concatenate([d.x for d in train]), np.concatenate([d.y for d in train]), contract)
    replicas, _ = group(job, train, val)
    auto_job = dataclasses.replace(job, mode="auto", tables=(TasksConfig(passes=AUTO_PASSES),))
    tasks_job = dataclasses.replace(job, mode="tasks", tables=(TasksConfig(passes=NO_LIMIT),))
    auto, work = group(auto_job, train, val)
    same = is_same(auto_job, tasks_job, train)
    as_tasks, _ = (auto, work) if same else group(tasks_job, train, val)
    figures = {
        "alone": max(alone),
        "central": judged(whole(job, everything), test),
        "replicas": judged(replicas, test),
        "tasks": judged(as_tasks, test),
        "auto": judged(auto, test),
    }
    flops = training_flops(global_model(job, allow_user_code=True), contract.input_shape).total
    return figures | {
        "gain": figures["auto"] - figures["alone"],
        "behind": max(figures["tasks"], figures["replicas"]) - figures["auto"],
        "work": 100 * work / (flops * len(everything) * workload.rounds),
    }


@cache
def opened(kind: str, archive: str) -> Source:
    """Raises ``UserError`` naming the file that is missing."""
    path = Path(os.environ.get("P2PTRAIN_DATA", REPOSITORY.parent / "shared" / "data")) / archive
    if not path.is_file():
        raise UserError(f"{path}: no such file; P2PTRAIN_DATA names the folder with {archive}")
    sys.path.insert(0, str(REPOSITORY / "scripts"))  # for the own model
    return open_source(f"{kind}:{path}")


def deal(source: Source, job: Job, split: Any, mine: Sequence[Sequence[int]], workload: Workload) -> list[Dataset]:
    """Each class's samples in even shares to those that hold it."""
    fitted = source.fitted(job.data)
    labels = fitted.labels(split)
    share = 1.0 if split == "train" else job.data.val / (1 - job.data.val)
    rows: list[list[int]] = [[] for _ in mine]
    for c, name in enumerate(job.data.classes):
        own = np.flatnonzero(labels == fitted.classes.index(name))
        own = np.random.RandomState(job.seed % 2**32).permutation(own)[: max(1, round(workload.per_class * share))]
        holders = [peer for peer, classes in enumerate(mine) if c in classes]
        for place, peer in enumerate(holders):
            rows[peer] += own[place :: len(holders)].tolist()
    return [load(source, job.data, split, np.array(sorted(each), np.int64)) for each in rows]


def chosen(source: Source, job: Job, split: Any, wanted: dict[int, int], seed: int) -> Dataset:
    """So many samples of each class."""
    fitted = source.fitted(job.data)
    labels, rng = fitted.labels(split), np.random.RandomState(seed % 2**32)
    rows = [
        rng.permutation(np.flatnonzero(labels == fitted.classes.index(job.data.classes[c])))[:number]
        for c, number in wanted.items()
    ]
    return load(source, job.data, split, np.sort(np.concatenate(rows)))


def whole(job: Job, data: Dataset) -> nn.Module:
    """The whole model trained on some samples by one device."""
    config = job.training
    num_steps = config.rounds * data.num_batches(config.batch_size)
    model = global_model(job, allow_user_code=True)
    present = np.unique(data.y).tolist()
    trainer = LocalTrainer(
        model, config, num_classes=len(job.data.classes), total_steps=num_steps, present=present, seed=job.seed
    )
    rng = np.random.default_rng([job.seed, 0])
    for _ in range(config.rounds):
        for x, y in data.batches(rng, config.batch_size):
            trainer.step(x, y)
    return trainer.model


def group(job: Job, train: Sequence[Dataset], val: Sequence[Dataset]) -> tuple[nn.Module, float]:
    """The model that a group makes, and its training FLOPs."""
    names = NAMES[: len(train)]
    plan = first_plan(job, snapshots(job, train), names[0])
    parts = Parts(job, plan, allow_user_code=True)
    trainings = {
        name: PartTraining(job, parts, plan.trainers()[name], data, name, val=own)
        for name, data, own in zip(names, train, val, strict=True)
        if name in plan.trainers()
    }
    for _ in range(job.training.rounds):
        for training in trainings.values():
            while not training.step():
                pass
        copies = {part.index: [trainings[name] for name in part.trainers] for part in plan.parts}
        for same in copies.values():
            if len(same) > 1:
                mean = weighted_mean([(float(t.num_samples), t.trainer.model.state_dict()) for t in same])
                for training in same:
                    training.trainer.model.load_state_dict(mean)
    means = {index: dict(same[0].trainer.model.state_dict()) for index, same in copies.items() if same}
    state = parts.assemble({index: [(1.0, own)] for index, own in means.items()})
    steps = (1 + tasks_of(job).head_fit_steps if plan.body.fit_head else 0) + 1
    fits = [
        HeadFitting(job, Parts(job, plan, allow_user_code=True), "all", data, own)
        for data, own in zip(train, val, strict=True)
    ]
    for fit in fits:
        for index, own in means.items():
            fit.add_copy(index, (plan.parts[index].trainers or (f"part {index}",))[0], own, 1.0, last=True)
    fitted: dict[str, torch.Tensor] = {}
    for step in range(steps):
        fitted = fits[0].combine(step, fitted, [fit.contribute(step, fitted) for fit in fits])
    verdict = read_verdict(tensorfile.pack({name: tensor.numpy() for name, tensor in fitted.items()}))
    if verdict is not None:
        state = parts.with_candidate(state, verdict.chosen, fitted, means, {})
    parts.model.load_state_dict(state)
    work = sum(
        training_flops(parts.submodel(training.part), job.data.input_shape).total * training.trainer.num_samples
        for training in trainings.values()
    )
    return parts.model, work


def is_same(auto: Job, tasks: Job, train: Sequence[Dataset]) -> bool:
    """Whether ``auto`` makes the very same group as ``tasks``: the same parts, whose rounds never end early."""
    plans = [first_plan(job, snapshots(job, train), NAMES[0]) for job in (auto, tasks)]
    parts = [[(part.classes, part.share) for part in plan.parts] for plan in plans]
    return parts[0] == parts[1] and plans[0].body.targets == plans[1].body.targets == "own"


def snapshots(job: Job, train: Sequence[Dataset]) -> list[PeerSnapshot]:
    """What a plan knows of the peers."""
    model = global_model(job, allow_user_code=True)
    groups = most_groups(model, job.data.input_shape, min(len(job.data.classes), SENSIBLE_GROUPS))
    return [
        PeerSnapshot(name, 1e9, 0, tuple(data.counts().tolist()), (), groups)
        for name, data in zip(NAMES, train, strict=False)
    ]


def judged(model: nn.Module, test: Dataset) -> float:
    """Test accuracy, in %."""
    return 100 * accuracy(model, test, len(test.contract.classes)).accuracy


FIGURES = Section(
    "What comes out",
    "Peers whose classes overlap",
    [
        Row(file, f"{words}, {num_peers} peers", cells[0], cells[1], tuple(cells[2:]))
        for file, words in (("overlap-own", "pictures, an own CNN"), ("overlap-digits", "spoken digits, DS-CNN"))
        for num_peers in (2, 3, 5)
        for cells in [
            [
                "; ".join(
                    f"{{{num_peers} peers, {overlap}/{way}:.0f}}" for overlap in ("none", "half", "all", "within")
                )
                for way in ("auto", "alone", "central", "replicas", "tasks")
            ]
        ]
    ],
    (
        Remark(
            "overlap-own",
            "What the group takes by itself (`auto`) knows more than the best peer alone in all twelve cases of an own"
            " CNN, by 1 to 24 points.",
        ),
        Remark(
            "overlap-own",
            "`auto` is within two points of the better of replicas and class sub-models of equal work in all cases but"
            " one: three peers without a class in common, where replicas are 3 points better.",
        ),
        Remark(
            "overlap-own",
            "Rounds of the CNN end early where peers share classes: 25 to 37 % of that work with five peers, 55 to 60 %"
            " with three.",
        ),
        Remark(
            "overlap-digits",
            "With DS-CNN `auto` knows 31 to 75 points more than the best peer alone, which has hardly begun to learn"
            " after six passes of the whole model. It is within two points of the better of both in all twelve cases."
            " Its rounds hardly end early (78 to 100 % of that work).",
        ),
        Remark("overlap-own", "This is one seed of two models. The network is left out."),
    ),
    (
        "test accuracy, %, peers with none of their classes in common; a half; all; two of those that one has",
        "auto",
        "best peer alone",
        "central training",
        "replicas",
        "class sub-models, as many passes as equal work allows",
        "command",
    ),
)
