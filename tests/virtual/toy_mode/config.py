"""What a job says of this mode alone: nothing yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from p2ptrain.config import ModeTable


@dataclass(frozen=True, slots=True)
class ToyConfig(ModeTable):
    """Its title, for a job file."""

    TABLE: ClassVar[str] = "toy"
