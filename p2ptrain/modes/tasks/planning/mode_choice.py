"""Mode "auto": whether a group trains class sub-models or replicas, from what its peers are and have.

Class sub-models are taken wherever several devices have samples and the model is wide enough: with the outputs of
absent classes left out of the loss, several passes for one of the whole model, and the last layer fitted by the group,
they beat replicas in most cases of the benchmark ``overlap``, for as much work or less. The first rule that applies
decides, and its reason is told to people.

Invariant: a pure function of the job and the snapshots that the first plan is made from; the mode stays the job's
while it trains.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2ptrain.config import Job
from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.modes.tasks.planning.grouping import groups_by_data
from p2ptrain.modes.tasks.planning.holdings import lacking


def mode_for(job: Job, peers: Sequence[PeerSnapshot]) -> tuple[str, str]:
    """The mode, and why; what the job says unless that is "auto"."""
    if job.mode != "auto":
        return job.mode, "the job says so"
    if job.data.reads_tokens:
        return "replicas", "class sub-models are for pictures and audio"
    if job.model.freeze:
        return "replicas", "frozen layers are not cut into class sub-models"
    if max_groups(job, peers) < 2:
        return "replicas", "the model can't be divided among classes, or is too narrow for that"
    if sum(bool(peer.counts) for peer in peers) < 2:
        return "replicas", "only one device has samples"
    num_classes = len(job.data.classes)
    if groups_by_data(peers, num_classes) is not None:
        have = "no two devices share a class, unless they have the same ones"
    elif lacking(peers, num_classes):
        have = "devices share some classes, and some lack others"
    else:
        have = "every device has all classes"
    return (
        "tasks",
        f"{have}; narrow sub-models learnt more than whole models in most cases measured, and take less memory",
    )


def max_groups(job: Job, peers: Sequence[PeerSnapshot]) -> int:
    """The most class sub-models that every trainer can make of the job's model, as far as they know."""
    return min((peer.max_groups for peer in peers if peer.max_groups), default=len(job.data.classes))
