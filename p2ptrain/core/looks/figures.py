"""What a group found of its whole model while it was trained, by the sums that its members tell.

Invariant: pure. Sums are added only of looks at the very same copies; states are compared only over the same members'
same samples.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from p2ptrain.ids import JobId, PeerId
from p2ptrain.wire.messages import MAX_LOOKS, LookFigure, Record

RECENT = 4
"""Looks, by the largest of which it is seen how many samples the group looks at now."""


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
    told: Mapping[PeerId, LookFigure] = field(default_factory=dict, compare=False, repr=False)
    """What each of them found."""

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples


def is_sound(look: LookFigure) -> bool:
    """Whether it can be what somebody found."""
    return look.samples > 0 and look.correct <= look.samples


def looks_of_group(records: Iterable[Record], job: JobId) -> list[GroupLook]:
    """By round; of several states of one round the one that most samples were looked at with."""
    told: dict[tuple[int, str], dict[PeerId, LookFigure]] = {}
    for record in records:
        for look in record.looks if record.job == job else ():
            if is_sound(look):
                told.setdefault((look.round, look.state), {})[record.peer] = look
    best: dict[int, GroupLook] = {}
    for (round, state), by_peer in sorted(told.items(), key=lambda item: item[0]):
        each = by_peer.values()
        samples = sum(look.samples for look in each)
        mean_loss = sum(look.loss for look in each) / samples
        found = GroupLook(state, round, samples, sum(look.correct for look in each), mean_loss, len(each), by_peer)
        if round not in best or found.samples > best[round].samples:
            best[round] = found
    return [best[round] for round in sorted(best)]


def best_of(looks: Sequence[GroupLook]) -> GroupLook | None:
    """Most right answers, then the lowest loss: of the looks at most samples, unless another one is better.

    That is seen over the members that told of both, if these looked at half of the samples that the group looks at now:
    so the best goes on when a member looks no more.
    """
    best = best_of_largest(looks)
    if best is None:
        return None
    enough = max(look.samples for look in sorted(looks, key=lambda look: look.round)[-RECENT:])
    for look in sorted(looks, key=lambda look: (-look.samples, look.round)):
        ours, theirs = _over_both(look, best)
        if ours and 2 * sum(f.samples for f in ours) >= enough and _merit(ours) > _merit(theirs):
            best = look
    return best


def best_of_largest(looks: Sequence[GroupLook]) -> GroupLook | None:
    """Of those that were looked at with most samples: what is best while others have yet to tell."""
    most = max((look.samples for look in looks), default=0)
    whole = [look for look in looks if look.samples == most]
    return max(whole, key=lambda look: (look.correct, -look.loss, look.round), default=None)


def _over_both(one: GroupLook, other: GroupLook) -> tuple[list[LookFigure], list[LookFigure]]:
    """What those found who looked at both, at as many samples."""
    both = [p for p in one.told if p in other.told and one.told[p].samples == other.told[p].samples]
    return [one.told[p] for p in both], [other.told[p] for p in both]


def _merit(figures: Sequence[LookFigure]) -> tuple[int, float]:
    return sum(f.correct for f in figures), -sum(f.loss for f in figures)


def told_on(looks: Sequence[LookFigure], new: LookFigure, best: Collection[str]) -> tuple[LookFigure, ...]:
    """What a record tells once one more is known: the group's best ones, by their names, and the last ones."""
    known = [look for look in looks if look.state != new.state] + [new]
    first = [look for look in known if look.state in best]
    rest = [look for look in known if look.state not in best]
    chosen = {look.state for look in (*first, *rest[-(MAX_LOOKS - len(first)) :])}
    return tuple(look for look in sorted(known, key=lambda look: look.round) if look.state in chosen)
