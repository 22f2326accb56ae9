"""One peer's share of calibration: features of its own samples, and what it contributes to and combines of each step.

Invariant: the features stay here; what leaves are sums over samples. Only tensors that change are sent with every
step: those that don't (mean, whitening) travel with the first state, now and then, and with the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from p2ptrain.config import Job
from p2ptrain.errors import RemoteError
from p2ptrain.learning import calibration
from p2ptrain.learning.averaging import check_state
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.parts import Parts

FIXED = ("mean", "whiten", "class_weight")
FULL_EVERY = 25
"""Steps between states that carry the fixed tensors too, for a peer that missed the first."""
BATCH_SIZE = 256


class HeadFitting:
    """``session`` names the snapshots; give them with ``add_part``, then answer step by step."""

    def __init__(self, job: Job, parts: Parts, session: str, data: Dataset, device: str = "cpu") -> None:
        self.session = session
        self._config = calibration.FitConfig(steps=job.tasks.calibration_steps)
        self._parts = parts
        self._data = data
        self._device = device
        self._num_classes = len(job.data.classes)
        self._columns: list[tuple[Tensor, Tensor | None]] = []
        self._states: dict[int, dict[str, Tensor]] = {}
        self._y = torch.zeros(0, dtype=torch.int64)
        self._x: Tensor | None = None
        self._head: dict[str, Tensor] = {}
        self._fixed: dict[str, Tensor] = {}

    @property
    def num_samples(self) -> int:
        return len(self._data)

    def add_part(self, part: int, state: Mapping[str, Tensor]) -> None:
        """Run one frozen part over the own samples and keep what its head reads. Raises ``RemoteError``."""
        if self._x is not None or part in self._states:
            raise RemoteError("calibration", f"part {part} came twice")
        submodel = self._parts.submodel(part)
        check_state(state, submodel.state_dict())
        submodel.load_state_dict(dict(state))
        head = self._parts.head
        x, self._y = calibration.features(submodel, head, self._own_batches(), device=self._device)
        self._columns.append((x, self._parts.head_columns(part)))
        self._states[part] = {n: t for n, t in state.items() if n.rpartition(".")[0] == head}

    def contribute(self, step: int, state: Mapping[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
        """(samples, sums) for ``step``; the state of step 0 is empty."""
        x = self._features()
        if step == 0:
            return self.num_samples, calibration.moments(x, self._y, self._num_classes)
        sums, samples = calibration.gradient(self._full(state), x, self._y, step)
        return samples, sums

    def combine(
        self, step: int, state: Mapping[str, Tensor], contributions: Sequence[tuple[int, Mapping[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """The state after ``step``, as lead."""
        self._features()
        if step == 0:
            after = calibration.begin(self._head, [sums for _, sums in contributions], self._config)
            self._fixed = {name: after[name] for name in FIXED}
            return after
        after = calibration.advance(self._full(state), contributions, step, self._config)
        last = step == self._config.steps
        return after if last or step % FULL_EVERY == 0 else {n: t for n, t in after.items() if n not in FIXED}

    def combine_sound(
        self, step: int, state: Mapping[str, Tensor], contributions: Sequence[tuple[int, Mapping[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """``combine``, without those contributions that alone would be refused. Raises ``RemoteError``."""
        try:
            return self.combine(step, state, contributions)
        except RemoteError:
            sound = [each for each in contributions if self._is_sound(step, state, each)]
            if not 0 < len(sound) < len(contributions):
                raise
            return self.combine(step, state, sound)

    def _is_sound(self, step: int, state: Mapping[str, Tensor], contribution: tuple[int, Mapping[str, Tensor]]) -> bool:
        try:
            self.combine(step, state, [contribution])
        except RemoteError:
            return False
        return True

    def _full(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        carried = {name: state[name] for name in FIXED if name in state}
        full = dict(state) | (self._fixed if not carried else {})
        calibration.check_fit_state(full, self._num_classes, self._features().shape[1])
        if carried:
            self._fixed = carried
        return full

    def _features(self) -> Tensor:
        """[n, F] of all parts, in the columns of the global head; after this no part can be added."""
        if self._x is None:
            head = self._parts.head
            whole = self._parts.assemble({part: [(1.0, self._with_rest(part))] for part in self._states})
            self._head = {name: whole[f"{head}.{name}"] for name in ("weight", "bias") if f"{head}.{name}" in whole}
            self._x = calibration.join_columns(self._columns, self._head["weight"].shape[1])
            self._columns.clear()
        return self._x

    def _with_rest(self, part: int) -> dict[str, Tensor]:
        """A state with the part's head; its other tensors don't matter to the assembled head."""
        return dict(self._parts.submodel(part).state_dict()) | self._states[part]

    def _own_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The own samples in order, normalised a batch at a time."""
        for start in range(0, len(self._data), BATCH_SIZE):
            yield self._data.tensors(slice(start, start + BATCH_SIZE))
