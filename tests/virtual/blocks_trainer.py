"""What the trainers that only keep books have in common, of modes whose model is in runs of blocks: their model, what
they take for it, and how commands, passes and stage messages go."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from model_looker import ModelLooker

from p2ptrain.config import Job
from p2ptrain.core import commands as c
from p2ptrain.core.plan import Plan
from p2ptrain.core.stages.commands import LookAgain, Looked, Profiled, SendStageMessage, StageMessagesSent
from p2ptrain.modes.jobs import job_from_json
from p2ptrain.planning.devices.blocks import BlockProfile, BlockTimes, ModelProfile
from p2ptrain.planning.devices.profile_codec import model_to_json, profile_to_json
from p2ptrain.wire import tensorfile

COMMAND_S = 0.002
NUM_BLOCKS = 9
FLOPS = 10**6
MODEL = ModelProfile(
    "ledger", 64, tuple(BlockProfile(f"b{i}", FLOPS, 2 * FLOPS, 10**6, 64, 64, True) for i in range(NUM_BLOCKS))
)
"""Parameters are dear to send and activations are not: so a pipeline is the best plan."""

At = Callable[[float, Callable[[], None]], None]


@dataclasses.dataclass(frozen=True)
class BlocksTraits:
    """What a test makes of one trainer."""

    counts: tuple[int, ...]
    load_s: float = 0.2
    block_s: float = 0.001
    """Of a sample in one block, forward; backward takes twice as long."""
    profile: str = ""
    """In place of what it measured."""
    num_val: int = 0
    """Validation samples."""


def where_of(message: bytes) -> list[int]:
    """The numbers in a stage message. Raises ``RemoteError``."""
    tensorfile.read_untrusted(message)
    found = tensorfile.read(message).arrays().get("x")
    return [] if found is None else found.tolist()


class BlocksTrainer:
    """Commands in by ``handle``, events out through ``say``; ``at`` is its clock."""

    def __init__(self, name: str, traits: Any, at: At, say: Callable[[object], None]) -> None:
        self.name = name
        self.traits = traits
        self.dead = False
        self.slowdown = 1.0
        """A test may change it at any time."""
        self._at, self._say = at, say
        self.looker = ModelLooker(traits.num_val, say)
        self._job: Job | None = None
        self._plan: Plan | None = None
        self._own = ""
        self._run = 0
        """What was begun in another run is not gone on with."""
        self._computing = False

    @property
    def stands_by(self) -> bool:
        """Whether there is nothing to train."""
        raise NotImplementedError

    def kill(self) -> None:
        self.dead = True

    def handle(self, command: object) -> None:
        """One command, a little later, in order."""
        self._later(COMMAND_S, lambda: self._carry_out(command))

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        self._at(seconds, lambda: None if self.dead else do())

    def _carry_out(self, command: object) -> None:
        match command:
            case c.Configure():
                self._job = job_from_json(command.job, "job")
                self._later(self.traits.load_s, self._loaded)
            case LookAgain():
                if self.stands_by:
                    self._say(Looked(self.slowdown))
            case c.LookAtModel():
                self.looker.copy_came(command)
            case StageMessagesSent():
                pass
            case _:
                raise AssertionError(command)

    def _loaded(self) -> None:
        sizes = (1, 4, 16)
        forward = tuple(tuple(self.traits.block_s * size for _ in MODEL.blocks) for size in sizes)
        backward = tuple(tuple(2 * second for second in row) for row in forward)
        profile = self.traits.profile or profile_to_json(MODEL, BlockTimes(sizes, forward, backward))
        self._say(Profiled(model_to_json(MODEL), profile))
        self._say(c.Ready(self.traits.counts, num_val=self.traits.num_val))

    def _say_message(self, work: str, step: int, unit: int, to: Sequence[str], *what: int) -> None:
        """A stage message for each of these peers, with the plan's epoch and these numbers in it."""
        assert self._plan is not None
        message = tensorfile.pack({"x": np.array([self._plan.epoch, *what])}, {})
        for peer in to:
            self._say(SendStageMessage(self._plan.epoch, peer, work, step, unit, 0, message))
