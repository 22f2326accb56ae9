"""What is to be planned: a model, a batch, and the peers of a room with their samples, figures and links.

Invariant: a task that ``check_split_task`` lets pass has figures that a plan can be computed from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from p2ptrain.config import CODINGS, Coding
from p2ptrain.errors import UserError
from p2ptrain.planning.devices.blocks import ModelProfile
from p2ptrain.planning.pipeline.task import WIRE, PairRate, PipelinePeer, PipelineTask, check_task
from p2ptrain.planning.split.units import MAX_BATCH, MAX_MICRO_BATCHES, MAX_UNITS, Labels, Medium, Tails


@dataclass(frozen=True, slots=True)
class SplitPeer:
    """What planning knows of a peer: its device, and what it brings."""

    device: PipelinePeer
    samples: int = 0
    """0: it owns no unit."""
    may_help: bool = True
    up_bytes_per_s: float = 0.0
    """0: ``device.link_bytes_per_s``, and so for ..."""
    down_bytes_per_s: float = 0.0
    codings: Mapping[Coding, tuple[float, float]] = field(default_factory=dict)
    """What coding takes: seconds for each byte of activations, and of gradients, before it is coded; where it was not
    measured, what ``device.times`` says."""

    @property
    def name(self) -> str:
        return self.device.name

    @property
    def up(self) -> float:
        """Bytes/s that it can send."""
        return self.up_bytes_per_s or self.device.link_bytes_per_s

    @property
    def down(self) -> float:
        """Bytes/s that it can receive."""
        return self.down_bytes_per_s or self.device.link_bytes_per_s

    def coding_s(self, coding: Coding) -> tuple[float, float]:
        """Seconds for each byte of activations, and of gradients."""
        times = self.device.times
        measured = (times.activation_s_per_byte, times.gradient_s_per_byte) if times else (0.0, 0.0)
        one, other = self.codings.get(coding, measured)
        return one * self.device.slowdown, other * self.device.slowdown


@dataclass(frozen=True, slots=True)
class SplitTask:
    """The question that a split plan answers."""

    model: ModelProfile
    peers: tuple[SplitPeer, ...]
    batch_size: int
    """Of every unit that has as many samples; ``tails = "shared"``: of all units together."""
    micro_batches: int = 8
    """The most that a batch is cut into."""
    passes: float = 1.0
    """Over an owner's samples, in a round."""
    tails: Tails = "replica"
    labels: Labels = "send"
    medium: Medium = "switched"
    medium_bytes_per_s: float = math.inf
    """``medium = "shared"``: all that the room sends at once, both ways together."""
    latency_s: float = 0.0
    pair_rates: tuple[PairRate, ...] = ()
    """Links that are slower than their ends."""
    optimizer_copies: int = 1
    """Tensors per parameter beside it and its gradient: see ``held_copies``."""
    codings: tuple[Coding, ...] = CODINGS
    """Those that a plan may choose from."""
    keeps_copies: bool = True
    """Whether a round is over only when a second peer has each block of what comes of it."""
    failed: frozenset[str] = frozenset()
    """Who was to average, and could not."""

    @property
    def owners(self) -> tuple[SplitPeer, ...]:
        return tuple(peer for peer in self.peers if peer.samples)

    @property
    def num_samples(self) -> int:
        return sum(peer.samples for peer in self.peers)

    def batch_of(self, owner: SplitPeer) -> float:
        """Samples of a batch of its unit, at most; with shared tails on average."""
        if self.tails == "shared":
            return max(float(self.model.least_samples), self.batch_size * owner.samples / self.num_samples)
        return float(min(self.batch_size, owner.samples))

    def micro_batch_of(self, owner: SplitPeer, micro_batches: int) -> float:
        """Samples of a micro-batch: of one size, so that a batch may be a few samples smaller, as it is when it is
        trained; with shared tails on average."""
        batch = self.batch_of(owner)
        return batch / micro_batches if self.tails == "shared" else float(int(batch) // micro_batches)

    def batches_of(self, owner: SplitPeer, micro_batches: int) -> int:
        """Of a round, whole ones only: what is left of a pass comes first in the next round."""
        if self.tails == "shared":
            return max(1, int(self.num_samples * self.passes) // min(self.batch_size, self.num_samples))
        batch = self.micro_batch_of(owner, micro_batches) * micro_batches
        return max(1, int(owner.samples * self.passes / batch))

    @property
    def as_pipeline(self) -> PipelineTask:
        """The same peers and links as the pipeline's tables read them; a sample at a time."""
        return PipelineTask(
            self.model,
            tuple(replace(peer.device, has_data=True) for peer in self.peers),
            self.model.least_samples,
            1,
            self.latency_s,
            pair_rates=self.pair_rates,
            optimizer_copies=self.optimizer_copies,
        )


def check_split_task(task: SplitTask) -> None:
    """Raises ``UserError`` for what no plan can be computed from, naming the peer, the figure and what to do."""
    if task.peers and not task.owners:
        raise UserError("nobody has samples, so there is nothing to train on; start one of the peers with --data")
    check_task(task.as_pipeline)
    if len(task.peers) > MAX_UNITS:
        raise UserError(f"{len(task.peers)} peers; plan for {MAX_UNITS} at most")
    least = task.model.least_samples
    for peer in task.peers:
        for key, value in (("up", peer.up), ("down", peer.down)):
            if not 0 < value < math.inf:
                raise UserError(f"peer {peer.name}: {key} link of {value:g} bytes/s; measure it with `p2ptrain probe`")
        if not 0 <= peer.samples <= 2**48:
            raise UserError(f"peer {peer.name}: {peer.samples} samples; give a number from 0 on")
        for coding, both in peer.codings.items():
            if len(both) != 2 or not all(0 <= seconds < math.inf for seconds in both):
                raise UserError(
                    f"peer {peer.name}: coding {coding} takes {both} s for a byte; measure its blocks again"
                )
        if 0 < peer.samples < least:
            raise UserError(
                f"peer {peer.name}: {peer.samples} sample, but {task.model.name} has batch normalisation, which takes "
                f"{least} at least; give it more samples"
            )
    if not least <= task.batch_size <= MAX_BATCH:
        raise UserError(f"a batch of {task.batch_size} samples; there must be {least} to {MAX_BATCH} (batch_size)")
    if not 1 <= task.micro_batches <= MAX_MICRO_BATCHES:
        raise UserError(f"{task.micro_batches} micro-batches; there must be 1 to {MAX_MICRO_BATCHES}")
    if not 0 < task.passes < math.inf:
        raise UserError(f"{task.passes:g} passes a round; there must be some (epochs_per_round)")
    if not task.codings or not set(task.codings) <= set(WIRE):
        raise UserError(f"codings {', '.join(task.codings) or 'none given'}; choose from {', '.join(WIRE)}")
    if task.labels == "stay" and task.tails == "shared":
        raise UserError(
            'labels stay with their owners only where each unit has a tail of its own: take tails = "replica"'
        )
    check_labels(task.labels, task.model)
    if not task.medium_bytes_per_s > 0 or (task.medium == "shared" and task.medium_bytes_per_s == math.inf):
        raise UserError("a shared medium takes a rate: say what it carries, such as --rate 100")


def check_labels(labels: Labels, model: ModelProfile) -> None:
    """Raises ``UserError`` for a model of which nothing is left for a helper where labels stay."""
    if labels == "stay" and model.num_cuts < 2:
        raise UserError(
            f"model {model.name}: with one legal cut a helper has nothing to train between the first blocks and "
            'the last, so labels can\'t stay with their owners: take labels = "send", or a model of more blocks'
        )
