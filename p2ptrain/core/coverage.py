"""What the group's work looks like: who trains and who keeps what, what would be lost with whom, who sends to whom.

Invariant: pure; by what the records of those who are here say, and nothing of who is gone counts. Who has something is
told by peer, so what one tells of never hides what another does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from p2ptrain.ids import PeerId
from p2ptrain.wire.messages import Record, SnapshotRef

Counts = Literal["round", "batch"]
"""What is counted when it is said how far a copy is."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A peer sends to another for its training; ``both``: as the other does to it."""

    sender: PeerId
    receiver: PeerId
    what: str
    both: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """Something that has to be covered: parts or blocks [first, stop) of the model, as holdings number them."""

    name: str
    first: int
    stop: int
    trainers: tuple[PeerId, ...]
    """By the plan, whether they are here or not."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """``done``: how far the group is; ``total``: how far it goes, in ``counts``."""

    counts: Counts
    done: int
    total: int
    cells: tuple[Cell, ...]
    trainers: tuple[tuple[PeerId, ...], ...]
    """Of each cell, those who are here."""
    copies: tuple[Mapping[PeerId, int], ...]
    """Of each cell, who has it saved, and how far that copy is."""
    lost_without: Mapping[PeerId, str]
    """What would be lost with each peer that is here, in words; "" = nothing."""

    @property
    def saved(self) -> tuple[int, ...]:
        """Of each cell, how far its newest copy is; 0 = nobody has one."""
        return tuple(max(copies.values(), default=0) for copies in self.copies)


def blocks(first: int, stop: int) -> str:
    """``blocks 0-3``, ``block 4``."""
    return f"block {first}" if stop == first + 1 else f"blocks {first}-{stop - 1}"


def copies_of(cell: Cell, holdings: Mapping[PeerId, Sequence[SnapshotRef]], counts: Counts) -> dict[PeerId, int]:
    """Who has all of a cell at one state, and how far the newest is."""
    newest = {peer: _newest(cell, held, counts) for peer, held in holdings.items()}
    return {peer: at for peer, at in newest.items() if at}


def _newest(cell: Cell, held: Sequence[SnapshotRef], counts: Counts) -> int:
    inside = [h for h in held if h.part < cell.stop and cell.first < h.part + h.span]
    for at, epoch in sorted({(_far(h, counts), h.epoch) for h in inside}, reverse=True):
        parts = {i for h in inside if (_far(h, counts), h.epoch) == (at, epoch) for i in range(h.part, h.part + h.span)}
        if parts.issuperset(range(cell.first, cell.stop)):
            return at
    return 0


def _far(holding: SnapshotRef, counts: Counts) -> int:
    return holding.round if counts == "round" else holding.step


def held_parts(here: Sequence[Record]) -> dict[PeerId, list[SnapshotRef]]:
    """What each peer has saved of the model itself."""
    return {record.peer: [h for h in record.holdings if h.kind == "part"] for record in here}


def within(rounds: int, here: Iterable[Record]) -> list[Record]:
    """What these say, without copies of rounds that the job has not: nobody can have them."""
    return [
        replace(
            record,
            round=min(record.round, rounds),
            holdings=tuple(h for h in record.holdings if not is_beyond(h, rounds)),
        )
        for record in here
    ]


def is_beyond(holding: SnapshotRef, rounds: int) -> bool:
    """Whether it is told of as a copy of a round that the job has not."""
    return holding.kind != "head" and holding.round > rounds


def of_parts(cells: Sequence[Cell], here: Sequence[Record], total: int) -> Coverage:
    """Of parts that are trained each by itself, in rounds: a part is lost with its only trainer, but for its copies."""
    held, rounds = held_parts(here), {record.peer: record.round for record in here if record.phase != "failed"}
    trainers = tuple(tuple(peer for peer in cell.trainers if peer in rounds) for cell in cells)
    copies = tuple(copies_of(cell, held, "round") for cell in cells)
    lost: dict[PeerId, list[str]] = {peer: [] for peer in held}
    for cell, who, saved in zip(cells, trainers, copies, strict=True):
        for peer in held:
            left = [rounds[other] for other in who if other != peer]
            left += [at for other, at in saved.items() if other != peer]
            known = max([rounds[peer] if peer in who else 0, saved.get(peer, 0)])
            if (peer in who or peer in saved) and known > max(left, default=0):
                lost[peer].append(_lost(cell.name, max(left, default=0), known, is_held=bool(left)))
    done = min((max((rounds[peer] for peer in who), default=0) for who in trainers), default=0)
    return Coverage(
        "round", done, total, tuple(cells), trainers, copies, {p: "; ".join(texts) for p, texts in lost.items()}
    )


def _lost(name: str, left: int, known: int, *, is_held: bool) -> str:
    if not is_held:
        return f"all that was learnt of {name}"
    return f"round {known} of {name}" if known == left + 1 else f"rounds {left + 1}-{known} of {name}"
