"""What the counts of a group's validation are called, in the last state of the head fit. Without torch: nodes read it.

A *candidate* is a head for the assembled model: ``fitted`` by the group, ``joined`` from the parts' own rows, one
part's alone, or the first of these without one part; or, of a model that is whole on every peer, what one peer's own
copy is in place of the mean of all.
"""

from __future__ import annotations

VALIDATION = "val."
"""Tensors with this prefix ride along with the state of the fit."""
TOTAL = f"{VALIDATION}total"
"""[C]: validation samples of all, by class."""
CORRECT = f"{VALIDATION}correct."
"""[C], behind it a candidate's name: its right answers."""
WITHIN = f"{VALIDATION}within."
"""[3, C], behind it a peer's id: samples of that peer's classes; and, asked among these, the right answers of what it
trained by itself, and of the first candidate."""
WITHOUT = f"{VALIDATION}without."
"""[C], behind it a peer's id: the right answers of the first candidate without what that peer trained."""
SAMPLES = f"{VALIDATION}samples"
"""[1]: training samples of all who took part."""
FITTED, JOINED = "fitted", "joined"
_PART, _LESS, _COPY = "part-", "without-", "copy-"


def alone(part: int) -> str:
    """The candidate that is one part's head alone."""
    return f"{_PART}{part}"


def part_of(candidate: str) -> int | None:
    """The part whose head alone it is; None for all others, and for what is no candidate."""
    return _number(candidate, _PART)


def less(part: int) -> str:
    """The candidate that is all parts but one."""
    return f"{_LESS}{part}"


def part_left_out(candidate: str) -> int | None:
    """The part that it does without; None for all others, and for what is no candidate."""
    return _number(candidate, _LESS)


def copy_of(peer: str) -> str:
    """The candidate that is one peer's own copy of the whole model."""
    return f"{_COPY}{peer}"


def owner_of(candidate: str) -> str | None:
    """The peer whose own copy of the whole model it is; None for other candidates."""
    peer = candidate.removeprefix(_COPY)
    return peer if candidate.startswith(_COPY) and len(peer) == 16 and peer.isascii() and peer.isalnum() else None


def _number(candidate: str, kind: str) -> int | None:
    text = candidate.removeprefix(kind)
    return int(text) if candidate.startswith(kind) and text.isascii() and text.isdigit() and len(text) <= 6 else None
