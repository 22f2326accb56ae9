"""Replicas on digits in virtual time: bytes, accuracy and how far apart copies are, by group size and way to exchange.

As ``virtual_replicas.py`` says: real models and the gossip of this project, no sockets. LeNet trains 24 rounds of half
a pass over each peer's own samples, in batches of 16. *Sent* are payloads in all. *Every N rounds* is
``tasks.exchange_every``; *outer* is ``tasks.outer = "nesterov"`` with that momentum and a rate of 0.7, as the papers
of NoLoCo and DiLoCo have them. *Own* is the mean accuracy of the copies by themselves. *Distance*: sqrt(mean ||x_i -
mean||^2) / ||mean||, when each round of the slowest peer ends, and at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from benchmarks.common import SEED, Column, Sample, Settings
from benchmarks.rows import Row, Section
from benchmarks.virtual_replicas import digits_shares, train
from p2ptrain.config import GroupConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.learning.data import open_source, propose_contract
from p2ptrain.modes.tasks.config import TasksConfig

LISTED = {
    "replicas": "replicas in virtual time: bytes, accuracy and distance by group size, compression and outer momentum",
}
BASELINE = "the same model trained by one peer on all the samples, for as many rounds"
COLUMNS = (
    Column("accuracy", "accuracy, %", 1),
    Column("own_accuracy", "own, %", 1),
    Column("sent_mb", "sent, MB a peer", 2),
    Column("payloads_a_round", "payloads a round", 2),
    Column("distance", "distance at the end, %", 2),
    Column("mean_distance", "distance, mean, %", 2),
)
ROUNDS = 24
CENTRAL = "central"
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    CENTRAL: (1, {}, {}),
    **{f"{num} peers": (num, {}, {}) for num in (2, 3, 4, 8)},
    "8 peers, int8": (8, {"compression": "int8"}, {}),
    **{f"8 peers, topk {share}": (8, {"compression": "topk", "topk_fraction": share}, {}) for share in (0.1, 0.4)},
    **{
        f"4 peers, every {every} rounds{name}": (4, {}, {"exchange_every": every} | outer)
        for every in (2, 4, 8)
        for name, outer in (
            ("", {}),
            (", outer 0.5", {"outer": "nesterov", "outer_momentum": 0.5}),
            (", outer 0.9", {"outer": "nesterov", "outer_momentum": 0.9}),
        )
    },
}
"""Peers, and what the job says of its group and of replicas."""
CHOICES = tuple(CASES)
TINY = (CENTRAL, "2 peers")


def run(settings: Settings) -> Iterator[Sample]:
    for repetition in settings.repetitions:
        for name, (num_peers, group, tasks) in CASES.items():
            if (settings.tiny and name not in TINY) or not settings.wants(name, repetition):
                continue
            job = Job(
                name="benchmark",
                mode="replicas",
                seed=SEED + repetition,
                model=ModelConfig("lenet"),
                data=dataclasses.replace(propose_contract(open_source("digits")), val=0.0),
                training=TrainingConfig(rounds=2 if settings.tiny else ROUNDS, epochs_per_round=0.5, batch_size=16),
                tables=(TasksConfig(**tasks),),
                group=GroupConfig(**group),
            )
            yield Sample(name, repetition, train(job, *digits_shares(job, num_peers)), is_baseline=name == CENTRAL)


FIGURES = Section(
    "What comes out",
    "Replicas in virtual time",
    [
        Row(
            "replicas",
            f"digits, LeNet, {name}: accuracy; sent by a peer; distance at the end",
            f"{{{name}/accuracy:.1f}} %; {{{name}/sent_mb:.2f}} MB; {{{name}/distance:.2f}} %",
            "central training: {central/accuracy:.1f} %",
        )
        for name in CASES
        if name != CENTRAL
    ],
)
