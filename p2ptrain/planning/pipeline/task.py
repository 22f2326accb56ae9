"""What is to be planned: a model, a batch, and the peers of a room with their figures and links.

Invariant: a task that ``check_task`` lets pass has figures that a plan can be computed from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from p2ptrain.config import Coding, Schedule
from p2ptrain.errors import UserError
from p2ptrain.planning.devices.blocks import BlockTimes, ModelProfile, check_model, check_times
from p2ptrain.planning.devices.footprint import pipeline_bytes
from p2ptrain.planning.devices.profiles import DeviceProfile
from p2ptrain.planning.pipeline.schedule import most_ahead
from p2ptrain.planning.pipeline.stages import MAX_MICRO_BATCHES, MAX_SAMPLES

ASYNC_MICRO_BATCHES = 64
"""So many at least are played from flush to flush, where training goes on as long without one."""
STASHED_VERSIONS = 2
"""Copies of the parameters that are held without a flush: one for each batch that is under way."""
WIRE: Mapping[Coding, float] = {"none": 1.0, "fp16": 0.5, "int8": 0.27}
"""Bytes sent for each byte of a float32 tensor."""
SNAPSHOT_COPIES = 1
"""Of every parameter, while a snapshot is written: what is not contiguous is copied for it."""


@dataclass(frozen=True, slots=True)
class PipelinePeer:
    """What planning knows of a peer."""

    name: str
    flops_per_s: float
    """0 where it is not known, which takes ``times``."""
    memory_bytes: float
    """What model, gradients, optimizer state and activations may use."""
    link_bytes_per_s: float
    times: BlockTimes | None = None
    """Measured; without them FLOP/s count."""
    slowdown: float = 1.0
    """Seconds seen while training / seconds of the profile or of ``times``."""
    has_data: bool = True
    """Only peers with samples may be in the first stage."""


@dataclass(frozen=True, slots=True)
class PairRate:
    """What the link between two peers carries, either way: less than its ends could."""

    one: str
    other: str
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class PipelineTask:
    """What is to be planned: a model, a batch, and the peers of a room."""

    model: ModelProfile
    peers: tuple[PipelinePeer, ...]
    micro_batch: int
    num_micro_batches: int
    latency_s: float = 0.0
    rate_bytes_per_s: float = math.inf
    """No link is faster, whatever its ends can do."""
    pair_rates: tuple[PairRate, ...] = ()
    """Links that are slower than their ends."""
    optimizer_copies: int = 1
    """Tensors per parameter beside it and its gradient: see ``held_copies``."""
    forward_wire: float = 1.0
    """Bytes sent for each byte of an activation; less than 1 where they travel compressed, ..."""
    backward_wire: float = 1.0
    """... and for each byte of its gradient."""
    batches: int = 1
    """In a row, without a flush between them: see ``batches_in_a_row``."""

    @property
    def num_in_a_row(self) -> int:
        """Micro-batches from flush to flush."""
        return self.num_micro_batches * self.batches

    @property
    def most_ahead(self) -> int:
        """The deepest warm-up."""
        return most_ahead(self.num_micro_batches, flush=self.batches == 1)


def batches_in_a_row(num_micro_batches: int, batches_a_round: float = math.inf) -> int:
    """How many batches of an asynchronous schedule are played for a prediction; training flushes once a round.

    What filling and emptying take is little beside ``ASYNC_MICRO_BATCHES``.
    """
    return max(1, int(min(batches_a_round, math.ceil(ASYNC_MICRO_BATCHES / num_micro_batches))))


def held_copies(optimizer: str, schedule: Schedule) -> int:
    """Tensors that a trainer holds for each of its parameters, beside the parameter and its gradient. An
    own optimizer is taken to hold as much as AdamW."""
    state = 1 if optimizer == "sgd" else 2
    return state + SNAPSHOT_COPIES + (STASHED_VERSIONS if schedule == "async" else 0)


def peer_from_profile(
    profile: DeviceProfile, name: str, chain: str | None = None, codings: tuple[Coding, Coding] = ("none", "none")
) -> PipelinePeer:
    """A device's profile as planning sees it, without the memory that its trainer process takes and that stays free.

    ``chain``: the model's ``chain_hash``; measured times that the profile has for it count more than FLOP/s.
    ``codings``: of activations and of gradients.
    """
    memory = pipeline_bytes(profile.memory_bytes.value)
    times = next((each.times_with(*codings) for each in profile.block_times if each.chain == chain), None)
    return PipelinePeer(name, profile.flops_per_s.value, memory, profile.link_bytes_per_s.value, times)


def check_task(task: PipelineTask) -> None:
    """Raises ``UserError`` for what no plan can be computed from, naming the peer, the figure and what to do."""
    check_model(task.model)
    if not task.peers:
        raise UserError("no peers to plan for; name at least one profile, such as peers/raspberry-pi-4.toml")
    names = [peer.name for peer in task.peers]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"peer {twice} is named twice; give each peer a name of its own")
    for peer in task.peers:
        for key in ("flops_per_s", "link_bytes_per_s", "slowdown"):
            value = getattr(peer, key)
            is_unknown = key == "flops_per_s" and value == 0 and peer.times is not None
            if not math.isfinite(value) or (value <= 0 and not is_unknown):
                raise UserError(f"peer {peer.name}: {key} is {value:g}; measure it with `p2ptrain probe`")
        if not math.isfinite(peer.memory_bytes) or peer.memory_bytes < 0:
            raise UserError(f"peer {peer.name}: memory_bytes is {peer.memory_bytes:g}; say what training may use")
        if peer.times is not None:
            check_times(peer.times, task.model, peer.name)
    if not any(peer.has_data for peer in task.peers):
        raise UserError("no peer has samples, so nobody can be the first stage; give one of them --data")
    if not 1 <= task.micro_batch <= MAX_SAMPLES or not 1 <= task.num_micro_batches <= MAX_MICRO_BATCHES:
        raise UserError(
            f"{task.num_micro_batches} micro-batches of {task.micro_batch} samples; there must be 1 to "
            f"{MAX_MICRO_BATCHES} micro-batches of 1 to {MAX_SAMPLES} samples"
        )
    if task.micro_batch < task.model.least_samples:
        raise UserError(
            f"model {task.model.name} has batch normalisation, which takes no statistics from micro-batches of "
            f"{task.micro_batch} sample; make them larger (pipeline.micro_batches, training.batch_size)"
        )
    if not task.rate_bytes_per_s > 0 or not 0 <= task.latency_s < math.inf:
        raise UserError(
            f"links of {task.rate_bytes_per_s:g} bytes/s and {task.latency_s:g} s of latency; "
            "the rate must be above zero, the latency not below"
        )
    _check_pair_rates(task)
    if not (0 < task.forward_wire < math.inf and 0 < task.backward_wire < math.inf):
        raise UserError(
            f"{task.forward_wire:g} and {task.backward_wire:g} bytes sent for one; they must be above zero, 1 where "
            "nothing is compressed"
        )


def _check_pair_rates(task: PipelineTask) -> None:
    names = {peer.name for peer in task.peers}
    seen: set[frozenset[str]] = set()
    for pair in task.pair_rates:
        link = f"link {pair.one}:{pair.other}"
        stranger = next((name for name in (pair.one, pair.other) if name not in names), None)
        if stranger is not None:
            raise UserError(f"{link}: no peer is named {stranger}; there are {', '.join(sorted(names))}")
        if pair.one == pair.other:
            raise UserError(f"{link}: a link has two ends; name another peer")
        if not 0 < pair.bytes_per_s < math.inf:
            raise UserError(f"{link}: a rate of {pair.bytes_per_s:g} bytes/s; it must be above zero")
        if frozenset((pair.one, pair.other)) in seen:
            raise UserError(f"{link}: is named twice; give each link one rate")
        seen.add(frozenset((pair.one, pair.other)))
