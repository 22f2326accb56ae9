"""The trainer's words on what it does, by which its node knows that it moves.

Invariant: seldom: not more than two in ``BEAT_S``, however fast steps and commands follow each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from p2ptrain.core.commands import Beat, Configure
from p2ptrain.runtime.trainer.watch import GETTING_READY, SERVING, TRAINING

BEAT_S = 1.0


class Beats:
    def __init__(self, say: Callable[[object], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._doing = ""
        self._said_at = -BEAT_S

    def begins(self, command: object | None) -> None:
        """Carrying out a command begins, or a training step (None)."""
        doing = TRAINING if command is None else GETTING_READY if isinstance(command, Configure) else SERVING
        if not self._doing or self._clock() - self._said_at >= BEAT_S:
            self._said(doing)

    def waits(self) -> None:
        """There has been nothing to do for ``BEAT_S``."""
        if self._doing:
            self._said("")

    def _said(self, doing: str) -> None:
        self._say(Beat(doing))
        self._doing, self._said_at = doing, self._clock()
