"""One bad member of split training: what the model knows, for each setting of ``group.robust``, beside the group
without it.

Four peers with a share of the digits each. The last one trains as the others do, but lies in its updates and in all
stage messages, as in ``poisoning``; with "false mass" it says that it has four times its samples, and sends noise. What
it is:

    alone    all four train alone
    helped   the first one helps the other three, one of which is bad
    helper   the first and the last one help one each, and train their own samples, too

Units, messages, updates and their average are the project's own code, handed over in one process. Where what comes of
the bad member is refused, the others go on without it from the round's beginning, and it stays away. 0 % stands for no
model at all: an honest peer's training diverged.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import SEED, Column, Sample, Settings
from benchmarks.overlap import NAMES, chosen, judged
from benchmarks.poisoning import ROBUST, Attack
from benchmarks.rows import Remark, Row, Section
from p2ptrain.config import GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.errors import RemoteError
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.data import load, open_source, propose_contract
from p2ptrain.learning.models import global_model
from p2ptrain.learning.pipeline.rows import StageMessage
from p2ptrain.learning.pipeline.snapshots import Snapshot
from p2ptrain.learning.split.units import UnitDivergedError, Units, planned_samples
from p2ptrain.learning.split.update import RoundAverage, sizes_of
from p2ptrain.learning.training import DivergedError
from p2ptrain.planning.split.units import SplitPlan, Unit, check_split_plan

LISTED = {"poisoning_split": "one bad member of four in split training, for each setting of group.robust"}
COLUMNS = (Column("without", "without it, %"), *(Column(how.replace("-", "_"), f"{how}, %") for how in ROBUST))
ATTACKS = ("honest", "x100", "sign flip", "random", "false mass")
BASELINE = "the same group without the bad member"
NUM_PEERS = 4
CLAIM = 4
"""Times its own samples, with "false mass"."""
HELPS: dict[str, dict[int, int]] = {"alone": {}, "helped": {1: 0, 2: 0, 3: 0}, "helper": {1: 0, 2: 3}}
"""Who has which helper, by their numbers; the last peer is the bad one."""


def run(settings: Settings) -> Iterator[Sample]:
    torch.set_num_threads(1)
    rounds, attacks, places = (1, ATTACKS[:3:2], ("helped",)) if settings.tiny else (8, ATTACKS, tuple(HELPS))
    for repetition in settings.repetitions:
        seed = SEED + repetition
        for place in places:
            without = accuracy(place, "without", "none", seed, rounds)
            for attack in attacks:
                figures = {how.replace("-", "_"): accuracy(place, attack, how, seed, rounds) for how in ROBUST}
                yield Sample(f"{place}, {attack}", repetition, {"without": without} | figures)


def accuracy(place: str, attack: str, robust: str, seed: int, rounds: int) -> float:
    """On the test samples, in %. ``attack`` "without": the last peer is not there at all."""
    source = open_source("digits")
    job = Job(
        mode="split",
        seed=seed,
        model=ModelConfig("lenet", 1.0),
        data=propose_contract(source),
        training=TrainingConfig(rounds=rounds, batch_size=32),
        group=GroupConfig(robust=robust),  # type: ignore[arg-type]
    )
    rows = np.random.RandomState(seed).permutation(len(source.fitted(job.data).labels("train")))
    data = {
        name: load(source, job.data, "train", np.sort(rows[number::NUM_PEERS]))
        for number, name in enumerate(NAMES[:NUM_PEERS])
    }
    helps = HELPS[place]
    if attack == "without":
        del data[NAMES[NUM_PEERS - 1]]
        helps = {owner: helper for owner, helper in helps.items() if NUM_PEERS - 1 not in (owner, helper)}
    group = Group(job, data, {NAMES[o]: NAMES[h] for o, h in helps.items()}, "" if attack == "without" else attack)
    test = chosen(source, job, "test", dict.fromkeys(range(len(job.data.classes)), 1000), seed)
    try:
        return judged(group.model(), test)
    except DivergedError:
        return 0.0


class Group:
    """Peers of one job in one process. ``helps``: whom each has for a helper; ``attack``: what the last one does."""

    def __init__(self, job: Job, data: Mapping[str, Any], helps: Mapping[str, str], attack: str) -> None:
        self.job, self.names, self.data, self.helps = job, sorted(data), data, helps
        self.attack, self.bad = Attack(attack, job.seed), self.names[-1] if attack not in ("", "honest") else ""
        with torch.device("meta"):
            self.chain = Chain(global_model(job, allow_user_code=False), job.data.input_shape)
        self.samples = {name: len(each.y) for name, each in data.items()}
        if attack == "false mass":
            self.samples[self.bad] *= CLAIM
        self.plan = self._plan(helps)
        self.averager = self.names[0]
        self.units = {
            name: Units(
                name,
                self.plan,
                self.samples,
                self.chain,
                training=job.training,
                data=data[name],
                peer_name=name,
                robust=job.group.robust,
                build=lambda: global_model(job, allow_user_code=False),
                seed=job.seed,
                num_classes=len(job.data.classes),
            )
            for name in self.names
        }
        self.rng = random.Random(job.seed)

    def _plan(self, helps: Mapping[str, str]) -> SplitPlan:
        length = len(self.chain.blocks)
        units = []
        for name in self.names:
            helper = helps.get(name)
            cut, rate = (1, 1e6) if helper else (length, 0.0)
            units.append(Unit(name, helper, cut, rate, rate, 4, 2, "none", "none", 1.0, 1.0, 1.0 if helper else 0.0))
        plan = SplitPlan("lenet", length, 32, "replica", "switched", tuple(units), (), 1.0, 0.0)
        check_split_plan(plan)
        return plan

    def model(self, first: int = 0, pieces: Sequence[Snapshot] = ()) -> nn.Module:
        """What anybody harvests in the end, from these pieces of the state after ``first`` rounds on."""
        for number in range(first, self.job.training.rounds):
            try:
                pieces = self._round(number, pieces)
            except RemoteError:
                if not self.bad:
                    raise
                return self._others().model(number, pieces)
        state = {n.removeprefix("model."): t for tensors, _ in pieces for n, t in tensors.items()}
        model = global_model(self.job, allow_user_code=False)
        model.load_state_dict(state)
        return model

    def _others(self) -> Group:
        """The group that goes on when the bad member is shut out."""
        data = {name: each for name, each in self.data.items() if name != self.bad}
        return Group(self.job, data, {o: h for o, h in self.helps.items() if self.bad not in (o, h)}, "")

    def _round(self, number: int, pieces: Sequence[Snapshot]) -> list[Snapshot]:
        """Raises ``RemoteError`` where something is refused."""
        for units in self.units.values():
            units.begin(number, pieces)
        self._train()
        return self._averaged(number, pieces)

    def _train(self) -> None:
        """Until all units are through."""
        pending: list[tuple[str, StageMessage]] = []
        while not all(units.done for units in self.units.values()):
            if pending and self.rng.random() < 0.5:
                sender, message = pending.pop(0)
                is_checked = message.work == "norm"  # odd ones are refused, which would end the attack
                tensors = message.tensors if is_checked else self._said(sender, message.tensors)
                self.units[message.peer].receive(dataclasses.replace(message, peer=sender, tensors=tensors))
            else:
                ready = [name for name, units in self.units.items() if units.ready()]
                if not ready:
                    continue
                name = self.rng.choice(ready)
                try:
                    pending += [(name, message) for message in self.units[name].advance()]
                except UnitDivergedError as error:
                    raise RemoteError("unit-diverged", error.owner) from None

    def _averaged(self, number: int, pieces: Sequence[Snapshot]) -> list[Snapshot]:
        sizes = {name: size for tensors, _ in pieces for name, size in sizes_of(tensors).items()}
        planned = planned_samples(self.plan, self.samples)
        average = RoundAverage(self.chain, number, planned, sizes, self.job.group.robust)
        for name in self.names:
            tensors, metadata = self.units[name].update()
            apart = self.units[name].copies() if name == self.averager else ()
            average.add(name, self._said(name, tensors), metadata, apart)
        before = int(pieces[0][1]["samples"]) if pieces else 0
        return average.pieces(
            {unit.cut for unit in self.plan.units},
            rounds=self.job.training.rounds,
            samples_before=before,
            optimizer=self.job.training.optimizer,
        )

    def _said(self, sender: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.attack.lies(tensors) if sender == self.bad else dict(tensors)


FIGURES = Section(
    "What comes out",
    "One bad member of split training",
    [
        Row(
            "poisoning_split",
            f"{words}: {attack}",
            f"{{{place}, {attack}/clip:.1f}}",
            f"{{{place}, {attack}/without:.1f}}",
            tuple(f"{{{place}, {attack}/{how}:.1f}}" for how in ("none", "trimmed_mean", "median")),
        )
        for place, words in (
            ("alone", "one of four that train alone"),
            ("helped", "one of three with one helper"),
            ("helper", "one of two helpers"),
        )
        for attack in ATTACKS
    ],
    (
        Remark(
            "poisoning_split",
            "Test accuracy on digits in %. One process, no network. The averager refuses updates that grew too much;"
            " the others then train on without their sender. 0 is no model at all: an honest peer has ended, as its"
            " training diverged.",
        ),
    ),
    header=("what", "`clip`", "without the bad member", "`none`", "`trimmed-mean`", "`median`", "command"),
)
