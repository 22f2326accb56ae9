"""The averager's side of a round's end in its trainer: the peers' updates in, the pieces of the next state out.

Invariant: updates stay in the files that they came in until all are here; one that does not fit ends the average, and
whose it was is said. So is who is so far from the others that it counted less (``group.robust``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from p2ptrain.config import Job
from p2ptrain.core.plan import Plan
from p2ptrain.errors import RemoteError
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.initial import fit, start_from
from p2ptrain.learning.pipeline.snapshots import Snapshot
from p2ptrain.learning.snapshots import read_snapshot, write
from p2ptrain.learning.split.units import planned_samples
from p2ptrain.learning.split.update import Copy, RoundAverage, sizes_of
from p2ptrain.modes.split.commands import BeginAverage, GiveUpdate, PieceMade, UpdateDrawnIn, UpdateRefused
from p2ptrain.modes.split.plan import body_of, bounds_of, samples_of


class Averages:
    """One at a time. ``build``: makes the job's model; ``init``: what it starts from."""

    def __init__(
        self,
        chain: Chain,
        job: Job,
        build: Callable[[], nn.Module],
        init: Mapping[str, Tensor] | None,
        spool: Path | None,
        say: Callable[[object], None],
    ) -> None:
        self._chain, self._job, self._build, self._init = chain, job, build, init
        self._spool, self._say = spool, say
        self._average: RoundAverage | None = None
        self._begun: BeginAverage | None = None
        self._plan: Plan | None = None
        self._num_updates = 0
        self._sizes: dict[str, float] = {}
        """Of the tensors of the newest state that is known here, as in ``RoundAverage``."""
        self._knows_all = False

    def drop(self) -> None:
        """Nothing is to be averaged."""
        self._average = self._begun = self._plan = None

    def begun_from(self, pieces: Iterable[Snapshot]) -> None:
        """A round begins with these, which were checked."""
        for tensors, _ in pieces:
            self._sizes |= sizes_of(tensors)

    def begin(self, command: BeginAverage, plan: Plan) -> None:
        if not self._knows_all:
            self._sizes, self._knows_all = self._initial_sizes() | self._sizes, True
        planned = planned_samples(body_of(plan).split, samples_of(plan), self._job.training.epochs_per_round)
        training, robust = self._job.training, self._job.group.robust
        self._average = RoundAverage(self._chain, command.round - 1, planned, self._sizes, robust, training)
        self._begun, self._plan, self._num_updates = command, plan, 0

    def _initial_sizes(self) -> dict[str, float]:
        state = self._build().state_dict()
        if self._init is not None:
            start_from(state, fit(self._init, state))
        return sizes_of({f"model.{name}": tensor for name, tensor in state.items()})

    def give(self, command: GiveUpdate, samples_before: int, apart: Sequence[Copy]) -> None:
        """One after the other. ``samples_before``: that the group trained the model on in the rounds before; ``apart``:
        of the own update, the copies that it is the mean of."""
        average, begun = self._average, self._begun
        if average is None or begun is None:
            return
        try:
            average.add(command.peer, *read_snapshot(command.update), apart)
            self._num_updates += 1
            if self._num_updates == begun.updates:
                self._say_pieces(average, begun, samples_before)
        except RemoteError as error:
            peer = command.peer if self._num_updates < begun.updates else average.suspect()
            self.drop()
            self._say(UpdateRefused(begun.epoch, begun.round, peer, str(error)))

    def _say_pieces(self, average: RoundAverage, begun: BeginAverage, samples_before: int) -> None:
        plan = self._plan
        if plan is None:
            return
        pieces = average.pieces(
            bounds_of(body_of(plan).split),
            rounds=self._job.training.rounds,
            samples_before=samples_before,
            optimizer=self._job.training.optimizer_name,
        )
        self.drop()
        for peer, counted in sorted(average.counted().items()):
            self._say(UpdateDrawnIn(begun.epoch, begun.round, peer, counted))
        for tensors, metadata in pieces:
            self._sizes |= sizes_of(tensors)
            first, stop = int(metadata["first"]), int(metadata["stop"])
            piece = write(tensors, metadata, self._spool)
            where = (begun.epoch, first, stop - first, begun.round)
            self._say(PieceMade(*where, int(metadata["samples"]), piece))
