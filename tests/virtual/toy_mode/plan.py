"""What a toy plan says: two parts, each with one peer that counts it up, and how far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from p2ptrain.core.plan import Part, Plan, require
from p2ptrain.errors import LocalError
from p2ptrain.wire.schema import Bound

NUM_PARTS = 2


@dataclass(frozen=True, slots=True)
class ToyBody:
    parts: Annotated[tuple[Part, ...], Bound(NUM_PARTS, NUM_PARTS)]
    goal: Annotated[int, Bound(1, 10_000)]
    """Where counting ends."""

    def cut(self) -> Any:
        return self.goal

    def check(self, plan: Plan) -> None:
        require(all(len(part.trainers) <= 1 for part in self.parts), "two peers count one part")


BODIES = {"toy": ToyBody}


def goal_of(plan: Plan) -> int:
    if not isinstance(plan.body, ToyBody):
        raise LocalError("a plan of another mode")
    return plan.body.goal
