"""The job's model as a chain of blocks, and how long they take on this device.

Invariant: nothing is held of the model but its shapes, unless its own code needs numbers to run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from p2ptrain.config import Job
from p2ptrain.core.stages.commands import Looked, Profiled
from p2ptrain.core.worker import Setup
from p2ptrain.learning.blocks.chain import Chain, chain_of
from p2ptrain.learning.models import global_model
from p2ptrain.learning.own.divisible import check_divisible
from p2ptrain.learning.profiling.allocator import give_back
from p2ptrain.learning.profiling.block_times import slowdown_now
from p2ptrain.modes.stages.assembly import check_chain
from p2ptrain.planning.devices.blocks import BlockTimes, ModelProfile
from p2ptrain.planning.devices.profile_codec import model_to_json, profile_to_json

Measure = Callable[[Chain, Job, str, Path | None], tuple[ModelProfile, BlockTimes]]
"""By chain, job, device, and the file that remembers times."""


class OwnBlocks:
    """Of one trainer, in one job. Raises ``UserError`` for a model, or an own optimizer, that can't be divided."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        check_divisible(setup.job.training)
        self.chain = chain_of(self.build, setup.job.data.input_shape)
        check_chain(setup.job, self.chain)
        self.model: ModelProfile | None = None
        self.times: BlockTimes | None = None
        """Of this device's blocks, as the last plan with work for it has them; before that, as measured."""

    def build(self) -> nn.Module:
        return global_model(self._setup.job, allow_user_code=self._setup.configuration.allow_user_code)

    def profiled(self, measure: Measure) -> Profiled:
        """Measure the blocks, or look up what was measured here before. Raises ``UserError`` for a model that can't be
        cut."""
        configuration = self._setup.configuration
        cache = Path(configuration.cache) if configuration.cache else None
        self.model, self.times = measure(self.chain, self._setup.job, configuration.device, cache)
        return Profiled(model_to_json(self.model), profile_to_json(self.model, self.times))

    def look_again(self) -> None:
        """Say how slow the device is now, where its times are known."""
        if self.times is None:
            return
        training, device = self._setup.job.training, self._setup.configuration.device
        slowdown = slowdown_now(self.chain, self.times, training, device=device)
        give_back()
        self._setup.say(Looked(slowdown))
