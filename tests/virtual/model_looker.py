"""What a trainer of a few numbers does when it is to look at the whole model: how good a round was is in a table."""

from __future__ import annotations

import json
from collections.abc import Callable

from p2ptrain.core import commands as c
from p2ptrain.ids import blob_id
from p2ptrain.wire.messages import SnapshotRef
from p2ptrain.wire.schema import from_plain

RIGHT = {1: 0.2, 2: 0.5, 3: 0.9, 4: 0.7, 5: 0.6}
"""Share of right answers after each round; of later ones what is here of the last."""


class ModelLooker:
    def __init__(self, num_val: int, say: Callable[[object], None]) -> None:
        self.looks: dict[str, list[SnapshotRef]] = {}
        """Copies of each state."""
        self.seconds = 0.0
        """That the next look says to have taken."""
        self.right = RIGHT
        self.tells = True
        """Else it looks for ever."""
        self._num_val, self._say = num_val, say

    def copy_came(self, command: c.LookAtModel) -> None:
        ref = from_plain(SnapshotRef, json.loads(command.holding))
        assert blob_id(bytes(command.snapshot)) == ref.blob, "the copy that it says it is"
        if command.plan:
            self.looks[command.state] = []
        self.looks[command.state].append(ref)
        if command.is_last and self.tells:
            assert command.num_copies == len(self.looks[command.state])
            correct = round(self._num_val * self.right.get(ref.round, self.right[5]))
            self._say(c.ModelLooked(command.state, self._num_val, correct, float(self._num_val), self.seconds))
