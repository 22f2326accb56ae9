"""A trainer that died: it is started again from the last snapshot, a few times at most."""

from __future__ import annotations

from p2ptrain.core.commands import TrainerFailed
from p2ptrain.core.effects import Effects, RestartTrainer, TrainerLost
from p2ptrain.core.group_view import GroupView
from p2ptrain.protocol.machine import Note

RESTARTS = 2
"""So often in a row, without a round in between, it is started again."""


class Restarts:
    """Of one peer's trainer, in one job."""

    def __init__(self, group: GroupView) -> None:
        self._group = group
        self._num = 0

    def round_finished(self) -> None:
        """It works: what went wrong before doesn't count any more."""
        self._num = 0

    def after(self, event: TrainerFailed, now: float) -> Effects:
        """Start it again, or give it up."""
        note = Note("trainer-failed", (("detail", event.detail[:250]),))
        if not event.user_error and self._num < RESTARTS:
            self._num += 1
            return [note, *self._group.say(now, phase="waiting"), RestartTrainer()]
        failed = self._group.say(now, phase="failed", samples_per_s=0.0)
        return [note, *failed, TrainerLost(event.detail, event.user_error)]
