"""Mode "auto": whether a group trains class sub-models or replicas, from what its peers are and have.

Invariant: a pure function of the job and the snapshots that the first plan is made from; the mode stays the job's
while it trains. The first rule that applies decides, and its reason is told to people.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2ptrain.config import Job, Mode
from p2ptrain.planning.footprint import largest_share
from p2ptrain.planning.grouping import groups_by_data
from p2ptrain.planning.plan import PeerSnapshot, speeds

MAX_WAIT = 4.0
"""In replicas everybody trains the whole model: not where the slowest takes so many times as long as the fastest."""


def mode_for(job: Job, peers: Sequence[PeerSnapshot]) -> tuple[Mode, str]:
    """The mode, and why; what the job says unless that is "auto"."""
    if job.mode != "auto":
        return job.mode, "the job says so"
    if job.data.kind == "text":
        return "replicas", "class sub-models are for pictures and audio"
    most = max_groups(job, peers)
    if most < 2:
        return "replicas", "the model can't be divided among classes"
    holders = [peer for peer in peers if peer.counts]
    if len(holders) < 2:
        return "replicas", "only one device has samples"
    by_data = groups_by_data(peers, len(job.data.classes))
    if by_data is not None and len(by_data) > most:
        return "replicas", f"the model can only be divided into {most} parts, and the data are of {len(by_data)} kinds"
    if by_data is not None:
        return "tasks", "no two devices have a class in common, or the same ones"
    if any(largest_share(job, peer.memory_bytes) < 1 for peer in holders):
        return "tasks", "the whole model does not fit into the memory of every device"
    speed = speeds(peers)
    round_s = [peer.num_samples / speed[peer.peer] for peer in holders]
    if max(round_s) > MAX_WAIT * min(round_s):
        times = max(round_s) / min(round_s)
        return "tasks", f"a round of the whole model takes the slowest device {times:.0f} times as long as the fastest"
    return "replicas", "devices are alike, and have classes in common: whole models learn most from their samples"


def max_groups(job: Job, peers: Sequence[PeerSnapshot]) -> int:
    """The most class sub-models that every trainer can make of the job's model, as far as they know."""
    return min((peer.max_groups for peer in peers if peer.max_groups), default=len(job.data.classes))
