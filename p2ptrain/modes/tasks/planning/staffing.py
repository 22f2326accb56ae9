"""Who trains which part of a partition that stands: where free peers go, and who steps in for a lost trainer.

Invariant: nobody who trains is moved, except one of several trainers of a part to a part that has none. Placing twice
changes nothing more. In order:

1. parts without a trainer get a free peer: the one that trained it before, else by wishes, samples, speed;
2. other free peers go back to their old part, or to one whose classes they wish for or have, or to the part with the
   least speed for its load;
3. parts still without a trainer get one from a part that has several. Nobody trains two parts: what remains waits, and
   its snapshot stays with its holders.

Who trains a part by itself has enough samples of all its classes (else it would unlearn the others); who has some of
them helps a trainer that has all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.ids import PeerId
from p2ptrain.modes.tasks.plan import ClassPart, TasksBody
from p2ptrain.modes.tasks.planning.holdings import held_classes

QUARTERS = 4
ENOUGH = 5
"""Samples of each class that a peer must have to train a part by itself."""


class Staff:
    """The trainers of a plan while it is made; ``part_of`` is the result."""

    def __init__(
        self,
        mode: str,
        body: TasksBody,
        peers: Mapping[PeerId, PeerSnapshot],
        part_of: Mapping[PeerId, int],
        speed: Mapping[PeerId, float],
        room: Mapping[PeerId, float],
    ) -> None:
        """``body`` gives the parts; ``part_of`` who trains now; ``room`` the largest share that a peer can hold."""
        self.part_of = dict(part_of)
        self._mode = mode
        self._parts = body.parts
        self._needs_own_samples = body.disjoint or body.targets == "own"
        self._former = {entry.peer: entry.part for entry in body.former}
        self._peers = peers
        self._speed = speed
        self._room = room
        self._held = held_classes(list(peers.values()), body.num_classes)

    def place(self) -> None:
        """Give parts to free peers, and trainers to parts that have none."""
        while True:
            before = dict(self.part_of)
            self._fill([peer for peer in sorted(self._peers) if peer not in self.part_of])
            for peer in sorted(self._peers):
                if peer not in self.part_of:
                    self._join(peer)
            sizes = self._sizes()
            self._fill([peer for peer, part in sorted(self.part_of.items()) if sizes[part] > 1])
            if self.part_of == before:
                return  # one that came to a part with all its classes may have made room for a helper

    def _fill(self, candidates: list[PeerId]) -> None:
        """Parts without trainers, the ones with fewest candidates first, each get the best candidate."""
        orphans = [part for part, size in zip(self._parts, self._sizes(), strict=True) if size == 0]
        able = {part.index: [peer for peer in candidates if self._may_train(peer, part)] for part in orphans}
        for part in sorted(orphans, key=lambda part: (len(able[part.index]), part.index)):
            sizes = self._sizes()
            left = [peer for peer in able[part.index] if peer not in self.part_of or sizes[self.part_of[peer]] > 1]
            if left:
                best = max(left, key=lambda peer: (*self._fitness(peer, part, sizes), self._speed[peer], _last(peer)))
                self.part_of[best] = part.index
                for others in able.values():
                    if best in others:
                        others.remove(best)

    def _fitness(self, peer: PeerId, part: ClassPart, sizes: Sequence[int]) -> tuple[int, ...]:
        was_here = self._former.get(peer) == part.index
        spare = sizes[self.part_of[peer]] if peer in self.part_of else 0
        return (was_here, spare, *self._affinity(peer, part))

    def _join(self, peer: PeerId) -> None:
        """A peer that no part needs goes where it helps most; nowhere when no part fits it."""
        options = [part for part in self._parts if self._may_train(peer, part)]
        if not options:
            return
        home = self._former.get(peer)
        strength = [0.0] * len(self._parts)
        for name, index in sorted(self.part_of.items()):
            strength[index] += self._speed[name]
        best = max(
            options,
            key=lambda part: (
                part.index == home,
                *self._affinity(peer, part),
                -strength[part.index] / (part.share * part.share),
                -part.index,
            ),
        )
        self.part_of[peer] = best.index

    def _affinity(self, peer: PeerId, part: ClassPart) -> tuple[int, int]:
        """Wishes kept, and samples: how many where only own ones count, else the covered classes in quarters."""
        snapshot = self._peers[peer]
        wishes = len(set(part.classes).intersection(snapshot.wishes))
        if not snapshot.counts:
            return wishes, 0
        if self._needs_own_samples:
            return wishes, sum(snapshot.counts[c] for c in part.classes)
        return wishes, QUARTERS * sum(snapshot.counts[c] > 0 for c in part.classes) // len(part.classes)

    def _may_train(self, peer: PeerId, part: ClassPart) -> bool:
        if self._mode == "replicas":
            return True
        counts = self._peers[peer].counts
        fits = part.share <= self._room[peer] or self._former.get(peer) == part.index  # it fitted before
        if not fits or not any(counts[c] for c in part.classes if counts):
            return False
        if self._needs_own_samples or self._former.get(peer) == part.index:
            return True
        return self._covers(peer, part) or any(
            self._covers(other, part) for other, index in self.part_of.items() if index == part.index and other != peer
        )

    def _covers(self, peer: PeerId, part: ClassPart) -> bool:
        """Whether it has enough samples of all classes; where those who had most are gone, a few are not enough."""
        counts = self._peers[peer].counts
        return self._held[peer].issuperset(part.classes) and all(counts[c] >= ENOUGH for c in part.classes)

    def _sizes(self) -> list[int]:
        sizes = [0] * len(self._parts)
        for index in self.part_of.values():
            sizes[index] += 1
        return sizes


def _last(peer: PeerId) -> tuple[int, ...]:
    """Among equals ``max`` takes the lowest id."""
    return tuple(-ord(c) for c in peer)
