"""The units that one peer trains: its own, whole or the front of it, and the tails of the owners that it helps.

A unit (``planning.split.units``) is a pipeline of two stages with one peer each, or of one where the owner trains
alone. So it trains exactly what one process would on the owner's samples
(``StageTraining``), and a round of all units is a round of federated averaging (FedAvg; McMahan et al. 2017), whatever
the cuts (SplitFedV1; Thapa et al. 2022).

Invariant: what a unit trains in a round follows from the round's start, the owner's samples and the job's seed alone;
in which order a helper serves its owners changes no number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from p2ptrain.config import Robust, TrainingConfig
from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.pipeline.rows import StageMessage
from p2ptrain.learning.pipeline.snapshots import Snapshot
from p2ptrain.learning.pipeline.training import StageTraining, StageUse
from p2ptrain.learning.split.looped import END, Ends, Middle
from p2ptrain.learning.split.update import Copy, make_update
from p2ptrain.learning.training import DivergedError
from p2ptrain.planning.pipeline.stages import PipelinePlan, Stage
from p2ptrain.planning.split.units import SplitPlan, Unit


def unit_pipeline(plan: SplitPlan, unit: Unit, num_samples: int) -> PipelinePlan:
    """A unit as a pipeline of its front and its tail, of one stage where the owner trains alone, or of three where it
    keeps its labels (``looped``).

    A batch has the plan's size, or ``num_samples``, what the owner has, if those are fewer; rounded down to
    micro-batches of one size.
    """
    num = min(unit.micro_batches, num_samples)
    micro_batch = min(plan.batch_size, num_samples) // num
    runs, ahead = plan.runs_of(unit), min(unit.in_flight, num)
    stages = []
    for place, (peer, first, stop) in enumerate(runs):
        name = peer + END if place == 2 else peer
        stages.append(Stage(first, stop, (name,), (micro_batch,), 1 if place + 1 == len(runs) else ahead))
    return PipelinePlan(plan.model, plan.num_blocks, micro_batch, num, tuple(stages), ())


def steps_of(pipeline: PipelinePlan, num_samples: int, passes: float = 1.0) -> int:
    """Batches of a round: ``passes`` over the owner's samples, one batch at least.

    What is left of the last pass comes first in the next round.
    """
    return max(1, int(num_samples * passes / (pipeline.micro_batch * pipeline.num_micro_batches)))


def planned_samples(plan: SplitPlan, samples: Mapping[str, int], passes: float = 1.0) -> dict[str, dict[int, int]]:
    """By peer, of each block that it trains, on how many samples its units train it in a round, at most."""
    found: dict[str, dict[int, int]] = {}
    for unit in plan.units:
        num = samples[unit.owner]
        if plan.tails == "shared":
            most = num * max(1, math.ceil(passes))  # a part of a pass may be all of one owner
        else:
            pipeline = unit_pipeline(plan, unit, num)
            most = steps_of(pipeline, num, passes) * pipeline.micro_batch * pipeline.num_micro_batches
        for peer, first, stop in plan.runs_of(unit):
            blocks = found.setdefault(peer, {})
            for block in range(first, stop):
                blocks[block] = blocks.get(block, 0) + most
    return found


class UnitDivergedError(RemoteError):
    """The tail of ``owner``'s unit can't go on; the other units here can."""

    def __init__(self, owner: str, detail: str) -> None:
        super().__init__("unit-diverged", detail)
        self.owner = owner


class Units:
    """Call ``begin`` with a round's start, ``advance`` while ``ready``, and ``update`` when the round is ``done``.

    ``samples``: how many each owner has. ``after_s``: what an owner still has to do for a micro-batch when its helper
    has done its part, in seconds. ``averages_optimizer``: a round begins with the mean of the optimizers' states of the
    round before; otherwise the optimizers begin each round anew, as in federated averaging. ``options`` are those of
    ``StageTraining`` that all units share.
    """

    def __init__(
        self,
        own: str,
        plan: SplitPlan,
        samples: Mapping[str, int],
        chain: Chain,
        *,
        training: TrainingConfig,
        data: Dataset | None,
        peer_name: str,
        after_s: Mapping[str, float] | None = None,
        averages_optimizer: bool = False,
        robust: Robust = "none",
        **options: Any,
    ) -> None:
        self._own = own
        self._robust: Robust = robust
        self._chain = chain
        self._rounds = training.rounds
        self._after_s = after_s or {}
        self._averages_optimizer = averages_optimizer
        self.round = 0
        """The one that is trained, counted from 0; the job's number of rounds when all are done."""
        units = [unit for unit in plan.units if own in (unit.owner, unit.helper)]
        if not units:
            raise LocalError(f"{own} neither trains nor helps")
        if any(unit.helper for unit in units if unit.owner == own) and len(units) > 1:
            raise LocalError(f"{own} is helped and helps")
        self._by_peer = {(unit.helper if own == unit.owner else unit.owner): unit.owner for unit in units}
        """The owner of the unit of which a peer has the other half."""
        self._steps: dict[str, int] = {}
        self._training: dict[str, StageTraining | Ends] = {}
        for unit in units:
            owner = unit.owner
            pipeline = unit_pipeline(plan, unit, samples[owner])
            self._steps[owner] = steps_of(pipeline, samples[owner], training.epochs_per_round)
            make = partial(
                Middle if len(pipeline.stages) == 3 and owner != own else StageTraining,
                training,
                chain,
                pipeline,
                data=data if owner == own else None,
                peer_name=peer_name if owner == own else owner,
                steps_per_round=self._steps[owner],
                activations=unit.activations,
                gradients=unit.gradients,
                **options,
            )
            keeps_labels = len(pipeline.stages) == 3
            if keeps_labels and owner == own:
                self._training[owner] = Ends(own, lambda name, labels, make=make: make(own=name, kept_labels=labels))  # type: ignore[misc]
            else:
                self._training[owner] = make(own=own, kept_labels={} if keeps_labels else None)
        self._begun_with = dict.fromkeys(self._training, 0)
        self._given_up: set[str] = set()
        """Owners whose tails diverged: the round is not over without them, so it needs another plan."""
        for each in self._training.values():
            each.stop_at = 0

    @property
    def first(self) -> int:
        """The first block that is held here."""
        return min(training.start for training in self._training.values())

    @property
    def stop(self) -> int:
        """One behind the last block that is held here."""
        return max(training.stop for training in self._training.values())

    @property
    def done(self) -> bool:
        """Whether nothing of this round is left to do here."""
        over = all(training.step >= self._last_step(owner) for owner, training in self._training.items())
        return over and not self._given_up

    @property
    def num_samples(self) -> int:
        """Samples that the units held here have been trained on in this round."""
        return sum(self._trained(owner) for owner in self._training)

    @property
    def samples_before(self) -> int:
        """Samples that the group has trained the model on in the rounds before."""
        return max(self._begun_with.values())

    @property
    def num_steps(self) -> int:
        """Batches of this round that are done, of all units held here."""
        return sum(t.step - self._steps[o] * self.round for o, t in self._training.items())

    @property
    def num_held(self) -> int:
        """Micro-batches whose activations are held for a backward pass."""
        return sum(training.num_held for training in self._training.values())

    @property
    def losses(self) -> dict[str, float]:
        """Mean over the batches of this round that counted, by owner, of the units whose last block is here."""
        return {
            owner: training.round_loss
            for owner, training in self._training.items()
            if training.stop == len(self._chain.blocks)
        }

    def use(self) -> dict[str, StageUse]:
        """What was computed since the last call, by owner."""
        return {owner: training.use() for owner, training in self._training.items()}

    # --- a round ---

    def begin(self, round: int, pieces: Sequence[Snapshot]) -> None:
        """Begin a round from the pieces of its start; without any, from the job's initial weights (round 0).

        Raises ``RemoteError`` for pieces that don't fit, or don't cover the blocks that are held here.
        """
        if not 0 <= round <= self._rounds or (round > 0 and not pieces):
            raise RemoteError("snapshot", f"round {round} of {self._rounds} from {len(pieces)} pieces")
        if not pieces and any(training.step for training in self._training.values()):
            raise LocalError("the initial weights are trained already; make these units anew")
        for owner, training in self._training.items():
            if pieces:
                training.begin(pieces, round, round * self._steps[owner])
            self._begun_with[owner] = training.num_samples
        self.round = round
        for owner, training in self._training.items():
            training.stop_at = self._last_step(owner) if round < self._rounds else training.step

    def _last_step(self, owner: str) -> int:
        return (min(self.round, self._rounds - 1) + 1) * self._steps[owner]

    def _trained(self, owner: str) -> int:
        return self._training[owner].num_samples - self._begun_with[owner]

    def update(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What this peer gives to the round's average: the mean of the copies that it holds (see ``update``).

        Tensors may be the units' own: write them before the next round begins.
        """
        if not self.done:
            raise LocalError("the round is not over")
        options: dict[str, Any] = {"with_optimizer": self._averages_optimizer, "robust": self._robust}
        return make_update(self._chain, self.round, self.copies(), **options)

    def copies(self) -> list[Copy]:
        """What the units held here came to, until the next round begins; their tensors are the units' own."""
        return [
            Copy(part.start, part.stop, self._trained(owner), part.snapshot(copy=False)[0])
            for owner, training in sorted(self._training.items())
            for part in (training.parts if isinstance(training, Ends) else (training,))
        ]

    def accuracy(self, samples: Dataset | None) -> float:
        """Of the own copy of the model, if all of it is here, on these samples; -1 = not known."""
        own = self._training.get(self._own)
        return own.accuracy(samples) if own is not None else -1.0

    # --- within a round ---

    def receive(self, message: StageMessage) -> None:
        """Take what another peer sent. Raises ``RemoteError`` for what is not due or not sound, and keeps nothing."""
        owner = self._by_peer.get(message.peer)
        if owner is None:
            raise RemoteError("stage-message-peer", f"{message.work} from a peer that shares no unit with this one")
        self._training[owner].receive(message)

    def ready(self) -> bool:
        """Whether ``advance`` can do something now."""
        return any(training.ready() for training in self._training.values())

    def advance(self) -> list[StageMessage]:
        """Do the next piece of work, and return what is to be sent for it.

        Of several, the one whose owner needs longest afterwards (Jackson 1955; Schrage 1971), and the own unit last:
        nobody waits for it. Raises ``UnitDivergedError`` for a tail, and ``DivergedError`` for the own unit.
        """
        ready = [owner for owner, training in self._training.items() if training.ready()]
        if not ready:
            raise LocalError("nothing can be done before something comes")
        urgent = min(ready, key=lambda owner: (owner == self._own, -self._after_s.get(owner, 0.0), owner))
        try:
            return self._training[urgent].advance()
        except DivergedError as error:
            if urgent == self._own:
                raise
            self._training[urgent].stop_at = 0
            self._given_up.add(urgent)
            raise UnitDivergedError(urgent, str(error)) from None
