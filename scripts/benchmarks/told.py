"""What peers of a pipeline told of lost batches, against what their trainers had done and what they go on with.

The truth is in other notes than the telling: a trainer says after which batch it halts ("halted"), and a stage that
begins says of which batch, of which history, the plan is ("training"). What is not of both is lost. A history is named
by the epoch of a plan, so all peers' notes together tell how histories follow from each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.peers import Happened

SLACK = 2
"""Batches: what the others have done, by whose news the loss is told, may be one more or less than the own trainer."""
Start = tuple[int, int]
"""Of a plan: the step that it begins with, and the epoch in which that was reached."""


def untrue(peers: Mapping[str, Sequence[Happened]]) -> list[str]:
    """In words, by peer, where more or fewer batches were told of as lost than were; ``peers``: their events."""
    starts = {
        int(each.fields["epoch"]): (int(each.fields["step"]), int(each.fields["from_epoch"]))
        for events in peers.values()
        for each in events
        if each.kind == "note:training"
    }
    return [f"{name} {words}" for name, events in peers.items() for words in _untrue(events, starts)]


def _untrue(events: Sequence[Happened], starts: Mapping[int, Start]) -> list[str]:
    found: list[str] = []
    epoch, halted, told = 0, -1, 0
    for each in events:
        fields = each.fields
        match each.kind:
            case "note:goes-back" | "note:gives-way":
                told += int(fields["batches"])
            case "note:halted" if int(fields["step"]) >= 0:
                halted = int(fields["step"])
            case "note:training":
                begins = int(fields["step"]), int(fields["from_epoch"])
                if epoch and halted >= 0:
                    lost = halted - common((halted, epoch), begins, starts)
                    if abs(told - lost) > SLACK:
                        found.append(f"told of {told} batches as lost, and {lost} are: plan {fields['epoch']}")
                epoch, halted, told = int(fields["epoch"]), -1, 0
    return found


def common(one: Start, other: Start, starts: Mapping[int, Start]) -> int:
    """The last batch that is of the histories of both states."""
    reached, others = _way(one, starts), _way(other, starts)
    return max((min(reached[epoch], others[epoch]) for epoch in reached.keys() & others.keys()), default=0)


def _way(state: Start, starts: Mapping[int, Start]) -> dict[int, int]:
    """The epochs that led to a state, and up to which batch each did."""
    found: dict[int, int] = {}
    step, epoch = state
    while step and epoch not in found:
        found[epoch] = step
        first, before = starts.get(epoch, (0, 0))
        step, epoch = min(step, first), before
    return found
