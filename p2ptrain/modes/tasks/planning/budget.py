"""How many passes a device can afford: its share of what central training would cost, the fit of the last layer paid.

``tasks.budget`` is a part of central training's work, and no device spends more. So a narrow sub-model passes its
samples more often than the whole model would: at a fifth of the width a pass costs a 24th, and for a twelfth there are
two. Who is slower than the fastest spends as much less as that, so that all end together; but no less than one pass.

Invariant: pure. What a device computes by these figures stays within the budget; what can't is refused.
"""

from __future__ import annotations

from p2ptrain.config import Job
from p2ptrain.core.plan import speeds
from p2ptrain.learning.head_fit import MAX_ROWS, MAX_WHITENED
from p2ptrain.learning.work import Work
from p2ptrain.modes.tasks.config import tasks_of
from p2ptrain.modes.tasks.parts import Parts
from p2ptrain.words import scaled


def affordable_passes(job: Job, parts: Parts, part: int, num_samples: int, num_val: int, *, looks: bool) -> float:
    """Of the own samples, in place of one of the whole model; less than one where the part is wide.

    ``num_val``: own validation samples, looked at after each round; with ``looks`` after each pass too.
    """
    config, cost = job.training, parts.flops(part)
    central, budget = parts.central_flops(), tasks_of(job).budget
    if not central or not cost.total:  # what can't be counted is not bounded
        return 1.0
    each_round = cost.forward * num_val
    most = budget * central - end_flops(job, parts, num_samples, num_val) - config.rounds * each_round
    one = config.rounds * config.epochs_per_round * (cost.total * num_samples + cost.forward * num_val * looks)
    return max(0.0, min(most / one, max(1.0, most * _relative_speed(parts, part) / one)))


def unaffordable(job: Job, parts: Parts) -> str:
    """Where not even a step a round can be paid: what to do."""
    without = ', set tasks.fit_head = "never"' if parts.body.fit_head else ""
    central = scaled(parts.central_flops(), "FLOP")
    return (
        f"tasks.budget: {tasks_of(job).budget:.3g} of central training's {central} does not pay for a step in each "
        f"round and what comes after the last; raise it, train for more rounds{without}, or make narrower parts "
        "with more peers"
    )


def end_flops(job: Job, parts: Parts, num_samples: int, num_val: int) -> int:
    """Of what comes after the last round, about: the fit of the last layer, and the look at the finished model."""
    work, body = Work(), parts.body
    num_parts, num_classes = len(body.parts), body.num_classes
    for index in range(num_parts):
        copies = len(body.parts[index].trainers)
        looks = 1 + (2 * copies if copies > 1 else 1)  # at each copy, at their mean, and at that without each
        work.ran(parts.flops(index).forward, looks * num_val)
    size = parts.model.state_dict()[f"{parts.head}.weight"].shape[1]
    work.multiplied(num_val, size, num_classes, times=2 + 2 * num_parts + sum(len(p.trainers) for p in body.parts))
    if not body.fit_head:
        return work.flops
    steps = tasks_of(job).head_fit_steps
    for index in range(num_parts):
        work.ran(parts.flops(index).forward, num_samples)
    work.multiplied(min(num_samples, MAX_ROWS), size, num_classes, times=2 * steps)
    if size <= MAX_WHITENED:
        work.multiplied(size, num_samples, size)
        work.multiplied(num_classes, size, size, times=2 * steps + 3 + 2 * num_parts)
        work.found_eigenvectors(size)  # by who leads it
        work.multiplied(size, size, size, times=2)
    return work.flops


def _relative_speed(parts: Parts, part: int) -> float:
    """Of the part's slowest trainer, beside the fastest of all."""
    by_peer, trainers = speeds(parts.plan.peers), parts.body.parts[part].trainers
    return min((by_peer[peer] for peer in trainers), default=1.0) / max(
        (by_peer[peer] for each in parts.body.parts for peer in each.trainers), default=1.0
    )
