"""One bad member: what the group's model knows, for each setting of ``group.robust``, beside the group without it.

Four or five peers train on a share of the digits each; the last one trains as the others do, but lies in all that it
sends: gossip payloads and their mass, its snapshots, and its sums in the head fit.

    x100         all numbers times a hundred
    sign flip    all numbers negated
    random       noise of the same size in each tensor
    false mass   random, and as many samples as are believed of it; in the head fit a million times its own

``replicas`` gossip whole models; ``votes`` are class sub-models of peers that have all classes, ``fitted`` ones of
peers that have half of each other's, where the group fits the last layer. Plan, training, merges, fit, validation and
harvest are the project's own code, with payloads handed over in one process: after each round every peer starts an
exchange with another at random. The bad member tells its validation counts truly. 0 % stands for no model at all: an
honest peer has ended, as its training diverged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from benchmarks.common import SEED, Column, Sample, Settings
from benchmarks.overlap import NAMES, chosen, held, judged, snapshots
from benchmarks.rows import Remark, Row, Section
from p2ptrain.config import GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.core.harvest import Collected, Snapshot
from p2ptrain.core.plan import Plan
from p2ptrain.errors import RemoteError, UserError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.learning.data import Dataset, load, open_source, propose_contract
from p2ptrain.learning.models import global_model
from p2ptrain.learning.training import DivergedError
from p2ptrain.modes.tasks.averaging.exchanges import believable_mass
from p2ptrain.modes.tasks.config import TasksConfig, tasks_of
from p2ptrain.modes.tasks.harvest import assemble
from p2ptrain.modes.tasks.head.blob import head_holding, pack_head
from p2ptrain.modes.tasks.head.fitting import HeadFitting
from p2ptrain.modes.tasks.parts import Parts
from p2ptrain.modes.tasks.planning.assignment import first_plan
from p2ptrain.modes.tasks.training import PartTraining
from p2ptrain.wire.messages import SnapshotRef

LISTED = {
    "poisoning-replicas": "one bad member of four and five, for each setting of group.robust: replicas",
    "poisoning-votes": "the same with class sub-models that vote",
    "poisoning-fitted": "the same with class sub-models and a fitted last layer",
}
BASELINE = "the same group without the bad member (of the honest row: without one honest member)"
ATTACKS = ("honest", "x100", "sign flip", "random", "false mass")
ROBUST = ("none", "clip", "trimmed-mean", "median")
OTHERS = ("none", "trimmed-mean", "median")
COLUMNS = (Column("without", "without it, %"), *(Column(how.replace("-", "_"), f"{how}, %") for how in ROBUST))
LIE = 1_000_000
"""Times its own samples, in the head fit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    rounds: int = 8
    fit_steps: int = 300
    peers: tuple[int, ...] = (4, 5)
    attacks: tuple[str, ...] = ATTACKS


class Poisoning:
    """One of the named cases, as a benchmark. ``robust``: settings that differ there."""

    BASELINE = BASELINE
    COLUMNS = COLUMNS

    def __init__(self, kind: str, robust: tuple[str, ...]) -> None:
        self._kind, self._robust = kind, robust

    def run(self, settings: Settings) -> Iterator[Sample]:
        torch.set_num_threads(1)
        size = Size(rounds=1, fit_steps=5, peers=(4,), attacks=("honest", "sign flip")) if settings.tiny else Size()
        for repetition, num in product(settings.repetitions, size.peers):
            seed = SEED + repetition
            without = accuracy(self._kind, num, "without", "none", seed, size)
            for attack in size.attacks:
                figures = {
                    how.replace("-", "_"): accuracy(self._kind, num, attack, how, seed, size) for how in self._robust
                }
                yield Sample(f"{num} peers, {attack}", repetition, {"without": without} | figures)


NAMED = {
    "replicas": Poisoning("replicas", ROBUST),
    "votes": Poisoning("votes", ROBUST[:2]),  # each part has one copy, of which all settings make the same
    "fitted": Poisoning("fitted", ROBUST[:2]),
}


def accuracy(kind: str, num_peers: int, attack: str, robust: str, seed: int, size: Size) -> float:
    """On the test samples, in %. ``attack`` "without": the last peer is not there at all."""
    source = open_source("digits")
    job = Job(
        mode="replicas" if kind == "replicas" else "tasks",
        seed=seed,
        model=ModelConfig("lenet", 1.0 if kind == "replicas" else 2.0),
        data=propose_contract(source),
        training=TrainingConfig(rounds=size.rounds, batch_size=32),
        tables=(TasksConfig(head_fit_steps=size.fit_steps),),
        group=GroupConfig(robust=robust),  # type: ignore[arg-type]
    )
    classes = range(len(job.data.classes))
    mine = held(num_peers, len(classes), "half" if kind == "fitted" else "all")
    data = [_share(job, source, split, mine) for split in ("train", "val")]
    if attack == "without":
        data = [each[:-1] for each in data]
    group = Group(job, *data, attack if attack not in ("honest", "without") else "")
    test = chosen(source, job, "test", dict.fromkeys(classes, 1000), seed)
    try:
        return judged(group.model(), test)
    except (DivergedError, UserError):  # an honest peer ends with an error: there is no model
        return 0.0


def _share(job: Job, source: object, split: str, mine: Sequence[Sequence[int]]) -> list[Dataset]:
    """Each class's samples in even shares to those that hold it."""
    labels = source.fitted(job.data).labels(split)  # type: ignore[attr-defined]
    rng, rows = np.random.RandomState(job.seed), [[] for _ in mine]  # type: ignore[var-annotated]
    for c in range(len(job.data.classes)):
        holders = [peer for peer, classes in enumerate(mine) if c in classes]
        own = rng.permutation(np.flatnonzero(labels == c))
        for place, peer in enumerate(holders):
            rows[peer] += own[place :: len(holders)].tolist()
    return [load(source, job.data, split, np.array(sorted(each), np.int64)) for each in rows]  # type: ignore[arg-type]


class Group:
    """Peers of one job in one process. ``attack``: what the last of them does; "" = nothing."""

    def __init__(self, job: Job, train: Sequence[Dataset], val: Sequence[Dataset], attack: str) -> None:
        self.job, self.names, self.train, self.val = job, NAMES[: len(train)], train, val
        self.attack, self.bad = Attack(attack, job.seed), self.names[-1] if attack else ""
        self.plan: Plan = first_plan(job, snapshots(job, train), self.names[0])
        self.parts = Parts(job, self.plan)
        self.rng = random.Random(job.seed)
        trainers = self.plan.trainers()
        self.trainings = {
            name: PartTraining(job, self.parts, trainers[name], data, name, val=own)
            for name, data, own in zip(self.names, train, val, strict=True)
            if name in trainers
        }

    def model(self) -> torch.nn.Module:
        """What anybody harvests in the end."""
        kept: dict[PeerId, Snapshot] = {}
        for _ in range(self.job.training.rounds):
            for name, training in self.trainings.items():
                while not training.step():
                    pass
                kept[name] = self._snapshot(name, training)
            self._gossip()
        parts: dict[int, list[Snapshot]] = {}
        for name in sorted(kept):
            parts.setdefault(kept[name].holding.part, []).append(kept[name])
        harvest = assemble(Collected(self.job, self.plan, parts, self._head(parts), {}), allow_user_code=False)
        model = global_model(self.job, allow_user_code=False)
        model.load_state_dict(harvest.state)
        return model

    def _snapshot(self, name: PeerId, training: PartTraining) -> Snapshot:
        tensors, metadata = training.snapshot()
        samples = training.trainer.num_samples
        if name == self.bad:
            tensors = self.attack.lies(tensors)
            samples = 2**40 if self.attack.name == "false mass" else samples
        data = save({n: t.contiguous() for n, t in tensors.items()}, metadata)
        blob = BlobId(f"{self.names.index(name):064x}")
        ref = SnapshotRef(
            part=training.part, trainer=name, epoch=self.plan.epoch, round=training.round,
            step=training.trainer.num_steps, samples=samples, blob=blob, num_bytes=len(data),
        )  # fmt: skip
        return Snapshot(ref, data)

    # --- gossip ---

    def _gossip(self) -> None:
        order = list(self.trainings)
        self.rng.shuffle(order)
        for name in order:
            shards = set(self.trainings[name].masses)
            partners = [p for p, t in self.trainings.items() if p != name and shards & t.masses.keys()]
            if partners:
                partner = self.rng.choice(partners)
                both = tuple(sorted(shards & self.trainings[partner].masses.keys()))
                self._push(name, partner, both, reply=True)
                self._push(partner, name, both, reply=False)

    def _push(self, sender: PeerId, to: PeerId, shards: tuple[str, ...], *, reply: bool) -> None:
        masses, payload = self.trainings[sender].make_payload(shards, to)
        if sender == self.bad:
            payload = self.attack.lies(payload)
            if self.attack.name == "false mass":
                others = sum(t.trainer.num_samples for n, t in self.trainings.items() if n != sender)
                most = believable_mass(2.0**40, others, is_guarded=self.job.group.robust != "none")
                masses = dict.fromkeys(masses, most)
        with contextlib.suppress(RemoteError):  # refused
            self.trainings[to].merge(masses, payload, sender, reply=reply)

    # --- the head ---

    def _head(self, parts: Mapping[int, list[Snapshot]]) -> Snapshot | None:
        """What the group makes in the end; None where no peer can take part."""
        fits = [
            HeadFitting(self.job, Parts(self.job, self.plan), "all", data, own)
            for data, own in zip(self.train, self.val, strict=True)
        ]
        try:
            for fit, (index, snapshots_) in product(fits, sorted(parts.items())):
                for place, snapshot in enumerate(snapshots_):
                    ref, tensors = snapshot.holding, _model_tensors(snapshot.data)
                    last = place == len(snapshots_) - 1
                    fit.add_copy(index, ref.trainer, tensors, float(max(1, ref.samples)), last=last)
        except RemoteError:
            return None
        steps = (1 + tasks_of(self.job).head_fit_steps if self.plan.body.fit_head else 0) + 1
        state: dict[str, Tensor] = {}
        for step in range(steps):
            sums = [fit.contribute(step, state) for fit in fits]
            if self.bad and fits[0].kind(step) != "validation":
                samples, own = sums[-1]
                sums[-1] = (samples * (LIE if self.attack.name == "false mass" else 1), self.attack.lies(own))
            state = fits[0].combine_sound(step, state, sums, self.names)
        refs = tuple(snapshot.holding for snapshots_ in parts.values() for snapshot in snapshots_)
        data = pack_head(save({n: t.contiguous() for n, t in state.items()}), refs)
        return Snapshot(head_holding(self.names[0], BlobId("f" * 64), len(data), refs, steps, 1), data)


class Attack:
    """What a bad member makes of the tensors that it sends."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self._noise = torch.Generator().manual_seed(seed)

    def lies(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._lie(name, t) for name, t in tensors.items()}

    def _lie(self, name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or name.endswith("running_var"):
            return tensor
        if self.name == "x100":
            return tensor * 100
        if self.name == "sign flip":
            return tensor if name == "counts" else -tensor
        if name == "counts":
            return tensor * LIE if self.name == "false mass" else tensor
        size = torch.linalg.vector_norm(tensor) / max(1, tensor.numel()) ** 0.5
        return (torch.randn(tensor.shape, generator=self._noise) * size).to(tensor.dtype)


def _model_tensors(data: bytes) -> dict[str, Tensor]:
    from p2ptrain.learning.snapshots import model_state, read_snapshot

    return model_state(read_snapshot(data)[0])


FIGURES = Section(
    "What comes out",
    "One bad member",
    [
        Row(
            f"poisoning-{kind}",
            f"{words}, one of {num} peers: {attack}",
            f"{{{num} peers, {attack}/clip:.1f}}",
            f"{{{num} peers, {attack}/without:.1f}}",
            tuple(
                f"{{{num} peers, {attack}/{how.replace('-', '_')}:.1f}}" if how in robust else "as clip"
                for how in OTHERS
            ),
        )
        for kind, words, robust in (
            ("replicas", "replicas", ROBUST),
            ("votes", "class sub-models, votes", ROBUST[:2]),
            ("fitted", "class sub-models, fitted head", ROBUST[:2]),
        )
        for num in (4, 5)
        for attack in ATTACKS
    ],
    (
        Remark(
            "poisoning-replicas",
            "Test accuracy on digits in %. One process, no network; the bad member tells its validation counts truly."
            " 0 is no model at all: an honest peer has ended, as its training diverged.",
        ),
    ),
    header=("what", "`clip`", "without the bad member", "`none`", "`trimmed-mean`", "`median`", "command"),
)
