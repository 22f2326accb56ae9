"""A trainer process in virtual time, with the mode's own worker in it. What both sides say goes through their codec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from p2ptrain.core import commands as c
from p2ptrain.core.worker import Setup
from p2ptrain.modes import registry
from p2ptrain.modes.jobs import job_from_json

COMMAND_S = 0.002
At = Callable[[float, Callable[[], None]], None]


@dataclass(frozen=True)
class ToyTraits:
    """What a test makes of one trainer."""

    counts: tuple[int, ...]
    round_s: float = 0.5

    def trainer(self, name: str, at: At, say: Callable[[object], None]) -> ToyTrainer:
        return ToyTrainer(self, at, say)


class ToyTrainer:
    def __init__(self, traits: ToyTraits, at: At, say: Callable[[object], None]) -> None:
        self.dead = False
        self.began_at = -1
        """The round at which it was last told to begin."""
        self._traits, self._at, self._tell = traits, at, say
        self._worker: Any = None
        self._is_working = False

    def kill(self) -> None:
        self.dead = True

    def handle(self, command: object) -> None:
        message = _through_codec(command)
        self._at(COMMAND_S, lambda: None if self.dead else self._carry_out(message))

    def _carry_out(self, command: object) -> None:
        if isinstance(command, c.Configure):
            job = job_from_json(command.job)
            self._worker = registry.mode_of(job).worker(Setup(job, command, None, None, None, None, self._say))
            for event in self._worker.prepare():
                self._say(event)
            self._say(c.Ready(self._traits.counts, self._worker.max_groups()))
            return
        self._worker.handlers[type(command)](command)
        if self._worker.busy and not self._is_working:
            self._is_working = True
            self._at(self._traits.round_s, self._work)

    def _work(self) -> None:
        if not self.dead:
            self._worker.work()
            self._is_working = self._worker.busy
            if self._is_working:
                self._at(self._traits.round_s, self._work)

    def _say(self, event: object) -> None:
        if isinstance(event, c.Following):
            self.began_at = event.round
        self._tell(_through_codec(event))


def _through_codec(message: object) -> object:
    """To bytes and back, as through the pipe between a node and its trainer."""
    head, raw = c.encode(message)
    return c.decode(head[c.LENGTHS.size :], bytes(raw), registry.commands())
