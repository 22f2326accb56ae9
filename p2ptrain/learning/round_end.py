"""How many passes a class sub-model makes in a round: what equal work allows, and when they have brought what they can.

A pass of a narrow sub-model costs a fraction of one of the whole model, so that several fit into the time of one. How
many are best hangs on the model, and nobody has to know it: a peer makes as many as are as much work, looks at its own
validation samples after each, and ends the round once their loss has stopped falling while its own samples are learnt
by heart. An end at the first rise of that loss would be too early: it jumps about while the learning rate is high.
The benchmark ``overlap`` shows this rule (``auto``) beside all passes that equal work allows (``tasks``).
"""

from __future__ import annotations

from p2ptrain.learning.blocks.flops import Flops

PATIENCE = 2
"""Passes in a row without a lower loss: at a high learning rate a single one says little."""
BY_HEART = 0.25
"""While the training loss is above this share of the validation loss, more passes teach more than these samples."""


def equal_work(whole: Flops, part: Flops) -> float:
    """Passes of ``part`` for the work of one of ``whole``.

    About 1 / share^2; the first and the last layer are narrow on one side only, which makes it up to a third less.
    """
    return whole.total / max(1, part.total)


class RoundEnd:
    """Of one round: ask ``is_near`` after each pass."""

    def __init__(self) -> None:
        self._lowest = float("inf")
        self._since = 0

    def is_near(self, training_loss: float, validation_loss: float) -> bool:
        """Whether to end the round. ``training_loss``: the mean over the last pass."""
        if validation_loss < self._lowest:
            self._lowest, self._since = validation_loss, 0
            return False
        self._since += 1
        return self._since >= PATIENCE and training_loss < BY_HEART * validation_loss
