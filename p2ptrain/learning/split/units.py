"""The units that one peer trains: its own, whole or the front of it, and the tails of the owners that it helps.

A unit is one copy of the whole model, trained on one owner's samples: a pipeline of two stages with one peer each, or
of one where the owner trains alone. So a unit trains exactly what one process would on the owner's samples
(``StageTraining``), and a round of all units is a round of federated averaging (FedAvg; McMahan et al. 2017), whatever
the cuts (SplitFedV1; Thapa et al. 2022).

Invariant: what a unit trains in a round follows from the round's start, the owner's samples and the job's seed alone;
in which order a helper serves its owners changes no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.pipeline.rows import StageMessage
from p2ptrain.learning.pipeline.snapshots import Snapshot
from p2ptrain.learning.pipeline.training import StageTraining, StageUse
from p2ptrain.learning.split.update import Copy, make_update
from p2ptrain.planning.pipeline.stages import PipelinePlan, Stage


@dataclass(frozen=True, slots=True)
class Unit:
    """A copy of the model in training on ``owner``'s samples. ``pipeline``: its front's and its tail's stage, or one
    stage where the owner trains alone."""

    owner: str
    pipeline: PipelinePlan
    steps_per_round: int
    after_s: float = 0.0
    """What the owner still has to do for a micro-batch when the helper has done its part: seconds."""

    @property
    def helper(self) -> str:
        """Who trains its tail; "" = nobody but the owner."""
        return self.pipeline.stages[1].peers[0] if len(self.pipeline.stages) > 1 else ""


def unit_pipeline(
    model: str,
    num_blocks: int,
    owner: str,
    helper: str,
    cut: int,
    *,
    micro_batch: int,
    num_micro_batches: int,
    in_flight: int,
) -> PipelinePlan:
    """Blocks [0, ``cut``) at the owner, the others at the helper (``cut`` = all: no helper).

    A batch is ``micro_batch`` x ``num_micro_batches`` samples, of which ``in_flight`` micro-batches are on their way
    between the two at most.
    """
    depth = min(in_flight, num_micro_batches)
    stages: tuple[Stage, ...]
    if cut == num_blocks:
        stages = (Stage(0, num_blocks, (owner,), (micro_batch,), 1),)
    else:
        front = Stage(0, cut, (owner,), (micro_batch,), depth)
        stages = (front, Stage(cut, num_blocks, (helper,), (micro_batch,), 1))
    return PipelinePlan(model, num_blocks, micro_batch, num_micro_batches, stages, ())


class Units:
    """Call ``begin`` with a round's start, ``advance`` while ``ready``, and ``update`` when the round is ``done``.

    ``averages_optimizer``: a round begins with the mean of the optimizers' states of the round before; otherwise the
    optimizers begin each round anew, as in federated averaging. ``options`` are those of ``StageTraining`` that all
    units share.
    """

    def __init__(
        self,
        own: str,
        units: Sequence[Unit],
        rounds: int,
        chain: Chain,
        *,
        averages_optimizer: bool = False,
        **options: Any,
    ) -> None:
        self._own = own
        self._chain = chain
        self._rounds = rounds
        self._averages_optimizer = averages_optimizer
        self.round = 0
        """The one that is trained, counted from 0; the job's number of rounds when all are done."""
        self._units = {unit.owner: unit for unit in units if own in (unit.owner, unit.helper)}
        if not self._units:
            raise LocalError(f"{own} neither trains nor helps")
        self._by_peer: dict[str, str] = {}
        """The owner of the unit in which a peer has the other half."""
        for unit in self._units.values():
            if unit.helper:
                self._by_peer[unit.helper if own == unit.owner else unit.owner] = unit.owner
        if own in self._units and self._units[own].helper and len(self._units) > 1:
            raise LocalError(f"{own} is helped and helps")
        config, data, name = options.pop("training"), options.pop("data"), options.pop("peer_name")
        self._training = {
            unit.owner: StageTraining(
                config,
                chain,
                unit.pipeline,
                own,
                data=data if unit.owner == own else None,
                peer_name=name if unit.owner == own else unit.owner,
                steps_per_round=unit.steps_per_round,
                **options,
            )
            for unit in self._units.values()
        }
        self._begun_with = dict.fromkeys(self._units, 0)
        for training in self._training.values():
            training.stop_at = 0

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
        return all(training.step >= self._last_step(owner) for owner, training in self._training.items())

    @property
    def num_samples(self) -> int:
        """Samples that the units held here have been trained on in this round."""
        return sum(self._trained(owner) for owner in self._units)

    @property
    def num_steps(self) -> int:
        """Batches of this round that are done, of all units held here."""
        return sum(t.step - self._units[o].steps_per_round * self.round for o, t in self._training.items())

    @property
    def num_held(self) -> int:
        """Micro-batches whose activations are held for a backward pass."""
        return sum(training.num_held for training in self._training.values())

    @property
    def losses(self) -> dict[str, float]:
        """Of the last batch that counted, by owner, of the units whose last block is here."""
        return {
            owner: training.last_loss
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
                training.begin(pieces, round, round * self._units[owner].steps_per_round)
            self._begun_with[owner] = training.num_samples
        self.round = round
        for owner, training in self._training.items():
            training.stop_at = self._last_step(owner) if round < self._rounds else training.step

    def _last_step(self, owner: str) -> int:
        return (min(self.round, self._rounds - 1) + 1) * self._units[owner].steps_per_round

    def _trained(self, owner: str) -> int:
        return self._training[owner].num_samples - self._begun_with[owner]

    def update(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What this peer gives to the round's average: the mean of the copies that it holds (see ``update``).

        Tensors may be the units' own: write them before the next round begins.
        """
        if not self.done:
            raise LocalError("the round is not over")
        copies = [
            Copy(training.start, training.stop, self._trained(owner), training.snapshot(copy=False)[0])
            for owner, training in sorted(self._training.items())
        ]
        return make_update(self._chain, self.round, copies, with_optimizer=self._averages_optimizer)

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
        nobody waits for it.
        """
        ready = [owner for owner, training in self._training.items() if training.ready()]
        if not ready:
            raise LocalError("nothing can be done before something comes")
        urgent = min(ready, key=lambda owner: (owner == self._own, -self._units[owner].after_s, owner))
        return self._training[urgent].advance()
