"""How fast a pipeline gets on: batches by the time, as one who looks on sees them.

A change of plan starts the count anew, so a pace is of the last plan alone, and the time that it takes to warm up does
not count.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2ptrain.api import Status
from p2ptrain.modes.pipeline.plan import PipelineBody


@dataclass(frozen=True, slots=True)
class Stint:
    """How long a case trains: until it has measured ``batches`` by one plan, or ``enough_batches`` and ``enough_s`` are
    over; ``most_s`` at most. Seconds since the first device trains."""

    batches: int = 60
    enough_batches: int = 20
    enough_s: float = 50.0
    most_s: float = 110.0
    warm_up_s: float = 10.0
    """Of each plan's training, which does not count."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The group had done ``step`` batches at ``seconds`` since the lab's start, under the plan with this hash."""

    seconds: float
    step: int
    plan: str
    samples: int
    loss: float
    """0 where nobody had said one."""


@dataclass(slots=True)
class Pace:
    """Batches by the time. ``warm_up_s``: of ``Stint``."""

    warm_up_s: float = 0.0
    marks: list[Mark] = field(default_factory=list)
    plans: list[str] = field(default_factory=list)
    began: float | None = None
    """When the first device was training."""
    seconds: float = 0.0

    def look(self, seconds: float, status: Status) -> None:
        self.seconds = seconds
        plan = status.plan.hash if status.plan is not None else ""
        if plan and plan not in self.plans[-1:]:
            self.plans.append(plan)
        training = [record for record in status.records if record.phase == "training"]
        if training and self.began is None:
            self.began = seconds
        step = max((record.step for record in training if record.plan == plan), default=0)
        last = self.marks[-1] if self.marks else None
        begins_at = (
            status.plan.body.from_step if status.plan is not None and isinstance(status.plan.body, PipelineBody) else 0
        )
        if step > begins_at and (last is None or plan != last.plan or step != last.step):
            loss = max((record.loss for record in training if record.step == step), default=0.0)
            samples = max(record.samples for record in training if record.step == step)
            self.marks.append(Mark(seconds, step, plan, samples, loss))

    @property
    def current(self) -> list[Mark]:
        """Of the last plan, without the time in which it warms up: caches fill, and heaps grow."""
        marks = [mark for mark in self.marks if mark.plan == self.plans[-1]] if self.plans else []
        warm_s = marks[0].seconds + self.warm_up_s if marks else 0.0
        return [mark for mark in marks[1:] if mark.seconds >= warm_s]

    @property
    def num_batches(self) -> int:
        points = self.current
        return points[-1].step - points[0].step if points else 0

    def is_enough(self, stint: Stint) -> bool:
        trained = self.seconds - self.began if self.began is not None else 0.0
        least = stint.enough_batches if trained >= stint.enough_s else stint.batches
        return self.num_batches >= least

    @property
    def steps_per_s(self) -> float:
        """Raises ``TimeoutError`` where there are too few."""
        points = self.current
        if self.num_batches < 2 or len(points) < 2:
            raise TimeoutError("too few batches to measure; give it more time")
        return self.num_batches / (points[-1].seconds - points[0].seconds)
