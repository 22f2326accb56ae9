"""Split training in one process: every peer a ``Units`` or ``SharedUnits`` (with a ``collector``), every message and
update through bytes, in random order."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pipeline_group import NUM_CLASSES, SEED, builder, samples, shape_of
from safetensors.torch import load, save
from torch import Tensor

from p2ptrain.config import Robust, TrainingConfig
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.pipeline.rows import StageMessage
from p2ptrain.learning.pipeline.snapshots import Snapshot
from p2ptrain.learning.split.shared import SharedUnits
from p2ptrain.learning.split.units import Units, planned_samples
from p2ptrain.learning.split.update import RoundAverage, sizes_of
from p2ptrain.planning.split.units import SplitPlan, Unit

MICRO_BATCH, NUM_MICRO_BATCHES = 4, 2
BATCH = MICRO_BATCH * NUM_MICRO_BATCHES


def meta_chain(name: str) -> Chain:
    with torch.device("meta"):
        return Chain(builder(name)(), shape_of(name))


class SplitGroup:
    """``cuts``: by owner, its helper ("" = alone) and cut. ``counts``: samples of each owner. ``lie``: what a peer
    sends in place of its tensors. The first peer averages, its own copies each by itself."""

    def __init__(
        self,
        name: str,
        cuts: Mapping[str, tuple[str, int]],
        counts: Mapping[str, int],
        config: TrainingConfig,
        *,
        order: int = 0,
        collector: str = "",
        batch_size: int = BATCH,
        keeps_labels: bool = False,
        robust: Robust = "clip",
        data: Mapping[str, Dataset] | None = None,
        lie: Callable[[str, Mapping[str, Tensor]], dict[str, Tensor]] | None = None,
        **options: Any,
    ) -> None:
        self.chain = meta_chain(name)
        self.config = config
        self.robust, self.lie = robust, lie or (lambda peer, tensors: dict(tensors))
        self.data: dict[str, Dataset] = dict(data or {})
        self.data |= {o: samples(name, i, counts[o]) for i, o in enumerate(sorted(cuts)) if o not in self.data}
        length = len(self.chain.blocks)
        rates = {True: 1e6, False: 0.0}
        helpers = {helper for helper, _ in cuts.values() if helper}
        self.plan = SplitPlan(
            name,
            length,
            batch_size,
            "shared" if collector else "replica",
            "switched",
            tuple(
                Unit(
                    owner,
                    helper or None,
                    cut if helper else length,
                    rates[bool(helper)],
                    rates[bool(helper)],
                    NUM_MICRO_BATCHES,
                    2,
                    "none",
                    "none",
                    batch_s=1.0,
                    round_s=10.0,
                    helper_s=1.0,
                )
                for owner, (helper, cut) in sorted(cuts.items())
            ),
            (),
            round_s=11.0,
            exchange_s=1.0,
            kept_from=length - 1 if keeps_labels else 0,
        )
        self.planned = planned_samples(self.plan, counts, config.epochs_per_round)
        names = sorted({*cuts, *helpers})
        kind: Any = partial(SharedUnits, collector=collector) if collector else partial(Units, robust=robust)
        self.peers: dict[str, Any] = {
            peer: kind(
                peer,
                self.plan,
                counts,
                self.chain,
                after_s={owner: float(index) for index, owner in enumerate(sorted(cuts))},
                training=config,
                build=builder(name),
                data=self.data.get(peer),
                peer_name=peer,
                seed=SEED,
                num_classes=NUM_CLASSES,
                **options,
            )
            for peer in names
        }
        self.rng = random.Random(order)
        self.samples = 0
        self.drawn_in: dict[str, float] = {}
        """Whose update of the last round did not count as it is."""
        self.most_held = dict.fromkeys(names, 0)

    def round(self, number: int, pieces: Sequence[Snapshot]) -> list[Snapshot]:
        """All units train this round from these pieces; the next round's come back."""
        for units in self.peers.values():
            units.begin(number, pieces)
        self.turn()
        assert all(units.done for units in self.peers.values()), "somebody waits for ever"
        sizes = {name: size for tensors, _ in pieces for name, size in sizes_of(tensors).items()}
        average = RoundAverage(self.chain, number, self.planned, sizes, self.robust, self.config)
        for peer, units in self.peers.items():
            tensors, metadata = units.update()
            apart = units.copies() if isinstance(units, Units) and peer == next(iter(self.peers)) else ()
            told = self.lie(peer, tensors)
            average.add(peer, load(save({k: t.contiguous() for k, t in told.items()})), metadata, apart)
        bounds = [self.plan.kept_from, *(unit.cut for unit in self.plan.units)]
        made = average.pieces(
            bounds, rounds=self.config.rounds, samples_before=self.samples, optimizer=self.config.optimizer_name
        )
        self.samples = int(made[0][1]["samples"])
        self.drawn_in = average.counted()
        return made

    def turn(self) -> None:
        pending: list[tuple[str, StageMessage]] = []
        while True:
            ready = [peer for peer, units in self.peers.items() if units.ready()]
            if not ready and not pending:
                return
            if pending and (not ready or self.rng.random() < 0.5):
                sender, message = pending.pop(self.rng.randrange(len(pending)))
                told = message.tensors if message.work == "norm" else self.lie(sender, message.tensors)
                tensors = load(save(told))
                arrived = StageMessage(sender, message.work, message.step, message.unit, message.row, tensors)
                self.peers[message.peer].receive(arrived)
            else:
                peer = self.rng.choice(ready)
                made = self.peers[peer].advance()
                assert not (self.plan.kept_from and any("y" in message.tensors for message in made))
                pending += [(peer, message) for message in made]
                self.most_held[peer] = max(self.most_held[peer], self.peers[peer].num_held)


def state_of(pieces: Sequence[Snapshot]) -> dict[str, Tensor]:
    """The global model's tensors."""
    return {n.removeprefix("model."): t for tensors, _ in pieces for n, t in tensors.items() if n.startswith("model.")}
