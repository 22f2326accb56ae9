"""What the counts of a group's validation are called, in the last state of the head fit. Without torch: nodes read it.

A *candidate* is a head for the assembled model: ``fitted`` by the group, ``joined`` from the parts' own rows, or one
part's alone.
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
SAMPLES = f"{VALIDATION}samples"
"""[1]: training samples of all who took part."""
FITTED, JOINED = "fitted", "joined"
_PART = "part-"


def alone(part: int) -> str:
    """The candidate that is one part's head alone."""
    return f"{_PART}{part}"


def part_of(candidate: str) -> int | None:
    """The part whose head alone it is; None for ``fitted``, ``joined`` and what is no candidate."""
    text = candidate.removeprefix(_PART)
    return int(text) if candidate.startswith(_PART) and text.isascii() and text.isdigit() and len(text) <= 6 else None
