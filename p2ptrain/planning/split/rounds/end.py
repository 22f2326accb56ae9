"""The end of a round: until all copies of each block are averaged, and whoever trains on has what it trains.

    every peer that works --its update: the mean of its copies--> the averager
    the averager --the pieces that it trains--> every peer that works
    the averager --the pieces that only it trains--> one more peer

A round is over when two peers have each block of what comes of it (``modes.split.rounds.saved``), so what nobody but
the averager trains is sent once more than it is needed. Updates of those who are through early are with the averager
by the time that the last one is; they go one after the other over its link. What it hands out all get at once.

With shared tails gradients are averaged in the same way after every step, by the averager, and copies at the end.

There are two figures. By the *closed* one everybody sends its blocks that others hold too and receives them averaged,
which nobody can do without; it is what the search knows. The other one is that of the whole end, which is longer.

Invariant: pure; two peers with the same plan and the same figures compute the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from p2ptrain.planning.split.room import Room
from p2ptrain.planning.split.rounds.handing import ROUND_FLOPS, TOLD_S, averaged_s, kept_s, made_s, spent_s, taken_s

Mask = npt.NDArray[np.bool_]
Placed = tuple[str, str | None, int]
"""Of a unit its owner, its helper and its cut (a place in ``Room.cuts``)."""


def held_by(room: Room, placed: Iterable[Placed]) -> dict[str, Mask]:
    """By peer that works, the blocks of which it has a copy."""
    last = room.tables.num_units
    held: dict[str, Mask] = {}
    for owner, helper, cut in placed:
        held.setdefault(owner, np.zeros(last, np.bool_))[:cut] = True
        if helper is not None:
            held.setdefault(helper, np.zeros(last, np.bool_))[cut : room.tail_stop] = True
            held[owner][room.tail_stop :] = True
    return dict(sorted(held.items()))


def averager_of(room: Room, held: Mapping[str, Mask]) -> str:
    """Who averages: where most of it lies already; of equals, the one with the fastest link. One that failed
    (``SplitTask.failed``) only where there is nobody else."""
    sizes, but = np.diff(room.block_bytes), room.task.failed
    return max(held, key=lambda peer: (peer not in but, float(sizes[held[peer]].sum()), room.peers[peer].up, peer))


def exchange_s(room: Room, placed: Iterable[Placed]) -> float:
    """Of the end, after the last unit has trained, by the closed figure."""
    sent = _exchanged(room, held_by(room, placed))
    longest = max(room.exchange_s(peer, num_bytes) for peer, num_bytes in sent.items())
    if room.task.medium == "shared":
        longest = max(longest, room.steps_a_round * 2 * sum(sent.values()) / room.task.medium_bytes_per_s)
    return longest


def end_s(room: Room, placed: Sequence[Placed], ends_s: Mapping[str, float]) -> float:
    """Of the whole end, after the last unit has trained. ``ends_s``: when each of them was through, by owner."""
    held = held_by(room, placed)
    averager = averager_of(room, held)
    through = dict.fromkeys(held, 0.0)
    for owner, helper, _ in placed:
        for peer in (owner, helper or owner):
            through[peer] = max(through[peer], ends_s[owner])
    sizes = np.diff(room.block_bytes)
    speed = {peer: its.device.flops_per_s for peer, its in room.peers.items()}
    own = {peer: float(sizes[blocks].sum()) for peer, blocks in held.items()}
    fetched = {peer: num_bytes for peer, num_bytes in own.items() if peer != averager}
    others = [peer for peer in room.peers if peer != averager]
    if room.task.keeps_copies and others:
        lone = held[averager] & ~np.any([held[peer] for peer in fetched] or [np.zeros_like(held[averager])], axis=0)
        num_bytes = float(sizes[lone].sum())
        keeper = min(others, key=lambda peer: (taken_s(speed[peer], num_bytes, room.peers[peer].down), peer))
        fetched[keeper] = fetched.get(keeper, 0.0) + num_bytes
    over_s = _updates_here_s(room, averager, own, through) - max(ends_s.values())
    over_s += averaged_s(speed[averager], sum(own.values()), float(room.block_bytes[-1]))
    over_s += _handed_out_s(room, averager, fetched)
    over_s += max(spent_s(speed[peer], ROUND_FLOPS) for peer in held) + TOLD_S
    if room.task.medium == "shared":
        sent = sum(num_bytes for peer, num_bytes in own.items() if peer != averager) + sum(fetched.values())
        over_s = max(over_s, sent / room.task.medium_bytes_per_s)
    return max(over_s + _gradients_s(room, held, averager), exchange_s(room, placed))


def _updates_here_s(room: Room, averager: str, own: Mapping[str, float], through: Mapping[str, float]) -> float:
    """When the averager has all updates, each of so many bytes and made when its peer was through."""
    speed = {peer: room.peers[peer].device.flops_per_s for peer in own}
    here_s, free_s = through[averager] + made_s(speed[averager], own[averager]), 0.0
    for peer in sorted(own, key=lambda peer: (through[peer], peer)):
        if peer != averager and (num_bytes := own[peer]):
            ready_s = through[peer] + made_s(speed[peer], num_bytes)
            free_s = max(free_s, ready_s) + room.carried_s(averager, num_bytes, room.peers[averager].down)
            here_s = max(here_s, free_s, ready_s + room.carried_s(peer, num_bytes, room.rate(peer, averager)))
    return here_s


def _handed_out_s(room: Room, averager: str, fetched: Mapping[str, float]) -> float:
    """Until each has fetched so many bytes from the averager, and saved them."""
    each_s = [
        room.carried_s(peer, num_bytes, room.rate(averager, peer))
        + kept_s(room.peers[peer].device.flops_per_s, num_bytes)
        for peer, num_bytes in fetched.items()
        if num_bytes
    ]
    return max([room.carried_s(averager, sum(fetched.values()), room.peers[averager].up), *each_s])


def _gradients_s(room: Room, held: Mapping[str, Mask], averager: str) -> float:
    """With shared tails, of averaging the gradients after every step of the round."""
    if room.task.tails != "shared":
        return 0.0
    sent = _exchanged(room, held)
    others = sum(num_bytes for peer, num_bytes in sent.items() if peer != averager)
    return max(room.exchange_s(averager, others), *(room.exchange_s(peer, each) for peer, each in sent.items()))


def _exchanged(room: Room, held: Mapping[str, Mask]) -> dict[str, float]:
    """By peer, the bytes of its blocks of which others have copies, too."""
    copies = np.sum(list(held.values()), axis=0)
    sizes = np.diff(room.block_bytes) * (copies > 1)
    return {peer: float(sizes[blocks].sum()) for peer, blocks in held.items()}
