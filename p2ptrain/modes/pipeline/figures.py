"""A pipeline's question to the planner, by the figures that its peers are planned with.

Invariant: pure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence

from p2ptrain.config import Job
from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.core.stages.figures import DeviceFigures, planned_peers
from p2ptrain.modes.pipeline.config import pipeline_of
from p2ptrain.modes.pipeline.plan import MAX_STEPS
from p2ptrain.planning.devices.blocks import ModelProfile
from p2ptrain.planning.pipeline.fleet import Fleet
from p2ptrain.planning.pipeline.task import WIRE, PipelineTask, held_copies


def fleet_of(
    job: Job, model: ModelProfile, snapshots: Sequence[PeerSnapshot], profiles: Sequence[DeviceFigures]
) -> Fleet:
    """Raises ``UserError`` where nobody can be planned with."""
    is_async = pipeline_of(job).schedule == "async"
    return Fleet(task_of(job, model, snapshots, profiles), batches_a_round(job, snapshots) if is_async else 1)


def task_of(
    job: Job,
    model: ModelProfile,
    snapshots: Sequence[PeerSnapshot],
    profiles: Sequence[DeviceFigures],
) -> PipelineTask:
    """In the most micro-batches that the job allows, with a flush after every batch (``Fleet`` knows the others).

    Peers in the order of their ids, but a data owner first: the order of an equal split.
    """
    peers, pair_rates, latency_s = planned_peers(snapshots, profiles)
    first = next((peer for peer in peers if peer.has_data), None)
    peers.sort(key=lambda peer: (peer is not first, peer.name))
    return PipelineTask(
        model,
        tuple(peers),
        job.training.batch_size // pipeline_of(job).micro_batches,
        pipeline_of(job).micro_batches,
        latency_s,
        pair_rates=pair_rates,
        optimizer_copies=held_copies(job.training.optimizer_name, pipeline_of(job).schedule),
        forward_wire=WIRE[pipeline_of(job).activations],
        backward_wire=WIRE[pipeline_of(job).gradients],
    )


def batches_a_round(job: Job, snapshots: Sequence[PeerSnapshot], owners: Collection[str] = ()) -> int:
    """Batches of a round of training on the samples of these peers; by default of a peer that has as many as usual."""
    counts = [peer.num_samples for peer in snapshots if (peer.peer in owners if owners else peer.counts)]
    samples = sum(counts) if owners else statistics.median(counts or [0])
    batches = samples / job.training.batch_size * job.training.epochs_per_round
    return min(MAX_STEPS, max(1, math.ceil(batches - 1e-9)))  # not one more for a float's last digit
