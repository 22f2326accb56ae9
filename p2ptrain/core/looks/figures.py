"""What a group found of its whole model while it was trained, by the sums that its members tell.

Invariant: pure. Sums are added only of looks at the very same copies; states are compared only where as many samples
were looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from p2ptrain.ids import JobId
from p2ptrain.wire.messages import MAX_LOOKS, LookFigure, Record


@dataclass(frozen=True, slots=True)
class GroupLook:
    """At one state of the whole model, by all who told of it."""

    state: str
    round: int
    samples: int
    correct: int
    loss: float
    """Mean over the samples, nats."""
    num_peers: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples


def is_sound(look: LookFigure) -> bool:
    """Whether it can be what somebody found."""
    return look.samples > 0 and look.correct <= look.samples


def looks_of_group(records: Iterable[Record], job: JobId) -> list[GroupLook]:
    """By round; of several states of one round the one that most samples were looked at with."""
    told: dict[tuple[int, str], list[LookFigure]] = {}
    for record in records:
        for look in record.looks if record.job == job else ():
            if is_sound(look):
                told.setdefault((look.round, look.state), []).append(look)
    best: dict[int, GroupLook] = {}
    for (round, state), each in sorted(told.items()):
        samples = sum(look.samples for look in each)
        mean_loss = sum(look.loss for look in each) / samples
        found = GroupLook(state, round, samples, sum(look.correct for look in each), mean_loss, len(each))
        if round not in best or found.samples > best[round].samples:
            best[round] = found
    return [best[round] for round in sorted(best)]


def best_of(looks: Sequence[GroupLook]) -> GroupLook | None:
    """Most right answers, then the lowest loss; of those that were looked at with most samples."""
    most = max((look.samples for look in looks), default=0)
    whole = [look for look in looks if look.samples == most]
    return max(whole, key=lambda look: (look.correct, -look.loss, look.round), default=None)


def told_on(looks: Sequence[LookFigure], new: LookFigure, best: Collection[str]) -> tuple[LookFigure, ...]:
    """What a record tells once one more is known: the group's best, by its name, and the last ones."""
    known = [look for look in looks if look.state != new.state] + [new]
    first = [look for look in known if look.state in best]
    rest = [look for look in known if look.state not in best]
    chosen = {look.state for look in (*first, *rest[-(MAX_LOOKS - len(first)) :])}
    return tuple(look for look in sorted(known, key=lambda look: look.round) if look.state in chosen)
