"""What a job says of this mode alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from p2ptrain.config import Job, ModeTable, check_limits


@dataclass(frozen=True, slots=True)
class ToyConfig(ModeTable):
    TABLE: ClassVar[str] = "toy"
    by: int = 1
    """Numbers grow by so much a round."""

    def check(self, job: Job, where: str) -> None:
        check_limits((("toy.by", self.by, 1, 100),), where)
