"""Numbers of epochs: one more than the last, or one that no other peer comes to.

Invariant: two peers of one group that go on apart, whatever each knows of the other, never name their plans by the same
epoch, unless their ids agree in ``CLASSES``: among ten peers, once in twenty thousand groups.

A generation is ``GENERATION`` epochs. Plans that a majority carries follow each other within one. Who goes on alone, or
takes in others that did, begins a new generation, the next one of its own class.
"""

from __future__ import annotations

from p2ptrain.ids import PeerId, lot

GENERATION = 10_000
CLASSES = 2**20
MAX_JUMP = 4 * CLASSES * GENERATION
"""Epochs that what is told by others may be ahead: who went on alone a few times is not further."""

MAX_STEP = 64 * MAX_JUMP
"""Epochs that a plan may be after the one that it follows from: more than who finds no majority for days comes to, and
so few that thousands of plans in force are not near the end of all counting."""
MAX_VOTE_STEP = 4 * MAX_STEP
"""Epochs that a vote may be after the plan that was kept last: plans that followed may not be on disk yet."""

LETTERS = "bcdfghjklmnpqrstvwxz"
"""Of names of generations; no words come of them."""


def epoch_words(epoch: int) -> str:
    """For people: ``7``, and ``1-fghjk`` for the first epoch of a generation of somebody's own. No two are alike."""
    generation, number = divmod(epoch, GENERATION)
    if not generation:
        return str(epoch)
    letters = ""
    while generation:
        generation, digit = divmod(generation, len(LETTERS))
        letters = LETTERS[digit] + letters
    return f"{number + 1}-{letters}"


def epoch_apart(last: int, own: PeerId) -> int:
    """The first epoch of ``own``'s next generation after ``last``, the highest epoch known."""
    own_class = lot(own, 8) % CLASSES
    after = last // GENERATION + 1
    return (after + (own_class - after) % CLASSES) * GENERATION
